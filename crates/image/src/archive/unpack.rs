//! Makes the entries of an archive beneath a directory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use pinfold_linux::beneath::{self, Beneath, BeneathError};
use pinfold_linux::identity::RANGE_LENGTH;
use pinfold_linux::weaken::{Defence, is_off};
use rustix::fs::{FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::decode::{Decoded, ReadFault};
use super::entry::{Entry, Kind};
use super::invalid::{InvalidImage, shown};
use super::reader::Reader;
use super::root::check_root;

/// Most headers of an archive. The largest published images have a few hundred thousand files.
const ENTRIES_MAX: u64 = 2_000_000;
/// Most bytes of an archive after decompression; bounds what a small hostile file grows to.
const BYTES_MAX: u64 = 64 << 30;
/// Most bytes of the names of directories, which are kept in memory until the end.
const DIRECTORY_NAME_BYTES_MAX: usize = 256 << 20;
/// How many bytes of a file are copied at once.
const COPY_BUFFER_BYTES: usize = 128 << 10;

/// What an archive may hold at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries, those that only extend others included.
    pub entries: u64,
    /// Bytes after decompression, headers and padding included.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: ENTRIES_MAX,
            bytes: BYTES_MAX,
        }
    }
}

/// Who owns what is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// Those that the archive names; this process must hold their ids.
    Keep,
    /// The caller owns everything, who has no other id.
    Caller,
}

/// What was unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackReport {
    /// Entries, without those that only extend others.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// SHA-256 of the archive file as it was read, in hexadecimal digits.
    pub digest: String,
    /// Device nodes that were left out: a sandbox brings its own `/dev`.
    pub devices_left_out: u64,
    /// Files whose capabilities this host did not take.
    pub capabilities_left_out: u64,
}

