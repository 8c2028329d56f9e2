//! A directory for what is unpacked or written, with something beside it that must stay as it is.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, Permissions};
use std::hash::{BuildHasher as _, DefaultHasher, Hasher as _, RandomState};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use pinfold_linux::beneath::Beneath;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;

/// A file system in memory, where there is one: a run makes and removes a few files.
const IN_MEMORY: &str = "/dev/shm";

/// Bits of a mode that tell the kind of file.
const FILE_KIND: u32 = 0o170_000;

/// Largest file that may be made; a larger one ends the process.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Deepest tree that is looked at, so that a look ends.
const DEPTH_MAX: usize = 400;

/// The directory, and what lies beside it.
#[derive(Debug)]
pub(crate) struct Place {
    outer: TempDir,
    secret: (u64, u32, i64, u64),
    content: String,
}

fn marks(metadata: &Metadata) -> (u64, u32, i64, u64) {
    (
        metadata.ino(),
        metadata.mode(),
        metadata.mtime_nsec(),
        metadata.nlink(),
    )
}

impl Place {
    /// Makes an empty one.
    pub(crate) fn new() -> Self {
        let maximum = getrlimit(Resource::Fsize).maximum;
        let current = Some(maximum.map_or(FILE_BYTES_MAX, |most| most.min(FILE_BYTES_MAX)));
        setrlimit(Resource::Fsize, Rlimit { current, maximum }).expect("a limit can be lowered");
        let mut builder = tempfile::Builder::new();
        builder.prefix("pf-fuzz-");
        let outer = if Path::new(IN_MEMORY).is_dir() {
            builder.tempdir_in(IN_MEMORY)
        } else {
            builder.tempdir()
        };
        let outer = outer.expect("a temporary directory can be made");
        fs::create_dir(outer.path().join("inside")).expect("it is writable");
        let secret = outer.path().join("secret");
        // Not known to who makes the input, or it could be written by rightful means.
        let content = format!("secret {:x}", RandomState::new().hash_one(outer.path()));
        fs::write(&secret, &content).expect("it is writable");
        let metadata = fs::metadata(&secret).expect("it was just made");
        let secret = marks(&metadata);
        Self {
            outer,
            secret,
            content,
        }
    }

    /// Returns the directory.
    pub(crate) fn inside(&self) -> PathBuf {
        self.outer.path().join("inside")
    }

    /// Returns the file beside it.
    pub(crate) fn secret(&self) -> PathBuf {
        self.outer.path().join("secret")
    }

    /// Returns what is in that file.
    pub(crate) fn content(&self) -> &[u8] {
        self.content.as_bytes()
    }

    /// Asserts that nothing beside the directory was made, changed, linked to or removed.
    pub(crate) fn check(&self) {
        let mut names: Vec<OsString> = fs::read_dir(self.outer.path())
            .expect("the outer directory is there")
            .map(|entry| entry.expect("it can be listed").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["inside", "secret"], "the outer directory changed");
        let secret = fs::read(self.secret()).expect("the file outside is there");
        assert_eq!(secret, self.content(), "the file outside was written");
        let metadata = fs::symlink_metadata(self.secret()).expect("it is there");
        assert_eq!(marks(&metadata), self.secret, "the file outside changed");
    }

    /// Returns everything in the directory: path, kind, permission bits, content or target.
    ///
    /// What this process may not read is opened first.
    pub(crate) fn tree(&self, top: &str) -> Vec<Item> {
        let mut items = Vec::new();
        let mut waiting = vec![(self.inside().join(top), PathBuf::new())];
        while let Some((path, name)) = waiting.pop() {
            let metadata = fs::symlink_metadata(&path).expect("a listed entry is there");
            let kind = metadata.file_type();
            let mode = metadata.mode() & 0o7777;
            let mut content = Vec::new();
            if kind.is_symlink() {
                let target = fs::read_link(&path).expect("a link can be read");
                content = target.into_os_string().into_encoded_bytes();
            } else if kind.is_dir() {
                open_up(&path, &metadata);
                assert!(name.components().count() < DEPTH_MAX, "a tree without end");
                for entry in fs::read_dir(&path).expect("a directory can be listed") {
                    let entry = entry.expect("it can be listed").file_name();
                    waiting.push((path.join(&entry), name.join(&entry)));
                }
            } else if kind.is_file() {
                open_up(&path, &metadata);
                content = content_of(&path);
            }
            items.push(Item {
                name,
                kind: metadata.mode() & FILE_KIND,
                mode,
                content,
            });
        }
        items.sort();
        items
    }
}

/// Returns a short content as it is and a long one as its hash.
fn content_of(path: &Path) -> Vec<u8> {
    let mut file = File::open(path).expect("a file can be read");
    let (mut hasher, mut content) = (DefaultHasher::new(), Vec::new());
    let mut buffer = [0; 4096];
    loop {
        let count = file.read(&mut buffer).expect("a file can be read");
        let part = buffer.get(..count).unwrap_or_default();
        if part.is_empty() {
            return content;
        }
        hasher.write(part);
        if content.len() < buffer.len() {
            content.extend_from_slice(part);
        } else {
            content.truncate(buffer.len());
            content.extend_from_slice(&hasher.finish().to_le_bytes());
        }
    }
}

fn open_up(path: &Path, metadata: &Metadata) {
    let mode = metadata.mode() & 0o7777;
    if mode & 0o700 != 0o700 {
        fs::set_permissions(path, Permissions::from_mode(mode | 0o700))
            .expect("its owner may set its mode");
    }
}

/// One entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Item {
    pub(crate) name: PathBuf,
    pub(crate) kind: u32,
    pub(crate) mode: u32,
    pub(crate) content: Vec<u8>,
}

impl Drop for Place {
    fn drop(&mut self) {
        // By means of our own, since what was unpacked may be closed to its owner or very deep.
        let removed = Beneath::open(self.outer.path())
            .and_then(|outer| outer.remove_all(Path::new("inside")));
        if !std::thread::panicking() {
            removed.expect("a tree that was made can be removed");
        }
    }
}
