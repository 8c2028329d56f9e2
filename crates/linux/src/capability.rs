//! Which capabilities the processes of a sandbox hold, always in its own user namespace.

use std::io;

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::weaken::{Defence, is_off};

/// Most capabilities that a kernel can have.
const CAPABILITIES_MAX: u32 = 64;

/// Returns what a program inside may hold: what containers get by custom, never `SYS_ADMIN`.
pub fn exec_set() -> CapabilitySet {
    if is_off(Defence::Capabilities) {
        return CapabilitySet::all().difference(agent_mark());
    }
    let set = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FSETID
        | CapabilitySet::FOWNER
        | CapabilitySet::MKNOD
        | CapabilitySet::NET_RAW
        | CapabilitySet::SETGID
        | CapabilitySet::SETUID
        | CapabilitySet::SETFCAP
        | CapabilitySet::SETPCAP
        | CapabilitySet::NET_BIND_SERVICE
        | CapabilitySet::SYS_CHROOT
        | CapabilitySet::KILL
        | CapabilitySet::AUDIT_WRITE;
    if is_off(Defence::AgentMark) {
        return set | agent_mark();
    }
    set
}

/// Returns what the agent holds: [`exec_set`] and [`agent_mark`].
pub fn agent_set() -> CapabilitySet {
    exec_set() | agent_mark()
}

/// Returns the capability that only the agent holds.
///
/// It allows nothing in a user namespace. But who lacks one capability of a process may not trace
/// it, so each exec must lose it, also from its bounding set, before guest code runs.
pub fn agent_mark() -> CapabilitySet {
    CapabilitySet::WAKE_ALARM
}

/// Takes from the calling thread, and all that it executes, what the agent may not hold either.
///
/// The sets that count now shrink only by the next `execve` of root: installing a system call
/// filter still needs more.
///
/// # Errors
///
/// Fails if the thread may not shrink its bounding set.
pub(crate) fn limit_to_agent() -> io::Result<()> {
    let kept = agent_set();
    for bit in 0..CAPABILITIES_MAX {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if kept.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel knows no capability from here on.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    let held = rustix::thread::capabilities(None)?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets {
        inheritable: none,
        ..held
    };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_inside_administers_and_only_the_agent_has_the_mark() {
        for never in [
            CapabilitySet::SYS_ADMIN,
            CapabilitySet::SYS_PTRACE,
            CapabilitySet::SYS_MODULE,
            CapabilitySet::NET_ADMIN,
        ] {
            assert!(!agent_set().intersects(never), "{never:?}");
        }
        assert!(!exec_set().intersects(agent_mark()));
        assert_eq!(agent_set().difference(exec_set()), agent_mark());
    }
}
