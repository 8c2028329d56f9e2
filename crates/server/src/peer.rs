//! Who is on the other end of a connection, as the kernel proves it, and whether they may be.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use pinfold_engine::Caller;
use pinfold_types::{ErrorCode, Principal, Role};
use tokio::net::UnixStream;

use crate::error::ApiError;
use crate::leash::Leash;
use crate::options::ServerOptions;

/// What a connection has proved before its first request.
#[derive(Debug, Clone)]
pub(crate) enum Door {
    /// The kernel says which user of this host it is.
    Local {
        caller: Caller,
        /// Its process id; none when it is in a pid namespace that this one does not see.
        pid: Option<i32>,
    },
    /// A port that takes every program of this machine for the daemon's own user.
    Development { caller: Caller },
    /// A port that knows nobody: each request shows a key, and its key holds the connection.
    Keys { leash: Leash },
}

/// The other end of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) door: Door,
    /// Where it comes from, when it comes over the network.
    pub(crate) address: Option<SocketAddr>,
    /// Why its requests are refused, when they are.
    pub(crate) refused: Option<ApiError>,
}

impl Peer {
    pub(crate) const fn new(door: Door, address: SocketAddr) -> Self {
        Self {
            door,
            address: Some(address),
            refused: None,
        }
    }

    pub(crate) const fn pid(&self) -> Option<i32> {
        match self.door {
            Door::Local { pid, .. } => pid,
            Door::Development { .. } | Door::Keys { .. } => None,
        }
    }
}

/// Reads the credentials that the peer had when it connected.
pub(crate) fn identify(
    stream: &UnixStream,
    options: &ServerOptions,
) -> std::io::Result<(Principal, Peer)> {
    let credentials = stream.peer_cred()?;
    let uid = credentials.uid();
    let caller = Caller::of_host(uid, credentials.gid(), role(uid, options.own_uid));
    let pid = credentials.pid();
    let peer = Peer {
        door: Door::Local { caller, pid },
        address: None,
        refused: refusal(uid, options.own_uid),
    };
    Ok((Principal::User(uid), peer))
}

/// Whom the daemon runs as is its admin.
const fn role(uid: u32, own_uid: u32) -> Role {
    if uid == own_uid {
        Role::Admin
    } else {
        Role::User
    }
}

/// Root's daemon serves all whom the socket's mode lets in; a user's serves that user only.
fn refusal(uid: u32, own_uid: u32) -> Option<ApiError> {
    if own_uid == 0 || uid == own_uid {
        return None;
    }
    let error = ApiError::new(
        ErrorCode::PermissionDenied,
        format!("this daemon serves uid {own_uid} only, and you are uid {uid}"),
    );
    Some(error.hint("start a daemon of your own with `pinfold serve`"))
}

/// Counts the connections of each user or address.
#[derive(Debug, Clone)]
pub(crate) struct Connections<K> {
    counts: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K> Default for Connections<K> {
    fn default() -> Self {
        Self {
            counts: Arc::default(),
        }
    }
}

impl<K: Clone + Eq + Hash> Connections<K> {
    /// Counts one more; the count falls when the place is dropped.
    pub(crate) fn enter(&self, whose: K) -> Place<K> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(whose.clone()).or_insert(0);
        *count += 1;
        Place {
            connections: Self {
                counts: Arc::clone(&self.counts),
            },
            whose,
            number: *count,
        }
    }
}

/// One counted connection.
#[derive(Debug)]
pub(crate) struct Place<K: Eq + Hash> {
    connections: Connections<K>,
    whose: K,
    /// How many there were with this one.
    pub(crate) number: usize,
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let counts = &self.connections.counts;
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.whose) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.whose);
            }
        }
    }
}

/// Returns the refusal for one connection too many.
pub(crate) fn too_many_connections(limit: usize) -> ApiError {
    ApiError::new(
        ErrorCode::LimitExceeded,
        format!("you have more than {limit} connections to the daemon"),
    )
    .details(serde_json::json!({ "limit": limit }))
    .hint("close some, or try again later")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_daemon_serves_that_user_only() {
        assert!(refusal(1000, 1000).is_none());
        assert!(refusal(0, 1000).is_some());
        assert!(refusal(1001, 1000).is_some());
        assert!(refusal(1001, 0).is_none());
    }

    #[test]
    fn places_are_given_back() {
        let connections = Connections::default();
        let first = connections.enter(Principal::User(7));
        let second = connections.enter(Principal::User(7));
        assert_eq!((first.number, second.number), (1, 2));
        assert_eq!(connections.enter(Principal::User(8)).number, 1);
        drop((first, second));
        assert!(connections.counts.lock().unwrap().is_empty());
    }
}
