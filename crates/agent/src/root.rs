//! The sandbox's root directory, beneath which every path is looked up.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use pinfold_linux::weaken::{Defence, is_off};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Longest path, as the kernel has it.
pub(crate) const PATH_BYTES_MAX: usize = 4096;
/// How often an `openat2` that raced with a rename is tried again.
const RESOLVE_ATTEMPTS: usize = 16;

/// The root directory.
#[derive(Debug)]
pub(crate) struct Root {
    handle: OwnedFd,
}

impl Root {
    /// Opens it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
        Ok(Self { handle })
    }

    /// Opens an absolute path as a process inside would: links are followed, and none leads out.
    pub(crate) fn resolve(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let relative = match path.trim_start_matches('/') {
            "" => ".",
            relative => relative,
        };
        let rules = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut flags = flags | OFlags::CLOEXEC;
        if !flags.contains(OFlags::PATH) {
            flags |= OFlags::NOCTTY;
        }
        let mut last = Errno::AGAIN;
        for _ in 0..RESOLVE_ATTEMPTS {
            match rustix::fs::openat2(&self.handle, relative, flags, Mode::empty(), rules) {
                Err(errno @ (Errno::AGAIN | Errno::INTR)) => last = errno,
                done => return Ok(done?),
            }
        }
        Err(last.into())
    }

    /// Opens a regular file for reading; a pipe or device in its place is refused unread.
    pub(crate) fn open_regular(&self, path: &str) -> io::Result<File> {
        if is_off(Defence::FileKinds) {
            return Ok(File::from(self.resolve(path, OFlags::RDONLY)?));
        }
        let file = self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
        match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
            FileType::RegularFile => Ok(File::from(file)),
            FileType::Directory => Err(Errno::ISDIR.into()),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is a pipe, socket or device and not a file",
            )),
        }
    }

    /// Reads a small regular file; what is longer than `limit` is cut.
    pub(crate) fn read_small(&self, path: &str, limit: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        self.open_regular(path)?
            .take(limit)
            .read_to_end(&mut content)?;
        Ok(content)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_never_lead_out() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("in");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(outer.path().join("secret"), "s").unwrap();
        std::fs::write(inner.join("secret"), "inside").unwrap();
        std::os::unix::fs::symlink("../secret", inner.join("up")).unwrap();
        std::os::unix::fs::symlink("/secret", inner.join("absolute")).unwrap();
        let root = Root::open(&inner).unwrap();
        for path in ["/up", "/absolute", "/../../secret", "//secret"] {
            assert_eq!(root.read_small(path, 100).unwrap(), b"inside", "{path}");
        }
        assert_eq!(root.read_small("/secret", 2).unwrap(), b"in");
        assert!(root.open_regular("/").is_err());
    }
}
