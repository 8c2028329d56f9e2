//! What `/proc` says of the processes of the sandbox.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read as _;

/// How much of one file of a process is looked at.
const FILE_BYTES_MAX: u64 = 4 << 10;
/// Base of [`mark`]: far above any real-time limit that somebody could mean.
const MARK_BASE: u64 = 1 << 61;
/// Line of `/proc/PID/limits` that holds the mark.
const MARK_LINE: &str = "Max realtime timeout";

/// Returns the mark of an exec: a value of `RLIMIT_RTTIME` that no other exec has.
///
/// Every descendant inherits it, whatever it does to its session, its parent or its environment,
/// and everyone may read it. The limit itself concerns only real-time processes, which cannot
/// exist in a sandbox.
pub(crate) fn mark(agent: u32, serial: u32) -> u64 {
    MARK_BASE | u64::from(agent) << 32 | u64::from(serial)
}

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) session: i32,
    pub(crate) state: u8,
    /// Tells it from a later process with the same id.
    pub(crate) start: u64,
    /// Clock ticks that it, and those that it waited for, ran.
    pub(crate) ticks: u64,
    /// Pages in memory.
    pub(crate) resident: u64,
}

impl Process {
    /// Returns whether it has ended and only waits to be reaped.
    pub(crate) fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }
}

/// Lists every process.
pub(crate) fn list() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(look)
        .collect()
}

/// Looks at one process.
pub(crate) fn look(pid: i32) -> Option<Process> {
    let stat = read(&format!("/proc/{pid}/stat"))?;
    // The name is in parentheses and may hold anything, parentheses too.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // Numbered as in proc(5), whose third field is the first here.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let id = |field: usize| fields.get(field - 3)?.parse::<i32>().ok();
    let ticks = (14..=17).filter_map(number).sum();
    Some(Process {
        pid,
        parent: id(4)?,
        session: id(6)?,
        state: *fields.first()?.as_bytes().first()?,
        start: number(22)?,
        ticks,
        resident: number(24).unwrap_or(0),
    })
}

fn read(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path)
        .ok()?
        .take(FILE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn mark_of(pid: i32) -> Option<u64> {
    let limits = read(&format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find(|line| line.starts_with(MARK_LINE))?;
    // Soft, hard, unit: the hard limit is the one that nobody can raise.
    line.get(MARK_LINE.len()..)?
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// Lists the live processes that descend from an exec: by its mark, its session and by parents.
pub(crate) fn tree(leader: i32, leader_alive: bool, mark: u64) -> Vec<Process> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let all = list();
    let mut members: HashSet<i32> = all
        .iter()
        .filter(|process| {
            let by_session = process.session == leader
                || (leader_alive && (process.pid == leader || process.parent == leader));
            by_session || mark_of(process.pid) == Some(mark)
        })
        .map(|process| process.pid)
        .collect();
    members.remove(&own);
    add_descendants(&all, &mut members);
    all.into_iter()
        .filter(|process| members.contains(&process.pid) && !process.is_dead())
        .filter(|process| process.pid != own)
        .collect()
}

/// Lists the processes that descend from this one, itself included.
pub(crate) fn ours() -> Vec<Process> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let all = list();
    let mut members = HashSet::from([own]);
    add_descendants(&all, &mut members);
    all.into_iter()
        .filter(|process| members.contains(&process.pid))
        .collect()
}

fn add_descendants(all: &[Process], members: &mut HashSet<i32>) {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for process in all {
        children
            .entry(process.parent)
            .or_default()
            .push(process.pid);
    }
    let mut new: Vec<i32> = members.iter().copied().collect();
    while let Some(pid) = new.pop() {
        for child in children.get(&pid).into_iter().flatten() {
            if members.insert(*child) {
                new.push(*child);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen() {
        let own = i32::try_from(std::process::id()).unwrap();
        let process = look(own).unwrap();
        assert_eq!(process.pid, own);
        assert!(process.resident > 0 && process.start > 0 && !process.is_dead());
        assert!(ours().iter().any(|process| process.pid == own));
        assert_eq!(look(-1), None);
    }

    #[test]
    fn marks_differ() {
        assert_ne!(mark(1, 2), mark(2, 1));
        assert_ne!(mark(1, 2), mark(1, 3));
    }
}
