//! Whom the client trusts: itself and root, nobody else.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;

use crate::error::ClientError;

/// Longest time to connect. A Unix socket connects at once unless its queue is full.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Connects to a socket whose file and whose listener belong to `own_uid` or root.
///
/// Both are checked: the file's owner says who could have put it there, the listener's credentials
/// who answers on it, whatever happened to the path in between.
pub(crate) async fn connect(socket: &Path, own_uid: u32) -> Result<UnixStream, ClientError> {
    let metadata = std::fs::metadata(socket).map_err(|source| failed(socket, source))?;
    check_owner(socket, metadata.uid(), own_uid)?;
    let stream = tokio::time::timeout(CONNECT_MAX, UnixStream::connect(socket))
        .await
        .map_err(|_| ClientError::TimedOut {
            waited: CONNECT_MAX,
        })?
        .map_err(|source| failed(socket, source))?;
    let peer = stream.peer_cred().map_err(ClientError::transport)?;
    check_owner(socket, peer.uid(), own_uid)?;
    Ok(stream)
}

fn failed(socket: &Path, source: std::io::Error) -> ClientError {
    use std::io::ErrorKind;
    let socket = socket.to_owned();
    match source.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            ClientError::NoDaemon { socket, source }
        }
        _ => ClientError::Socket { socket, source },
    }
}

fn check_owner(socket: &Path, owner: u32, own_uid: u32) -> Result<(), ClientError> {
    if owner == own_uid || owner == 0 {
        return Ok(());
    }
    Err(ClientError::ForeignSocket {
        socket: socket.to_owned(),
        owner,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ourselves_and_root_are_trusted() {
        let check = |owner, own| check_owner(Path::new("/s"), owner, own);
        assert!(check(1000, 1000).is_ok());
        assert!(check(0, 1000).is_ok());
        assert!(check(0, 0).is_ok());
        for (owner, own) in [(1001, 1000), (1000, 0)] {
            let error = check(owner, own).unwrap_err();
            assert!(
                error
                    .to_string()
                    .starts_with(&format!("socket is owned by uid {owner}")),
                "{error}"
            );
            assert!(error.hint().is_some());
        }
    }

    #[tokio::test]
    async fn a_missing_and_a_dead_socket_have_no_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let own = rustix::process::geteuid().as_raw();
        let missing = connect(&socket, own).await.unwrap_err();
        assert!(matches!(missing, ClientError::NoDaemon { .. }), "{missing}");
        drop(tokio::net::UnixListener::bind(&socket).unwrap());
        let dead = connect(&socket, own).await.unwrap_err();
        assert!(matches!(dead, ClientError::NoDaemon { .. }), "{dead}");
    }

    #[tokio::test]
    async fn the_socket_of_another_user_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let _listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let own = rustix::process::geteuid().as_raw();
        // Root's sockets are trusted by all, so root gives its socket away and stays itself, and an
        // ordinary user keeps the socket and asks as somebody else.
        let (asker, owner) = if own == 0 {
            std::os::unix::fs::chown(&socket, Some(65_534), None).unwrap();
            (0, 65_534)
        } else {
            (own + 1, own)
        };
        let error = connect(&socket, asker).await.unwrap_err();
        assert!(
            matches!(error, ClientError::ForeignSocket { owner: found, .. } if found == owner),
            "{error}"
        );
    }
}
