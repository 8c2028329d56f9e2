//! Where images are made ready, each once.
//!
//! A layer is made in `partial/` under a lock of its own and renamed into `layers/` when it is
//! whole, so what stands there is complete and never changes. A store that opens removes what an
//! interrupted one left.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Seek as _};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use pinfold_linux::beneath::Beneath;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::archive::{
    InvalidImage, Limits, Owners, UnpackError, UnpackReport, check_root, digest_of, hexadecimal,
    unpack_archive,
};
use crate::host::{self, HostBind, HostImage};
use crate::reference::{ImageRef, path_of};
use crate::worker::{Mapped, WorkerError, remove_mapped, unpack_mapped};

/// How old a change must be before a file's times tell that it was not changed since.
///
/// Kernels keep times in steps of their clock's tick, at most a hundredth of a second.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
/// How keys of image `host` begin.
const HOST_KEY: &str = "host-";
/// How keys of directories begin.
const DIRECTORY_KEY: &str = "directory-";

/// Hears how far long work is: what is done, how much of it, and of how much when that is known.
pub type Report<'a> = &'a (dyn Fn(&str, u64, Option<u64>) + Send + Sync);

/// How archives are unpacked.
#[derive(Debug, Clone)]
pub enum Unpack {
    /// In this process: as root, or as a user with one id.
    Here(Owners),
    /// In a process that holds the caller's subordinate ids.
    Mapped(Arc<dyn Mapped>),
}

/// An image that sandboxes can start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// Stable name of the content.
    pub key: String,
    /// Read-only layers, topmost first.
    pub layers: Vec<PathBuf>,
    /// Host directories over the layers, read-only.
    pub binds: Vec<HostBind>,
    /// Environment of everything that is executed.
    pub env: BTreeMap<String, String>,
    /// Directory that execs start in when nothing else says.
    pub workdir: Option<String>,
    /// User that execs run as when nothing else says.
    pub user: Option<String>,
    /// What the caller may want to know, a sentence each.
    pub notes: Vec<String>,
}

