//! Packs a file or directory.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read as _, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use pinfold_linux::weaken::{Defence, is_off};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use super::DEPTH_MAX;
use crate::files::{FileError, Files, check, failed};
use crate::worker::CHUNK_BYTES;

/// Most files with several names that are remembered; beyond it each name gets the whole content.
const LINKS_MAX: usize = 65_536;

/// Most bytes of a file that says it is empty and is not, as those of `/proc`; they are read into
/// memory, because an archive needs the size first.
const UNSIZED_BYTES_MAX: u64 = 1 << 20;

/// A directory that is being packed.
struct Level {
    handle: OwnedFd,
    entries: Dir,
    path: PathBuf,
}

struct Pack<'a, W: Write> {
    archive: Builder<&'a mut W>,
    levels: Vec<Level>,
    /// Files that have several names, and the first of them.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Files {
    /// Packs a file or directory under its last name. Links are packed as links; sockets and
    /// devices are left out.
    ///
    /// # Errors
    /// Fails when it is not there, or a file in it cannot be read, or nobody takes the archive.
    pub fn pack(&self, path: &str, output: &mut impl Write) -> Result<(), FileError> {
        self.try_pack(path, output).map_err(failed("pack", path))
    }

    fn try_pack(&self, path: &str, output: &mut impl Write) -> io::Result<()> {
        let place = check(path)?;
        let mut pack = Pack {
            archive: Builder::new(output),
            levels: Vec::new(),
            links: HashMap::new(),
        };
        if place.name().is_empty() {
            let root = self
                .root()
                .resolve("/", OFlags::RDONLY | OFlags::DIRECTORY)?;
            pack.enter(root, PathBuf::new())?;
        } else {
            let parent = place.open_parent(self.root())?;
            let name = place.last()?;
            pack.add(&parent, OsStr::new(name), PathBuf::from(name))?;
        }
        while let Some(level) = pack.levels.last_mut() {
            let Some(entry) = level.entries.next() else {
                pack.levels.pop();
                continue;
            };
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let (path, parent) = (level.path.join(name), level.handle.try_clone()?);
            match pack.add(&parent, name, path) {
                // Removed since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
        pack.archive.finish()
    }
}

impl<W: Write> Pack<'_, W> {
    fn enter(&mut self, handle: OwnedFd, path: PathBuf) -> io::Result<()> {
        if self.levels.len() >= DEPTH_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("it is more than {DEPTH_MAX} directories deep"),
            ));
        }
        let entries = Dir::read_from(&handle)?;
        self.levels.push(Level {
            handle,
            entries,
            path,
        });
        Ok(())
    }

    fn add(&mut self, parent: &OwnedFd, name: &OsStr, path: PathBuf) -> io::Result<()> {
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.add_file(parent, name, path, &stat),
            FileType::Directory => {
                let handle = open(parent, name, OFlags::DIRECTORY)?;
                let mut header = header(EntryType::Directory, &stat);
                self.archive.append_data(&mut header, &path, io::empty())?;
                self.enter(handle, path)
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(parent, name, Vec::new())?;
                let mut header = header(EntryType::Symlink, &stat);
                append_link(&mut self.archive, &mut header, &path, target.to_bytes())
            }
            FileType::Fifo => {
                let mut header = header(EntryType::Fifo, &stat);
                self.archive.append_data(&mut header, &path, io::empty())
            }
            _ => Ok(()),
        }
    }

    fn add_file(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: PathBuf,
        stat: &Stat,
    ) -> io::Result<()> {
        let identity = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.links.get(&identity) {
            let mut header = header(EntryType::Link, stat);
            return self.archive.append_link(&mut header, &path, first);
        }
        let file = open(parent, name, OFlags::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::NOENT.into());
        }
        let mut header = header(EntryType::Regular, &stat);
        let mut file = File::from(file);
        let read_ahead = if stat.st_size == 0 {
            read_unsized(&mut file)?
        } else {
            Vec::new()
        };
        let size = u64::try_from(stat.st_size)
            .unwrap_or(0)
            .max(read_ahead.len() as u64);
        header.set_size(size);
        // What grows meanwhile is cut, and what shrinks is filled: the header has been written.
        if is_off(Defence::ExactLength) {
            let content = io::Cursor::new(read_ahead).chain(file);
            return self.archive.append_data(&mut header, &path, content);
        }
        let content = io::Cursor::new(read_ahead)
            .chain(file)
            .chain(io::repeat(0))
            .take(size);
        let room = usize::try_from(size).map_or(CHUNK_BYTES, |size| size.clamp(1, CHUNK_BYTES));
        let content = BufReader::with_capacity(room, content);
        self.archive.append_data(&mut header, &path, content)?;
        if stat.st_nlink > 1 && self.links.len() < LINKS_MAX {
            self.links.insert(identity, path);
        }
        Ok(())
    }
}

/// Appends a link whose target stays as it is, byte for byte; the builder's own way tidies it.
fn append_link(
    archive: &mut Builder<impl Write>,
    header: &mut Header,
    path: &Path,
    target: &[u8],
) -> io::Result<()> {
    if header.set_link_name_literal(target).is_err() {
        // Longer than the header's field, so a record before it has the whole.
        let whole = target.chain(&[0][..]);
        let mut record = Header::new_gnu();
        record.set_entry_type(EntryType::GNULongLink);
        record.set_path("@LongLink")?;
        record.set_mode(0o644);
        record.set_size(target.len() as u64 + 1);
        record.set_cksum();
        archive.append(&record, whole)?;
    }
    archive.append_data(header, path, io::empty())
}

fn open(parent: &OwnedFd, name: &OsStr, flags: OFlags) -> io::Result<OwnedFd> {
    let always = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat(parent, name, flags | always | OFlags::NOCTTY, Mode::empty()) {
        // It has become a link or something else since.
        Err(Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => Err(Errno::NOENT.into()),
        done => Ok(done?),
    }
}

fn header(kind: EntryType, stat: &Stat) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header
}

/// Reads a file that says it is empty, to see whether it is.
fn read_unsized(file: &mut File) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(UNSIZED_BYTES_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > UNSIZED_BYTES_MAX {
        return Err(Errno::FBIG.into());
    }
    Ok(content)
}
