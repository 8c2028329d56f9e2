//! A tar stream from a sandbox into a host directory.
//!
//! The stream may say anything. Every path is resolved beneath the destination without following a
//! link, so nothing outside it is ever written; setuid bits, owners and devices are never taken.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use pinfold_linux::beneath::{Beneath, BeneathError, set_mode};
use pinfold_linux::weaken::{Defence, is_off};
use rustix::fs::Mode;
use tar::{Archive, EntryType};

use super::extension::Extension;
use super::notes::one_line;
use crate::handoff::{CONTENT_BYTES_MAX, Handoff};

/// Most entries of one copy: ten million files, far above any source tree, end a hostile stream.
const ENTRIES_MAX: u64 = 10_000_000;

/// Longest path of an entry in bytes, as the kernel has it.
const PATH_BYTES_MAX: usize = 4095;

/// Most bytes of the names of directories that get their mode after what is in them. One beyond that
/// keeps the owner's rights, so that what is in it can still be made.
const LATER_BYTES_MAX: usize = 16 << 20;

/// Most lines about what was left out; a sandbox can leave as much as it likes.
const NOTES_MAX: usize = 1000;

/// Permission bits that are copied.
const MODE_COPIED: u32 = 0o777;

/// What was unpacked.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// Files, directories and links.
    pub(crate) entries: u64,
    /// What was left out, one line each.
    pub(crate) notes: Vec<String>,
}

impl Unpacked {
    fn leave_out(&mut self, path: &Path) {
        let path = one_line(path);
        self.note(format!("{path} is a special file and was left out"));
    }

    fn note(&mut self, note: String) {
        match self.notes.len() {
            0..NOTES_MAX => self.notes.push(note),
            NOTES_MAX => self.notes.push("more was left out".to_owned()),
            _ => {}
        }
    }
}

