//! Host files into a tar stream.
//!
//! A sandbox may write where we read, as in a directory that is shared with it. So nothing is
//! opened by a path that it could point elsewhere: each name is looked at and opened beneath the
//! directory that was read, and no link is followed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pinfold_linux::weaken::{Defence, is_off};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use super::notes::Notes;

/// Permission bits that are copied: no setuid, setgid or sticky bit crosses the border.
const MODE_COPIED: u32 = 0o777;

/// Something that is to be packed.
struct Waiting {
    /// The directory that it is in.
    parent: Arc<OwnedFd>,
    /// Its name there.
    name: OsString,
    /// Where it is, for people.
    path: PathBuf,
    /// Its name in the archive.
    entry: PathBuf,
}

/// Writes a file or a directory with everything in it as a tar stream whose top entry is `name`.
///
/// Links are written as links. Sockets, devices and pipes are left out and returned. A file that
/// grows meanwhile is cut at the size it had, one that shrinks is filled with zeros and returned.
///
/// # Errors
///
/// Fails when something cannot be read, or the stream cannot be written.
pub(crate) fn pack(
    source: &Path,
    name: &str,
    to: impl Write,
    progress: &dyn Fn(u64),
) -> io::Result<Vec<String>> {
    let mut pack = Pack {
        builder: Builder::new(to),
        notes: Notes::default(),
        waiting: vec![top(source, name)?],
        progress,
    };
    while let Some(next) = pack.waiting.pop() {
        let told = next.path.display().to_string();
        pack.add(&next)
            .map_err(|error| io::Error::new(error.kind(), format!("{told}: {error}")))?;
    }
    pack.builder.into_inner()?.flush()?;
    Ok(pack.notes.into_lines())
}

/// Finds what the caller named; the way there is the caller's own.
fn top(source: &Path, name: &str) -> io::Result<Waiting> {
    let whole = source.as_os_str().as_bytes().ends_with(b"/");
    let last = source.file_name().filter(|_| !whole);
    let (parent, last) = match last {
        Some(last) => (source.parent().unwrap_or(Path::new("")), last),
        None => (source, OsStr::new(".")),
    };
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let context =
        |errno: Errno| io::Error::new(errno.kind(), format!("{}: {errno}", parent.display()));
    let handle = rustix::fs::openat(CWD, parent, flags, Mode::empty()).map_err(context)?;
    Ok(Waiting {
        parent: Arc::new(handle),
        name: last.to_owned(),
        path: source.to_owned(),
        entry: PathBuf::from(name),
    })
}

struct Pack<'a, W: Write> {
    builder: Builder<W>,
    notes: Notes,
    waiting: Vec<Waiting>,
    progress: &'a dyn Fn(u64),
}

impl<W: Write> Pack<'_, W> {
    fn add(&mut self, next: &Waiting) -> io::Result<()> {
        let stat = if is_off(Defence::Beneath) {
            rustix::fs::lstat(&next.path)?
        } else {
            rustix::fs::statat(&next.parent, &next.name, AtFlags::SYMLINK_NOFOLLOW)?
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.directory(next, &stat),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&next.parent, &next.name, Vec::new())?;
                let mut header = header_of(&stat, EntryType::Symlink, 0);
                append_link(
                    &mut self.builder,
                    &mut header,
                    &next.entry,
                    target.to_bytes(),
                )
            }
            FileType::RegularFile => self.file(next),
            _ if is_off(Defence::FileKinds) => self.file(next),
            FileType::Socket => {
                self.notes.add(&next.path, "is a socket and was left out");
                Ok(())
            }
            _ => self.special(next),
        }
    }

    #[expect(
        clippy::unnecessary_wraps,
        reason = "it is one of several ways of adding, and the others fail"
    )]
    fn special(&mut self, next: &Waiting) -> io::Result<()> {
        self.notes
            .add(&next.path, "is a special file and was left out");
        Ok(())
    }

    fn directory(&mut self, next: &Waiting, stat: &Stat) -> io::Result<()> {
        let mut header = header_of(stat, EntryType::Directory, 0);
        let entry = next.entry.join("");
        self.builder.append_data(&mut header, entry, io::empty())?;
        let handle = Arc::new(open(next, OFlags::DIRECTORY)?);
        let mut names = Vec::new();
        for entry in Dir::read_from(&handle)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        self.waiting.extend(names.into_iter().map(|name| Waiting {
            parent: Arc::clone(&handle),
            path: next.path.join(&name),
            entry: next.entry.join(&name),
            name,
        }));
        Ok(())
    }

    fn file(&mut self, next: &Waiting) -> io::Result<()> {
        // Non-blocking, so that a pipe put in the file's place is not waited for.
        let waits = is_off(Defence::FileKinds);
        let flags = if waits {
            OFlags::empty()
        } else {
            OFlags::NONBLOCK
        };
        let file = open(next, flags | OFlags::NOCTTY)?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile && !waits {
            return self.special(next);
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut header = header_of(&stat, EntryType::Regular, size);
        let mut data = ExactLength {
            file: File::from(file),
            left: size,
            whole: true,
            progress: self.progress,
        };
        if is_off(Defence::ExactLength) {
            return self
                .builder
                .append_data(&mut header, &next.entry, data.file);
        }
        self.builder
            .append_data(&mut header, &next.entry, &mut data)?;
        if !data.whole {
            self.notes.add(&next.path, "shrank while it was copied");
        }
        Ok(())
    }
}

