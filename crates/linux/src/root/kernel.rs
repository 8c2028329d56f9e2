//! `/proc` and `/sys` of a sandbox.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, openat2, statat};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

use super::{attach_to, filesystem, system_directory, tiny};
use crate::launcher::{LaunchFailure, Refusal, refused};
use crate::mount::{Attributes, set_attributes};
use crate::weaken::{Defence, is_off};

/// What tells too much about the host or lets it be changed: hidden.
const PROC_HIDDEN: &[&str] = &[
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
];
/// What may be read. `1` is the agent: root inside could else have the kernel prefer it when memory
/// is short.
const PROC_READ_ONLY: &[&str] = &["1", "bus", "fs", "irq", "sys", "sysrq-trigger"];
/// The same for `/sys`, which is read-only as a whole.
const SYS_HIDDEN: &[&str] = &["firmware", "devices/virtual/powercap"];

fn quiet() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
}

/// Mounts `/proc`, sets the limit of the pid namespace, and masks what is not for guests.
pub(super) fn mount_proc(root: &OwnedFd, pid_max: Option<u32>) -> Result<(), Refusal> {
    let failed = refused(LaunchFailure::HostUnsupported, "mount `/proc`");
    let directory = system_directory(root, "proc")?;
    let proc = filesystem("proc", &[], quiet()).or_else(|errno| {
        if is_off(Defence::PidNamespace) {
            // That of the host, whose processes the sandbox's are then among.
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            return open_tree(CWD, "/proc", flags);
        }
        Err(errno)
    });
    let proc = proc.map_err(|errno| {
        failed(errno).hint(
            "the host's own /proc is covered; inside a container, start that container with \
             `--security-opt systempaths=unconfined`",
        )
    })?;
    attach_to(proc.as_fd(), directory.as_fd()).map_err(&failed)?;
    if let Some(limit) = pid_max {
        limit_processes(&proc, limit)?;
    }
    let image = null_of_image(root);
    let hidden = PROC_HIDDEN.iter().filter(|_| !is_off(Defence::ProcHidden));
    for name in hidden {
        hide(&proc, name, image.as_ref())
            .map_err(|errno| failed(errno).at(Path::new("/proc").join(name)))?;
    }
    let read_only = PROC_READ_ONLY
        .iter()
        .filter(|_| !is_off(Defence::ProcReadOnly));
    for name in read_only {
        protect(&proc, name).map_err(|errno| failed(errno).at(Path::new("/proc").join(name)))?;
    }
    Ok(())
}

/// Mounts `/sys` of the sandbox's own network namespace, or leaves it empty where that may not be.
pub(super) fn mount_sys(root: &OwnedFd) -> Result<(), Refusal> {
    let failed = refused(LaunchFailure::HostUnsupported, "mount `/sys`");
    let directory = system_directory(root, "sys")?;
    let mut attributes = quiet();
    if !is_off(Defence::SysReadOnly) {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    let Ok(sys) = filesystem("sysfs", &[], attributes) else {
        return Ok(());
    };
    attach_to(sys.as_fd(), directory.as_fd()).map_err(&failed)?;
    let hidden = SYS_HIDDEN.iter().filter(|_| !is_off(Defence::ProcHidden));
    for name in hidden {
        hide(&sys, name, None).map_err(|errno| failed(errno).at(Path::new("/sys").join(name)))?;
    }
    Ok(())
}

fn limit_processes(proc: &OwnedFd, limit: u32) -> Result<(), Refusal> {
    let failed = |errno: Errno| {
        refused(
            LaunchFailure::HostUnsupported,
            "limit the number of processes by the pid namespace",
        )(errno)
        .hint(
            "without a delegated cgroup this needs kernel 6.14 or newer, and a limit of at least \
             301; delegate a cgroup, or leave the limit out",
        )
    };
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file =
        rustix::fs::openat(proc, "sys/kernel/pid_max", flags, Mode::empty()).map_err(failed)?;
    // `pid_max` is the first id that is not given any more.
    rustix::io::write(&file, limit.to_string().as_bytes())
        .map(|_| ())
        .map_err(failed)
}

/// Covers what is there, with an empty directory or an empty file.
///
/// The file is the system's own, but for a test `image` may be what an image has in its place.
fn hide(filesystem: &OwnedFd, name: &str, image: Option<&OwnedFd>) -> rustix::io::Result<()> {
    let kind = match statat(filesystem, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => FileType::from_raw_mode(found.st_mode),
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let cover = match kind {
        FileType::Directory if is_off(Defence::MountNamespace) => return Ok(()),
        FileType::Directory => tiny::EMPTY,
        _ => "/dev/null",
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let cover = match image.filter(|_| kind != FileType::Directory) {
        Some(image) => open_tree(image, "", flags | OpenTreeFlags::AT_EMPTY_PATH)?,
        None => open_tree(CWD, cover, flags)?,
    };
    attach_to(cover.as_fd(), open(filesystem, name)?.as_fd())
}

/// Opens what an image has at `/dev/null`, for a test that leaves out that nobody asks it.
fn null_of_image(root: &OwnedFd) -> Option<OwnedFd> {
    if !is_off(Defence::MaskSource) {
        return None;
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    openat2(
        root,
        "dev/null",
        flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT,
    )
    .ok()
}

/// Makes what is there read-only.
fn protect(filesystem: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    let place = match open(filesystem, name) {
        Err(Errno::NOENT) => return Ok(()),
        place => place?,
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = open_tree(&place, "", flags)?;
    let attributes = quiet() | MountAttrFlags::MOUNT_ATTR_RDONLY;
    set_attributes(copy.as_fd(), Attributes::default().set(attributes))
        .map_err(|source| Errno::from_io_error(&source).unwrap_or(Errno::IO))?;
    attach_to(copy.as_fd(), place.as_fd())
}

fn open(filesystem: &OwnedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    openat2(
        filesystem,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )
}
