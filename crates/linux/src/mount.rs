//! Detached mounts: mapped to a sandbox's ids, stacked, and attached only when complete.
//!
//! A detached mount is a descriptor; it belongs to no path, cannot be seen by anyone else and is
//! gone when the descriptor is closed, so an error half-way leaves nothing.

#![expect(unsafe_code, reason = "mount_setattr and setfsuid have no safe form")]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree,
};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::identity::NamespacePair;
use crate::launcher::plan::TmpfsLimit;
use crate::weaken::{Defence, is_off};

/// Most read-only layers of one root filesystem; the kernel takes 500.
pub const LAYERS_MAX: usize = 128;

/// Why a mount could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A step on one path failed; nothing is left of it.
    #[error("failed to {step} `{path}`")]
    Step {
        /// What was tried.
        step: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// More layers than can be stacked.
    #[error("{count} layers are more than the limit of {LAYERS_MAX}")]
    TooManyLayers {
        /// How many were given.
        count: usize,
    },
}

/// What a root filesystem is stacked from.
#[derive(Debug, Clone)]
pub struct Stack<'a> {
    /// Read-only layers, the topmost first.
    pub layers: &'a [PathBuf],
    /// A detached mount, with its ids as they are to appear, that is the only layer.
    pub given: Option<BorrowedFd<'a>>,
    /// Where what is written goes.
    pub private: Private<'a>,
    /// Whether writes must reach the disk.
    pub durability: Durability,
    /// Whose ids appear on it.
    pub ids: Ids<'a>,
}

/// Where what is written to a stack goes.
#[derive(Debug, Clone, Copy)]
pub enum Private<'a> {
    /// A directory that holds the directories `upper` and `work`.
    Directory(&'a Path),
    /// A file with a filesystem that holds them (see [`crate::disk`]). Needs root.
    Image(&'a Path),
    /// Memory, up to a limit.
    Memory(TmpfsLimit),
}

impl<'a> Private<'a> {
    fn path(self) -> &'a Path {
        match self {
            Self::Directory(path) | Self::Image(path) => path,
            Self::Memory(_) => Path::new("tmpfs"),
        }
    }
}

/// Whose ids appear on a mount.
#[derive(Debug, Clone, Copy)]
pub enum Ids<'a> {
    /// An id on disk appears as the same id inside a pair's user namespace. Needs root.
    Mapped(&'a NamespacePair),
    /// Each appears as it is on disk.
    Unchanged,
}

/// Whether the files of a stack outlive it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// They do; the stack can be made again over the same private directory.
    Durable,
    /// They do not: `fsync` does nothing and the stack cannot be made again.
    Volatile,
}

/// Clones the mount at a path, so that the ids on its disk appear as those of a sandbox.
///
/// # Errors
///
/// Returns [`MountError`]; among others for a filesystem that cannot be mapped.
pub fn clone_mapped(path: &Path, pair: &NamespacePair) -> Result<OwnedFd, MountError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(CWD, path, flags)
        .map_err(|source| step("clone the mount at", path, source.into()))?;
    set_attributes(mount.as_fd(), Attributes::default().ids(Ids::Mapped(pair)))
        .map_err(|source| step("map the ids of", path, source))?;
    Ok(mount)
}

/// Stacks read-only layers beneath a private directory and answers the detached mount of it.
///
/// The kernel remembers the ids of the maker, and those must be the sandbox's: made with the host's
/// root, a mapped stack would be read-only. So the calling thread has those ids meanwhile.
///
/// # Errors
///
/// Returns [`MountError`] and leaves no mount.
pub fn stack(stack: &Stack<'_>) -> Result<OwnedFd, MountError> {
    if stack.layers.len() > LAYERS_MAX {
        return Err(MountError::TooManyLayers {
            count: stack.layers.len(),
        });
    }
    let Ids::Mapped(pair) = stack.ids else {
        return stack_as_owner(stack);
    };
    let failed = |source| step("take the ids for", stack.private.path(), source);
    become_owner_of(pair.root()).map_err(failed)?;
    let made = stack_as_owner(stack);
    become_owner_of(rustix::process::geteuid().as_raw()).map_err(failed)?;
    made
}

