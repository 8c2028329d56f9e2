//! Operations beneath a directory descriptor that never leave it.
//!
//! Every parent is resolved with `openat2` and follows no link of any kind; the last name is then
//! used relative to that parent, and never followed.

use std::ffi::{CString, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RawDir, ResolveFlags, Stat, Uid};
use rustix::io::Errno;

use crate::weaken::{Defence, is_off};

/// How many directories deep [`Beneath::remove_all`] goes before it moves a directory up instead.
pub const REMOVE_DEPTH_LIMIT: usize = 64;

/// How many bytes of directory entries are read at once.
const ENTRY_BUFFER_BYTES: usize = 16 * 1024;

/// How often an `openat2` that raced with a rename is tried again.
const RESOLVE_ATTEMPTS: usize = 16;

/// An operation beneath a directory failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} `{}`", path.display())]
pub struct BeneathError {
    /// What was to be done.
    pub operation: &'static str,
    /// The path it was to be done to, relative to the directory.
    pub path: PathBuf,
    /// Why the kernel refused.
    #[source]
    pub source: io::Error,
}

/// A directory which operations are done beneath.
#[derive(Debug)]
pub struct Beneath {
    root: OwnedFd,
}

impl Beneath {
    /// Opens the directory at a trusted path.
    ///
    /// # Errors
    /// Fails if the path is not a directory that can be opened.
    pub fn open(path: &Path) -> Result<Self, BeneathError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, path, flags, Mode::empty());
        root.map(|root| Self { root }).map_err(failed("open", path))
    }

    /// Takes a directory that is open, also one that was opened only as a path.
    pub fn from_descriptor(root: OwnedFd) -> Self {
        Self { root }
    }

    /// Opens what exists at `path`, never following a link and never waiting.
    ///
    /// Always non-blocking: where a FIFO stands in for a file, a plain open would wait for ever for
    /// its other end. For a regular file the flag has no effect.
    ///
    /// # Errors
    /// Fails if nothing is there, or the path crosses a link or leaves the directory.
    pub fn open_file(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, BeneathError> {
        let flags = flags.difference(OFlags::CREATE) | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        resolve(self.root.as_fd(), path, flags).map_err(failed("open", path))
    }

    /// Creates a regular file that must not exist and opens it for writing.
    ///
    /// # Errors
    /// Fails if something is there, or the path crosses a link or leaves the directory.
    pub fn create_file(&self, path: &Path, mode: Mode) -> Result<OwnedFd, BeneathError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.at(path, "create", |parent, name| {
            rustix::fs::openat(parent, name, flags, mode)
        })
    }

    /// Makes one directory.
    ///
    /// # Errors
    /// Fails if something is there, or the path crosses a link or leaves the directory.
    pub fn mkdir(&self, path: &Path, mode: Mode) -> Result<(), BeneathError> {
        self.at(path, "make directory", |parent, name| {
            rustix::fs::mkdirat(parent, name, mode)
        })
    }

    /// Makes a directory and those above it, keeping those that exist.
    ///
    /// # Errors
    /// Fails if a part of the path is not a directory, or it leaves the directory.
    pub fn mkdir_all(&self, path: &Path, mode: Mode) -> Result<(), BeneathError> {
        let failed = |errno| failed("make directory", path)(errno);
        if is_off(Defence::Beneath) && resolve_dir(self.root.as_fd(), path).is_ok() {
            return Ok(());
        }
        let mut current = resolve_dir(self.root.as_fd(), Path::new(".")).map_err(failed)?;
        for part in path.components() {
            let name = match part {
                Component::Normal(name) => name,
                Component::CurDir => continue,
                _ => return Err(failed(Errno::XDEV)),
            };
            match rustix::fs::mkdirat(&current, name, mode) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed(errno)),
            }
            current = resolve_dir(current.as_fd(), Path::new(name)).map_err(failed)?;
        }
        Ok(())
    }

    /// Makes a symbolic link whose target is kept as it is and never resolved.
    ///
    /// # Errors
    /// Fails if something is there, or the path crosses a link or leaves the directory.
    pub fn symlink(&self, target: &Path, path: &Path) -> Result<(), BeneathError> {
        self.at(path, "link", |parent, name| {
            rustix::fs::symlinkat(target, parent, name)
        })
    }

    /// Makes a second name for an entry beneath this directory.
    ///
    /// # Errors
    /// Fails if either path crosses a link or leaves the directory, or the new one exists.
    pub fn hard_link(&self, existing: &Path, path: &Path) -> Result<(), BeneathError> {
        let (old_parent, old_name) = self.parent(existing).map_err(failed("link", existing))?;
        self.at(path, "link", |parent, name| {
            rustix::fs::linkat(&old_parent, old_name, parent, name, AtFlags::empty())
        })
    }

    /// Makes a named pipe.
    ///
    /// # Errors
    /// Fails if something is there, or the path crosses a link or leaves the directory.
    pub fn mkfifo(&self, path: &Path, mode: Mode) -> Result<(), BeneathError> {
        self.at(path, "make pipe", |parent, name| {
            rustix::fs::mknodat(parent, name, FileType::Fifo, mode, 0)
        })
    }

    /// Makes a character device, as no product does: for a test that leaves the check of kinds out.
    ///
    /// # Errors
    /// Fails if something is there, the caller may not, or the path crosses a link or leaves the
    /// directory.
    pub fn mkdevice(&self, path: &Path, (major, minor): (u32, u32)) -> Result<(), BeneathError> {
        let device = rustix::fs::makedev(major, minor);
        self.at(path, "make device", |parent, name| {
            let mode = Mode::from_raw_mode(0o666);
            rustix::fs::mknodat(parent, name, FileType::CharacterDevice, mode, device)
        })
    }

    /// Sets the owner of an entry, also of a link itself.
    ///
    /// # Errors
    /// Fails if nothing is there, the caller may not, or the path crosses a link or leaves the
    /// directory.
    pub fn set_owner_at(&self, path: &Path, user: Uid, group: Gid) -> Result<(), BeneathError> {
        self.at(path, "set owner of", |parent, name| {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(parent, name, Some(user), Some(group), flags)
        })
    }

    /// Sets the times of an entry, also of a link itself.
    ///
    /// # Errors
    /// Fails if nothing is there, the caller may not, or the path crosses a link or leaves the
    /// directory.
    pub fn set_times_at(
        &self,
        path: &Path,
        times: &rustix::fs::Timestamps,
    ) -> Result<(), BeneathError> {
        self.at(path, "set times of", |parent, name| {
            rustix::fs::utimensat(parent, name, times, AtFlags::SYMLINK_NOFOLLOW)
        })
    }

    /// Removes an entry that is no directory.
    ///
    /// # Errors
    /// Fails if nothing or a directory is there, or the path crosses a link or leaves the directory.
    pub fn remove_file(&self, path: &Path) -> Result<(), BeneathError> {
        self.at(path, "remove", |parent, name| {
            rustix::fs::unlinkat(parent, name, AtFlags::empty())
        })
    }

    /// Describes an entry, never following a link.
    ///
    /// # Errors
    /// Fails if nothing is there, or the path crosses a link or leaves the directory.
    pub fn stat(&self, path: &Path) -> Result<Stat, BeneathError> {
        self.at(path, "stat", |parent, name| {
            rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        })
    }

    /// Removes an entry and everything in it, never following a link.
    ///
    /// Nothing may write beneath it meanwhile: entries added as fast as they are removed would keep
    /// it busy.
    ///
    /// # Errors
    /// Fails if nothing is there, or the path crosses a link or leaves the directory.
    pub fn remove_all(&self, path: &Path) -> Result<(), BeneathError> {
        self.at(path, "remove", |parent, name| {
            let name = CString::new(name.as_encoded_bytes()).map_err(|_| Errno::INVAL)?;
            match rustix::fs::unlinkat(parent, &name, AtFlags::empty()) {
                Err(Errno::ISDIR | Errno::PERM) => {}
                done => return done,
            }
            let directory = open_to_empty(parent, &name)?;
            if is_off(Defence::TreeBounds) {
                walk_by_path(&directory)?;
            }
            empty(directory)?;
            rustix::fs::unlinkat(parent, &name, AtFlags::REMOVEDIR)
        })
    }

    fn parent<'a>(&self, path: &'a Path) -> Result<(OwnedFd, &'a OsStr), Errno> {
        let name = path.file_name().ok_or(Errno::XDEV)?;
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let parent = resolve_dir(self.root.as_fd(), parent.unwrap_or(Path::new(".")))?;
        Ok((parent, name))
    }

    fn at<T>(
        &self,
        path: &Path,
        operation: &'static str,
        act: impl FnOnce(BorrowedFd<'_>, &OsStr) -> Result<T, Errno>,
    ) -> Result<T, BeneathError> {
        self.parent(path)
            .and_then(|(parent, name)| act(parent.as_fd(), name))
            .map_err(failed(operation, path))
    }
}

