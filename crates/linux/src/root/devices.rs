//! `/dev` of a sandbox: six devices that are safe to share, terminals of its own, and links.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, symlinkat};
use rustix::mount::{MountAttrFlags, MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::{attach, bounded_tmpfs, filesystem, system_directory, tiny};
use crate::launcher::{LaunchFailure, Refusal, refused};
use crate::weaken::{Defence, is_off};

/// Most bytes of what a guest writes to `/dev` itself, where nothing needs any.
const DEV_BYTES: &str = "64k";
/// Most entries of `/dev` itself.
const DEV_INODES: &str = "256";
/// Links that programs expect.
const LINKS: [(&str, &str); 5] = [
    ("pts/ptmx", "ptmx"),
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
];

/// Mounts `/dev` with everything in it.
pub(super) fn mount_dev(
    root: &OwnedFd,
    shm_bytes: u64,
    terminal_group: bool,
) -> Result<(), Refusal> {
    let failed = refused(LaunchFailure::HostUnsupported, "mount `/dev`");
    let directory = system_directory(root, "dev")?;
    let limits = [
        ("mode", "0755"),
        ("size", DEV_BYTES),
        ("nr_inodes", DEV_INODES),
    ];
    let limits = if is_off(Defence::TmpfsBounds) {
        &limits[..1]
    } else {
        &limits
    };
    if is_off(Defence::OwnDev) {
        return fill_dev_of_image(&directory, terminal_group);
    }
    let no_setuid = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let dev = filesystem("tmpfs", limits, no_setuid).map_err(&failed)?;
    for name in ["pts", "shm"] {
        mkdirat(&dev, name, Mode::from_raw_mode(0o755)).map_err(&failed)?;
    }
    for (target, name) in LINKS {
        symlinkat(target, &dev, name).map_err(&failed)?;
    }
    let (flags, mode) = (OFlags::CREATE | OFlags::CLOEXEC, Mode::from_raw_mode(0o644));
    for name in tiny::devices() {
        drop(openat(&dev, name, flags, mode).map_err(&failed)?);
    }
    super::attach_to(dev.as_fd(), directory.as_fd()).map_err(&failed)?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    for name in tiny::devices() {
        let node = open_tree(CWD, Path::new("/dev").join(name), clone).map_err(&failed)?;
        attach(node.as_fd(), dev.as_fd(), name).map_err(&failed)?;
    }
    attach(terminals(terminal_group)?.as_fd(), dev.as_fd(), "pts").map_err(&failed)?;
    attach(bounded_tmpfs(shm_bytes)?.as_fd(), dev.as_fd(), "shm").map_err(&failed)
}

/// Puts into an image's own `/dev` what belongs there, for a test that leaves out that it is not
/// used: what is there already stays, and links are followed.
fn fill_dev_of_image(dev: &OwnedFd, terminal_group: bool) -> Result<(), Refusal> {
    let failed = refused(LaunchFailure::HostUnsupported, "fill the image's `/dev`");
    let (flags, mode) = (OFlags::CREATE | OFlags::CLOEXEC, Mode::from_raw_mode(0o644));
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    for name in tiny::devices() {
        drop(openat(dev, name, flags, mode).map_err(&failed)?);
        let node = open_tree(CWD, Path::new("/dev").join(name), clone).map_err(&failed)?;
        attach(node.as_fd(), dev.as_fd(), name).map_err(&failed)?;
    }
    let pts = terminals(terminal_group)?;
    if mkdirat(dev, "pts", Mode::from_raw_mode(0o755)).is_ok() {
        return attach(pts.as_fd(), dev.as_fd(), "pts").map_err(failed);
    }
    // Where the image has it, it goes there or nowhere.
    let to = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    let _elsewhere = move_mount(pts.as_fd(), "", dev.as_fd(), "pts", to);
    Ok(())
}

fn terminals(group: bool) -> Result<OwnedFd, Refusal> {
    let options = [("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
    let options = if group { &options[..] } else { &options[..2] };
    let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    filesystem("devpts", options, quiet)
        .map_err(refused(LaunchFailure::HostUnsupported, "mount `/dev/pts`"))
}
