//! Connects to a port of the sandbox's own loopback.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most connections at once; each takes two descriptors.
const DIALS_MAX: usize = 256;
/// How long connecting may take on a loopback whose listener is busy.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// A port could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nothing listens.
    #[error("nothing in the sandbox listens on port {port}")]
    Refused {
        /// The port.
        port: u16,
        /// What connecting answered.
        #[source]
        source: io::Error,
    },
    /// Something listens and does not accept.
    #[error("port {port} did not accept within {} s", CONNECT_TIME.as_secs())]
    Silent {
        /// The port.
        port: u16,
    },
    /// There are too many already.
    #[error("there are {DIALS_MAX} connections to ports of this sandbox; close some")]
    Busy,
}

/// A connection and its place among the allowed ones.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
}

/// Makes connections.
#[derive(Debug)]
pub(crate) struct Dials {
    free: Arc<Semaphore>,
}

impl Default for Dials {
    fn default() -> Self {
        Self {
            free: Arc::new(Semaphore::new(DIALS_MAX)),
        }
    }
}

impl Dials {
    /// Makes none: what is fuzzed must not reach the ports of its host.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn closed() -> Self {
        Self {
            free: Arc::new(Semaphore::new(0)),
        }
    }

    /// Connects to a port of `127.0.0.1` or else of `::1`.
    pub(crate) async fn connect(&self, port: u16) -> Result<Connection, DialError> {
        let place = Arc::clone(&self.free)
            .try_acquire_owned()
            .map_err(|_| DialError::Busy)?;
        let attempt = async {
            let first = IpAddr::V4(Ipv4Addr::LOCALHOST);
            match TcpStream::connect((first, port)).await {
                Ok(stream) => Ok(stream),
                Err(error) => {
                    let second = IpAddr::V6(Ipv6Addr::LOCALHOST);
                    // What IPv4 said is the better reason.
                    TcpStream::connect((second, port)).await.map_err(|_| error)
                }
            }
        };
        match tokio::time::timeout(CONNECT_TIME, attempt).await {
            Ok(Ok(stream)) => Ok(Connection {
                stream,
                _place: place,
            }),
            Ok(Err(source)) => Err(DialError::Refused { port, source }),
            Err(_) => Err(DialError::Silent { port }),
        }
    }
}

/// Carries bytes both ways until both sides have ended.
pub(crate) async fn join(mut host: impl AsyncRead + AsyncWrite + Unpin, connection: Connection) {
    let mut connection = connection;
    // A broken connection is for its two ends to notice.
    drop(tokio::io::copy_bidirectional(&mut host, &mut connection.stream).await);
}