/// Sets the permissions of an open file.
///
/// # Errors
/// Fails if the caller may not.
pub fn set_mode(file: BorrowedFd<'_>, mode: Mode) -> io::Result<()> {
    Ok(rustix::fs::fchmod(file, mode)?)
}

/// Sets the owner of an open file.
///
/// # Errors
/// Fails if the caller may not.
pub fn set_owner(file: BorrowedFd<'_>, user: Uid, group: Gid) -> io::Result<()> {
    Ok(rustix::fs::fchown(file, Some(user), Some(group))?)
}

/// Sets the times of an open file.
///
/// # Errors
/// Fails if the caller may not.
pub fn set_times(file: BorrowedFd<'_>, times: &rustix::fs::Timestamps) -> io::Result<()> {
    Ok(rustix::fs::futimens(file, times)?)
}

fn failed(operation: &'static str, path: &Path) -> impl Fn(Errno) -> BeneathError {
    move |errno| BeneathError {
        operation,
        path: path.to_owned(),
        source: errno.into(),
    }
}

fn resolve(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    if is_off(Defence::Beneath) {
        return rustix::fs::openat(root, path, flags | OFlags::CLOEXEC, Mode::empty());
    }
    let rules = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut last = Errno::AGAIN;
    for _ in 0..RESOLVE_ATTEMPTS {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), rules) {
            Err(errno @ (Errno::AGAIN | Errno::INTR)) => last = errno,
            done => return done,
        }
    }
    Err(last)
}

