//! The root filesystem of a sandbox, put together by its process 1 before any guest code runs.
//!
//! The process starts in a tiny mount namespace (see `tiny`) that holds nothing of the host but
//! what is copied from there: device nodes, and an unmasked `/proc` and `/sys`, without which the
//! kernel lets nobody mount their own. Every path in the image is resolved beneath its root.

mod binds;
mod devices;
mod kernel;
pub(crate) mod tiny;

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, move_mount, open_tree, unmount,
};

pub(crate) use binds::{Prepared, Users, place, prepare, prepare_layer, take_away};

use crate::launcher::plan::TmpfsLimit;
use crate::launcher::{LaunchFailure, Refusal, refused};
use crate::mount::tmpfs;
use crate::weaken::{Defence, is_off};

/// Bytes of memory that one file or directory of a tmpfs may stand for, to bound their number.
const TMPFS_BYTES_PER_INODE: u64 = 4096;
/// How much larger a tmpfs is whose bound a test leaves out.
const TMPFS_WEAKENED_FACTOR: u64 = 16;
/// Fewest files of a bounded tmpfs.
const TMPFS_INODES_MIN: u64 = 1024;

/// What a root filesystem is put together from, besides what every one has.
#[derive(Debug)]
pub(crate) struct Assembly<'a> {
    /// The stack of layers, detached.
    pub(crate) stack: OwnedFd,
    /// The caller's and the image's binds, detached.
    pub(crate) binds: Vec<Prepared<'a>>,
    /// Bytes that `/tmp` may hold, and `/dev/shm`.
    pub(crate) tmpfs_bytes: u64,
    /// Most processes, held by the pid namespace.
    pub(crate) pid_max: Option<u32>,
    /// Whether group 5, which owns terminals, exists inside.
    pub(crate) terminal_group: bool,
}

/// Puts the root filesystem together and makes it the calling process's.
///
/// # Errors
///
/// Names the step that failed; the process is of no use then.
pub(crate) fn enter(assembly: &Assembly<'_>) -> Result<(), Refusal> {
    let host = refused(LaunchFailure::HostUnsupported, "make the root filesystem");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(&host)?;
    attach(assembly.stack.as_fd(), CWD, tiny::ROOT).map_err(&host)?;
    let root = open_root(Path::new(tiny::ROOT)).map_err(&host)?;
    kernel::mount_proc(&root, assembly.pid_max)?;
    kernel::mount_sys(&root)?;
    devices::mount_dev(&root, assembly.tmpfs_bytes, assembly.terminal_group)?;
    let temporary = bounded_tmpfs(assembly.tmpfs_bytes)?;
    let directory = system_directory(&root, "tmp")?;
    attach_to(temporary.as_fd(), directory.as_fd())
        .map_err(refused(LaunchFailure::HostUnsupported, "mount `/tmp`"))?;
    for bind in &assembly.binds {
        place(&root, bind)?;
    }
    pivot(&root).map_err(refused(
        LaunchFailure::HostUnsupported,
        "change the root directory",
    ))
}

fn pivot(root: &OwnedFd) -> rustix::io::Result<()> {
    rustix::process::fchdir(root)?;
    if is_off(Defence::PivotRoot) {
        rustix::process::chroot(".")?;
        return rustix::process::chdir("/");
    }
    // The old root comes to lie on the new one, and is taken off.
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}

/// Opens a directory that everything else is resolved beneath.
pub(crate) fn open_root(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
}

/// Opens a directory that the system mounts over, and makes it if the image lacks it.
///
/// An image where it is a link or a file is refused: nobody would see what is mounted, or an image
/// would decide where it goes.
fn system_directory(root: &OwnedFd, name: &str) -> Result<OwnedFd, Refusal> {
    let mut flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut rules = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    if is_off(Defence::MountTargets) {
        flags -= OFlags::NOFOLLOW;
        rules -= ResolveFlags::NO_SYMLINKS;
    }
    let open = || openat2(root, name, flags, Mode::empty(), rules);
    let opened = match open() {
        Err(Errno::NOENT) => mkdirat(root, name, Mode::from_raw_mode(0o755)).and_then(|()| open()),
        opened => opened,
    };
    opened.map_err(|errno| {
        let failed = refused(LaunchFailure::InvalidImage, "use the image's directory")(errno);
        let failed = failed.at(Path::new("/").join(name));
        match errno {
            Errno::LOOP | Errno::NOTDIR => {
                failed.hint("/dev, /proc, /sys and /tmp of an image must be directories, not links")
            }
            _ => failed,
        }
    })
}

/// Attaches a detached mount at a path.
fn attach(mount: BorrowedFd<'_>, directory: BorrowedFd<'_>, path: &str) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(mount, "", directory, path, flags)
}

/// Attaches a detached mount over an open file or directory.
fn attach_to(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags)
}

/// Makes a detached filesystem of a type that takes the given options.
fn filesystem(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Makes the tmpfs of a directory that anyone may write to.
fn bounded_tmpfs(bytes: u64) -> Result<OwnedFd, Refusal> {
    let failed = refused(LaunchFailure::HostUnsupported, "make a tmpfs");
    if is_off(Defence::OwnTmpfs) {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        return open_tree(CWD, tiny::SHARED, flags).map_err(failed);
    }
    let bytes = if is_off(Defence::TmpfsBounds) {
        bytes.saturating_mul(TMPFS_WEAKENED_FACTOR)
    } else {
        bytes
    };
    let inodes = (bytes / TMPFS_BYTES_PER_INODE).max(TMPFS_INODES_MIN);
    tmpfs(TmpfsLimit { bytes, inodes }, "1777").map_err(failed)
}

/// Splits an absolute path inside into the names that it consists of.
fn names_of(target: &Path) -> io::Result<Vec<&std::ffi::OsStr>> {
    let mut parts = target.components();
    if parts.next() != Some(Component::RootDir) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    parts
        .map(|part| match part {
            Component::Normal(name) => Ok(name),
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        })
        .collect()
}

/// Joins names to a path relative to the root.
fn relative(names: &[&std::ffi::OsStr]) -> PathBuf {
    names.iter().collect()
}
