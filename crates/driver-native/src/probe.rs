//! Every prerequisite of this host: there or missing, and the exact command that mends it.

use std::fs;
use std::io;
use std::path::Path;

use pinfold_linux::cgroup::Controller;
use pinfold_linux::disk;
use pinfold_linux::launcher::{LauncherIdentity, SubordinateIds};
use pinfold_types::ByteSize;
use pinfold_types::doctor::{Finding, FindingStatus};
use rustix::fs::{Access, AtFlags, CWD, MemfdFlags};

use crate::grant::{Host, PID_MAX_KERNEL};

/// What gives an ordinary user subordinate ids.
pub(crate) const SUBIDS_FIX: &str = "run: sudo apt-get install uidmap && sudo usermod \
     --add-subuids 100000-165535 --add-subgids 100000-165535 $USER";
/// First kernel in which a filesystem of every kind that we stack can be mapped by its ids, and
/// overlay takes layers as descriptors.
const KERNEL_LEAST: (u32, u32) = (6, 13);
/// Where programs that raise privileges are.
const PROGRAM_DIRECTORIES: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];
/// The last host id that a range can hold.
const ID_LAST: u32 = 0x7FFE_FFFF;

/// Looks at everything. Blocks for some milliseconds.
pub(crate) fn findings(host: &Host) -> Vec<Finding> {
    let mut found = vec![
        kernel(host),
        user_namespaces(),
        overlay(),
        ids(host),
        seccomp(),
        memory_execution(),
        proc(),
    ];
    found.extend(cgroups(host));
    found.push(pids(host));
    found.push(disk_limit(host));
    found
}

/// Returns major and minor version of the running kernel.
pub(crate) fn kernel_version() -> (u32, u32) {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    let mut next = || {
        numbers
            .next()
            .and_then(|part| part.parse().ok())
            .unwrap_or(0)
    };
    (next(), next())
}

/// Returns the host's memory.
pub(crate) fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    let unit = u64::from(info.mem_unit.max(1));
    #[expect(
        clippy::useless_conversion,
        reason = "the field's width depends on the target"
    )]
    u64::try_from(info.totalram).map_or(u64::MAX, |units| units.saturating_mul(unit))
}

