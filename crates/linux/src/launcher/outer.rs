//! The user namespace in which a launcher of an ordinary user works.

#![expect(
    unsafe_code,
    reason = "unshare and the ioctl of a namespace have no safe form"
)]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{DumpableBehavior, Gid, Uid};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::error::LaunchFailure;
use super::wire::{self, Answer, Hello, Outer, Refusal, refused};
use crate::identity::IdMaps;

/// `NS_GET_PARENT`: the user namespace that holds another.
const NS_GET_PARENT: libc::Ioctl = 0xb702;

/// Enters the launcher's outer namespace and returns the ids of sandboxes in it, if they share any.
///
/// The daemon is told in between, and has the maps of a new namespace written then.
pub(super) fn enter(socket: &OwnedFd, outer: Outer) -> Result<Option<IdMaps>, Refusal> {
    let single = (rustix::process::geteuid(), rustix::process::getegid());
    match outer {
        Outer::Host => {}
        Outer::Mapped | Outer::Single => make()?,
        Outer::Of(pid) => join(pid)?,
    }
    let hear =
        |source: io::Error| Refusal::new(LaunchFailure::Internal, "hear from the daemon", &source);
    wire::send(socket, &Answer::Done, &[]).map_err(hear)?;
    wire::receive::<Hello>(socket)
        .and_then(|go| go.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof)))
        .map_err(hear)?;
    if outer == Outer::Host {
        return Ok(None);
    }
    if outer == Outer::Single {
        map_single(single).map_err(|source| {
            Refusal::new(
                LaunchFailure::HostUnsupported,
                "map the caller's id",
                &source,
            )
        })?;
    }
    become_root()?;
    let unread =
        |source: io::Error| Refusal::new(LaunchFailure::Internal, "read the maps of ids", &source);
    IdMaps::of_caller_unchanged().map(Some).map_err(unread)
}

fn make() -> Result<(), Refusal> {
    // SAFETY: the process has one thread, and only its own rights change.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }.map_err(|errno| {
        refused(LaunchFailure::HostUnsupported, "make a user namespace")(errno).hint(
            "this host forbids user namespaces to ordinary users: allow them (sysctls \
             user.max_user_namespaces, kernel.unprivileged_userns_clone, \
             kernel.apparmor_restrict_unprivileged_userns), or run the daemon as root",
        )
    })
}

/// Enters the namespace in which an earlier launcher made a sandbox.
fn join(pid: i32) -> Result<(), Refusal> {
    let failed = |source: io::Error| {
        Refusal::new(
            LaunchFailure::HostUnsupported,
            "join the namespace of the earlier sandboxes",
            &source,
        )
    };
    let user = File::open(format!("/proc/{pid}/ns/user")).map_err(failed)?;
    // SAFETY: the request takes no argument and answers a new descriptor.
    let parent = unsafe { libc::ioctl(user.as_raw_fd(), NS_GET_PARENT) };
    if parent < 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    // SAFETY: the kernel has just made it for this process.
    let parent = unsafe { OwnedFd::from_raw_fd(parent) };
    move_into_link_name_space(parent.as_fd(), Some(LinkNameSpaceType::User))
        .map_err(|errno| failed(errno.into()))
}

fn map_single((user, group): (Uid, Gid)) -> io::Result<()> {
    // Without it nobody but the host's root may write a group map.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {} 1\n", user.as_raw()))?;
    fs::write("/proc/self/gid_map", format!("0 {} 1\n", group.as_raw()))
}

fn become_root() -> Result<(), Refusal> {
    let failed = refused(
        LaunchFailure::HostUnsupported,
        "become root of the outer namespace",
    );
    let (user, group) = (Uid::ROOT, Gid::ROOT);
    rustix::thread::set_thread_res_gid(group, group, group).map_err(&failed)?;
    rustix::thread::set_thread_res_uid(user, user, user).map_err(&failed)?;
    // Whoever is not dumpable owns no file of its children in /proc, and could not write their maps.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(&failed)?;
    // SAFETY: only the mount namespace of this process changes.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.map_err(&failed)?;
    // What the host mounts later is still seen.
    let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", downstream).map_err(&failed)
}