/// Why a stream could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    /// The stream is no tar stream, or it ended early.
    #[error("failed to read what the sandbox sent")]
    Stream(#[source] io::Error),
    /// A path leaves the destination, is absolute or too long.
    #[error("the sandbox sent the path `{}`, which leads out of the destination", one_line(.0))]
    Outside(PathBuf),
    /// There are too many entries.
    #[error("the sandbox sent more than {ENTRIES_MAX} entries")]
    TooMany,
    /// The host's file system refused.
    #[error("failed to write on this host")]
    Host(#[source] BeneathError),
    /// Data could not be written.
    #[error("failed to write `{}`", one_line(path))]
    Data {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl From<BeneathError> for UnpackError {
    fn from(error: BeneathError) -> Self {
        Self::Host(error)
    }
}

/// Unpacks a stream into `directory`; its top entry gets the name `name`.
///
/// # Errors
///
/// Fails on anything that is not a plain tree beneath one top entry. What was unpacked before
/// stays.
pub(crate) fn unpack(
    stream: impl Read,
    directory: &Path,
    name: &OsString,
    handoff: &mut Handoff,
    progress: &dyn Fn(u64),
) -> Result<Unpacked, UnpackError> {
    let root = Beneath::open(directory)?;
    let mut archive = Archive::new(stream);
    let mut done = Unpacked::default();
    let mut seen: u64 = 0;
    // A directory that its owner may not write gets its mode last.
    let mut directories: Vec<(PathBuf, u32)> = Vec::new();
    let mut later_bytes = 0;
    let mut extension = Extension::default();
    for entry in archive.entries().map_err(UnpackError::Stream)?.raw(true) {
        let mut entry = entry.map_err(UnpackError::Stream)?;
        seen += 1;
        if seen > ENTRIES_MAX {
            return Err(UnpackError::TooMany);
        }
        if extension.take(&mut entry).map_err(UnpackError::Stream)? {
            continue;
        }
        let extension = std::mem::take(&mut extension);
        let sent = path_of(&extension.path.unwrap_or_else(|| entry.path_bytes().into()));
        let Some(path) = placed(&sent, name)? else {
            continue;
        };
        let sent_mode = entry.header().mode().unwrap_or(0o644);
        let target = extension
            .link
            .or_else(|| entry.link_name_bytes().map(std::borrow::Cow::into_owned))
            .map(|target| path_of(&target));
        let kind = entry.header().entry_type();
        make_parent(&root, &path)?;
        match (kind, target) {
            (EntryType::Directory, _) => {
                handoff.directory(&path);
                root.mkdir_all(&path, Mode::from_raw_mode(0o700))?;
                later_bytes += path.as_os_str().len() + size_of::<(PathBuf, u32)>();
                if later_bytes <= LATER_BYTES_MAX || is_off(Defence::ArchiveBounds) {
                    directories.push((path, mode_of(sent_mode)));
                }
            }
            (EntryType::Regular | EntryType::Continuous, _) => {
                if !take_file(&root, (&path, sent_mode), &mut entry, handoff, progress)? {
                    continue;
                }
            }
            (EntryType::Symlink, Some(target)) => {
                if !handoff.symlink(&path, &target) {
                    continue;
                }
                clear(&root, &path)?;
                root.symlink(&target, &path)?;
            }
            (EntryType::Link, Some(target)) => {
                if !handoff.hard_link(&path) {
                    continue;
                }
                if let Some(existing) = placed(&target, name)? {
                    hard_link(&root, &existing, &path, handoff)?;
                }
            }
            (kind, _) if is_let_through(kind) => {
                let place = (&*path, sent_mode);
                take_special(&root, place, &mut entry, handoff, progress)?;
            }
            _ => {
                done.leave_out(&path);
                continue;
            }
        }
        done.entries += 1;
    }
    finish(&root, &directories)?;
    Ok(done)
}

fn make_parent(root: &Beneath, path: &Path) -> Result<(), UnpackError> {
    let parent = path.parent();
    match parent.filter(|parent| parent.components().next().is_some()) {
        Some(parent) => Ok(root.mkdir_all(parent, Mode::from_raw_mode(0o755))?),
        None => Ok(()),
    }
}

/// Writes a file unless it is held back; answers whether it was written.
fn take_file(
    root: &Beneath,
    (path, mode): (&Path, u32),
    entry: &mut impl Read,
    handoff: &mut Handoff,
    progress: &dyn Fn(u64),
) -> Result<bool, UnpackError> {
    let head = head_of(path, entry, handoff)?;
    let decision = handoff.file(path, mode, &head);
    if decision.take {
        let mut data = head.as_slice().chain(entry);
        let mode = mode_of(decision.mode);
        write_file(root, path, mode, &mut data, progress)?;
    }
    Ok(decision.take)
}

/// Reads as much of a file as has to be known of it before it is written.
fn head_of(path: &Path, entry: &mut impl Read, handoff: &Handoff) -> Result<Vec<u8>, UnpackError> {
    let mut head = Vec::new();
    if handoff.needs_content(path) {
        let most = CONTENT_BYTES_MAX as u64 + 1;
        let mut first = entry.take(most);
        first.read_to_end(&mut head).map_err(UnpackError::Stream)?;
    }
    Ok(head)
}

/// Makes a second name of a file; of one that was left out there is none.
fn hard_link(
    root: &Beneath,
    existing: &Path,
    path: &Path,
    handoff: &Handoff,
) -> Result<(), UnpackError> {
    if handoff.is_strict() && root.stat(existing).is_err_and(|e| is_missing(&e)) {
        return Ok(());
    }
    clear(root, path)?;
    Ok(root.hard_link(existing, path)?)
}

fn is_missing(error: &BeneathError) -> bool {
    error.source.kind() == io::ErrorKind::NotFound
}

/// Gives directories the mode that they were sent with, innermost first.
fn finish(root: &Beneath, directories: &[(PathBuf, u32)]) -> Result<(), UnpackError> {
    for (path, mode) in directories.iter().rev() {
        let file = root.open_file(path, rustix::fs::OFlags::DIRECTORY)?;
        let data = |source| UnpackError::Data {
            path: path.clone(),
            source,
        };
        set_mode(std::os::fd::AsFd::as_fd(&file), Mode::from_raw_mode(*mode)).map_err(data)?;
    }
    Ok(())
}

fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// Returns whether a test leaves out that entries of this kind are not made.
fn is_let_through(kind: EntryType) -> bool {
    match kind {
        EntryType::Fifo | EntryType::Char => is_off(Defence::ArchiveKinds),
        EntryType::GNUSparse => is_off(Defence::ArchiveSparse),
        _ => false,
    }
}

/// Makes what no product does.
fn take_special(
    root: &Beneath,
    (path, mode): (&Path, u32),
    entry: &mut tar::Entry<'_, impl Read>,
    handoff: &mut Handoff,
    progress: &dyn Fn(u64),
) -> Result<(), UnpackError> {
    let number = |found: io::Result<Option<u32>>| found.ok().flatten().unwrap_or(0);
    let header = entry.header();
    match header.entry_type() {
        EntryType::Fifo => root.mkfifo(path, Mode::from_raw_mode(0o600))?,
        EntryType::Char => {
            let (major, minor) = (header.device_major(), header.device_minor());
            root.mkdevice(path, (number(major), number(minor)))?;
        }
        _ => {
            let size = header.as_gnu().and_then(|gnu| gnu.real_size().ok());
            let hole = size.unwrap_or(0).saturating_sub(entry.size());
            let mut content = io::repeat(0).take(hole).chain(entry);
            take_file(root, (path, mode), &mut content, handoff, progress)?;
        }
    }
    Ok(())
}

fn mode_of(sent: u32) -> u32 {
    if is_off(Defence::ArchiveModes) {
        return sent & 0o7777;
    }
    sent & MODE_COPIED
}

/// Puts an entry beneath the name that the copy gets; `None` for the stream's own root.
fn placed(sent: &Path, name: &OsString) -> Result<Option<PathBuf>, UnpackError> {
    let outside = || UnpackError::Outside(sent.to_owned());
    if sent.as_os_str().len() > PATH_BYTES_MAX {
        return Err(outside());
    }
    if is_off(Defence::ArchiveNames) && sent.is_absolute() {
        return Ok(Some(sent.to_owned()));
    }
    let mut parts = Vec::new();
    for component in sent.components() {
        match component {
            Component::Normal(part) => parts.push(part),
            Component::CurDir => {}
            Component::ParentDir if is_off(Defence::ArchiveNames) => {
                parts.push(component.as_os_str());
            }
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                return Err(outside());
            }
        }
    }
    if parts.is_empty() {
        return Ok(None);
    }
    let below = parts.iter().skip(1);
    Ok(Some(
        below.fold(PathBuf::from(name), |path, part| path.join(part)),
    ))
}

/// Makes room for a file: what is there goes, but a directory with something in it stays.
fn clear(root: &Beneath, path: &Path) -> Result<(), UnpackError> {
    match root.remove_file(path) {
        Err(error) if error.source.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn write_file(
    root: &Beneath,
    path: &Path,
    mode: u32,
    data: &mut impl Read,
    progress: &dyn Fn(u64),
) -> Result<(), UnpackError> {
    clear(root, path)?;
    let mut file = std::fs::File::from(root.create_file(path, Mode::from_raw_mode(0o600))?);
    let failed = |source| UnpackError::Data {
        path: path.to_owned(),
        source,
    };
    let mut buffer = vec![0u8; super::CHUNK_BYTES];
    loop {
        let count = data.read(&mut buffer).map_err(UnpackError::Stream)?;
        let Some(part) = buffer.get(..count).filter(|part| !part.is_empty()) else {
            break;
        };
        file.write_all(part).map_err(failed)?;
        progress(count as u64);
    }
    set_mode(std::os::fd::AsFd::as_fd(&file), Mode::from_raw_mode(mode)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt};

    use tar::{Builder, Header};

    use super::*;
    use crate::tarball::pack;

    fn stream(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o4755);
            // Written by hand: the crate itself refuses to make hostile paths.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            let data = if *kind == EntryType::Regular {
                content.as_bytes()
            } else {
                header.as_mut_bytes()[157..157 + content.len()].copy_from_slice(content.as_bytes());
                &[]
            };
            header.set_size(data.len() as u64);
            header.set_cksum();
            builder.append(&header, data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn into(
        directory: &Path,
        entries: &[(&str, EntryType, &str)],
    ) -> Result<Unpacked, UnpackError> {
        unpack(
            stream(entries).as_slice(),
            directory,
            &"copy".into(),
            &mut Handoff::new(directory, false),
            &|_| {},
        )
    }

    #[test]
    fn a_tree_comes_out_as_it_went_in() {
        let from = tempfile::tempdir().unwrap();
        let tree = from.path().join("tree");
        std::fs::create_dir_all(tree.join("empty")).unwrap();
        std::fs::write(tree.join("file"), "content").unwrap();
        std::fs::set_permissions(tree.join("file"), PermissionsExt::from_mode(0o4750)).unwrap();
        std::os::unix::fs::symlink("/nowhere", tree.join("link")).unwrap();
        std::fs::create_dir(tree.join("locked")).unwrap();
        std::fs::write(tree.join("locked/inner"), vec![7; 200_000]).unwrap();
        std::fs::set_permissions(tree.join("locked"), PermissionsExt::from_mode(0o555)).unwrap();
        let mut bytes = Vec::new();
        assert_eq!(
            pack(&tree, "tree", &mut bytes, &|_| {}).unwrap(),
            Vec::<String>::new()
        );

        let to = tempfile::tempdir().unwrap();
        let mut handoff = Handoff::new(to.path(), false);
        let done = unpack(
            bytes.as_slice(),
            to.path(),
            &"other".into(),
            &mut handoff,
            &|_| {},
        )
        .unwrap();
        assert_eq!((done.entries, done.notes.len()), (6, 0));
        let other = to.path().join("other");
        assert_eq!(std::fs::read(other.join("file")).unwrap(), b"content");
        assert_eq!(
            std::fs::metadata(other.join("file")).unwrap().mode() & 0o7777,
            0o750
        );
        assert_eq!(
            std::fs::read_link(other.join("link")).unwrap(),
            Path::new("/nowhere")
        );
        assert_eq!(
            std::fs::read(other.join("locked/inner")).unwrap().len(),
            200_000
        );
        assert_eq!(
            std::fs::metadata(other.join("locked")).unwrap().mode() & 0o777,
            0o555
        );
    }

    #[test]
    fn nothing_outside_the_destination_is_written() {
        let place = tempfile::tempdir().unwrap();
        let to = place.path().join("to");
        std::fs::create_dir(&to).unwrap();
        std::fs::write(place.path().join("secret"), "kept").unwrap();
        let regular = EntryType::Regular;
        let attacks: &[&[(&str, EntryType, &str)]] = &[
            &[("../secret", regular, "x")],
            &[("a/../../secret", regular, "x")],
            &[("/etc/pinfold-attack", regular, "x")],
            &[
                ("a/up", EntryType::Symlink, ".."),
                ("a/up/up/secret", regular, "x"),
            ],
            &[
                ("a/link", EntryType::Symlink, "../../secret"),
                ("a/hard", EntryType::Link, "a/link/x"),
            ],
            &[("a/hard", EntryType::Link, "../secret")],
        ];
        for attack in attacks {
            assert!(into(&to, attack).is_err(), "{attack:?}");
        }
        // Writing to a link replaces the link.
        let done = into(
            &to,
            &[
                ("a/link", EntryType::Symlink, "../../secret"),
                ("a/link", regular, "new"),
                ("a/device", EntryType::Char, ""),
            ],
        );
        assert_eq!(done.unwrap().notes.len(), 1);
        assert_eq!(std::fs::read(place.path().join("secret")).unwrap(), b"kept");
        let link = to.join("copy/link");
        assert_eq!(std::fs::read(&link).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&link).unwrap().mode() & 0o7777, 0o755);
    }

    #[test]
    fn what_is_held_back_is_not_written_and_the_rest_is() {
        let to = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(to.path().join("copy")).unwrap();
        std::fs::write(to.path().join("copy/.envrc"), "old").unwrap();
        let regular = EntryType::Regular;
        let safe = "[core]\nbare = false\n";
        let long = format!("{safe}#{}", "x".repeat(2 << 20));
        let sent = stream(&[
            ("a/.envrc", regular, "new"),
            ("a/.git/hooks/pre-commit", regular, "x"),
            ("a/.git/config", regular, safe),
            ("a/sub/.git/config", regular, &long),
            ("a/link", EntryType::Symlink, "/etc"),
            ("a/second", EntryType::Link, "a/.git/hooks/pre-commit"),
            ("a/third", EntryType::Link, "a/run"),
            ("a/run", regular, "run"),
        ]);
        let mut handoff = Handoff::new(to.path(), true);
        let done = unpack(
            sent.as_slice(),
            to.path(),
            &"copy".into(),
            &mut handoff,
            &|_| {},
        );
        done.unwrap();
        let copy = to.path().join("copy");
        let read = |name: &str| std::fs::read_to_string(copy.join(name)).ok();
        assert_eq!(read(".envrc").unwrap(), "old");
        assert_eq!(read(".git/config").unwrap(), safe);
        assert_eq!(read("run").unwrap(), "run");
        let mode = std::fs::metadata(copy.join("run")).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o644);
        for name in [".git/hooks/pre-commit", "sub/.git/config", "link", "second"] {
            assert!(
                std::fs::symlink_metadata(copy.join(name)).is_err(),
                "{name}"
            );
        }
        assert!(handoff.finish().held >= 4);
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        let to = tempfile::tempdir().unwrap();
        let whole = stream(&[("a/file", EntryType::Regular, &"x".repeat(3000))]);
        for length in [100, 600, 1500] {
            let cut = whole.get(..length).unwrap();
            assert!(
                unpack(
                    cut,
                    to.path(),
                    &"copy".into(),
                    &mut Handoff::new(to.path(), false),
                    &|_| {}
                )
                .is_err(),
                "{length}"
            );
        }
    }
}
