//! The daemon's socket: made with the right owner and mode, and taken over from a dead daemon only.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use pinfold_linux::weaken::{Defence, is_off};

use crate::autostart::check_socket;
use crate::error::CliError;

/// Group whose members may use root's daemon.
const GROUP: &str = "pinfold";

/// Most bytes of `/etc/group` that are looked at.
const GROUP_FILE_BYTES_MAX: u64 = 4 << 20;

/// A socket that requests come in by; its file goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Listening {
    path: PathBuf,
    made: Stamp,
}

/// What tells a file from a later one at the same path: inode numbers are used again.
type Stamp = (u64, i64, i64);

fn stamp(path: &Path) -> io::Result<Stamp> {
    let file = std::fs::symlink_metadata(path)?;
    Ok((file.ino(), file.ctime(), file.ctime_nsec()))
}

/// Makes the socket. Only the owner can connect until its mode is set.
///
/// # Errors
///
/// Fails when something else is there, or another daemon answers.
pub(crate) fn listen(path: &Path) -> Result<(UnixListener, Listening), CliError> {
    let failed = || CliError::new(format!("failed to listen at {}", path.display()));
    let root = rustix::process::geteuid().is_root();
    check_socket(path)?;
    if let Some(directory) = path.parent() {
        // Members of the group must get through root's directory.
        let mode = if root { 0o755 } else { 0o700 };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(directory)
            .map_err(|error| failed().caused_by(&error))?;
    }
    clear(path)?;
    let listener = UnixListener::bind(path).map_err(|error| failed().caused_by(&error))?;
    let group = if root { group_id(GROUP) } else { None };
    let prepare = || -> io::Result<Stamp> {
        if let Some(group) = group {
            std::os::unix::fs::chown(path, None, Some(group))?;
        }
        let mode = match group {
            _ if is_off(Defence::SocketMode) => 0o666,
            Some(_) => 0o660,
            None => 0o600,
        };
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode))?;
        listener.set_nonblocking(true)?;
        stamp(path)
    };
    let made = prepare().map_err(|error| failed().caused_by(&error))?;
    let path = path.to_owned();
    Ok((listener, Listening { path, made }))
}

impl Drop for Listening {
    fn drop(&mut self) {
        let ours = stamp(&self.path).is_ok_and(|stamp| stamp == self.made);
        if ours {
            let _already_gone = std::fs::remove_file(&self.path);
        }
    }
}

/// Removes the socket of a daemon that no longer lives, and nothing else.
fn clear(path: &Path) -> Result<(), CliError> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(
            CliError::new(format!("{} is there and is no socket", path.display()))
                .hint("move it away, or name another socket with --socket"),
        );
    }
    if UnixStream::connect(path).is_ok() {
        return Err(
            CliError::new(format!("another daemon answers at {}", path.display()))
                .hint("use it, or name another socket with --socket"),
        );
    }
    std::fs::remove_file(path).map_err(|error| {
        CliError::new(format!(
            "failed to remove the dead socket {}",
            path.display()
        ))
        .caused_by(&error)
    })
}

/// Finds a group without asking the name service, which may wait for the network.
fn group_id(name: &str) -> Option<u32> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open("/etc/group").ok()?;
    file.take(GROUP_FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name))
            .then(|| fields.nth(1))
            .flatten()
            .and_then(|id| id.parse().ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_dead_socket_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("below/s");
        let (first, guard) = listen(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().mode() & 0o777;
        assert!(mode == 0o600 || mode == 0o660, "{mode:o}");
        assert!(
            listen(&path)
                .unwrap_err()
                .message()
                .contains("another daemon")
        );
        drop(first);
        let (_second, second_guard) = listen(&path).unwrap();
        // The first one's end must not take the second one's file away.
        drop(guard);
        assert!(path.exists());
        drop(second_guard);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(listen(&path).unwrap_err().message().contains("no socket"));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn groups_are_read_from_the_file() {
        assert_eq!(group_id("root"), Some(0));
        assert_eq!(group_id("surely-no-such-group"), None);
    }
}
