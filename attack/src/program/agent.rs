//! Attacks on process 1 of the own sandbox.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::net::UnixStream;

use super::call::{any, call_with, lists, opens_for_writing, reads};
use super::{AGENT_VARIABLE, Attempt, Found};

/// The agent's process.
const AGENT: usize = 1;
/// Highest number of a signal.
const SIGNAL_MAX: usize = 64;
/// Looks at what a signal did, and milliseconds between two: a signal is sent at once, but what it
/// does takes its time on a busy host.
const LOOKS: usize = 25;
const LOOK_MS: usize = 20;
/// The lowest class of scheduling.
const SCHED_IDLE: usize = 5;
/// `KCMP_FILES` of `kcmp`.
const KCMP_FILES: usize = 2;

pub(super) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("agent-memory", |_| Found::of(memory(), "read its memory")),
    ("agent-environment", |_| reads("/proc/1/environ")),
    ("agent-maps", |_| reads("/proc/1/maps")),
    ("agent-descriptors", |_| {
        any((0..16).map(|number| {
            let link = fs::read_link(format!("/proc/1/fd/{number}"));
            Found::of(link, "saw what it is")
        }))
    }),
    ("agent-root", |_| lists("/proc/1/root/")),
    ("agent-directory", |_| lists("/proc/1/cwd/")),
    ("agent-program", |_| reads("/proc/1/exe")),
    ("agent-namespaces", |_| {
        Found::of(File::open("/proc/1/ns/mnt"), "opened")
    }),
    ("agent-trace", |_| {
        let seized = call_with(
            libc::SYS_ptrace,
            &[libc::PTRACE_SEIZE as usize, AGENT, 0, 0],
        );
        Found::of(seized, "traces it")
    }),
    ("agent-read-memory", |_| {
        let mut word = 0_u64;
        let local = libc::iovec {
            iov_base: (&raw mut word).cast(),
            iov_len: 8,
        };
        let remote = local;
        let (near, far) = ((&raw const local).addr(), (&raw const remote).addr());
        match call_with(libc::SYS_process_vm_readv, &[AGENT, near, 1, far, 1, 0]) {
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
                Found::Worked("allowed, at a wrong address".to_owned())
            }
            result => Found::of(result, "read"),
        }
    }),
    ("agent-take-descriptor", |_| {
        let taken = call_with(libc::SYS_pidfd_open, &[AGENT, 0])
            .and_then(|pidfd| call_with(libc::SYS_pidfd_getfd, &[pidfd, 0, 0]));
        Found::of(taken, "took descriptor 0")
    }),
    ("agent-kill", |_| signal(&[libc::SIGKILL])),
    ("agent-terminate", |_| {
        signal(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT])
    }),
    ("agent-stop", |_| signal(&[libc::SIGSTOP, libc::SIGTSTP])),
    ("agent-all-signals", |_| {
        for number in 1..=SIGNAL_MAX {
            // Many numbers are no signals or are refused; what counts is who lives after it.
            let _any = call_with(libc::SYS_kill, &[agent(), number]);
        }
        alive()
    }),
    ("agent-memory-preference", |_| {
        any(threads().into_iter().flat_map(|thread| {
            ["/proc", "/proc/1/task"].map(|place| {
                let path = format!("{place}/{thread}/oom_score_adj");
                Found::of(fs::write(path, "1000"), "set")
            })
        }))
    }),
    ("agent-priority", |_| {
        let set = call_with(libc::SYS_setpriority, &[0, AGENT, 19]);
        Found::of(set, "set its priority to 19")
    }),
    ("agent-scheduling", |_| {
        let parameter = 0_i32;
        let address = (&raw const parameter).addr();
        let set = call_with(libc::SYS_sched_setscheduler, &[AGENT, SCHED_IDLE, address]);
        Found::of(set, "moved to the idle class")
    }),
    ("agent-affinity", |_| {
        let mask = 1_u64;
        let address = (&raw const mask).addr();
        let set = call_with(libc::SYS_sched_setaffinity, &[AGENT, 8, address]);
        Found::of(set, "bound it to the first CPU")
    }),
    ("agent-limits", |_| limits()),
    ("agent-compare", |_| {
        let own = usize::try_from(std::process::id()).unwrap_or(0);
        let compared = call_with(libc::SYS_kcmp, &[own, AGENT, KCMP_FILES, 0, 0]);
        Found::of(compared, "compared")
    }),
    ("agent-socket", |_| socket()),
    ("agent-stack", |_| {
        any([
            reads("/proc/1/stack"),
            opens_for_writing("/proc/1/clear_refs"),
        ])
    }),
];

