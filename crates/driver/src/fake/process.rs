//! Processes seen from outside: trees, signals and ends, always through a descriptor, so that a
//! number that was used again is never mistaken for the process that had it before.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};

/// Most rounds of looking for children that were born meanwhile. Each round stops what it finds,
/// so a second finds only what was being born during the first.
const ROUNDS_MAX: usize = 64;

/// A process that cannot be mistaken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct ProcessKey {
    pub(super) pid: i32,
    /// When it started, in the kernel's ticks since boot.
    pub(super) started: u64,
}

/// A line of `/proc/<pid>/stat`.
#[derive(Debug, Clone, Copy)]
struct Stat {
    key: ProcessKey,
    parent: i32,
    state: char,
}

/// A held process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) key: ProcessKey,
    descriptor: OwnedFd,
}

impl Process {
    /// Takes hold of a child of ours that was not waited for yet.
    pub(super) fn of_child(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).map_err(io::Error::other)?;
        let stat = stat(pid).ok_or_else(|| io::Error::from(Errno::SRCH))?;
        Ok(Self {
            key: stat.key,
            descriptor: open(pid)?,
        })
    }

    /// Takes hold of a process unless it has ended.
    pub(super) fn of_key(key: ProcessKey) -> Option<Self> {
        let descriptor = open(key.pid).ok()?;
        // Looked at after the descriptor was opened: it is of the process that is seen now.
        let stat = stat(key.pid)?;
        (stat.key == key && stat.state != 'Z').then_some(Self { key, descriptor })
    }

    /// Sends a signal; to a process that has ended, nothing.
    pub(super) fn signal(&self, signal: Signal) {
        // The only error that can be is that it has ended.
        let _ = pidfd_send_signal(&self.descriptor, signal);
    }

    /// Waits for the end on a thread of its own and says how it was.
    ///
    /// A thread, because the runtime offers no way to wait for a descriptor that is both safe and
    /// not deprecated. It ends with the process, and it does not hold up the end of the runtime.
    pub(super) fn when_ended(&self, say: impl FnOnce(String) + Send + 'static) -> io::Result<()> {
        let descriptor = self.descriptor.try_clone()?;
        std::thread::Builder::new()
            .name("fake-watch".to_owned())
            .spawn(move || {
                await_end(&descriptor);
                say(reap(&descriptor));
            })
            .map(drop)
    }
}

fn await_end(descriptor: &OwnedFd) {
    let mut waited = [PollFd::new(descriptor, PollFlags::IN)];
    // Only a signal to this thread interrupts it.
    while let Err(Errno::INTR) = poll(&mut waited, None) {}
}

fn open(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::from(Errno::SRCH))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

fn reap(descriptor: &OwnedFd) -> String {
    use std::os::fd::AsFd as _;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    match waitid(WaitId::PidFd(descriptor.as_fd()), options) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("agent ended with code {code}"),
            (None, Some(signal)) => format!("agent ended with signal {signal}"),
            (None, None) => "agent ended".to_owned(),
        },
        // Not a child of this process, or another watcher was first.
        Ok(None) | Err(_) => "agent ended".to_owned(),
    }
}

fn stat(pid: i32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold any character, parentheses too.
    let rest = text.get(text.rfind(')')?.checked_add(2)?..)?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    // Field 22 of the line; the name is field 2 and two were taken.
    let started = fields.nth(17)?.parse().ok()?;
    Some(Stat {
        key: ProcessKey { pid, started },
        parent,
        state,
    })
}

fn pids() -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// Returns every live descendant of an agent, and what it started that lost its parents since.
pub(super) fn descendants(root: i32) -> Vec<ProcessKey> {
    let mut children: HashMap<i32, Vec<Stat>> = HashMap::new();
    let mut found = Vec::new();
    let mut open = vec![root];
    for stat in pids().into_iter().filter_map(stat) {
        if is_marked(stat.key.pid, root) {
            open.push(stat.key.pid);
            if stat.state != 'Z' {
                found.push(stat.key);
            }
        }
        children.entry(stat.parent).or_default().push(stat);
    }
    while let Some(parent) = open.pop() {
        for stat in children.remove(&parent).unwrap_or_default() {
            open.push(stat.key.pid);
            if stat.state != 'Z' {
                found.push(stat.key);
            }
        }
    }
    found.sort_unstable_by_key(|key| key.pid);
    found.dedup();
    found
}

/// Returns whether a process, or one that it descends from, was started by an agent: agents mark
/// their execs by a hard limit for real-time processes that holds the agent's own id.
fn is_marked(pid: i32, agent: i32) -> bool {
    const MARK_BASE: u64 = 1 << 61;
    let Ok(limits) = std::fs::read_to_string(format!("/proc/{pid}/limits")) else {
        return false;
    };
    limits
        .lines()
        .find_map(|line| line.strip_prefix("Max realtime timeout"))
        .and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .and_then(|mark| mark.checked_sub(MARK_BASE))
        .is_some_and(|mark| i32::try_from(mark >> 32) == Ok(agent))
}

/// Stops a process and everything that descends from it, also what is born meanwhile.
pub(super) fn stop_tree(root: &Process) -> Vec<Process> {
    root.signal(Signal::STOP);
    let mut stopped: HashSet<ProcessKey> = HashSet::new();
    let mut held = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let fresh: Vec<ProcessKey> = descendants(root.key.pid)
            .into_iter()
            .filter(|key| stopped.insert(*key))
            .collect();
        if fresh.is_empty() {
            break;
        }
        for process in fresh.into_iter().filter_map(Process::of_key) {
            process.signal(Signal::STOP);
            held.push(process);
        }
    }
    held
}

/// Lets a stopped tree go on, the root last, so that it sees its children as they were.
pub(super) fn continue_tree(root: &Process) {
    for process in descendants(root.key.pid)
        .into_iter()
        .filter_map(Process::of_key)
    {
        process.signal(Signal::CONT);
    }
    root.signal(Signal::CONT);
}

/// Kills a process and everything that descends from it.
pub(super) fn kill_tree(root: &Process) {
    let held = stop_tree(root);
    root.signal(Signal::KILL);
    for process in &held {
        process.signal(Signal::KILL);
    }
}

/// Returns live processes whose working directory is beneath a directory: what an agent that was
/// killed has left.
pub(super) fn working_beneath(directory: &Path) -> Vec<ProcessKey> {
    with_link_beneath("cwd", directory)
}

fn with_link_beneath(link: &str, directory: &Path) -> Vec<ProcessKey> {
    pids()
        .into_iter()
        .filter(|pid| {
            std::fs::read_link(format!("/proc/{pid}/{link}"))
                .is_ok_and(|target| target.starts_with(directory))
        })
        .filter_map(stat)
        .filter(|stat| stat.state != 'Z')
        .map(|stat| stat.key)
        .collect()
}

/// Returns live processes that were started with an environment variable of exactly this value.
pub(super) fn with_variable(name: &str, value: &str) -> Vec<ProcessKey> {
    let wanted = format!("{name}={value}").into_bytes();
    pids()
        .into_iter()
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| {
                environment
                    .split(|byte| *byte == 0)
                    .any(|variable| variable == wanted)
            })
        })
        .filter_map(stat)
        .filter(|stat| stat.state != 'Z')
        .map(|stat| stat.key)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen_as_it_is() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let stat = stat(pid).unwrap();
        assert_eq!(stat.key.pid, pid);
        assert!(stat.key.started > 0);
        assert!(Process::of_key(stat.key).is_some());
        let other = ProcessKey {
            started: stat.key.started + 1,
            ..stat.key
        };
        assert!(Process::of_key(other).is_none());
    }
}