fn resolve_dir(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    resolve(root, path, OFlags::PATH | OFlags::DIRECTORY)
}

/// Opens a directory so that its entries can be listed and removed, whatever its mode was.
fn open_to_empty(parent: BorrowedFd<'_>, name: &CString) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::openat(parent, name, flags | OFlags::PATH, Mode::empty())?;
    if !rustix::process::geteuid().is_root() {
        let itself = format!("/proc/self/fd/{}", handle.as_raw_fd());
        rustix::fs::chmod(itself, Mode::RWXU)?;
    }
    rustix::fs::openat(&handle, c".", flags | OFlags::RDONLY, Mode::empty())
}

/// Empties a directory with a bounded number of descriptors and bounded memory.
fn empty(top: OwnedFd) -> Result<(), Errno> {
    let mut buffer = vec![MaybeUninit::<u8>::uninit(); ENTRY_BUFFER_BYTES];
    let mut above: Vec<(OwnedFd, CString)> = Vec::new();
    let mut current = top;
    let mut moved = 0_u64;
    loop {
        match first_directory(&current, &mut buffer)? {
            Some(name) if above.len() < REMOVE_DEPTH_LIMIT => {
                let child = open_to_empty(current.as_fd(), &name)?;
                above.push((std::mem::replace(&mut current, child), name));
            }
            Some(name) => {
                let Some((top, _)) = above.first() else {
                    return Err(Errno::LOOP);
                };
                move_up(&current, &name, top, &mut moved)?;
            }
            None => match above.pop() {
                Some((parent, name)) => {
                    rustix::fs::unlinkat(&parent, &name, AtFlags::REMOVEDIR)?;
                    current = parent;
                }
                None => return Ok(()),
            },
        }
    }
}

