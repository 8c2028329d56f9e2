//! Which capabilities the processes of a sandbox hold, always in its own user namespace.

use rustix::thread::CapabilitySet;

/// Returns what a program inside may hold: what containers get by custom, never `SYS_ADMIN`.
pub fn exec_set() -> CapabilitySet {
    CapabilitySet::CHOWN
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
        | CapabilitySet::AUDIT_WRITE
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