fn stack_as_owner(stack: &Stack<'_>) -> Result<OwnedFd, MountError> {
    let failed = |what: &'static str| {
        move |source: rustix::io::Errno| step(what, stack.private.path(), source.into())
    };
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("prepare"))?;
    // A detached mount is dissolved with its descriptor, so each is kept until the stack exists.
    let mut kept = Vec::with_capacity(stack.layers.len());
    if let Some(given) = stack.given {
        fsconfig_set_fd(context.as_fd(), "lowerdir+", given)
            .map_err(failed("add the caller's layer to"))?;
    }
    for layer in stack.layers.iter().filter(|_| stack.given.is_none()) {
        let mount = open_layer(layer, stack.ids)?;
        fsconfig_set_fd(context.as_fd(), "lowerdir+", mount.as_fd())
            .map_err(|source| step("add the layer", layer, source.into()))?;
        kept.push(mount);
    }
    let private = open_private(stack)?;
    for (key, name) in [("upperdir", "upper"), ("workdir", "work")] {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(&private, name, flags, Mode::empty())
            .map_err(failed("open upper and work in"))?;
        fsconfig_set_fd(context.as_fd(), key, directory.as_fd())
            .map_err(failed("use upper and work in"))?;
    }
    match stack.ids {
        // Without it, renaming a directory of a lower layer answers EXDEV.
        Ids::Mapped(_) => fsconfig_set_string(context.as_fd(), "redirect_dir", "on"),
        // Outside the first user namespace only such attributes may be written, and no redirects.
        Ids::Unchanged if !in_first_namespace() => fsconfig_set_flag(context.as_fd(), "userxattr"),
        Ids::Unchanged => Ok(()),
    }
    .map_err(failed("configure"))?;
    if stack.durability == Durability::Volatile {
        fsconfig_set_flag(context.as_fd(), "volatile").map_err(failed("make volatile"))?;
    }
    fsconfig_create(context.as_fd()).map_err(failed("stack layers over"))?;
    let attributes = if is_off(Defence::StackNodev) {
        MountAttrFlags::empty()
    } else {
        MountAttrFlags::MOUNT_ATTR_NODEV
    };
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    fsmount(context.as_fd(), flags, attributes).map_err(failed("mount the stack over"))
}

fn open_layer(layer: &Path, ids: Ids<'_>) -> Result<OwnedFd, MountError> {
    match ids {
        Ids::Mapped(pair) => clone_mapped(layer, pair),
        Ids::Unchanged => open_directory(layer),
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, MountError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(|source| step("open", path, source.into()))
}

fn open_private(stack: &Stack<'_>) -> Result<OwnedFd, MountError> {
    match (stack.private, stack.ids) {
        (Private::Directory(path), Ids::Mapped(pair)) => clone_mapped(path, pair),
        (Private::Directory(path), Ids::Unchanged) => open_directory(path),
        (Private::Image(path), ids) => {
            let mount = crate::disk::mount_image(path)
                .map_err(|source| step("mount the image", path, io::Error::other(source)))?;
            set_attributes(mount.as_fd(), Attributes::default().ids(ids))
                .map_err(|source| step("map the ids of", path, source))?;
            Ok(mount)
        }
        (Private::Memory(limit), _) => {
            let failed = |source: rustix::io::Errno| {
                step(
                    "make upper and work in",
                    stack.private.path(),
                    source.into(),
                )
            };
            let private = tmpfs(limit, "0700").map_err(failed)?;
            for name in ["upper", "work"] {
                mkdirat(&private, name, Mode::from_raw_mode(0o755)).map_err(failed)?;
            }
            Ok(private)
        }
    }
}

/// Makes a detached tmpfs, owned by the filesystem ids of the calling thread.
///
/// # Errors
///
/// Fails if the kernel refuses it.
pub(crate) fn tmpfs(limit: TmpfsLimit, mode: &str) -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [
        ("size", limit.bytes.to_string().as_str()),
        ("nr_inodes", &limit.inodes.to_string()),
        ("mode", mode),
    ] {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// The first user namespace maps every id to itself.
fn in_first_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]))
}

fn step(step: &'static str, path: &Path, source: io::Error) -> MountError {
    MountError::Step {
        step,
        path: path.to_path_buf(),
        source,
    }
}

/// Takes a sandbox's root as the calling thread's filesystem ids, and keeps its capabilities.
fn become_owner_of(root: u32) -> io::Result<()> {
    // SAFETY: a plain call; the ids are those of the calling thread alone.
    unsafe { libc::setfsgid(root) };
    // SAFETY: as above.
    unsafe { libc::setfsuid(root) };
    // Leaving uid 0 took the capabilities over files from the effective set.
    let held = capabilities(None)?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: held.permitted,
            ..held
        },
    )?;
    let files = CapabilitySet::DAC_OVERRIDE | CapabilitySet::SYS_ADMIN;
    if held.permitted.contains(files) {
        Ok(())
    } else {
        Err(io::Error::from(io::ErrorKind::PermissionDenied))
    }
}

/// What is changed about a detached mount before anyone sees it.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Attributes<'a> {
    set: u64,
    user: Option<BorrowedFd<'a>>,
    recursive: bool,
}

