//! What the product holds on the host: memory, descriptors, mounts, namespaces and files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use crate::yard::{Yard, list, send, until};

/// Namespaces that a process can be in.
const KINDS: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

/// Most bytes of the database's log of changes, which is kept and written anew: what the daemon
/// lets it grow to, and one transaction more.
const LOG_BYTES_MAX: u64 = 3 << 20;

/// Most bytes by which the database may be larger than when it was empty: rows of the most execs
/// that there were at once, whose pages it keeps.
const DATABASE_GROWTH_MAX: u64 = 4 << 20;

/// The daemon's memory in KiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) resident: f64,
    pub(crate) anonymous: f64,
    /// In use on the heap, by the allocator's own count.
    pub(crate) heap: f64,
}

/// What daemon, launcher and their helpers hold when no sandbox lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    processes: usize,
    threads: u64,
    descriptors: usize,
    mounts: usize,
    /// Namespaces that are not the host's, by who keeps them: processes, descriptors or mounts.
    namespaces: BTreeSet<String>,
    /// Bytes of the state directory by its parts.
    bytes: BTreeMap<&'static str, u64>,
}

impl Held {
    /// Says what there is more of than before.
    pub(crate) fn leaks(&self, before: &Self) -> Vec<String> {
        let mut leaks = Vec::new();
        let mut more = |what: &str, now: u64, limit: u64| {
            if now > limit {
                leaks.push(format!("{what}: {now}, not {limit}"));
            }
        };
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        more("processes", count(self.processes), count(before.processes));
        more(
            "descriptors",
            count(self.descriptors),
            count(before.descriptors),
        );
        more("mounts", count(self.mounts), count(before.mounts));
        more(
            "namespaces",
            count(self.namespaces.len()),
            count(before.namespaces.len()),
        );
        for (part, bytes) in &self.bytes {
            let before = before.bytes.get(part).copied().unwrap_or_default();
            let limit = match *part {
                "changes" => LOG_BYTES_MAX,
                "database" => before + DATABASE_GROWTH_MAX,
                _ => before,
            };
            more(&format!("bytes of {part}"), *bytes, limit);
        }
        leaks
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} processes, {} threads, {} descriptors, {} mounts, {} namespaces; bytes",
            self.processes,
            self.threads,
            self.descriptors,
            self.mounts,
            self.namespaces.len()
        )?;
        for (part, bytes) in &self.bytes {
            write!(f, " {part} {bytes}")?;
        }
        Ok(())
    }
}

impl Yard {
    /// Asks the daemon for its heap, and the kernel for the rest.
    pub(crate) fn memory(&self) -> Result<Memory> {
        let pid = self.daemon().context("no daemon")?;
        let log = self.state().join("daemon.log");
        let told = || -> Vec<String> {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines = text
                .lines()
                .filter(|line| line.contains("heap_used_bytes="));
            lines.map(str::to_owned).collect()
        };
        let before = told().len();
        send(pid, Signal::USR1);
        let mut line = String::new();
        let answered = until(|| {
            let lines = told();
            line = lines.last().cloned().unwrap_or_default();
            Ok(lines.len() > before)
        })?;
        ensure!(answered, "the daemon does not tell its heap");
        let heap: f64 = line
            .split_once("heap_used_bytes=")
            .and_then(|(_, rest)| rest.split_whitespace().next())
            .and_then(|word| word.parse().ok())
            .with_context(|| format!("no figure in {line:?}"))?;
        let status = status(pid)?;
        Ok(Memory {
            resident: kib(&status, "VmRSS:")?,
            anonymous: kib(&status, "RssAnon:")?,
            heap: heap / 1024.0,
        })
    }

    /// Counts what is held.
    pub(crate) fn held(&self) -> Result<Held> {
        let own = namespaces_of(Path::new("/proc/self"));
        let mut held = Held {
            processes: 0,
            threads: 0,
            descriptors: 0,
            mounts: 0,
            namespaces: BTreeSet::new(),
            bytes: self.bytes()?,
        };
        for (pid, _) in self.processes() {
            let process = format!("/proc/{pid}");
            let process = Path::new(&process);
            held.processes += 1;
            held.threads += status(pid).map_or(0, |status| number(&status, "Threads:"));
            held.namespaces.extend(namespaces_of(process));
            for (_, descriptor) in list(&process.join("fd")) {
                held.descriptors += 1;
                let target = fs::read_link(descriptor).unwrap_or_default();
                let target = target.to_string_lossy();
                if is_namespace(&target) {
                    held.namespaces.insert(target.into_owned());
                }
            }
            // Bound to a file, a namespace lives without a process.
            let table = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
            for line in table.lines() {
                held.mounts += 1;
                let words = line.split(' ').filter(|word| is_namespace(word));
                held.namespaces.extend(words.map(str::to_owned));
            }
        }
        held.namespaces.retain(|name| !own.contains(name));
        Ok(held)
    }

