//! Files as the sandbox sees them: one operation each, all of them synchronous.

mod error;
mod list;
mod place;
mod write;

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use pinfold_linux::beneath::Beneath;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

pub use error::FileError;
pub use list::{LIST_ENTRIES_MAX, Page};
pub use write::WriteRequest;

pub(crate) use error::failed;
pub(crate) use place::check;

use crate::root::Root;
use crate::users;
use crate::worker::CHUNK_BYTES;

/// Permission bits of a file's mode.
const MODE_BITS: u32 = 0o7777;
/// Mode of a directory that is made where none was named.
const DIRECTORY_MODE: u32 = 0o755;
/// Longest target of a link that is answered; the kernel makes none longer.
const LINK_BYTES_MAX: usize = 4096;

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Last component of its path; bytes that are no UTF-8 are replaced.
    pub name: String,
    /// What kind of file.
    pub kind: FileType,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Milliseconds since the Unix epoch.
    pub modified_ms: i64,
    /// Where a symbolic link leads.
    pub link_target: String,
}

impl Info {
    fn new(name: String, stat: &Stat, link_target: String) -> Self {
        let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
        Self {
            name,
            kind: FileType::from_raw_mode(stat.st_mode),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode & MODE_BITS,
            uid: stat.st_uid,
            gid: stat.st_gid,
            modified_ms: stat
                .st_mtime
                .saturating_mul(1000)
                .saturating_add(nanoseconds / 1_000_000),
            link_target,
        }
    }
}

/// The files of the sandbox.
#[derive(Debug, Clone)]
pub struct Files {
    root: Arc<Root>,
}

impl Files {
    pub(crate) fn new(root: Arc<Root>) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    /// Describes a file.
    ///
    /// # Errors
    /// Fails when it is not there.
    pub fn stat(&self, path: &str, follow: bool) -> Result<Info, FileError> {
        self.try_stat(path, follow).map_err(failed("look at", path))
    }

    fn try_stat(&self, path: &str, follow: bool) -> io::Result<Info> {
        let place = check(path)?;
        let mut flags = OFlags::PATH;
        if !follow {
            flags |= OFlags::NOFOLLOW;
        }
        let handle = self.root.resolve(path, flags)?;
        let stat = rustix::fs::fstat(&handle)?;
        let target = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => read_link(&handle, c"")?,
            _ => String::new(),
        };
        Ok(Info::new(place.name().to_owned(), &stat, target))
    }

    /// Reads a part of a regular file; a length of 0 is to its end.
    ///
    /// # Errors
    /// Fails when it is no regular file that can be read, or nobody takes what was read.
    pub fn read(
        &self,
        path: &str,
        (offset, length): (u64, u64),
        output: &mut impl Write,
    ) -> Result<(), FileError> {
        let read = self.try_read(path, (offset, length), output);
        read.map_err(failed("read", path))
    }

    fn try_read(
        &self,
        path: &str,
        (offset, length): (u64, u64),
        output: &mut impl Write,
    ) -> io::Result<()> {
        check(path)?;
        let file = self.root.open_regular(path)?;
        let end = match length {
            0 => u64::MAX,
            length => offset.saturating_add(length),
        };
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut position = offset;
        while position < end {
            let left = usize::try_from(end - position).unwrap_or(usize::MAX);
            let room = buffer.get_mut(..left.min(CHUNK_BYTES)).unwrap_or_default();
            let count = match file.read_at(room, position) {
                Ok(0) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                done => done?,
            };
            output.write_all(buffer.get(..count).unwrap_or_default())?;
            position = position.saturating_add(u64::try_from(count).unwrap_or(0));
        }
        Ok(())
    }

    /// Makes a directory; with `parents` also those above it, and it may be there already.
    ///
    /// # Errors
    /// Fails when something else is there.
    pub fn make_directory(&self, path: &str, mode: u32, parents: bool) -> Result<(), FileError> {
        self.try_make_directory(path, mode, parents)
            .map_err(failed("make directory", path))
    }

    fn try_make_directory(&self, path: &str, mode: u32, parents: bool) -> io::Result<()> {
        let place = check(path)?;
        let mode = Mode::from_raw_mode(if mode == 0 {
            DIRECTORY_MODE
        } else {
            mode & MODE_BITS
        });
        if parents {
            return self.make_parents(path, mode).map(drop);
        }
        let parent = place.open_parent(&self.root)?;
        Ok(rustix::fs::mkdirat(&parent, place.last()?, mode)?)
    }

    /// Makes every directory of a path that is missing, and opens the last.
    pub(crate) fn make_parents(&self, path: &str, last: Mode) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match self.root.resolve(path, flags) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => return done,
        }
        let mut so_far = String::new();
        let mut parent = self.root.resolve("/", flags)?;
        let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
        while let Some(part) = parts.next() {
            so_far.push('/');
            so_far.push_str(part);
            parent = match self.root.resolve(&so_far, flags) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let mode = match parts.peek() {
                        Some(_) => Mode::from_raw_mode(DIRECTORY_MODE),
                        None => last,
                    };
                    match rustix::fs::mkdirat(&parent, part, mode) {
                        // A link that leads nowhere is there, too; opening it then fails.
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                    self.root.resolve(&so_far, flags)?
                }
                done => done?,
            };
        }
        Ok(parent)
    }

    /// Renames a file, replacing what has the new name.
    ///
    /// # Errors
    /// Fails when it is not there, or the new name cannot be taken.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), FileError> {
        self.try_rename(from, to).map_err(failed("rename", from))
    }

    fn try_rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (old, new) = (check(from)?, check(to)?);
        let old_parent = old.open_parent(&self.root)?;
        let new_parent = new.open_parent(&self.root)?;
        let (old, new) = (old.last()?, new.last()?);
        Ok(rustix::fs::renameat(&old_parent, old, &new_parent, new)?)
    }

    /// Removes a file or an empty directory, or with `recursive` everything in it. No link is
    /// followed.
    ///
    /// # Errors
    /// Fails when it is not there, unless `missing_ok`, or it is a directory that is not empty.
    pub fn remove(&self, path: &str, recursive: bool, missing_ok: bool) -> Result<(), FileError> {
        match self.try_remove(path, recursive) {
            Err(error) if missing_ok && error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done.map_err(failed("remove", path)),
        }
    }

    fn try_remove(&self, path: &str, recursive: bool) -> io::Result<()> {
        let place = check(path)?;
        let name = place.last()?;
        let parent = place.open_parent(&self.root)?;
        if recursive {
            let beneath = Beneath::from_descriptor(parent);
            return beneath
                .remove_all(Path::new(name))
                .map_err(|error| error.source);
        }
        match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?,
            done => done?,
        }
        Ok(())
    }

    /// Finds the ids that new files of a user get.
    pub(crate) fn owner(&self, user: &str) -> Result<Option<(Uid, Gid)>, FileError> {
        if user.is_empty() {
            return Ok(None);
        }
        let ids = users::resolve(&self.root, user).map_err(FileError::User)?;
        Ok(Some((Uid::from_raw(ids.user), Gid::from_raw(ids.group))))
    }
}

/// Reads where a link leads, given the link itself or its directory and name.
fn read_link(directory: impl AsFd, name: &std::ffi::CStr) -> io::Result<String> {
    let target = rustix::fs::readlinkat(directory, name, Vec::with_capacity(LINK_BYTES_MAX))?;
    Ok(target.to_string_lossy().into_owned())
}
