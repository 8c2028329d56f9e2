//! Attacks by system calls that nothing in a sandbox needs.

use std::fs;
use std::io;

use super::call::{any, call, call_with, fork, old_getpid, text, wait};
use super::{Attempt, Found};

/// Bit of the numbering of x32.
#[cfg(target_arch = "x86_64")]
const X32: libc::c_long = 0x4000_0000;
/// Calls that only read or refuse nonsense: `getxattrat`, `listxattrat` and `file_getattr`.
const NEWER: &[libc::c_long] = &[464, 465, 468];
/// `TIOCSPTLCK` and `TIOCGPTN`: opens the other end of a terminal, and asks for its number.
const TIOCSPTLCK: usize = 0x4004_5431;
const TIOCGPTN: usize = 0x8004_5430;
/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// Capabilities over a whole namespace or host: `DAC_READ_SEARCH`, `NET_ADMIN`, `SYS_MODULE`,
/// `SYS_RAWIO`, `SYS_PTRACE`, `SYS_ADMIN`, `SYS_BOOT`, `SYS_NICE`, `SYS_RESOURCE`, `SYS_TIME`,
/// `SYSLOG`, `PERFMON`, `BPF`, `CHECKPOINT_RESTORE`.
const ADMINISTERING: &[u32] = &[2, 12, 16, 17, 19, 21, 22, 23, 24, 25, 34, 38, 39, 40];
/// Types a letter into a terminal.
const TIOCSTI: usize = 0x5412;
/// How a child says that it has no terminal.
const NO_TERMINAL: i32 = 2;
/// Other rings of keys.
const KEYCTL_JOIN_SESSION_KEYRING: usize = 1;
const SESSION_KEYRING: usize = usize::MAX - 2;