impl<'a> Attributes<'a> {
    /// Sets attributes of mounts, `MOUNT_ATTR_*`.
    pub(crate) fn set(self, set: MountAttrFlags) -> Self {
        Self {
            set: self.set | u64::from(set.bits()),
            ..self
        }
    }

    /// Maps its ids.
    pub(crate) fn ids(self, ids: Ids<'a>) -> Self {
        match ids {
            Ids::Mapped(pair) => self.mapped_by(pair.user()),
            Ids::Unchanged => self,
        }
    }

    /// Maps its ids by a user namespace.
    pub(crate) fn mapped_by(self, user: BorrowedFd<'a>) -> Self {
        Self {
            set: self.set | libc::MOUNT_ATTR_IDMAP,
            user: Some(user),
            ..self
        }
    }

    /// Means the mounts beneath it too.
    pub(crate) fn recursive(self) -> Self {
        Self {
            recursive: true,
            ..self
        }
    }
}

/// Changes a detached mount.
///
/// # Errors
///
/// Fails if the kernel or the filesystem cannot.
pub(crate) fn set_attributes(mount: BorrowedFd<'_>, attributes: Attributes<'_>) -> io::Result<()> {
    let user = attributes
        .user
        .map_or(0, |user| user.as_raw_fd().unsigned_abs());
    let record = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(user),
    };
    let recursive = if attributes.recursive {
        libc::AT_RECURSIVE
    } else {
        0
    };
    // SAFETY: the record outlives the call, its size is passed, and the path is a string that ends
    // in zero; the kernel only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &raw const record,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::IdRange;
    use rustix::fs::{AtFlags, renameat, statat};
    use std::os::unix::fs::MetadataExt as _;

    fn read(from: &OwnedFd, path: &str) -> io::Result<String> {
        let file = openat(from, path, OFlags::RDONLY, Mode::empty())?;
        io::read_to_string(std::fs::File::from(file))
    }

    struct Yard {
        directory: tempfile::TempDir,
        pair: NamespacePair,
    }

    impl Yard {
        fn new(base: u32) -> Self {
            let directory = tempfile::tempdir().unwrap();
            for name in ["lower/tree", "private/upper", "private/work"] {
                std::fs::create_dir_all(directory.path().join(name)).unwrap();
            }
            std::fs::write(directory.path().join("lower/tree/file"), "image").unwrap();
            Self {
                directory,
                pair: NamespacePair::make(IdRange { base }).unwrap(),
            }
        }

        fn stack(&self) -> Result<OwnedFd, MountError> {
            let private = self.directory.path().join("private");
            let layers = [self.directory.path().join("lower")];
            let durability = Durability::Durable;
            stack(&Stack {
                layers: &layers,
                given: None,
                private: Private::Directory(&private),
                durability,
                ids: Ids::Mapped(&self.pair),
            })
        }
    }

    #[test]
    fn a_stack_shows_the_range_inside_and_the_images_ids_on_disk() {
        if !crate::capability_to_test() {
            return;
        }
        let yard = Yard::new(500_000);
        let root = yard.stack().unwrap();
        let seen = statat(&root, "tree/file", AtFlags::SYMLINK_NOFOLLOW).unwrap();
        assert_eq!((seen.st_uid, seen.st_gid), (500_000, 500_000));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                become_owner_of(yard.pair.root()).unwrap();
                let flags = OFlags::WRONLY | OFlags::CREATE;
                openat(&root, "new", flags, Mode::from_raw_mode(0o600)).unwrap();
            });
        });
        let on_disk = yard
            .directory
            .path()
            .join("private/upper/new")
            .metadata()
            .unwrap();
        assert_eq!((on_disk.uid(), on_disk.gid()), (0, 0));
    }

    #[test]
    fn a_directory_of_a_layer_is_renamed_and_the_layer_keeps_its_own() {
        if !crate::capability_to_test() {
            return;
        }
        let yard = Yard::new(600_000);
        let root = yard.stack().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                become_owner_of(yard.pair.root()).unwrap();
                renameat(&root, "tree", &root, "moved").unwrap();
                mkdirat(&root, "tree", Mode::from_raw_mode(0o755)).unwrap();
            });
        });
        assert_eq!(read(&root, "moved/file").unwrap(), "image");
        assert!(read(&root, "tree/file").is_err());
        let below = yard.directory.path().join("lower/tree/file");
        assert_eq!(std::fs::read_to_string(below).unwrap(), "image");
    }

    #[test]
    fn a_missing_layer_is_named() {
        if !crate::capability_to_test() {
            return;
        }
        let yard = Yard::new(700_000);
        std::fs::remove_dir_all(yard.directory.path().join("lower")).unwrap();
        let error = yard.stack().unwrap_err();
        assert!(error.to_string().contains("lower"), "{error}");
    }
}