/// Looks at a tree by paths from its top, as whoever empties it so has to: for a test that leaves
/// out that [`empty`] needs no path.
fn walk_by_path(top: &OwnedFd) -> Result<(), Errno> {
    let mut waiting = vec![PathBuf::from(format!("/proc/self/fd/{}", top.as_raw_fd()))];
    let failed = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    while let Some(path) = waiting.pop() {
        for entry in std::fs::read_dir(path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    Ok(())
}

/// Moves a directory that is too deep to the top, under a name that is not taken.
fn move_up(from: &OwnedFd, name: &CString, top: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    loop {
        *moved += 1;
        let target = format!(".pinfold-removed-{moved}");
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(from, name, top, target, flags) {
            Err(Errno::EXIST) => {}
            done => return done,
        }
    }
}

/// Removes entries until one is a directory, and returns its name.
fn first_directory(
    dir: &OwnedFd,
    buffer: &mut [MaybeUninit<u8>],
) -> Result<Option<CString>, Errno> {
    loop {
        rustix::fs::seek(dir, rustix::fs::SeekFrom::Start(0))?;
        let mut entries = RawDir::new(dir, &mut *buffer);
        let mut removed = false;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => removed = true,
                Err(Errno::ISDIR) => return Ok(Some(name.to_owned())),
                Err(errno) => return Err(errno),
            }
        }
        if !removed {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_the_directory() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("in");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(outer.path().join("secret"), "s").unwrap();
        std::os::unix::fs::symlink("..", inner.join("up")).unwrap();
        let beneath = Beneath::open(&inner).unwrap();
        for path in ["../new", "/tmp/new", "up/new", "..", "a/../../new"] {
            let path = Path::new(path);
            assert!(
                beneath.create_file(path, Mode::RUSR).is_err(),
                "{}",
                path.display()
            );
            assert!(
                beneath.mkdir(path, Mode::RWXU).is_err(),
                "{}",
                path.display()
            );
            assert!(
                beneath.mkdir_all(path, Mode::RWXU).is_err(),
                "{}",
                path.display()
            );
        }
        assert!(
            beneath
                .hard_link(Path::new("up/secret"), Path::new("x"))
                .is_err()
        );
        assert!(beneath.open_file(Path::new("up"), OFlags::RDONLY).is_err());
        assert!(!outer.path().join("new").exists());
        beneath.remove_all(Path::new("up")).unwrap();
        assert!(outer.path().join("secret").exists());
    }

    #[test]
    fn removes_wide_deep_and_closed_trees() {
        let outer = tempfile::tempdir().unwrap();
        let beneath = Beneath::open(outer.path()).unwrap();
        let deep: PathBuf = std::iter::repeat_n("d", REMOVE_DEPTH_LIMIT * 3).collect();
        beneath
            .mkdir_all(&Path::new("t").join(deep), Mode::RWXU)
            .unwrap();
        for number in 0..2000 {
            beneath
                .mkfifo(&PathBuf::from(format!("t/f{number}")), Mode::RUSR)
                .unwrap();
        }
        beneath
            .symlink(Path::new("/"), Path::new("t/root"))
            .unwrap();
        beneath.mkdir(Path::new("t/closed"), Mode::empty()).unwrap();
        beneath.remove_all(Path::new("t")).unwrap();
        assert!(beneath.stat(Path::new("t")).is_err());
    }

    #[test]
    fn a_fifo_in_place_of_a_file_does_not_make_the_caller_wait() {
        let directory = tempfile::tempdir().unwrap();
        let beneath = Beneath::open(directory.path()).unwrap();
        beneath
            .mkfifo(Path::new("file"), Mode::from_raw_mode(0o600))
            .unwrap();
        let file = beneath
            .open_file(Path::new("file"), OFlags::RDONLY)
            .unwrap();
        assert_eq!(rustix::io::read(&file, &mut [0u8; 1]), Ok(0));
    }
}