pub(super) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("raw-network", |_| socket(libc::AF_PACKET, libc::SOCK_RAW)),
    ("file-handle", |_| {
        let mut handle = [0_u8; 8 + 8];
        // A handle of inode 2, the root of most file systems.
        handle[0] = 8;
        handle[4] = 1;
        handle[8] = 2;
        let address = (&raw mut handle).addr();
        // The sandbox's own root, and what is the host's: its programs and what it shares.
        any([c"/usr/bin", c"/attack-share", c"/etc"].map(|path| {
            let opened = call_with(libc::SYS_open, &[path.as_ptr().addr(), 0])
                .and_then(|root| call_with(libc::SYS_open_by_handle_at, &[root, address, 0]));
            match opened {
                // Whoever may use handles is told that this one is of no file.
                Err(error) if error.raw_os_error() == Some(libc::ESTALE) => {
                    Found::Worked("allowed, with a wrong handle".to_owned())
                }
                opened => Found::of(opened, "opened the root of its file system"),
            }
        }))
    }),
    ("name-handle", |_| {
        let mut handle = [0_u8; 136];
        handle[0] = 128;
        let mut mount = 0_i32;
        let named = call(
            libc::SYS_name_to_handle_at,
            [
                0,
                c"/tmp".as_ptr().addr(),
                (&raw mut handle).addr(),
                (&raw mut mount).addr(),
                0,
                0,
            ],
        );
        Found::of(named, "made a handle")
    }),
    ("user-namespace", |_| unshare(libc::CLONE_NEWUSER)),
    ("user-namespace-clone", |_| {
        let flags = (libc::CLONE_NEWUSER | libc::SIGCHLD).unsigned_abs() as usize;
        made(call_with(libc::SYS_clone, &[flags, 0, 0, 0, 0]))
    }),
    ("user-namespace-clone3", |_| {
        let mut record = [0_u64; 11];
        record[0] = u64::from(libc::CLONE_NEWUSER.unsigned_abs());
        record[4] = u64::from(libc::SIGCHLD.unsigned_abs());
        made(call_with(
            libc::SYS_clone3,
            &[(&raw mut record).addr(), size_of_val(&record)],
        ))
    }),
    ("mount-namespace", |_| unshare(libc::CLONE_NEWNS)),
    ("join-namespace", |_| {
        let path = c"/proc/self/ns/uts";
        let joined = call_with(libc::SYS_open, &[path.as_ptr().addr(), 0])
            .and_then(|namespace| call_with(libc::SYS_setns, &[namespace, 0]));
        Found::of(joined, "joined")
    }),
    ("bpf", |_| bpf()),
    ("io-uring", |_| {
        let mut parameters = [0_u64; 15];
        let made = call_with(libc::SYS_io_uring_setup, &[4, (&raw mut parameters).addr()]);
        Found::of(made, "made one")
    }),
    ("userfaultfd", |_| {
        // The kind that any user may make.
        Found::of(call_with(libc::SYS_userfaultfd, &[1]), "made one")
    }),
    ("keys", |_| {
        let payload = 7_u64;
        let stored = call_with(
            libc::SYS_add_key,
            &[
                c"user".as_ptr().addr(),
                c"pinfold-attack".as_ptr().addr(),
                (&raw const payload).addr(),
                8,
                SESSION_KEYRING,
            ],
        );
        Found::of(stored, "stored one")
    }),
    ("key-rings", |_| {
        Found::of(
            call_with(libc::SYS_keyctl, &[KEYCTL_JOIN_SESSION_KEYRING, 0]),
            "joined",
        )
    }),
    ("perf", |_| perf()),
    ("fanotify", |_| {
        // `FAN_REPORT_FID`, which any user may ask for.
        Found::of(call_with(libc::SYS_fanotify_init, &[0x200, 0]), "watches")
    }),
    ("memory-policy", |_| {
        Found::of(call_with(libc::SYS_set_mempolicy, &[0, 0, 0]), "set")
    }),
    ("local-descriptor-table", |_| local_table()),
    ("old-calls", |_| {
        let ended = fork(|| i32::from(old_getpid() > 0)).and_then(wait);
        match ended {
            Ok(status) if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 1 => {
                Found::Worked("it was answered".to_owned())
            }
            Ok(status) => Found::Failed(format!("status {status:#x}")),
            Err(error) => Found::Failed(error.to_string()),
        }
    }),
    ("x32-calls", |_| {
        if has_x32() {
            Found::Worked("answered".to_owned())
        } else {
            Found::Failed("no answer".to_owned())
        }
    }),
    ("newer-calls", |_| match newer_calls().next() {
        Some(number) => Found::Worked(format!("number {number} answered")),
        None => Found::Failed("none answered".to_owned()),
    }),
    ("personality", |_| {
        Found::of(call_with(libc::SYS_personality, &[0x004_0000]), "set")
    }),
    ("crypto-socket", |_| {
        socket(libc::AF_ALG, libc::SOCK_SEQPACKET)
    }),
    ("vsock", |_| socket(libc::AF_VSOCK, libc::SOCK_STREAM)),
    ("terminal-input", |_| terminal()),
    ("kernel-log", |_| {
        let mut text = [0_u8; 256];
        let read = call_with(libc::SYS_syslog, &[3, (&raw mut text).addr(), 256]);
        Found::of(read, "read it")
    }),
    ("time", |_| {
        // A time zone that there is none of: who may set the time is told so, and nothing is set.
        let zone = [i32::MAX; 2];
        let set = call_with(libc::SYS_settimeofday, &[0, (&raw const zone).addr()]);
        refused(set, &[libc::EPERM])
    }),
    ("set-host-name", |_| {
        let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name = name.trim_end();
        let bytes = text(name);
        let address = bytes.as_ptr().addr();
        Found::of(
            call_with(libc::SYS_sethostname, &[address, name.len()]),
            "set it",
        )
    }),
    ("module", |_| {
        let loaded = call_with(
            libc::SYS_init_module,
            &[c"".as_ptr().addr(), 0, c"".as_ptr().addr()],
        );
        refused(loaded, &[libc::EPERM, libc::ENOSYS])
    }),
    ("kexec", |_| {
        // With flags that there are none of nothing happens to a kernel that is loaded already.
        refused(
            call_with(libc::SYS_kexec_load, &[0, 0, 0, 0x8000]),
            &[libc::EPERM, libc::ENOSYS],
        )
    }),
    ("reboot", |_| {
        // With a wrong magic number even the superuser gets EINVAL, and nothing happens.
        refused(call_with(libc::SYS_reboot, &[0, 0, 0, 0]), &[libc::EPERM])
    }),
    ("swap", |_| {
        let path = text("/tmp/attack-swap");
        let added = fs::write("/tmp/attack-swap", [0; 4096])
            .and_then(|()| call_with(libc::SYS_swapon, &[path.as_ptr().addr(), 0]));
        refused(added, &[libc::EPERM])
    }),
    ("accounting", |_| {
        // No account can be written to a directory: who may ask is told so.
        let switched = call_with(libc::SYS_acct, &[c"/tmp".as_ptr().addr()]);
        refused(switched, &[libc::EPERM, libc::ENOSYS])
    }),
    ("ports", |_| ports()),
    ("capabilities", |_| capabilities()),
    ("ambient-capabilities", |_| {
        const PR_CAP_AMBIENT: usize = 47;
        const RAISE: usize = 2;
        inherit_all();
        any(ADMINISTERING.iter().map(|capability| {
            let capability = usize::try_from(*capability).unwrap_or(0);
            let raised = call_with(libc::SYS_prctl, &[PR_CAP_AMBIENT, RAISE, capability]);
            Found::of(raised, "raised")
        }))
    }),
];