/// An archive could not be unpacked. What was made is left for the caller to remove.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive is at fault.
    #[error("the archive is not usable")]
    Invalid(#[source] InvalidImage),
    /// The archive could not be read.
    #[error("failed to read the archive")]
    Read(#[source] io::Error),
    /// A file could not be given to its owner.
    #[error("failed to give `{name}` to user {user} and group {group}")]
    Owner {
        /// The entry.
        name: String,
        /// The user.
        user: u32,
        /// The group.
        group: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The host refused to hold something.
    #[error("failed to unpack `{name}`")]
    Write {
        /// The entry.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl From<ReadFault> for UnpackError {
    fn from(fault: ReadFault) -> Self {
        match fault {
            ReadFault::Invalid(problem) => Self::Invalid(problem),
            ReadFault::Host(error) => Self::Read(error),
        }
    }
}

impl From<InvalidImage> for UnpackError {
    fn from(problem: InvalidImage) -> Self {
        Self::Invalid(problem)
    }
}

/// Unpacks a `.tar` or `.tar.gz` into an empty directory and checks that it is a root filesystem.
///
/// `progress` hears how many bytes of the archive file were read. Everything is on disk when this
/// returns.
///
/// # Errors
/// Fails when the archive is malformed, hostile or too large, or the host cannot hold it.
pub fn unpack_archive(
    archive: &mut dyn Read,
    destination: &Path,
    owners: Owners,
    limits: Limits,
    progress: &mut dyn FnMut(u64),
) -> Result<UnpackReport, UnpackError> {
    let at_destination = |source: io::Error| UnpackError::Write {
        name: ".".to_owned(),
        source,
    };
    let beneath = Beneath::open(destination).map_err(|error| at_destination(error.source))?;
    let decoded = Decoded::new(archive, limits.bytes, progress)?;
    let mut reader = Reader::new(decoded, limits.entries);
    let mut unpacking = Unpacking::new(&beneath, owners);
    while let Some(entry) = reader.next()? {
        unpacking.take(entry, &mut reader)?;
    }
    let digest = reader.into_source().finish()?;
    // Before the modes of directories are set, which may keep this process out.
    check_root(destination)?;
    let mut report = unpacking.finish()?;
    report.digest = digest;
    let root = File::open(destination).map_err(at_destination)?;
    rustix::fs::syncfs(root).map_err(|errno| at_destination(errno.into()))?;
    Ok(report)
}

/// What is set on a directory only after everything in it was made.
#[derive(Debug)]
struct DirectoryState {
    mode: u32,
    user: u32,
    group: u32,
    modified: (i64, u32),
}

#[derive(Debug)]
struct Unpacking<'a> {
    beneath: &'a Beneath,
    owners: Owners,
    directories: BTreeMap<PathBuf, DirectoryState>,
    directory_name_bytes: usize,
    buffer: Vec<u8>,
    report: UnpackReport,
}

impl<'a> Unpacking<'a> {
    fn new(beneath: &'a Beneath, owners: Owners) -> Self {
        Self {
            beneath,
            owners,
            directories: BTreeMap::new(),
            directory_name_bytes: 0,
            buffer: vec![0; COPY_BUFFER_BYTES],
            report: UnpackReport::default(),
        }
    }

    fn take(&mut self, entry: Entry, reader: &mut Reader<impl Read>) -> Result<(), UnpackError> {
        self.report.entries += 1;
        if entry.path.as_os_str().is_empty() && entry.kind != Kind::Directory {
            return Err(InvalidImage::Reserved {
                name: String::new(),
            }
            .into());
        }
        let user = owner_id(&entry, entry.user)?;
        let group = owner_id(&entry, entry.group)?;
        match &entry.kind {
            Kind::File { .. } => self.file(&entry, reader, (user, group)),
            Kind::HardLink { target } => self.hard_link(&entry.path, target),
            Kind::SymbolicLink { target } => {
                self.make(&entry.path, |beneath, path| beneath.symlink(target, path))?;
                self.give(&entry.path, user, group)?;
                let times = timestamps(entry.modified);
                let set = self.beneath.set_times_at(&entry.path, &times);
                set.map_err(|error| refused(&entry.path, error))
            }
            Kind::Pipe => {
                let mode = Mode::from_raw_mode(entry.mode & 0o777);
                self.make(&entry.path, |beneath, path| beneath.mkfifo(path, mode))?;
                self.give(&entry.path, user, group)
            }
            Kind::Device { number } if is_off(Defence::ArchiveKinds) => {
                let number = *number;
                self.make(&entry.path, |beneath, path| beneath.mkdevice(path, number))
            }
            Kind::Device { .. } => {
                self.report.devices_left_out += 1;
                Ok(())
            }
            Kind::Directory => self.directory(entry, user, group),
        }
    }

    fn file(
        &mut self,
        entry: &Entry,
        reader: &mut Reader<impl Read>,
        (user, group): (u32, u32),
    ) -> Result<(), UnpackError> {
        let failed = |source: io::Error| UnpackError::Write {
            name: name_of(&entry.path),
            source,
        };
        let private = Mode::RUSR | Mode::WUSR;
        let file = self.make(&entry.path, |beneath, path| {
            beneath.create_file(path, private)
        })?;
        let mut file = File::from(file);
        loop {
            let read = reader.read_data(&mut self.buffer)?;
            match self.buffer.get(..read) {
                Some(part) if read > 0 => file.write_all(part).map_err(failed)?,
                _ => break,
            }
            self.report.bytes += read as u64;
        }
        if self.owners == Owners::Keep {
            let (owner, of_group) = (Uid::from_raw(user), Gid::from_raw(group));
            beneath::set_owner(file.as_fd(), owner, of_group)
                .map_err(|source| owner_error(&entry.path, user, group, source))?;
        }
        // A change of owner clears the set-user-id bit and the capabilities, so these come later.
        beneath::set_mode(file.as_fd(), Mode::from_raw_mode(entry.mode)).map_err(failed)?;
        if let Some(capability) = &entry.capability {
            let flags = XattrFlags::empty();
            if rustix::fs::fsetxattr(&file, "security.capability", capability, flags).is_err() {
                self.report.capabilities_left_out += 1;
            }
        }
        beneath::set_times(file.as_fd(), &timestamps(entry.modified)).map_err(failed)
    }

    fn hard_link(&mut self, path: &Path, target: &Path) -> Result<(), UnpackError> {
        let missing = || InvalidImage::HardLink {
            name: name_of(path),
            target: name_of(target),
        };
        // Only an entry that is there may be linked to, and it stays when it is the same name.
        let stat = self.beneath.stat(target).map_err(|_| missing())?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(missing().into());
        }
        if path == target {
            return Ok(());
        }
        self.make(path, |beneath, path| beneath.hard_link(target, path))
    }

    fn directory(&mut self, entry: Entry, user: u32, group: u32) -> Result<(), UnpackError> {
        let is_root = entry.path.as_os_str().is_empty();
        if !is_root && !self.is_directory(&entry.path) {
            self.make(&entry.path, |beneath, path| beneath.mkdir(path, Mode::RWXU))?;
        }
        let state = DirectoryState {
            mode: entry.mode,
            user,
            group,
            modified: entry.modified,
        };
        self.directory_name_bytes += entry.path.as_os_str().len() + size_of::<DirectoryState>();
        if self.directory_name_bytes > DIRECTORY_NAME_BYTES_MAX {
            let limit = ENTRIES_MAX;
            return Err(InvalidImage::TooManyEntries { limit }.into());
        }
        self.directories.insert(entry.path, state);
        Ok(())
    }

    fn is_directory(&self, path: &Path) -> bool {
        self.beneath
            .stat(path)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    /// Makes an entry; an earlier one of the same name gives way, and missing parents are made.
    fn make<T>(
        &mut self,
        path: &Path,
        act: impl Fn(&Beneath, &Path) -> Result<T, BeneathError>,
    ) -> Result<T, UnpackError> {
        let errno = match act(self.beneath, path) {
            Ok(made) => return Ok(made),
            Err(error) => (errno_of(&error), error),
        };
        match errno {
            (Some(Errno::EXIST), _) if self.is_directory(path) => {
                let name = name_of(path);
                return Err(InvalidImage::Replaces { name }.into());
            }
            (Some(Errno::EXIST), _) => {
                let removed = self.beneath.remove_file(path);
                removed.map_err(|error| refused(path, error))?;
            }
            (Some(Errno::NOENT), _) => {
                let parent = path.parent().unwrap_or(Path::new("."));
                let open_to_read = Mode::from_raw_mode(0o755);
                let made = self.beneath.mkdir_all(parent, open_to_read);
                made.map_err(|error| refused(path, error))?;
            }
            (_, error) => return Err(refused(path, error)),
        }
        act(self.beneath, path).map_err(|error| refused(path, error))
    }

    fn give(&self, path: &Path, user: u32, group: u32) -> Result<(), UnpackError> {
        if self.owners == Owners::Caller {
            return Ok(());
        }
        let (owner, of_group) = (Uid::from_raw(user), Gid::from_raw(group));
        let given = self.beneath.set_owner_at(path, owner, of_group);
        given.map_err(|error| owner_error(path, user, group, error.source))
    }

    /// Sets what a directory's contents would have undone or been stopped by, innermost first.
    fn finish(mut self) -> Result<UnpackReport, UnpackError> {
        self.directories
            .entry(PathBuf::new())
            .or_insert(DirectoryState {
                mode: 0o755,
                user: 0,
                group: 0,
                modified: (0, 0),
            });
        for (path, state) in self.directories.iter().rev() {
            let failed = |source: io::Error| UnpackError::Write {
                name: name_of(path),
                source,
            };
            let from_root = if path.as_os_str().is_empty() {
                Path::new(".")
            } else {
                path
            };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let opened = self.beneath.open_file(from_root, flags);
            let directory = opened.map_err(|error| refused(path, error))?;
            if self.owners == Owners::Keep {
                let (owner, group) = (Uid::from_raw(state.user), Gid::from_raw(state.group));
                beneath::set_owner(directory.as_fd(), owner, group)
                    .map_err(|source| owner_error(path, state.user, state.group, source))?;
            }
            let mode = Mode::from_raw_mode(state.mode);
            beneath::set_mode(directory.as_fd(), mode).map_err(failed)?;
            beneath::set_times(directory.as_fd(), &timestamps(state.modified)).map_err(failed)?;
        }
        Ok(self.report)
    }
}

fn owner_id(entry: &Entry, id: u64) -> Result<u32, InvalidImage> {
    match u32::try_from(id) {
        Ok(id) if id < RANGE_LENGTH => Ok(id),
        _ => Err(InvalidImage::Owner {
            name: name_of(&entry.path),
            id,
            largest: u64::from(RANGE_LENGTH - 1),
        }),
    }
}

fn owner_error(path: &Path, user: u32, group: u32, source: io::Error) -> UnpackError {
    UnpackError::Owner {
        name: name_of(path),
        user,
        group,
        source,
    }
}

fn name_of(path: &Path) -> String {
    shown(path.as_os_str().as_bytes())
}

fn errno_of(error: &BeneathError) -> Option<Errno> {
    Errno::from_io_error(&error.source)
}

/// Tells whether the archive or the host is to blame.
fn refused(path: &Path, error: BeneathError) -> UnpackError {
    let name = name_of(path);
    match errno_of(&error) {
        Some(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => {
            InvalidImage::NotBeneathDirectory { name }.into()
        }
        Some(Errno::NAMETOOLONG) => InvalidImage::Name {
            name,
            fault: "has a name that is too long".to_owned(),
        }
        .into(),
        _ => UnpackError::Write {
            name,
            source: error.source,
        },
    }
}

fn timestamps((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let at = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    };
    Timestamps {
        last_access: at,
        last_modification: at,
    }
}
