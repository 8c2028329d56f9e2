//! Unpacks an archive beneath a directory, whatever the archive says.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use pinfold_linux::beneath::{Beneath, BeneathError, set_mode, set_owner, set_times};
use rustix::fs::{FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use tar::{Archive, Entry, EntryType};

use super::extension::{Extension, malformed, name, read, sparse};
use crate::files::{FileError, Files, check, failed};
use crate::root::PATH_BYTES_MAX;

/// Most entries of one archive.
const ENTRIES_MAX: u64 = 16 << 20;
/// Most directories whose mode and time are set after everything in them was made.
const LATER_MAX: usize = 65_536;
/// Mode of a directory that only paths in the archive imply, or that is not finished yet.
const IMPLIED_MODE: u32 = 0o755;
const OWNER_ALL: u32 = 0o700;

/// Where an archive is unpacked to.
struct Target {
    beneath: Beneath,
    owner: Option<(Uid, Gid)>,
    /// The directory that was last made or found.
    known: Option<PathBuf>,
    later: Vec<(PathBuf, Attributes)>,
}

#[derive(Clone, Copy)]
struct Attributes {
    mode: Mode,
    modified: u64,
}

impl Attributes {
    fn times(self) -> Timestamps {
        let time = Timespec {
            tv_sec: i64::try_from(self.modified).unwrap_or(0),
            tv_nsec: 0,
        };
        Timestamps {
            last_access: time,
            last_modification: time,
        }
    }
}

impl Files {
    /// Unpacks an archive beneath a directory, which is made if need be, and returns how many
    /// entries there were. Everything gets one owner; nothing is ever written outside.
    ///
    /// # Errors
    /// Fails at the first entry that cannot be made; what came before it stays.
    pub fn unpack(
        &self,
        directory: &str,
        user: &str,
        input: &mut impl Read,
    ) -> Result<u64, FileError> {
        let owner = self.owner(user)?;
        self.try_unpack(directory, owner, input)
            .map_err(failed("unpack into", directory))
    }

    fn try_unpack(
        &self,
        directory: &str,
        owner: Option<(Uid, Gid)>,
        input: &mut impl Read,
    ) -> io::Result<u64> {
        check(directory)?;
        let handle = self.make_parents(directory, Mode::from_raw_mode(IMPLIED_MODE))?;
        let mut target = Target {
            beneath: Beneath::from_descriptor(handle),
            owner,
            known: None,
            later: Vec::new(),
        };
        let count = target.unpack(input)?;
        target.finish()?;
        // What follows the end of the archive is padding.
        io::copy(input, &mut io::sink())?;
        Ok(count)
    }
}

fn cause(error: BeneathError) -> io::Error {
    error.source
}

impl Target {
    fn unpack(&mut self, input: &mut impl Read) -> io::Result<u64> {
        let mut archive = Archive::new(input);
        let mut extension = Extension::default();
        let mut count = 0;
        for entry in archive.entries()?.raw(true) {
            let mut entry = entry.map_err(damaged)?;
            let size = entry.header().entry_size().map_err(damaged)?;
            match entry.header().entry_type() {
                EntryType::GNULongName => extension.path = Some(name(read(&mut entry, size)?)),
                EntryType::GNULongLink => extension.link = Some(name(read(&mut entry, size)?)),
                EntryType::XHeader => extension.add_pax(&read(&mut entry, size)?)?,
                EntryType::XGlobalHeader => {}
                EntryType::GNUSparse => return Err(sparse()),
                kind => {
                    count += 1;
                    if count > ENTRIES_MAX {
                        return Err(malformed("the archive has too many entries"));
                    }
                    let extension = std::mem::take(&mut extension);
                    if extension.size.is_some_and(|other| other != size) {
                        return Err(malformed("a pax size is not that of the header"));
                    }
                    let stored = extension.path.unwrap_or_else(|| entry.path_bytes().into());
                    self.add(&mut entry, kind, (&stored, extension.link))
                        .map_err(|error| in_entry(&stored, &error))?;
                }
            }
        }
        Ok(count)
    }

    fn add(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        kind: EntryType,
        (stored, link): (&[u8], Option<Vec<u8>>),
    ) -> io::Result<()> {
        let path = clean(stored)?;
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.make_parent(parent)?;
        }
        let header = entry.header();
        let attributes = Attributes {
            mode: self.mode(header.mode()?),
            modified: header.mtime().unwrap_or(0),
        };
        let link = link.or_else(|| entry.link_name_bytes().map(std::borrow::Cow::into_owned));
        // Archives from before there were types mark a directory so.
        let is_directory = stored.last() == Some(&b'/');
        match kind {
            EntryType::Directory => self.add_directory(path, attributes),
            EntryType::Regular | EntryType::Continuous if is_directory => {
                self.add_directory(path, attributes)
            }
            EntryType::Regular | EntryType::Continuous => {
                let file = self.make(&path, |beneath, path| {
                    beneath.create_file(path, Mode::from_raw_mode(0o600))
                })?;
                let mut file = File::from(file);
                io::copy(entry, &mut file)?;
                self.dress(file.into(), attributes)
            }
            EntryType::Symlink => {
                let target = link.ok_or_else(|| malformed("a link leads nowhere"))?;
                let target = Path::new(OsStr::from_bytes(&target));
                self.make(&path, |beneath, path| beneath.symlink(target, path))?;
                self.dress_at(&path, attributes)
            }
            EntryType::Link => {
                let target = link.ok_or_else(|| malformed("a link leads nowhere"))?;
                let target = clean(&target)?;
                if target == path {
                    return Ok(());
                }
                self.make(&path, |beneath, path| beneath.hard_link(&target, path))
            }
            EntryType::Fifo => {
                self.make(&path, |beneath, path| beneath.mkfifo(path, attributes.mode))?;
                self.dress_at(&path, attributes)
            }
            // Devices cannot be made inside, and other kinds are nobody's.
            _ => Ok(()),
        }
    }

    /// Returns the permission bits for an entry: setuid and setgid only where root is the owner.
    fn mode(&self, mode: u32) -> Mode {
        let root = self.owner.is_none_or(|(user, _)| user.is_root());
        Mode::from_raw_mode(mode & if root { 0o7777 } else { 0o1777 })
    }

    fn make_parent(&mut self, parent: &Path) -> io::Result<()> {
        if parent.as_os_str().is_empty() || self.known.as_deref() == Some(parent) {
            return Ok(());
        }
        self.beneath
            .mkdir_all(parent, Mode::from_raw_mode(IMPLIED_MODE))
            .map_err(cause)?;
        self.known = Some(parent.to_owned());
        Ok(())
    }

    /// Makes an entry; a file or link that is there is replaced, a directory is not.
    fn make<T>(
        &mut self,
        path: &Path,
        make: impl Fn(&Beneath, &Path) -> Result<T, BeneathError>,
    ) -> io::Result<T> {
        match make(&self.beneath, path).map_err(cause) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.beneath.remove_file(path).map_err(cause)?;
                make(&self.beneath, path).map_err(cause)
            }
            done => done,
        }
    }

    fn add_directory(&mut self, path: PathBuf, attributes: Attributes) -> io::Result<()> {
        let mode = attributes.mode | Mode::from_raw_mode(OWNER_ALL);
        if let Err(error) = self.beneath.mkdir(&path, mode).map_err(cause) {
            let present = self.beneath.stat(&path).map_err(cause)?;
            let kind = FileType::from_raw_mode(present.st_mode);
            if error.kind() != io::ErrorKind::AlreadyExists || kind != FileType::Directory {
                return Err(error);
            }
        }
        if let Some((user, group)) = self.owner {
            self.beneath
                .set_owner_at(&path, user, group)
                .map_err(cause)?;
        }
        // What comes into it changes its time, and may need the right to write.
        if self.later.len() < LATER_MAX {
            self.later.push((path, attributes));
            Ok(())
        } else {
            self.finish_directory(&path, attributes)
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        for (path, attributes) in std::mem::take(&mut self.later).into_iter().rev() {
            match self.finish_directory(&path, attributes) {
                // A later entry may have taken its place.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
        Ok(())
    }

    fn finish_directory(&self, path: &Path, attributes: Attributes) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let directory = self.beneath.open_file(path, flags).map_err(cause)?;
        set_mode(directory.as_fd(), attributes.mode)?;
        set_times(directory.as_fd(), &attributes.times())
    }

    fn dress(&self, file: OwnedFd, attributes: Attributes) -> io::Result<()> {
        if let Some((user, group)) = self.owner {
            set_owner(file.as_fd(), user, group)?;
        }
        // After the owner, whose change takes setuid away.
        set_mode(file.as_fd(), attributes.mode)?;
        set_times(file.as_fd(), &attributes.times())?;
        drop(file);
        Ok(())
    }

    fn dress_at(&self, path: &Path, attributes: Attributes) -> io::Result<()> {
        if let Some((user, group)) = self.owner {
            self.beneath
                .set_owner_at(path, user, group)
                .map_err(cause)?;
        }
        self.beneath
            .set_times_at(path, &attributes.times())
            .map_err(cause)
    }
}

/// Makes a path of an archive relative, and refuses one that climbs.
fn clean(stored: &[u8]) -> io::Result<PathBuf> {
    if stored.len() >= PATH_BYTES_MAX || stored.contains(&0) {
        return Err(malformed("its path is too long or holds a zero byte"));
    }
    let mut path = PathBuf::new();
    for part in Path::new(OsStr::from_bytes(stored)).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(malformed("its path climbs out by `..`"));
            }
        }
    }
    if path.components().count() > super::DEPTH_MAX {
        return Err(malformed("its path is too deep"));
    }
    Ok(path)
}

/// Calls what the reader of archives does not understand by its name: it has none of its own for it.
fn damaged(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::Other => io::Error::new(io::ErrorKind::InvalidData, error),
        _ => error,
    }
}

fn in_entry(stored: &[u8], error: &io::Error) -> io::Error {
    let path = crate::shorten(&String::from_utf8_lossy(stored));
    let reason = match error.raw_os_error() {
        Some(libc::ELOOP | libc::EXDEV) => "its path leads through a link".to_owned(),
        _ => error.to_string(),
    };
    io::Error::new(error.kind(), format!("entry `{path}`: {reason}"))
}