/// Returns how many CPUs this process may use.
pub(crate) fn cpus() -> u32 {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Returns whether this process's ids are the host's: in a container they may be a part of them.
pub(crate) fn holds_every_id() -> bool {
    let whole = |path: &str| {
        fs::read_to_string(path).is_ok_and(|map| {
            map.lines().any(|line| {
                let numbers: Vec<u32> = line
                    .split_whitespace()
                    .filter_map(|word| word.parse().ok())
                    .collect();
                matches!(numbers.as_slice(), [0, _, count] if *count > ID_LAST)
            })
        })
    };
    whole("/proc/self/uid_map") && whole("/proc/self/gid_map")
}

/// Returns whether the programs that map subordinate ids are installed.
pub(crate) fn maps_ids() -> bool {
    installed("newuidmap") && installed("newgidmap")
}

/// Returns whether loop devices can be made.
pub(crate) fn loop_devices() -> bool {
    let access = Access::READ_OK | Access::WRITE_OK;
    rustix::fs::accessat(CWD, "/dev/loop-control", access, AtFlags::EACCESS).is_ok()
}

fn installed(program: &str) -> bool {
    PROGRAM_DIRECTORIES
        .iter()
        .any(|directory| Path::new(directory).join(program).is_file())
}

fn finding(name: &str, problem: Option<FindingStatus>, detail: String, fix: &str) -> Finding {
    Finding {
        name: name.to_owned(),
        status: problem.unwrap_or(FindingStatus::Ok),
        detail,
        fix: problem.map(|_| fix.to_owned()),
    }
}

/// Answers a problem of that weight unless something is so.
fn unless(fine: bool, problem: FindingStatus) -> Option<FindingStatus> {
    (!fine).then_some(problem)
}

fn kernel(host: &Host) -> Finding {
    let (major, minor) = host.kernel;
    finding(
        "kernel",
        unless(host.kernel >= KERNEL_LEAST, FindingStatus::Missing),
        format!(
            "{major}.{minor}, and {}.{} is needed",
            KERNEL_LEAST.0, KERNEL_LEAST.1
        ),
        "run: sudo apt-get install linux-image-amd64, from a release with a newer kernel",
    )
}

/// Reads a number that the kernel lets an administrator set.
fn setting(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn user_namespaces() -> Finding {
    let root = rustix::process::geteuid().is_root();
    let most = setting("/proc/sys/user/max_user_namespaces");
    let cloning = setting("/proc/sys/kernel/unprivileged_userns_clone");
    let apparmor = setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns");
    let (detail, fix) = if most == Some(0) {
        (
            "user.max_user_namespaces is 0",
            "run: sudo sysctl -w user.max_user_namespaces=100000",
        )
    } else if cloning == Some(0) && !root {
        (
            "kernel.unprivileged_userns_clone is 0",
            "run: sudo sysctl -w kernel.unprivileged_userns_clone=1",
        )
    } else if apparmor == Some(1) && !root {
        (
            "AppArmor takes the rights of user namespaces of ordinary users away",
            "run: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        )
    } else if fs::exists("/proc/self/ns/user").is_ok_and(|there| there) {
        ("allowed", "")
    } else {
        (
            "the kernel was built without them",
            "boot a kernel with CONFIG_USER_NS",
        )
    };
    let fine = detail == "allowed";
    let problem = unless(fine, FindingStatus::Missing);
    finding("user_namespaces", problem, detail.to_owned(), fix)
}

fn overlay() -> Finding {
    let known = fs::read_to_string("/proc/filesystems")
        .is_ok_and(|list| list.lines().any(|line| line.ends_with("\toverlay")));
    let detail = if known {
        "known to the kernel"
    } else {
        "not known to the kernel"
    };
    let problem = unless(known, FindingStatus::Missing);
    finding(
        "overlayfs",
        problem,
        detail.to_owned(),
        "run: sudo modprobe overlay",
    )
}

fn ids(host: &Host) -> Finding {
    let degraded = Some(FindingStatus::Degraded);
    match &host.identity {
        LauncherIdentity::Root => {
            let detail = "each sandbox has a range of host ids of its own";
            finding("ids", None, detail.to_owned(), "")
        }
        LauncherIdentity::Subordinate(ids) => {
            let count: u64 = ids.users.iter().map(|(_, count)| u64::from(*count)).sum();
            let detail = format!("{count} subordinate ids, shared by all sandboxes of this user");
            finding("ids", None, detail, "")
        }
        LauncherIdentity::Single => {
            let granted = SubordinateIds::of_caller().is_ok_and(|ids| !ids.users.is_empty());
            if granted && !maps_ids() {
                let detail = "subordinate ids are granted, but nothing can map them";
                let fix = "run: sudo apt-get install uidmap";
                return finding("ids", degraded, detail.to_owned(), fix);
            }
            let detail = "no subordinate ids: sandboxes have one user only";
            finding("ids", degraded, detail.to_owned(), SUBIDS_FIX)
        }
    }
}

fn seccomp() -> Finding {
    let known = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail")
        .is_ok_and(|list| list.split_whitespace().any(|action| action == "errno"));
    let detail = if known {
        "filters are known to the kernel"
    } else {
        "no filters"
    };
    let problem = unless(known, FindingStatus::Missing);
    let fix = "boot a kernel with CONFIG_SECCOMP_FILTER";
    finding("seccomp", problem, detail.to_owned(), fix)
}

fn memory_execution() -> Finding {
    let problem = rustix::fs::memfd_create("probe", MemfdFlags::CLOEXEC | MemfdFlags::EXEC).err();
    let detail = match problem {
        None => "a file in memory can be executed",
        Some(_) => "a file in memory cannot be executed; one in the state directory is used",
    };
    let weight = problem.map(|_| FindingStatus::Degraded);
    finding(
        "memfd",
        weight,
        detail.to_owned(),
        "run: sudo sysctl -w vm.memfd_noexec=0",
    )
}

fn proc() -> Finding {
    // Somebody who covers parts of it, as Docker does, forbids to mount a whole one.
    let covered = fs::read_to_string("/proc/self/mountinfo").is_ok_and(|mounts| {
        let mut points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        points.any(|point| {
            point
                .strip_prefix("/proc/")
                .is_some_and(|beneath| !beneath.starts_with("sys/fs/binfmt"))
        })
    });
    let detail = if covered {
        "parts of /proc are covered: sandboxes see their processes only"
    } else {
        "not covered"
    };
    let problem = unless(!covered, FindingStatus::Degraded);
    let fix = "in a container: start it with --security-opt systempaths=unconfined";
    finding("proc", problem, detail.to_owned(), fix)
}

fn cgroups(host: &Host) -> Vec<Finding> {
    let command = host.cgroups.delegation_command(&Controller::ALL);
    Controller::ALL
        .into_iter()
        .map(|controller| {
            let name = format!("cgroup.{}", controller.as_str());
            let detail = match (
                host.cgroups.version(controller),
                host.cgroups.base(controller),
            ) {
                (Some(version), Some(base)) => {
                    return finding(
                        &name,
                        None,
                        format!("{} in {}", version.as_str(), base.display()),
                        "",
                    );
                }
                _ if host.cgroups.is_undelegated(controller) => "not delegated to this user",
                _ => "the host has none",
            };
            let problem = Some(FindingStatus::Degraded);
            finding(
                &name,
                problem,
                detail.to_owned(),
                &format!("run: {command}"),
            )
        })
        .collect()
}

fn pids(host: &Host) -> Finding {
    let group = host.cgroups.version(Controller::Pids).is_some();
    let namespace = host.kernel >= PID_MAX_KERNEL;
    let detail = match (group, namespace) {
        (true, _) => "held by a cgroup",
        (false, true) => "held by the pid namespace; the smallest limit is 301",
        (false, false) => "not held",
    };
    let problem = unless(group || namespace, FindingStatus::Degraded);
    let command = host.cgroups.delegation_command(&[Controller::Pids]);
    finding(
        "pids_limit",
        problem,
        detail.to_owned(),
        &format!("run: {command}"),
    )
}

fn disk_limit(host: &Host) -> Finding {
    if host.identity != LauncherIdentity::Root {
        let memory = host.cgroups.version(Controller::Memory).is_some();
        let detail = if memory {
            "held in memory, within a named memory limit"
        } else {
            "not held: it would be held in memory, and no memory cgroup is delegated"
        };
        let problem = Some(FindingStatus::Degraded);
        let fix = "run the daemon as root, which holds it in an image file";
        return finding("disk_limit", problem, detail.to_owned(), fix);
    }
    let (detail, fix) = match (disk::program(), loop_devices()) {
        (Some(_), true) => ("held by a filesystem in a sparse file".to_owned(), ""),
        (None, _) => (
            "mkfs.ext4 is missing".to_owned(),
            "run: sudo apt-get install e2fsprogs",
        ),
        (Some(_), false) => {
            let problem = fs::File::open("/dev/loop-control").err();
            let problem = problem.map_or(io::ErrorKind::PermissionDenied, |error| error.kind());
            (
                format!("/dev/loop-control: {problem}"),
                "run: sudo modprobe loop",
            )
        }
    };
    let problem = unless(host.disk_images, FindingStatus::Degraded);
    let memory = ByteSize(host.memory_bytes);
    finding(
        "disk_limit",
        problem,
        format!("{detail}; memory {memory}"),
        fix,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinfold_linux::cgroup::Cgroups;

    #[test]
    fn whatever_is_missing_has_a_fix() {
        let host = Host {
            cgroups: Cgroups::none(),
            identity: LauncherIdentity::Single,
            kernel: (5, 0),
            memory_bytes: 0,
            cpus: 1,
            disk_images: false,
        };
        let found = findings(&host);
        for name in ["kernel", "ids", "cgroup.memory", "pids_limit", "disk_limit"] {
            let one = found.iter().find(|one| one.name == name).unwrap();
            assert_ne!(one.status, FindingStatus::Ok, "{name}");
        }
        for one in found {
            let has_fix = one.fix.as_deref().is_some_and(|fix| !fix.is_empty());
            assert_eq!(has_fix, one.status != FindingStatus::Ok, "{one:?}");
        }
    }

    #[test]
    fn this_host_is_read() {
        assert!(kernel_version() >= (6, 0));
        assert!(memory_bytes() > 1 << 28);
        assert!(cpus() > 0);
    }
}