/// An image could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It is not an image, or not one that is supported.
    #[error("`{}` is not usable as an image", image.display())]
    Invalid {
        /// What the caller named.
        image: PathBuf,
        /// What is wrong with it.
        #[source]
        problem: InvalidImage,
    },
    /// It cannot be read.
    #[error("failed to read image `{}`", image.display())]
    Read {
        /// What the caller named.
        image: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It has owners that this user cannot give files to.
    #[error("failed to give `{name}` of image `{}` to user {user} and group {group}", image.display())]
    NeedsIds {
        /// What the caller named.
        image: PathBuf,
        /// The file.
        name: String,
        /// Its user.
        user: u32,
        /// Its group.
        group: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The store's directory did not take it.
    #[error("failed to {action} `{}`", path.display())]
    Store {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The process that holds the subordinate ids could not be run.
    #[error("failed to run the process that unpacks images")]
    Worker(#[source] io::Error),
    /// The process that holds the subordinate ids ended without an answer.
    #[error("the process that unpacks images ended with code {code} and gave no answer")]
    WorkerSilent {
        /// Its exit code; 128 and the signal's number after a signal.
        code: i32,
    },
}

impl ImageError {
    /// Returns whether the host's disk is full, or the caller's share of it.
    pub fn is_out_of_space(&self) -> bool {
        match self {
            Self::Store { source, .. } => matches!(
                source.kind(),
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded
            ),
            _ => false,
        }
    }
}

/// The images of one state directory.
#[derive(Debug)]
pub struct ImageStore {
    directory: PathBuf,
    how: Unpack,
    leftovers: Vec<String>,
    /// Image `host` as it was last, and what it was made from.
    host: Mutex<Option<(host::Fingerprint, Prepared)>>,
}

impl ImageStore {
    /// Opens a store, made when it is missing, and removes what interrupted work left.
    ///
    /// # Errors
    /// Fails if the directory cannot be made or read.
    pub fn open(directory: &Path, how: Unpack) -> Result<Self, ImageError> {
        let directory = std::path::absolute(directory)
            .map_err(store_error("find the directory of", directory))?;
        let directory = directory.as_path();
        let mut store = Self {
            directory: directory.to_owned(),
            how,
            leftovers: Vec::new(),
            host: Mutex::new(None),
        };
        for part in ["layers", "partial", "locks", "known"] {
            // Nobody else may enter: a layer may hold programs that run as their owner.
            let path = directory.join(part);
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(store_error("make directory", &path))?;
        }
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(directory, private)
            .map_err(store_error("close to others", directory))?;
        store.leftovers = store.sweep()?;
        Ok(store)
    }

    /// Returns what interrupted work left and could not be removed, a line each.
    pub fn leftovers(&self) -> &[String] {
        &self.leftovers
    }

    /// Makes an image ready: unpacks it when that was not done before, checks it always.
    ///
    /// Blocks for as long as unpacking takes. Two calls for the same archive unpack it once, also
    /// from two processes.
    ///
    /// # Errors
    /// Fails if it is no image or cannot be kept; nothing of it is then left.
    pub fn prepare(&self, image: &ImageRef, report: Report<'_>) -> Result<Prepared, ImageError> {
        match image {
            ImageRef::Host => self.host(report),
            ImageRef::Directory(path) => self.directory(path, path),
            ImageRef::Tar(path) | ImageRef::TarGzip(path) => self.archive(path, path, report),
        }
    }

    /// As [`ImageStore::prepare`], of what the image's path led to when it was opened.
    ///
    /// Of a directory, the answer names the path: who uses it must open it in the same way.
    ///
    /// # Errors
    /// As [`ImageStore::prepare`].
    pub fn prepare_opened(
        &self,
        image: &ImageRef,
        opened: BorrowedFd<'_>,
        report: Report<'_>,
    ) -> Result<Prepared, ImageError> {
        let found = path_of(opened);
        match image {
            ImageRef::Host => self.host(report),
            ImageRef::Directory(path) => self.directory(path, &found),
            ImageRef::Tar(path) | ImageRef::TarGzip(path) => self.archive(path, &found, report),
        }
    }

    /// Returns whether an image that was prepared before is a directory of a caller's, by its key.
    pub fn is_directory(key: &str) -> bool {
        key.starts_with(DIRECTORY_KEY)
    }

    /// Returns the binds of an image that was prepared before, by its key.
    pub fn binds_of(&self, key: &str) -> Vec<HostBind> {
        if key.starts_with(HOST_KEY) {
            host::binds(Path::new("/"))
        } else {
            Vec::new()
        }
    }

    fn host(&self, report: Report<'_>) -> Result<Prepared, ImageError> {
        let root = Path::new("/");
        let fingerprint = host::Fingerprint::take(root);
        // Nothing panics with the guard held, and what it guards is replaced as a whole.
        let mut known = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, prepared)) = known.as_ref()
            && *of == fingerprint
            && prepared.layers.iter().all(|layer| layer.is_dir())
        {
            return Ok(prepared.clone());
        }
        report("preparing the host's programs", 0, None);
        let image = HostImage::collect(root);
        let digest = digest_of(&mut image.skeleton.as_slice(), &mut |_| {})
            .map_err(store_error("hash", root))?;
        let key = self.key(HOST_KEY, &digest);
        let layer = self.layer(&key, |partial| {
            let path = partial.join("skeleton.tar");
            let written = fs::write(&path, &image.skeleton).and_then(|()| File::open(&path));
            let skeleton = written.map_err(store_error("write", &path))?;
            let named = Path::new("host");
            self.unpack(skeleton, named, &partial.join("root"), &mut |_| {})?;
            fs::remove_file(&path).map_err(store_error("remove", &path))
        })?;
        let prepared = Prepared {
            key,
            layers: vec![layer],
            binds: image.binds,
            env: host::environment(),
            workdir: Some(host::WORKDIR.to_owned()),
            user: None,
            notes: Vec::new(),
        };
        *known = Some((fingerprint, prepared.clone()));
        Ok(prepared)
    }

    fn directory(&self, path: &Path, found: &Path) -> Result<Prepared, ImageError> {
        let invalid = |problem| ImageError::Invalid {
            image: path.to_owned(),
            problem,
        };
        let read_error = |source| ImageError::Read {
            image: path.to_owned(),
            source,
        };
        let path = std::path::absolute(path).map_err(read_error)?;
        fs::read_dir(found).map_err(read_error)?;
        check_root(found).map_err(invalid)?;
        if holds(found, &self.directory).map_err(read_error)? {
            return Err(invalid(InvalidImage::HoldsState));
        }
        let digest = digest_of(&mut path.as_os_str().as_bytes(), &mut |_| {});
        let digest = digest.map_err(read_error)?;
        Ok(Prepared {
            key: format!("{DIRECTORY_KEY}{digest}"),
            layers: vec![path],
            binds: Vec::new(),
            env: host::environment(),
            workdir: None,
            user: None,
            notes: Vec::new(),
        })
    }

    fn archive(
        &self,
        path: &Path,
        found: &Path,
        report: Report<'_>,
    ) -> Result<Prepared, ImageError> {
        let read_error = |source| ImageError::Read {
            image: path.to_owned(),
            source,
        };
        let mut file = File::open(found).map_err(read_error)?;
        let length = file.metadata().map_err(read_error)?.len();
        let digest = self
            .digest_of_archive(&mut file, report)
            .map_err(read_error)?;
        let key = self.key("archive-", &digest);
        let mut notes = Vec::new();
        let layer = self.layer(&key, |partial| {
            file.rewind().map_err(read_error)?;
            let mut progress = |read| report("unpacking the image", read, Some(length));
            let root = partial.join("root");
            let made = self.unpack(file, path, &root, &mut progress)?;
            if made.digest != digest {
                return Err(ImageError::Invalid {
                    image: path.to_owned(),
                    problem: InvalidImage::Changed,
                });
            }
            notes = notes_on(&made);
            Ok(())
        })?;
        Ok(Prepared {
            key,
            layers: vec![layer],
            binds: Vec::new(),
            env: host::environment(),
            workdir: None,
            user: None,
            notes,
        })
    }

    /// Returns the digest of an archive, which is remembered for as long as the file is unchanged.
    fn digest_of_archive(&self, file: &mut File, report: Report<'_>) -> io::Result<String> {
        let metadata = file.metadata()?;
        let identity = format!(
            "{}:{}:{}:{}.{}:{}.{}",
            metadata.dev(),
            metadata.ino(),
            metadata.len(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        );
        let name = digest_of(&mut identity.as_bytes(), &mut |_| {})?;
        let known = self.directory.join("known").join(name);
        if let Ok(digest) = fs::read_to_string(&known)
            && is_digest(&digest)
        {
            return Ok(digest);
        }
        let length = Some(metadata.len());
        let read = SystemTime::now();
        let digest = digest_of(file, &mut |done| report("reading the image", done, length))?;
        let changed = SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(metadata.ctime().unsigned_abs()));
        if changed.is_some_and(|changed| {
            read.duration_since(changed)
                .is_ok_and(|age| age > SETTLED_AFTER)
        }) {
            // A remembered digest only saves time: whoever finds none, or half of one, reads again.
            let _saved = fs::write(known, &digest);
        }
        Ok(digest)
    }

    /// Names content by its digest, and by who owns it on disk.
    fn key(&self, kind: &str, digest: &str) -> String {
        let owners = match &self.how {
            Unpack::Here(Owners::Keep) => "kept",
            Unpack::Here(Owners::Caller) => "single",
            Unpack::Mapped(_) => "mapped",
        };
        format!("{kind}{digest}-{owners}")
    }

    /// Returns the directory of a layer; `make` fills `root` of a directory when it is missing.
    fn layer(
        &self,
        key: &str,
        make: impl FnOnce(&Path) -> Result<(), ImageError>,
    ) -> Result<PathBuf, ImageError> {
        let layer = self.directory.join("layers").join(key);
        let root = layer.join("root");
        if root.is_dir() {
            return Ok(root);
        }
        let _lock = self.lock(key, FlockOperation::LockExclusive)?;
        if root.is_dir() {
            return Ok(root);
        }
        let partial = self.directory.join("partial").join(key);
        if partial.exists() {
            self.remove_partial(key)?;
        }
        let new = DirBuilder::new()
            .mode(0o700)
            .create(&partial)
            .and_then(|()| DirBuilder::new().mode(0o700).create(partial.join("root")));
        new.map_err(store_error("make directory", &partial))?;
        let renamed = make(&partial).and_then(|()| {
            fs::rename(&partial, &layer).map_err(store_error("put in place", &layer))
        });
        match renamed {
            Ok(()) => Ok(root),
            Err(error) => {
                // The first error says more; what is left is removed by the next store.
                let _removed = self.remove_partial(key);
                Err(error)
            }
        }
    }

    fn unpack(
        &self,
        mut archive: File,
        image: &Path,
        destination: &Path,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<UnpackReport, ImageError> {
        let unpacked = match &self.how {
            Unpack::Here(owners) => {
                let limits = Limits::default();
                unpack_archive(&mut archive, destination, *owners, limits, progress)
                    .map_err(WorkerError::Unpack)
            }
            Unpack::Mapped(mapped) => {
                unpack_mapped(mapped.as_ref(), archive, destination, progress)
            }
        };
        unpacked.map_err(|error| failed_to_unpack(error, image, destination))
    }

    fn lock(&self, key: &str, operation: FlockOperation) -> Result<File, ImageError> {
        let path = self.directory.join("locks").join(key);
        let opened = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path);
        let file = opened.map_err(store_error("open", &path))?;
        let locked = loop {
            match rustix::fs::flock(&file, operation) {
                Err(Errno::INTR) => {}
                done => break done,
            }
        };
        match locked {
            Ok(()) => Ok(file),
            Err(errno) => Err(store_error("lock", &path)(errno.into())),
        }
    }

    /// Removes what is in `partial` and not being made by another process.
    fn sweep(&self) -> Result<Vec<String>, ImageError> {
        let partial = self.directory.join("partial");
        let mut leftovers = Vec::new();
        let entries = fs::read_dir(&partial).map_err(store_error("list", &partial))?;
        for entry in entries {
            let name = entry.map_err(store_error("list", &partial))?.file_name();
            let Some(name) = name.to_str() else { continue };
            let Ok(_lock) = self.lock(name, FlockOperation::NonBlockingLockExclusive) else {
                continue;
            };
            if self.remove_partial(name).is_err() {
                leftovers.push(partial.join(name).display().to_string());
            }
        }
        Ok(leftovers)
    }

    fn remove_partial(&self, name: &str) -> Result<(), ImageError> {
        let partial = self.directory.join("partial");
        match &self.how {
            Unpack::Here(_) => Beneath::open(&partial)
                .and_then(|beneath| beneath.remove_all(Path::new(name)))
                .map_err(|error| store_error("remove", &partial.join(name))(error.source)),
            Unpack::Mapped(mapped) => remove_mapped(mapped.as_ref(), &partial, name)
                .map_err(|error| failed_to_unpack(error, Path::new(name), &partial)),
        }
    }
}

fn failed_to_unpack(error: WorkerError, image: &Path, destination: &Path) -> ImageError {
    let image = image.to_owned();
    let error = match error {
        WorkerError::Unpack(error) => error,
        WorkerError::Run(source) => return ImageError::Worker(source),
        WorkerError::Silent(code) => return ImageError::WorkerSilent { code },
    };
    match error {
        UnpackError::Invalid(problem) => ImageError::Invalid { image, problem },
        UnpackError::Read(source) => ImageError::Read { image, source },
        UnpackError::Write { name, source } => ImageError::Store {
            action: "write",
            path: destination.join(name),
            source,
        },
        UnpackError::Owner {
            name,
            user,
            group,
            source,
        } => ImageError::NeedsIds {
            image,
            name,
            user,
            group,
            source,
        },
    }
}

fn notes_on(report: &UnpackReport) -> Vec<String> {
    let mut notes = Vec::new();
    if report.devices_left_out > 0 {
        notes.push(format!(
            "{} device nodes were left out: a sandbox has a /dev of its own.",
            report.devices_left_out
        ));
    }
    if report.capabilities_left_out > 0 {
        notes.push(format!(
            "{} files lost their capabilities, which this host did not take.",
            report.capabilities_left_out
        ));
    }
    notes
}

/// Returns whether a directory lies in another, by what they are rather than by their names.
fn holds(outer: &Path, inner: &Path) -> io::Result<bool> {
    let same = |path: &Path| -> io::Result<(u64, u64)> {
        let metadata = fs::metadata(path)?;
        Ok((metadata.dev(), metadata.ino()))
    };
    let outer = same(outer)?;
    let inner = fs::canonicalize(inner)?;
    for above in inner.ancestors() {
        if same(above)? == outer {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_digest(text: &str) -> bool {
    text.len() == hexadecimal(&[0; 32]).len() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn store_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::Store {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::{Access, Builder};
    use crate::worker::tests::InProcess;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const ACCESS: Access = Access {
        owner: 0,
        mode: 0o755,
    };
    const SILENT: Report<'static> = &|_, _, _| {};

    fn archive(path: &Path, content: &[u8]) -> ImageRef {
        let mut builder = Builder::default();
        builder.directory(Path::new("bin"), ACCESS);
        builder.file(Path::new("bin/sh"), content, ACCESS);
        fs::write(path, builder.finish()).unwrap();
        ImageRef::Tar(path.to_owned())
    }

    fn entries(path: &Path) -> usize {
        fs::read_dir(path).unwrap().count()
    }

    fn ways() -> [Unpack; 2] {
        [
            Unpack::Here(Owners::Caller),
            Unpack::Mapped(Arc::new(InProcess)),
        ]
    }

    #[test]
    fn an_archive_is_unpacked_once() {
        for how in ways() {
            let place = tempfile::tempdir().unwrap();
            let store = ImageStore::open(&place.path().join("images"), how).unwrap();
            let image = archive(&place.path().join("a.tar"), b"one");
            let unpacked = AtomicUsize::new(0);
            let report = |what: &str, _: u64, _: Option<u64>| {
                unpacked.fetch_add(usize::from(what.starts_with("unpack")), Ordering::Relaxed);
            };
            let all = std::thread::scope(|scope| {
                let calls: Vec<_> = (0..4)
                    .map(|_| scope.spawn(|| store.prepare(&image, &report).unwrap()))
                    .collect();
                let ended = calls.into_iter().map(|call| call.join().unwrap());
                ended.collect::<Vec<_>>()
            });
            assert!(all.iter().all(|prepared| prepared == &all[0]));
            let shell = all[0].layers[0].join("bin/sh");
            assert_eq!(fs::read(&shell).unwrap(), b"one");
            let inode = fs::metadata(&shell).unwrap().ino();
            // The same content elsewhere is the same layer.
            let copy = archive(&place.path().join("b.tar"), b"one");
            assert_eq!(store.prepare(&copy, SILENT).unwrap(), all[0]);
            assert_eq!(fs::metadata(&shell).unwrap().ino(), inode);
            let other = archive(&place.path().join("b.tar"), b"two");
            assert_ne!(store.prepare(&other, SILENT).unwrap().key, all[0].key);
            assert_eq!(entries(&place.path().join("images/partial")), 0);
        }
    }

    #[test]
    fn a_failure_and_an_interruption_leave_nothing() {
        for how in ways() {
            let place = tempfile::tempdir().unwrap();
            let images = place.path().join("images");
            let store = ImageStore::open(&images, how.clone()).unwrap();
            let broken = place.path().join("x.tar");
            fs::write(&broken, [7; 2048]).unwrap();
            let error = store.prepare(&ImageRef::Tar(broken), SILENT).unwrap_err();
            let problem = InvalidImage::NotAnArchive;
            assert!(
                matches!(&error, ImageError::Invalid { problem: found, .. } if *found == problem),
                "{error:?}"
            );
            assert_eq!(entries(&images.join("partial")), 0);
            assert_eq!(entries(&images.join("layers")), 0);
            // As after a kill in the middle, with another process at work on another image.
            for name in ["dead", "alive"] {
                fs::create_dir_all(images.join("partial").join(name).join("root/usr")).unwrap();
            }
            let _alive = store.lock("alive", FlockOperation::LockExclusive).unwrap();
            let store = ImageStore::open(&images, how).unwrap();
            assert!(!images.join("partial/dead").exists());
            assert!(images.join("partial/alive").exists());
            assert!(store.leftovers().is_empty());
        }
    }

    #[test]
    fn a_directory_is_checked_and_not_written_to() {
        let place = tempfile::tempdir().unwrap();
        let store =
            ImageStore::open(&place.path().join("images"), Unpack::Here(Owners::Caller)).unwrap();
        let root = place.path().join("root");
        fs::create_dir_all(root.join("usr")).unwrap();
        let closed = fs::Permissions::from_mode(0o555);
        fs::set_permissions(&root, closed).unwrap();
        let image = ImageRef::Directory(root.clone());
        let prepared = store.prepare(&image, SILENT).unwrap();
        assert_eq!(prepared.layers, std::slice::from_ref(&root));
        assert_eq!(entries(&root), 1);
        let problem_of = |path: &Path| {
            let image = ImageRef::Directory(path.to_owned());
            match store.prepare(&image, SILENT).unwrap_err() {
                ImageError::Invalid { problem, .. } => problem,
                other => panic!("{other:?}"),
            }
        };
        fs::create_dir(place.path().join("lib")).unwrap();
        assert_eq!(problem_of(place.path()), InvalidImage::HoldsState);
        assert_eq!(problem_of(&root.join("usr")), InvalidImage::NotARoot);
    }

    #[test]
    fn the_host_is_an_image() {
        for how in ways() {
            let place = tempfile::tempdir().unwrap();
            let images = place.path().join("images");
            if matches!(how, Unpack::Mapped(_)) && !rustix::process::geteuid().is_root() {
                // The stand-in for the mapped process has no ids to give.
                continue;
            }
            let store = ImageStore::open(&images, how).unwrap();
            let prepared = store.prepare(&ImageRef::Host, SILENT).unwrap();
            let root = &prepared.layers[0];
            assert!(root.join("etc/passwd").is_file());
            assert!(root.join("usr/local/bin").is_dir());
            assert!(!root.join("etc/pip.conf").exists());
            assert!(
                prepared
                    .binds
                    .iter()
                    .any(|bind| bind.target == Path::new("/usr/bin"))
            );
            assert!(prepared.binds.iter().all(|bind| bind.source.is_dir()));
            assert!(
                !prepared
                    .binds
                    .iter()
                    .any(|bind| bind.target.starts_with("/usr/local"))
            );
            assert_eq!(store.binds_of(&prepared.key), prepared.binds);
            assert_eq!(store.prepare(&ImageRef::Host, SILENT).unwrap(), prepared);
            assert_eq!(entries(&images.join("partial")), 0);
            assert_eq!(entries(&images.join("layers").join(&prepared.key)), 1);
        }
    }

    #[test]
    fn what_is_not_there_is_said() {
        let place = tempfile::tempdir().unwrap();
        let store = ImageStore::open(place.path(), Unpack::Here(Owners::Caller)).unwrap();
        let missing = place.path().join("missing.tar");
        for image in [ImageRef::Tar(missing.clone()), ImageRef::Directory(missing)] {
            let error = store.prepare(&image, SILENT).unwrap_err();
            assert!(matches!(error, ImageError::Read { .. }), "{error:?}");
        }
    }
}
