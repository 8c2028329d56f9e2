//! Writes files: in place, or beside and then over the present one.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use pinfold_types::crash_point;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use super::error::invalid;
use super::place::{follow, open_in};
use super::{DIRECTORY_MODE, FileError, Files, MODE_BITS, check, failed};

/// Mode of a file that is made where none was named.
const FILE_MODE: u32 = 0o644;
/// How many names for a temporary file are tried.
const NAME_ATTEMPTS: usize = 100;

/// Tells temporary files of one agent apart.
static SERIAL: AtomicU32 = AtomicU32::new(0);

/// What is to be written.
#[derive(Debug, Clone, Default)]
pub struct WriteRequest {
    /// Absolute path.
    pub path: String,
    /// Permission bits of a new file; 0 is 0644.
    pub mode: u32,
    /// Write into the present file instead of replacing it.
    pub in_place: bool,
    /// Where, in place.
    pub offset: u64,
    /// Owner of a new file; empty is root, or who owned the file that is replaced.
    pub user: String,
    /// Make the directories above it.
    pub make_parents: bool,
}

impl Files {
    /// Writes a file from chunks and returns how many bytes there were.
    ///
    /// Without `in_place` the file has its old content until all has arrived, and then all of the
    /// new one; it keeps its mode and owner.
    ///
    /// # Errors
    /// Fails when it is there and no regular file, or the chunks break off.
    pub fn write(
        &self,
        request: &WriteRequest,
        chunks: impl FnMut() -> io::Result<Option<Bytes>>,
    ) -> Result<u64, FileError> {
        let failed = failed("write", &request.path);
        let owner = self.owner(&request.user)?;
        let place = check(&request.path).map_err(&failed)?;
        if request.make_parents {
            let parent = match place.parent() {
                "" => "/",
                parent => parent,
            };
            self.make_parents(parent, Mode::from_raw_mode(DIRECTORY_MODE))
                .map_err(&failed)?;
        }
        let written = if request.in_place {
            self.write_in_place(request, owner, chunks)
        } else {
            self.replace(request, owner, chunks)
        };
        written.map_err(&failed)
    }

    fn write_in_place(
        &self,
        request: &WriteRequest,
        owner: Option<(Uid, Gid)>,
        chunks: impl FnMut() -> io::Result<Option<Bytes>>,
    ) -> io::Result<u64> {
        let (parent, name) = follow(self.root(), &request.path)?;
        let flags = OFlags::WRONLY | OFlags::NONBLOCK;
        let file = match open_in(&parent, &name, flags) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = create(&parent, &name, mode_of(request))?;
                give(&file, owner)?;
                file
            }
            done => done?,
        };
        check_regular(&rustix::fs::fstat(&file)?)?;
        copy(&File::from(file), request.offset, chunks)
    }

    fn replace(
        &self,
        request: &WriteRequest,
        owner: Option<(Uid, Gid)>,
        chunks: impl FnMut() -> io::Result<Option<Bytes>>,
    ) -> io::Result<u64> {
        let (parent, name) = follow(self.root(), &request.path)?;
        let present = match rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                check_regular(&stat)?;
                Some(stat)
            }
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno.into()),
        };
        let mut temporary = Temporary::new(&parent)?;
        let file = temporary.file()?;
        let written = copy(&file, 0, chunks)?;
        let (mode, owner) = match &present {
            Some(stat) => {
                let ids = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
                (
                    Mode::from_raw_mode(stat.st_mode & MODE_BITS),
                    owner.or(Some(ids)),
                )
            }
            None => (mode_of(request), owner),
        };
        give(&file, owner)?;
        // After the owner, whose change takes setuid away.
        rustix::fs::fchmod(&file, mode)?;
        temporary.rename_to(&name)?;
        Ok(written)
    }
}

fn mode_of(request: &WriteRequest) -> Mode {
    match request.mode & MODE_BITS {
        0 => Mode::from_raw_mode(FILE_MODE),
        mode => Mode::from_raw_mode(mode),
    }
}

fn check_regular(stat: &Stat) -> io::Result<()> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Errno::ISDIR.into()),
        _ => Err(invalid("it is a pipe, socket or device and not a file")),
    }
}

/// Gives a file to its owner; what is the caller's own needs no right to do so.
fn give(file: impl std::os::fd::AsFd, owner: Option<(Uid, Gid)>) -> io::Result<()> {
    let Some((user, group)) = owner else {
        return Ok(());
    };
    let stat = rustix::fs::fstat(&file)?;
    if stat.st_uid == user.as_raw() && stat.st_gid == group.as_raw() {
        return Ok(());
    }
    Ok(rustix::fs::fchown(file, Some(user), Some(group))?)
}

fn create(parent: &OwnedFd, name: &str, mode: Mode) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, mode)?)
}

fn copy(
    file: &File,
    offset: u64,
    mut chunks: impl FnMut() -> io::Result<Option<Bytes>>,
) -> io::Result<u64> {
    let mut written = 0_u64;
    while let Some(chunk) = chunks()? {
        let position = offset
            .checked_add(written)
            .ok_or_else(|| invalid("the offset is beyond what a file can have"))?;
        file.write_all_at(&chunk, position)?;
        written = written.saturating_add(u64::try_from(chunk.len()).unwrap_or(0));
    }
    let mut file = file;
    file.flush()?;
    Ok(written)
}

/// A new file beside the one to be replaced, which is gone again unless it got that one's name.
struct Temporary<'a> {
    parent: &'a OwnedFd,
    name: String,
    file: OwnedFd,
    renamed: bool,
}

impl<'a> Temporary<'a> {
    fn new(parent: &'a OwnedFd) -> io::Result<Self> {
        for _ in 0..NAME_ATTEMPTS {
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            let name = format!(".pinfold-write-{}-{serial}", std::process::id());
            match create(parent, &name, Mode::RUSR | Mode::WUSR) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                file => {
                    return Ok(Self {
                        parent,
                        name,
                        file: file?,
                        renamed: false,
                    });
                }
            }
        }
        Err(Errno::EXIST.into())
    }

    fn file(&self) -> io::Result<File> {
        Ok(File::from(self.file.as_fd().try_clone_to_owned()?))
    }

    fn rename_to(&mut self, name: &str) -> io::Result<()> {
        crash_point!("agent.file_written");
        rustix::fs::renameat(self.parent, &self.name, self.parent, name)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.renamed {
            // Whoever removed the directory meanwhile has removed this, too.
            let _gone = rustix::fs::unlinkat(self.parent, &self.name, AtFlags::empty()).is_err();
        }
    }
}
