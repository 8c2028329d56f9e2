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
    ("raise-limits", "a root with `CAP_SYS_RESOURCE`"),
    ("negative-preference", "a root with `CAP_SYS_RESOURCE`"),
    ("memory-swap", "a host with swap"),
    ("page-cache", "a disk that is not kept in memory"),
];

/// Attacks that no run of the self-test has seen succeed yet, because none was where it is
/// expressible. Whoever has such a host sees it there; until then they are untested.
const UNSEEN: &[&str] = &[
    "memory-device",
    "uevent-helper",
    "modprobe-path",
    "sysrq",
    "kernel-memory",
    "x32-calls",
    "crypto-socket",
    "module",
    "kexec",
    "ports",
    "raise-limits",
    "negative-preference",
    "memory-swap",
];

/// Attacks of which nothing shows that they would work, and why nothing can.
const UNSHOWN: &[(&str, &str)] = &[
    (
        "file-watches",
        "the kernel's own bound of watches (`user.max_inotify_watches`, for the whole host) holds \
         long before any memory limit that is large enough to run programs in",
    ),
    (
        "liar-identity",
        "an id that is none cannot be held: the type of ids is made by its check alone, so there \
         is no check to leave out",
    ),
    (
        "cve-2019-5736",
        "the agent runs its program for as long as the sandbox lives, and the kernel lets nobody \
         write to a program that runs: the seal is never all that stands",
    ),
];

/// Returns why nothing can show that an attack would work without its defence.
pub fn why_untested(name: &str) -> Option<&'static str> {
    UNSHOWN
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, why)| *why)
}

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

/// Returns whether the self-test has seen an attack succeed without its defences.
pub fn is_proven(attack: &Attack) -> bool {
    !attack.succeeds_without.is_empty() && !UNSEEN.contains(&attack.name)
}

/// Returns whether an attack can only work in a sandbox of the host's root, so that the self-test
/// as an ordinary user leaves it out.
pub fn needs_root(attack: &Attack) -> bool {
    attack
        .succeeds_without
        .iter()
        .any(|switch| OF_ROOT.contains(switch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attack;

    #[test]
    fn every_name_is_of_an_attack() {
        let needing = NEEDS.iter().map(|(name, _)| *name);
        for name in needing
            .chain(UNSEEN.iter().copied())
            .chain(UNSHOWN.iter().map(|(name, _)| *name))
            .chain(BRING_DOWN.iter().copied())
        {
            assert!(attack(name).is_some(), "{name}");
        }
    }

    #[test]
    fn what_nothing_shows_says_why_and_nothing_else_does() {
        for attack in crate::all() {
            let without = attack.succeeds_without.is_empty();
            assert_eq!(
                why_untested(attack.name).is_some(),
                without,
                "{}",
                attack.name
            );
        }
    }

    #[test]
    fn what_was_never_seen_says_what_it_needs() {
        for name in UNSEEN {
            assert!(needs_of(name).is_some(), "{name}");
        }
    }
}
