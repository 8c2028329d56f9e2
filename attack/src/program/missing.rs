//! What the host's kernel does not have, so that nothing inside can reach for it.
//!
//! Runs outside, where nothing is refused that is there. Nothing is changed by asking.

use std::collections::BTreeMap;
use std::path::Path;

use super::call::call_with;
use super::kernel;

/// Attacks and the files of the host one of which they reach for.
const FILES: &[(&str, &[&str])] = &[
    ("memory-device", &["/dev/mem", "/dev/kmem", "/dev/port"]),
    ("kernel-log-device", &["/dev/kmsg"]),
    (
        "uevent-helper",
        &["/sys/kernel/uevent_helper", "/proc/sys/kernel/hotplug"],
    ),
    ("core-pattern", &["/proc/sys/kernel/core_pattern"]),
    ("modprobe-path", &["/proc/sys/kernel/modprobe"]),
    ("sysrq", &["/proc/sysrq-trigger"]),
    ("kernel-memory", &["/proc/kcore"]),
    ("kernel-timers", &["/proc/timer_list"]),
    ("kernel-addresses", &["/proc/kallsyms"]),
    ("sysfs-write", &["/sys/class/net/lo/tx_queue_len"]),
    ("module", &["/proc/modules"]),
    ("kexec", &["/sys/kernel/kexec_loaded"]),
];
/// Attacks and the kind of filesystem that they mount.
const FILESYSTEMS: &[(&str, &str)] = &[("binfmt", "binfmt_misc"), ("release-agent", "cgroup")];

/// Returns attacks that cannot be made, and why.
pub(super) fn missing() -> BTreeMap<&'static str, String> {
    let mut missing = BTreeMap::new();
    for (attack, files) in FILES {
        if !files.iter().any(|file| Path::new(file).exists()) {
            missing.insert(*attack, format!("this host has no {}", files.join(", ")));
        }
    }
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    for (attack, kind) in FILESYSTEMS {
        if !known
            .lines()
            .any(|line| line.split('\t').nth(1) == Some(kind))
        {
            missing.insert(attack, format!("this kernel has no filesystem `{kind}`"));
        }
    }
    let calls: [(&str, bool, &str); 4] = [
        (
            "x32-calls",
            kernel::has_x32(),
            "this kernel has no x32 calls",
        ),
        (
            "newer-calls",
            kernel::newer_calls().next().is_some(),
            "this kernel has no call that the filter does not know",
        ),
        (
            "crypto-socket",
            call_with(libc::SYS_socket, &[libc::AF_ALG as usize, 5, 0]).is_ok(),
            "this kernel has no AF_ALG sockets",
        ),
        (
            "ports",
            kernel::has_ports(),
            "this kernel gives no program I/O ports",
        ),
    ];
    for (attack, there, why) in calls {
        if !there {
            missing.insert(attack, why.to_owned());
        }
    }
    if !may_have_resources() {
        for attack in ["raise-limits", "negative-preference"] {
            let why = "nobody here, and no root, may have CAP_SYS_RESOURCE";
            missing.insert(attack, why.to_owned());
        }
    }
    let typing = std::fs::read_to_string("/proc/sys/dev/tty/legacy_tiocsti");
    if typing.is_ok_and(|allowed| allowed.trim() == "0") {
        missing.insert(
            "terminal-input",
            "this host lets nobody type into terminals (dev.tty.legacy_tiocsti)".to_owned(),
        );
    }
    missing
}

/// Returns whether any program of this session could get `CAP_SYS_RESOURCE`.
fn may_have_resources() -> bool {
    const SYS_RESOURCE: u64 = 1 << 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let bounding = bounding.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    bounding.is_none_or(|mask| mask & SYS_RESOURCE != 0)
}