fn open(next: &Waiting, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
    let opened = if is_off(Defence::Beneath) {
        rustix::fs::openat(CWD, &next.path, flags, Mode::empty())
    } else {
        let flags = flags | OFlags::NOFOLLOW;
        rustix::fs::openat(&next.parent, &next.name, flags, Mode::empty())
    };
    Ok(opened?)
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

fn header_of(stat: &Stat, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(stat.st_mode & MODE_COPIED);
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Reads exactly as much as the entry's header promised.
struct ExactLength<'a> {
    file: File,
    left: u64,
    whole: bool,
    progress: &'a dyn Fn(u64),
}

impl Read for ExactLength<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let Some(part) = buffer.get_mut(..most).filter(|part| !part.is_empty()) else {
            return Ok(0);
        };
        let mut count = if self.whole { self.file.read(part)? } else { 0 };
        if count == 0 {
            self.whole = false;
            part.fill(0);
            count = part.len();
        }
        self.left -= count as u64;
        (self.progress)(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(source: &Path) -> (Vec<(String, EntryType)>, Vec<String>) {
        let mut bytes = Vec::new();
        let notes = pack(source, "top", &mut bytes, &|_| {}).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            (path, entry.header().entry_type())
        });
        (entries.collect(), notes)
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let place = tempfile::tempdir().unwrap();
        let pipe = place.path().join("pipe\nhint: x");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let (entries, notes) = packed(&pipe);
        assert_eq!((entries.len(), notes.len()), (0, 1));
        assert!(
            notes[0].contains("pipe\\nhint: x is a special file"),
            "{notes:?}"
        );
    }

    #[test]
    fn a_directory_is_packed_however_it_is_named() {
        let place = tempfile::tempdir().unwrap();
        let real = place.path().join("real");
        std::fs::create_dir(&real).unwrap();
        std::fs::write(real.join("file"), "x").unwrap();
        std::os::unix::fs::symlink("real", place.path().join("link")).unwrap();
        let whole = [
            ("top/".to_owned(), EntryType::Directory),
            ("top/file".to_owned(), EntryType::Regular),
        ];
        for named in ["real", "real/", "link/", "real/.", "real/../real"] {
            let (entries, _) = packed(&place.path().join(named));
            assert_eq!(entries, whole, "{named}");
        }
        let (entries, _) = packed(&place.path().join("link"));
        assert_eq!(entries, [("top".to_owned(), EntryType::Symlink)]);
        assert!(pack(&place.path().join("none"), "top", io::sink(), &|_| {}).is_err());
    }

    #[test]
    fn a_directory_that_becomes_a_link_is_not_followed() {
        let place = tempfile::tempdir().unwrap();
        let (tree, secret) = (place.path().join("tree"), place.path().join("secret"));
        std::fs::create_dir_all(tree.join("d")).unwrap();
        std::fs::create_dir(&secret).unwrap();
        for directory in [&tree.join("d"), &secret] {
            std::fs::write(directory.join("file"), directory.as_os_str().as_bytes()).unwrap();
        }
        let mut bytes = Vec::new();
        let mut pack = Pack {
            builder: Builder::new(&mut bytes),
            notes: Notes::default(),
            waiting: vec![top(&tree, "top").unwrap()],
            progress: &|_| {},
        };
        // As far as the directory's own entry, whose file is still to come.
        for _ in 0..2 {
            let next = pack.waiting.pop().unwrap();
            pack.add(&next).unwrap();
        }
        std::fs::rename(tree.join("d"), tree.join("was")).unwrap();
        std::os::unix::fs::symlink(&secret, tree.join("d")).unwrap();
        let next = pack.waiting.pop().unwrap();
        assert!(next.path.ends_with("d/file"));
        pack.add(&next).unwrap();
        drop(pack);
        let held = |text: &Path| {
            let text = text.as_os_str().as_bytes();
            bytes.windows(text.len()).any(|part| part == text)
        };
        assert!(held(&tree.join("d")) && !held(&secret));
    }
}
