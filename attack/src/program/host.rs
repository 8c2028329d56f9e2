//! Attacks on the host's files, processes, devices and network, and on settings of its kernel.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use pinfold_attack::{Facts, SHARE};

use super::call::{
    any, call_with, lists, opens_for_writing, read, reads, steals, text, writes_again,
};
use super::neighbour::{abstract_socket, port};
use super::{Attempt, Found};

/// Longest that a connection to what is not there may take.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Parents of any directory that a sandbox has, and then some.
const PARENTS: usize = 40;
/// Descriptors that a working directory is looked for among.
const FIRST_DESCRIPTORS: usize = 256;
/// First descriptors that a process may have been left with, beyond those it was given.
const DESCRIPTORS_MAX: i32 = 1024;

pub(super) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("memory-device", |_| {
        any(["/dev/mem", "/dev/kmem", "/dev/port"].map(reads_device))
    }),
    ("kernel-log-device", |_| reads_device("/dev/kmsg")),
    ("make-block-device", |_| {
        device("block", libc::S_IFBLK, (7, 0))
    }),
    ("make-character-device", |_| {
        // Kernels without the first have the second, which does no harm and shows as much.
        any([(1, 1), (1, 3)].map(|number| device("char", libc::S_IFCHR, number)))
    }),
    ("shared-device", |facts| shared(facts, device_in_share)),
    ("share-write", |facts| {
        shared(facts, || {
            let path = Path::new(SHARE).join("open/written");
            let written = fs::write(&path, "x");
            Found::of(written, "wrote a file")
        })
    }),
    ("share-link", |facts| {
        shared(facts, || steals("/attack-share/link"))
    }),
    ("share-parent", |facts| {
        shared(facts, || {
            let up = "../".repeat(PARENTS);
            steals(&format!(
                "{SHARE}/{up}{}",
                facts.host_file.trim_start_matches('/')
            ))
        })
    }),
    ("root-parent", root_parent),
    ("root-of-process", |facts| {
        any(numbers_of("/proc").into_iter().flat_map(|pid| {
            ["root", "cwd"].map(|link| steals(&format!("/proc/{pid}/{link}{}", facts.host_file)))
        }))
    }),
    ("inherited-descriptors", |_| descriptors()),
    ("working-directory", |facts| {
        any((0..FIRST_DESCRIPTORS).map(|number| {
            let up = "../".repeat(PARENTS);
            let file = facts.host_file.trim_start_matches('/');
            steals(&format!("/proc/self/fd/{number}/{up}{file}"))
        }))
    }),
    ("host-file", |facts| steals(&facts.host_file)),
    ("host-processes", |facts| {
        let name = format!("/proc/{}/cmdline", facts.host_pid);
        match read(&name) {
            Ok(command) if command.windows(8).any(|part| part == b"--attack") => {
                Found::Worked("saw the doctor".to_owned())
            }
            Ok(_) => Found::Failed("another process".to_owned()),
            Err(error) => Found::Failed(error.to_string()),
        }
    }),
    ("host-signal", |facts| {
        let pid = usize::try_from(facts.host_pid).unwrap_or(0);
        foreign(facts)
            .unwrap_or_else(|| Found::of(call_with(libc::SYS_kill, &[pid, 0]), "may signal it"))
    }),
    ("host-trace", |facts| {
        let pid = usize::try_from(facts.host_pid).unwrap_or(0);
        let request = libc::PTRACE_SEIZE as usize;
        foreign(facts).unwrap_or_else(|| {
            let seized = call_with(libc::SYS_ptrace, &[request, pid, 0, 0]);
            Found::of(seized, "traces it")
        })
    }),
    ("host-abstract-socket", |facts| {
        abstract_socket(&facts.host_abstract)
    }),
    ("host-port", |facts| port(facts.host_port)),
    ("host-network", |facts| {
        let known = [[10, 0, 0, 1], [1, 1, 1, 1], [169, 254, 169, 254]].map(IpAddr::from);
        any(facts.host_address.into_iter().chain(known).map(outside))
    }),
    ("sysfs-write", |_| {
        any([
            opens_for_writing("/sys/class/net/lo/tx_queue_len"),
            opens_for_writing("/sys/class/net/lo/queues/rx-0/rps_cpus"),
        ])
    }),
    ("sysfs-firmware", |_| lists("/sys/firmware")),
    ("uevent-helper", |_| {
        any(["/sys/kernel/uevent_helper", "/proc/sys/kernel/hotplug"].map(opens_for_writing))
    }),
    ("core-pattern", |_| {
        opens_for_writing("/proc/sys/kernel/core_pattern")
    }),
    ("modprobe-path", |_| {
        opens_for_writing("/proc/sys/kernel/modprobe")
    }),
    ("sysrq", |_| opens_for_writing("/proc/sysrq-trigger")),
    ("kernel-settings", |_| {
        any([
            "/proc/sys/net/ipv4/ip_default_ttl",
            "/proc/sys/net/ipv4/ip_forward",
            "/proc/sys/net/ipv4/conf/all/forwarding",
        ]
        .map(writes_again))
    }),
    ("namespace-settings", |_| {
        any([
            "/proc/sys/kernel/shmmax",
            "/proc/sys/kernel/msgmax",
            "/proc/sys/fs/mqueue/queues_max",
        ]
        .map(writes_again))
    }),
    ("process-id-limit", |_| {
        writes_again("/proc/sys/kernel/pid_max")
    }),
    ("kernel-memory", |_| reads("/proc/kcore")),
    ("kernel-keys", |_| is_uncovered("/proc/keys")),
    ("kernel-interrupts", |_| reads("/proc/interrupts")),
    ("kernel-timers", |_| reads("/proc/timer_list")),
    ("kernel-addresses", |_| addresses()),
    ("cgroup-path", |_| {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let path = |line: &str| line.splitn(3, ':').nth(2).unwrap_or("/").to_owned();
        // A controller that was not taken into account shows the way up to the root's.
        match groups
            .lines()
            .map(path)
            .find(|path| path.len() > 1 && !path.contains(".."))
        {
            Some(path) => Found::Worked(path),
            None => Found::Failed("every path is hidden".to_owned()),
        }
    }),
    ("host-name", |facts| {
        let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        if name.trim() == facts.host_name {
            Found::Worked("the host's name".to_owned())
        } else {
            Found::Failed("a name of its own".to_owned())
        }
    }),
    ("map-ids", |_| {
        let map = || Found::of(fs::write("/proc/self/uid_map", "0 0 1"), "mapped");
        let groups = Found::of(fs::write("/proc/self/setgroups", "allow"), "allowed groups");
        any([map(), groups]).or(|| {
            let namespace = libc::CLONE_NEWUSER.unsigned_abs() as usize;
            match call_with(libc::SYS_unshare, &[namespace]) {
                Ok(_) => map(),
                Err(error) => Found::Failed(error.to_string()),
            }
        })
    }),
];

