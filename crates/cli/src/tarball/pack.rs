//! Host files into a tar stream.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

/// Permission bits that are copied: no setuid, setgid or sticky bit crosses the border.
const MODE_COPIED: u32 = 0o777;

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
    let mut builder = Builder::new(to);
    let mut notes = Vec::new();
    let mut waiting: Vec<(PathBuf, PathBuf)> = vec![(source.to_owned(), PathBuf::from(name))];
    while let Some((path, entry)) = waiting.pop() {
        let context =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let metadata = std::fs::symlink_metadata(&path).map_err(context)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            let mut header = header_of(&metadata, EntryType::Directory, 0);
            builder.append_data(&mut header, entry.join(""), io::empty())?;
            let mut names: Vec<OsString> = std::fs::read_dir(&path)
                .and_then(|entries| entries.map(|entry| entry.map(|e| e.file_name())).collect())
                .map_err(context)?;
            names.sort_unstable_by(|a, b| b.cmp(a));
            waiting.extend(names.iter().map(|name| (path.join(name), entry.join(name))));
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&path).map_err(context)?;
            let mut header = header_of(&metadata, EntryType::Symlink, 0);
            let target = target.as_os_str().as_bytes();
            append_link(&mut builder, &mut header, &entry, target)?;
        } else if kind.is_file() {
            let whole = pack_file(&mut builder, &path, &entry, progress).map_err(context)?;
            if !whole {
                notes.push(format!("{} shrank while it was copied", path.display()));
            }
        } else {
            let what = if kind.is_socket() {
                "socket"
            } else {
                "special file"
            };
            notes.push(format!("{} is a {what} and was left out", path.display()));
        }
    }
    builder.into_inner()?.flush()?;
    Ok(notes)
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

fn pack_file(
    builder: &mut Builder<impl Write>,
    path: &Path,
    entry: &Path,
    progress: &dyn Fn(u64),
) -> io::Result<bool> {
    // Non-blocking, so that a pipe put in the file's place is not waited for.
    let file = File::options()
        .read(true)
        .custom_flags(i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0))
        .open(path)?;
    let metadata = file.metadata()?;
    let size = metadata.len();
    let mut header = header_of(&metadata, EntryType::Regular, size);
    let mut data = ExactLength {
        file,
        left: size,
        whole: true,
        progress,
    };
    builder.append_data(&mut header, entry, &mut data)?;
    Ok(data.whole)
}

fn header_of(metadata: &Metadata, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(metadata.mode() & MODE_COPIED);
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
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