/// Only these refusals are ones: others mean that the call was let in and looked at its arguments.
fn refused(result: io::Result<usize>, by: &[i32]) -> Found {
    match result {
        Err(error) if error.raw_os_error().is_some_and(|code| by.contains(&code)) => {
            Found::Failed(error.to_string())
        }
        Err(error) => Found::Worked(format!("it was let in: {error}")),
        Ok(_) => Found::Worked("done".to_owned()),
    }
}

fn socket(family: i32, kind: i32) -> Found {
    let number = |value: i32| usize::try_from(value).unwrap_or(0);
    let made = call_with(libc::SYS_socket, &[number(family), number(kind), 0]);
    Found::of(made, "made one")
}

fn unshare(namespace: i32) -> Found {
    let flags = usize::try_from(namespace).unwrap_or(0);
    Found::of(call_with(libc::SYS_unshare, &[flags]), "made one")
}

/// Ends the child that a raw `clone` made, and tells of it in the parent.
fn made(result: io::Result<usize>) -> Found {
    match result {
        Ok(0) => std::process::abort(),
        Ok(pid) => {
            let _status = wait(i32::try_from(pid).unwrap_or(-1));
            Found::Worked("made one".to_owned())
        }
        Err(error) => Found::Failed(error.to_string()),
    }
}

/// Makes a map, the least that can be made.
fn bpf() -> Found {
    let record: [u32; 32] = {
        let mut record = [0; 32];
        // An array of one number under numbers.
        record[..4].copy_from_slice(&[2, 4, 4, 1]);
        record
    };
    let made = call_with(libc::SYS_bpf, &[0, (&raw const record).addr(), 72]);
    Found::of(made, "made a map")
}

fn perf() -> Found {
    let mut record = [0_u64; 16];
    // `PERF_TYPE_SOFTWARE` and the record's size; without the kernel's own time.
    record[0] = 1 | (128 << 32);
    record[5] = 1 << 5 | 1 << 6;
    let address = (&raw mut record).addr();
    let watched = call(
        libc::SYS_perf_event_open,
        [address, 0, usize::MAX, usize::MAX, 0, 0],
    );
    Found::of(watched, "watches")
}

#[cfg(target_arch = "x86_64")]
fn local_table() -> Found {
    let mut table = [0_u8; 16];
    let read = call_with(libc::SYS_modify_ldt, &[0, (&raw mut table).addr(), 16]);
    Found::of(read, "read it")
}

/// Returns whether a call by the x32 numbering is answered.
#[cfg(target_arch = "x86_64")]
pub(super) fn has_x32() -> bool {
    call_with(X32 | libc::SYS_getpid, &[]).is_ok()
}

/// Returns whether there are calls for I/O ports; this one asks for what everybody has.
#[cfg(target_arch = "x86_64")]
pub(super) fn has_ports() -> bool {
    call_with(libc::SYS_iopl, &[0]).is_ok()
}