    /// Returns the bytes of one part of the state directory; what goes meanwhile does not count.
    pub(crate) fn part_bytes(&self, part: &str) -> Result<u64> {
        Ok(self.bytes()?.get(part).copied().unwrap_or_default())
    }

    /// Returns the bytes of the state directory by its parts, logs left out.
    fn bytes(&self) -> Result<BTreeMap<&'static str, u64>> {
        let mut bytes = BTreeMap::new();
        for (name, path) in list(&self.state()) {
            if name == "native" {
                // The launcher's words, as the daemon's, are a log and no leak.
                let log = bytes_of(&path.join("launcher.log"))?;
                *bytes.entry("native").or_default() += bytes_of(&path)?.saturating_sub(log);
                continue;
            }
            let part = match name.as_str() {
                "pinfold.db" => "database",
                "pinfold.db-wal" => "changes",
                "images" => "images",
                "journals" => "journals",
                "persist" => "persist",
                // Words of the daemon, and its process id, are no leak however long they are.
                "daemon.log" | "daemon.lock" | "pinfold.lock" | "start.lock" => continue,
                _ => "other",
            };
            *bytes.entry(part).or_default() += bytes_of(&path)?;
        }
        Ok(bytes)
    }
}

fn bytes_of(path: &Path) -> Result<u64> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        // Files come and go while this looks.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    let below = if found.is_dir() {
        let parts = list(path).into_iter();
        parts
            .map(|(_, path)| bytes_of(&path))
            .sum::<Result<u64>>()?
    } else {
        found.len()
    };
    Ok(below)
}

fn namespaces_of(process: &Path) -> BTreeSet<String> {
    let links = list(&process.join("ns")).into_iter();
    links
        .filter_map(|(_, link)| fs::read_link(link).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect()
}

/// Returns whether a name is that of a namespace, such as `net:[4026531840]`.
fn is_namespace(name: &str) -> bool {
    name.split_once(":[")
        .is_some_and(|(kind, rest)| KINDS.contains(&kind) && rest.ends_with(']'))
}

fn status(pid: i32) -> Result<String> {
    Ok(fs::read_to_string(format!("/proc/{pid}/status"))?)
}

/// Returns a figure of a process's status in KiB.
pub(crate) fn status_kib(pid: i32, key: &str) -> Result<u64> {
    Ok(number(&status(pid)?, key))
}

fn number(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).unwrap_or_default()
}

fn kib(status: &str, key: &str) -> Result<f64> {
    Ok(f64::from(u32::try_from(number(status, key))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(descriptors: usize, changes: u64, journals: u64) -> Held {
        Held {
            processes: 2,
            threads: 6,
            descriptors,
            mounts: 30,
            namespaces: BTreeSet::from(["net:[1]".to_owned()]),
            bytes: BTreeMap::from([("changes", changes), ("journals", journals)]),
        }
    }

    #[test]
    fn what_there_is_more_of_leaks() {
        let before = held(16, 0, 0);
        assert!(before.leaks(&before).is_empty());
        assert!(held(15, LOG_BYTES_MAX, 0).leaks(&before).is_empty());
        assert_eq!(
            held(17, LOG_BYTES_MAX + 1, 1).leaks(&before).len(),
            3,
            "a descriptor, the log, a journal"
        );
        let mut other = held(16, 0, 0);
        other.namespaces.insert("mnt:[2]".to_owned());
        assert_eq!(other.leaks(&before), ["namespaces: 2, not 1"]);
    }

    #[test]
    fn names_of_namespaces_are_told_from_others() {
        assert!(is_namespace("net:[4026531840]"));
        assert!(!is_namespace("socket:[1234]") && !is_namespace("/proc/1/ns/net"));
    }
}