/// Has worked when a file of `/proc` can be opened and is no device that covers it.
pub(super) fn is_uncovered(path: &str) -> Found {
    match fs::File::open(path).and_then(|file| file.metadata()) {
        Ok(found) if found.is_file() => Found::Worked("opened it".to_owned()),
        Ok(_) => Found::Failed("covered".to_owned()),
        Err(error) => Found::Failed(error.to_string()),
    }
}

/// Has worked when something at an address answers, and be it with a refusal.
fn outside(address: IpAddr) -> Found {
    match TcpStream::connect_timeout(&SocketAddr::from((address, 80)), CONNECT_MAX) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Found::Worked(format!("{address} refused"))
        }
        connected => Found::of(connected, "connected"),
    }
}

fn shared(facts: &Facts, attempt: impl FnOnce() -> Found) -> Found {
    if facts.share {
        attempt()
    } else {
        Found::NotExpressible("nothing is shared".to_owned())
    }
}

/// Says so when a process id of the host's is one of another process inside.
fn foreign(facts: &Facts) -> Option<Found> {
    let command = read(format!("/proc/{}/cmdline", facts.host_pid)).unwrap_or_default();
    let ours = command.windows(8).any(|part| part == b"--attack");
    let inside = !command.is_empty() && !ours;
    inside.then(|| Found::Failed("the id is of a process inside".to_owned()))
}

fn numbers_of(directory: &str) -> Vec<i32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// A file that was made in `/dev` by hand is no device.
fn reads_device(path: &str) -> Found {
    use std::os::unix::fs::FileTypeExt as _;
    match fs::metadata(path) {
        Ok(found) if !found.file_type().is_char_device() => Found::Failed("no device".to_owned()),
        Ok(_) => Found::of(fs::File::open(path), "opened"),
        Err(error) => Found::Failed(error.to_string()),
    }
}

/// Makes a device wherever something can be written, and opens it.
fn device(name: &str, kind: u32, (major, minor): (usize, usize)) -> Found {
    let mode = kind as usize | 0o666;
    any(
        ["/tmp", "/dev", "/dev/shm", "/workspace", "/"].map(|directory| {
            let path = format!("{directory}/attack-{name}");
            let bytes = text(&path);
            let number = (major << 8) | minor;
            let device = call_with(libc::SYS_mknod, &[bytes.as_ptr().addr(), mode, number]);
            let opened = device.and_then(|_| OpenOptions::new().read(true).open(&path));
            // It may never have been made.
            let _absent = fs::remove_file(&path);
            Found::of(opened, "made and opened it")
        }),
    )
}

fn device_in_share() -> Found {
    let path = Path::new(SHARE).join("device");
    if !path.exists() {
        return Found::NotExpressible("only root can share a device".to_owned());
    }
    Found::of(fs::File::open(path), "opened it")
}

/// The old way out of a `chroot`: enter another one while a directory outside is open.
fn root_parent(facts: &Facts) -> Found {
    let inner = "/tmp/attack-root";
    let path = text(inner);
    let entered = fs::create_dir_all(inner)
        .and_then(|()| call_with(libc::SYS_chroot, &[path.as_ptr().addr()]));
    if let Err(error) = entered {
        return Found::Failed(error.to_string());
    }
    let file = facts.host_file.trim_start_matches('/');
    steals(&format!("{}{file}", "../".repeat(PARENTS)))
}

/// Its own standard descriptors are pipes and null; the rest must be its own directory listing.
fn descriptors() -> Found {
    let listed = numbers_of("/proc/self/fd");
    for number in listed {
        if !(3..DESCRIPTORS_MAX).contains(&number) {
            continue;
        }
        let target = fs::read_link(format!("/proc/self/fd/{number}")).unwrap_or_default();
        // The listing's own is gone by now.
        if !target.as_os_str().is_empty() {
            return Found::Worked(format!("{number} is {}", target.display()));
        }
    }
    Found::Failed("only its own".to_owned())
}

fn addresses() -> Found {
    let text = fs::read("/proc/kallsyms").unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let known = text
        .lines()
        .take(1000)
        .filter_map(|line| line.split(' ').next())
        .any(|address| !address.is_empty() && address.chars().any(|digit| digit != '0'));
    if known {
        Found::Worked("addresses are not hidden".to_owned())
    } else {
        Found::Failed("all are zero".to_owned())
    }
}