/// Returns calls that are newer than the filter's list and answer anything.
pub(super) fn newer_calls() -> impl Iterator<Item = libc::c_long> {
    let answers = |number: &&libc::c_long| {
        // No such directory, and no name: nothing is looked up.
        match call_with(**number, &[usize::MAX, 0, 0, 0, 0, 0]) {
            Err(error) => error.raw_os_error() != Some(libc::ENOSYS),
            Ok(_) => true,
        }
    };
    NEWER.iter().filter(answers).copied()
}

#[cfg(target_arch = "x86_64")]
fn ports() -> Found {
    any([
        refused(
            call_with(libc::SYS_iopl, &[3]),
            &[libc::EPERM, libc::ENOSYS],
        ),
        refused(
            call_with(libc::SYS_ioperm, &[0x80, 1, 1]),
            &[libc::EPERM, libc::ENOSYS],
        ),
    ])
}

#[cfg(not(target_arch = "x86_64"))]
fn local_table() -> Found {
    Found::NotExpressible("another machine".to_owned())
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn has_x32() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn has_ports() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn ports() -> Found {
    Found::NotExpressible("another machine".to_owned())
}

/// Types into a terminal of its own, which must be its controlling one.
fn terminal() -> Found {
    let ended = fork(|| {
        let Ok(terminal) = own_terminal() else {
            return NO_TERMINAL;
        };
        let letter = b'x';
        let address = (&raw const letter).addr();
        i32::from(call_with(libc::SYS_ioctl, &[terminal, TIOCSTI, address]).is_err())
    });
    match ended.and_then(wait) {
        Ok(0) => Found::Worked("typed".to_owned()),
        Ok(status) if libc::WEXITSTATUS(status) == NO_TERMINAL => {
            Found::NotExpressible("no terminal can be made".to_owned())
        }
        Ok(_) => Found::Failed("refused".to_owned()),
        Err(error) => Found::Failed(error.to_string()),
    }
}

/// Makes a terminal that is the controlling one of a session of this process's own.
fn own_terminal() -> io::Result<usize> {
    let open = |path: &str| {
        let path = text(path);
        let flags = libc::O_RDWR.unsigned_abs() as usize;
        call_with(libc::SYS_open, &[path.as_ptr().addr(), flags])
    };
    call_with(libc::SYS_setsid, &[])?;
    let master = open("/dev/ptmx")?;
    let (unlocked, mut number) = (0_i32, 0_u32);
    let ask =
        |request: usize, address: usize| call_with(libc::SYS_ioctl, &[master, request, address]);
    ask(TIOCSPTLCK, (&raw const unlocked).addr())?;
    ask(TIOCGPTN, (&raw mut number).addr())?;
    open(&format!("/dev/pts/{number}"))
}

/// Makes every capability that this process has one that its programs may get.
fn inherit_all() {
    let header = [CAPABILITY_VERSION_3, 0];
    // Effective, permitted and inheritable, the low half of each first.
    let mut sets = [0_u32; 6];
    let header = (&raw const header).addr();
    if call_with(libc::SYS_capget, &[header, (&raw mut sets).addr()]).is_ok() {
        let [effective, permitted, _, effective_high, permitted_high, _] = sets;
        let wider = [
            effective,
            permitted,
            permitted,
            effective_high,
            permitted_high,
            permitted_high,
        ];
        // Refused, nothing can be raised, which the attack then tells.
        let _refused = call_with(libc::SYS_capset, &[header, (&raw const wider).addr()]);
    }
}

/// What it holds now, and what any program that it starts may.
fn capabilities() -> Found {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for line in status.lines().filter(|line| line.starts_with("Cap")) {
        let mask = line.split_whitespace().nth(1).unwrap_or_default();
        let mask = u64::from_str_radix(mask, 16).unwrap_or(u64::MAX);
        for capability in ADMINISTERING {
            if mask & (1 << capability) != 0 {
                return Found::Worked(format!("number {capability}: {line}"));
            }
        }
    }
    Found::Failed("none that administers".to_owned())
}
