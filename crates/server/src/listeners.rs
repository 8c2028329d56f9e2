//! Where requests come in.

use std::net::SocketAddr;

use tokio::net::{TcpListener, UnixListener};

use crate::tls::Tls;

/// What a server listens on.
#[derive(Debug)]
pub struct Listeners {
    /// The socket of this host's users, whom the kernel names.
    pub unix: UnixListener,
    /// The port of everybody else.
    pub tcp: Option<TcpDoor>,
}

impl From<UnixListener> for Listeners {
    fn from(unix: UnixListener) -> Self {
        Self { unix, tcp: None }
    }
}

/// Who may come in by a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Whoever shows a key.
    Keys,
    /// Every program of this machine, as the daemon's own user.
    Development,
}

/// A port that requests come in by.
#[derive(Debug)]
pub struct TcpDoor {
    pub(crate) listener: TcpListener,
    pub(crate) entry: Entry,
    pub(crate) tls: Option<Tls>,
}

/// A port that lets everybody in must not be reached from elsewhere.
#[derive(Debug, thiserror::Error)]
#[error("{address} can be reached from other machines, and development needs no key")]
pub struct DoorError {
    /// Where it listens.
    pub address: SocketAddr,
}

impl TcpDoor {
    /// Returns where it is; nowhere when the kernel does not say.
    pub fn address(&self) -> SocketAddr {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        self.listener.local_addr().unwrap_or(nowhere)
    }

    /// Lets in whoever shows a key, over TLS when there is any.
    pub const fn with_keys(listener: TcpListener, tls: Option<Tls>) -> Self {
        Self {
            listener,
            entry: Entry::Keys,
            tls,
        }
    }

    /// Lets in every program of this machine without a key.
    ///
    /// # Errors
    ///
    /// Returns [`DoorError`] when the port is not on a loopback address.
    pub fn for_development(listener: TcpListener) -> Result<Self, DoorError> {
        match listener.local_addr() {
            Ok(address) if address.ip().is_loopback() => Ok(Self {
                listener,
                entry: Entry::Development,
                tls: None,
            }),
            Ok(address) => Err(DoorError { address }),
            Err(_) => Err(DoorError {
                address: SocketAddr::from(([0, 0, 0, 0], 0)),
            }),
        }
    }
}
