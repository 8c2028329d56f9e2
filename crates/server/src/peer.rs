//! Who is on the other end of a connection, as the kernel proves it, and whether they may be.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use pinfold_engine::Caller;
use pinfold_types::{ErrorCode, Principal, Role};
use tokio::net::UnixStream;

use crate::error::ApiError;
use crate::options::ServerOptions;

/// The process at the other end of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) caller: Caller,
    /// Its process id; none when it is in a pid namespace that this one does not see.
    pub(crate) pid: Option<i32>,
    /// Why its requests are refused, when they are.
    pub(crate) refused: Option<ApiError>,
}

/// Reads the credentials that the peer had when it connected.
pub(crate) fn identify(stream: &UnixStream, options: &ServerOptions) -> std::io::Result<Peer> {
    let credentials = stream.peer_cred()?;
    let uid = credentials.uid();
    Ok(Peer {
        caller: Caller::of_host(uid, credentials.gid(), role(uid, options.own_uid)),
        pid: credentials.pid(),
        refused: refusal(uid, options.own_uid),
    })
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

/// Counts the connections of each user.
#[derive(Debug, Clone, Default)]
pub(crate) struct Connections {
    counts: Arc<Mutex<HashMap<Principal, usize>>>,
}

impl Connections {
    /// Counts one more; the count falls when the place is dropped.
    pub(crate) fn enter(&self, principal: Principal) -> Place {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(principal.clone()).or_insert(0);
        *count += 1;
        Place {
            connections: self.clone(),
            principal,
            number: *count,
        }
    }
}

/// One counted connection.
#[derive(Debug)]
pub(crate) struct Place {
    connections: Connections,
    principal: Principal,
    /// How many there were with this one.
    pub(crate) number: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        let counts = &self.connections.counts;
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.principal) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.principal);
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
