//! The mount namespace that every sandbox's own begins as a copy of.
//!
//! A copy costs as much as there are mounts in it, and what is not in it cannot be left in a
//! sandbox by mistake. So it holds: an empty root that nobody can write, device nodes, an empty
//! directory to mask others with, and `/proc` and `/sys`.

#![expect(unsafe_code, reason = "unshare has no safe form")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode};
use rustix::io::Errno;
use rustix::mount::{
    MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    mount_change, move_mount, open_tree, unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::filesystem;
use crate::launcher::{LaunchFailure, Refusal, refused};
use crate::mount::{Attributes, set_attributes};
use crate::weaken::{Defence, is_off};

/// Where a sandbox's root is attached before it becomes the root.
pub(crate) const ROOT: &str = "/root";
/// An empty directory that nobody can write.
pub(super) const EMPTY: &str = "/empty";
/// Device nodes of the host that a sandbox gets.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Some that none gets.
const DEVICES_WITHHELD: [&str; 4] = ["kmsg", "mem", "kmem", "port"];
/// A tmpfs that no two sandboxes should share.
pub(super) const SHARED: &str = "/shared";

/// Where the tiny root is put together; it only has to exist and is hidden for this process alone.
const WORKPLACE: &str = "/proc";

/// Returns the names of the device nodes that a sandbox gets.
pub(super) fn devices() -> impl Iterator<Item = &'static str> {
    let withheld = DEVICES_WITHHELD.iter();
    let given = withheld.filter(|_| is_off(Defence::DeviceList));
    DEVICES.iter().chain(given).copied()
}

/// Leaves the calling process in a new tiny mount namespace.
///
/// # Errors
///
/// Names the step that failed; the process is of no use then.
pub(crate) fn enter() -> Result<(), Refusal> {
    let failed = refused(LaunchFailure::HostUnsupported, "make a mount namespace");
    // SAFETY: only the mount namespace and with it the working directory change, of a process that
    // its caller made for this.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.map_err(&failed)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(&failed)?;
    let sources = Sources::open().map_err(&failed)?;
    let root = filesystem(
        "tmpfs",
        &[("mode", "0555"), ("size", "64k"), ("nr_inodes", "64")],
        MountAttrFlags::MOUNT_ATTR_NOSUID,
    )
    .map_err(&failed)?;
    make_places(&root).map_err(&failed)?;
    let read_only = Attributes::default().set(MountAttrFlags::MOUNT_ATTR_RDONLY);
    move_mount(
        root.as_fd(),
        "",
        CWD,
        WORKPLACE,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(&failed)?;
    rustix::process::fchdir(&root).map_err(&failed)?;
    rustix::process::pivot_root(".", ".").map_err(&failed)?;
    unmount(".", UnmountFlags::DETACH).map_err(&failed)?;
    rustix::process::chdir("/").map_err(&failed)?;
    sources.attach().map_err(&failed)?;
    set_attributes(root.as_fd(), read_only).map_err(|source| {
        Refusal::new(
            LaunchFailure::HostUnsupported,
            "protect the tiny root",
            &source,
        )
    })
}

/// What is taken from the host, detached.
struct Sources {
    devices: Vec<(&'static str, OwnedFd)>,
    proc: OwnedFd,
    sys: Option<OwnedFd>,
}

impl Sources {
    fn open() -> rustix::io::Result<Self> {
        let there = |name: &&str| DEVICES.contains(name) || Path::new("/dev").join(name).exists();
        let devices = devices().filter(there).map(|name| {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let device = open_tree(CWD, Path::new("/dev").join(name), flags)?;
            Ok((name, device))
        });
        Ok(Self {
            devices: devices.collect::<Result<_, Errno>>()?,
            proc: own_or_copied("proc", "/proc")?,
            // Whoever has no right to show it has sandboxes without it.
            sys: own_or_copied("sysfs", "/sys").ok(),
        })
    }

    fn attach(self) -> rustix::io::Result<()> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        for (name, device) in &self.devices {
            move_mount(device.as_fd(), "", CWD, Path::new("/dev").join(name), flags)?;
        }
        if is_off(Defence::OwnTmpfs) {
            let everybody = [("mode", "1777")];
            let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
            let shared = filesystem("tmpfs", &everybody, quiet)?;
            move_mount(shared.as_fd(), "", CWD, SHARED, flags)?;
        }
        move_mount(self.proc.as_fd(), "", CWD, "/proc", flags)?;
        match &self.sys {
            Some(sys) => move_mount(sys.as_fd(), "", CWD, "/sys", flags),
            None => Ok(()),
        }
    }
}

/// Makes what is mounted over, in a root that is still writable.
fn make_places(root: &OwnedFd) -> rustix::io::Result<()> {
    let shared = Some("shared").filter(|_| is_off(Defence::OwnTmpfs));
    for name in ["root", "empty", "dev", "proc", "sys"]
        .into_iter()
        .chain(shared)
    {
        rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o555))?;
    }
    let (flags, mode) = (rustix::fs::OFlags::CREATE, Mode::from_raw_mode(0o444));
    for name in devices() {
        let path = Path::new("dev").join(name);
        drop(rustix::fs::openat(root, path, flags, mode)?);
    }
    Ok(())
}

/// Mounts a kernel filesystem anew, or, where only the host's root may, copies the host's.
fn own_or_copied(kind: &str, path: &str) -> rustix::io::Result<OwnedFd> {
    let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    filesystem(kind, &[], quiet).or_else(|_| {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        open_tree(CWD, path, flags)
    })
}

/// Opens the mount namespace of the calling process.
///
/// # Errors
///
/// Fails where there is no `/proc`.
pub(crate) fn current() -> io::Result<OwnedFd> {
    File::open("/proc/self/ns/mnt").map(OwnedFd::from)
}
