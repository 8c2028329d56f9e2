//! What the self-test of the attacks has to know besides the switches.

use crate::Attack;

/// What an attack needs of the host's kernel that some kernels lack; where it is not there, the
/// attack is not expressible.
const NEEDS: &[(&str, &str)] = &[
    ("memory-device", "a kernel with `/dev/mem`"),
    ("kernel-log-device", "a kernel with `/dev/kmsg`"),
    ("uevent-helper", "a kernel with `uevent_helper`"),
    ("modprobe-path", "a kernel with modules"),
    ("sysrq", "a kernel with the keys of SysRq"),
    ("binfmt", "a kernel with `binfmt_misc`"),
    ("kernel-memory", "a kernel with `/proc/kcore`"),
    ("kernel-timers", "a kernel with `/proc/timer_list`"),
    ("kernel-addresses", "a kernel with `/proc/kallsyms`"),
    ("sysfs-write", "a kernel with network devices in `/sys`"),
    ("release-agent", "a kernel with control groups of version 1"),
    ("x32-calls", "a kernel with x32 calls"),
    ("newer-calls", "Linux 6.13 or newer"),
    ("crypto-socket", "a kernel with `AF_ALG`"),
    (
        "terminal-input",
        "the setting `dev.tty.legacy_tiocsti`, or a kernel that is older than it",
    ),
    ("module", "a kernel with modules"),
    ("kexec", "a kernel with `kexec`"),
    ("ports", "a kernel with `iopl`"),
];

/// Attacks that have worked when the sandbox is down; others that only bring it down show nothing.
pub const BRING_DOWN: &[&str] = &["agent-kill", "agent-terminate", "agent-all-signals"];

/// Switches that mean something in sandboxes of the host's root alone: those of an ordinary user
/// meet the host as that user, who may do none of it either, share its ids, and hold no device.
const OF_ROOT: &[&str] = &["user_namespace", "id_range", "bind_nodev"];

/// Returns what an attack needs of the host's kernel, if some kernels lack it.
pub fn needs_of(name: &str) -> Option<&'static str> {
    NEEDS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, needs)| *needs)
}

/// Returns whether an attack can only work in a sandbox of the host's root, so that the self-test
/// as an ordinary user leaves it out.
pub fn needs_root(attack: &Attack) -> bool {
    attack
        .succeeds_without
        .iter()
        .any(|switch| OF_ROOT.contains(switch))
}