fn memory() -> io::Result<()> {
    let mut memory = File::open("/proc/1/mem")?;
    let maps = fs::read_to_string("/proc/1/maps")?;
    let first = maps
        .split('-')
        .next()
        .and_then(|text| u64::from_str_radix(text, 16).ok())
        .ok_or_else(|| io::Error::other("no address"))?;
    memory.seek(SeekFrom::Start(first))?;
    memory.read_exact(&mut [0; 16])
}

/// The doctor sees it when the agent ends: nothing is said then any more.
fn signal(numbers: &[i32]) -> Found {
    for &number in numbers {
        let number = usize::try_from(number).unwrap_or(0);
        if let Err(error) = call_with(libc::SYS_kill, &[agent(), number]) {
            return Found::Failed(error.to_string());
        }
    }
    alive()
}

/// Returns the agent's process id: 1, unless a test has left its process namespace out.
fn agent() -> usize {
    let told = std::env::var(AGENT_VARIABLE).ok();
    told.and_then(|id| id.parse().ok()).unwrap_or(AGENT)
}

/// Returns whether the agent goes on: it must neither be stopped nor ending.
///
/// An agent that ends takes this process along, and the doctor hears no more of the sandbox.
fn alive() -> Found {
    let path = format!("/proc/{}/stat", agent());
    let mut found = Found::Failed("nobody looked".to_owned());
    for _ in 0..LOOKS {
        let status = fs::read_to_string(&path).unwrap_or_default();
        let after_name = status.rsplit(") ").next();
        found = match after_name.and_then(|rest| rest.chars().next()) {
            Some(state) if "SRD".contains(state) => {
                Found::Failed(format!("it goes on, in state {state}"))
            }
            state => Found::Worked(format!("it is in state {state:?}")),
        };
        if matches!(found, Found::Worked(_)) {
            break;
        }
        // Nothing is polled: this only waits.
        let _waited = call_with(libc::SYS_poll, &[0, 0, LOOK_MS]);
    }
    let goes_on = libc::SIGCONT.unsigned_abs() as usize;
    // A stopped one could not tell anybody.
    let _ended = call_with(libc::SYS_kill, &[agent(), goes_on]);
    found
}

/// Returns its threads, each of which stands for the whole process in some calls.
fn threads() -> Vec<usize> {
    let threads = fs::read_dir("/proc/1/task").into_iter().flatten().flatten();
    let threads = threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    [AGENT].into_iter().chain(threads).collect()
}

/// Sets the limits that it has anyway.
fn limits() -> Found {
    const DESCRIPTORS: usize = libc::RLIMIT_NOFILE as usize;
    let mut limit = [0_u64; 2];
    let address = (&raw mut limit).addr();
    // Those of this process are less, and as good: what counts is that they can be set.
    if let Err(error) = call_with(libc::SYS_prlimit64, &[0, DESCRIPTORS, 0, address]) {
        return Found::Failed(error.to_string());
    }
    any(threads().into_iter().map(|thread| {
        let set = call_with(libc::SYS_prlimit64, &[thread, DESCRIPTORS, address, 0]);
        Found::of(set, "set its limit of descriptors")
    }))
}

fn socket() -> Found {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let names = table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(7))
        .filter(|name| name.starts_with('/') && name.contains("agent"));
    let mut last = Found::Failed("no socket of the agent has a name here".to_owned());
    for name in names {
        last = Found::of(UnixStream::connect(name), "connected");
        if matches!(last, Found::Worked(_)) {
            break;
        }
    }
    last
}
