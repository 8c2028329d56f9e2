//! The lock that keeps two daemons from one state directory.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::error::OpenError;

/// Name of the lock file in the state directory.
pub(crate) const LOCK_FILE: &str = "pinfold.lock";

/// Most bytes read of a lock file: a process id and a line's end.
const LOCK_BYTES_MAX: u64 = 16;

/// Holds the lock until it is dropped; the kernel drops it with the process.
#[derive(Debug)]
pub(crate) struct StateLock {
    _file: File,
}

impl StateLock {
    /// Takes the lock or says who has it.
    pub(crate) fn take(state_dir: &Path) -> Result<Self, OpenError> {
        let path = state_dir.join(LOCK_FILE);
        let failed = |what| {
            let path = path.clone();
            move |source| OpenError::State { what, path, source }
        };
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let read = (&mut file).take(LOCK_BYTES_MAX).read_to_string(&mut text);
                return Err(OpenError::Locked {
                    path: state_dir.to_owned(),
                    pid: read.ok().and_then(|_| text.trim().parse().ok()),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock")(source)),
        }
        // Who holds the lock is for people only, so a full disk must not keep the daemon away.
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        if let Err(error) = written {
            tracing::warn!(error = %crate::error::chain(&error), "lock file not written");
        }
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_daemon_is_told_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateLock::take(dir.path()).unwrap();
        let error = StateLock::take(dir.path()).unwrap_err();
        assert!(
            matches!(&error, OpenError::Locked { pid: Some(pid), .. } if *pid == std::process::id())
        );
        assert!(error.hint().unwrap().contains("kill"));
        drop(first);
        StateLock::take(dir.path()).unwrap();
    }
}
