//! One group: its directories in all hierarchies, as one thing.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde::{Deserialize, Serialize};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{CgroupError, Controller, Joins, Limits, UsageFiles, Version, make_directory, step};
use crate::launcher::plan::{Attach, UsageFile};

/// Longest time for every process of a group to stop: the v1 freezer waits for running ones.
const FREEZE_MAX: Duration = Duration::from_secs(10);
/// Longest time for killed processes to be gone, also with much memory to give back.
const EMPTY_MAX: Duration = Duration::from_secs(20);
/// Time between two looks at what the kernel does not announce.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// The directories of one group. Serialisable, as a later process may be in other groups itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    directories: Vec<Directory>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Directory {
    version: Version,
    path: PathBuf,
    controllers: Vec<Controller>,
}

/// What the processes of a group use; what is not counted here is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupUsage {
    /// CPU time, microseconds.
    pub cpu_us: Option<u64>,
    /// Memory without what could be dropped at once, bytes.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Processes that the memory limit ended.
    pub out_of_memory: Option<u64>,
}

impl Group {
    pub(super) fn new(places: Vec<(Version, PathBuf, Vec<Controller>)>) -> Self {
        let directories = places
            .into_iter()
            .map(|(version, path, controllers)| Directory {
                version,
                path,
                controllers,
            });
        Self {
            directories: directories.collect(),
        }
    }

    pub(super) fn make(&self, limits: &Limits) -> Result<(), CgroupError> {
        for directory in &self.directories {
            make_directory(&directory.path)?;
        }
        self.set(limits)
    }

    /// Sets the limits, on a new group or a live one.
    ///
    /// # Errors
    ///
    /// Returns [`CgroupError::Missing`] for a limit whose controller is not usable, before any
    /// limit is changed, and [`CgroupError::Step`] when the kernel refuses one, for instance a
    /// memory limit below what is used and cannot be reclaimed.
    pub fn set(&self, limits: &Limits) -> Result<(), CgroupError> {
        for controller in limits.controllers() {
            if self.directory(controller).is_none() {
                return Err(CgroupError::Missing { controller });
            }
        }
        for directory in &self.directories {
            for controller in &directory.controllers {
                limits.write(directory.version, *controller, &directory.path)?;
            }
        }
        Ok(())
    }

    fn directory(&self, controller: Controller) -> Option<&Directory> {
        self.directories
            .iter()
            .find(|directory| directory.controllers.contains(&controller))
    }

    #[cfg(test)]
    pub(super) fn directories_for_test(&self) -> impl Iterator<Item = &Path> {
        self.directories
            .iter()
            .map(|directory| directory.path.as_path())
    }

    /// Returns whether the host has no hierarchy for it at all.
    pub fn is_nowhere(&self) -> bool {
        self.directories.is_empty()
    }

    /// Returns whether a directory of the group exists in any hierarchy.
    pub fn exists(&self) -> bool {
        self.directories
            .iter()
            .any(|directory| directory.path.is_dir())
    }

    /// Opens what a new process needs to join the group in every hierarchy.
    ///
    /// # Errors
    ///
    /// Returns [`CgroupError::Step`].
    pub fn joins(&self) -> Result<Joins, CgroupError> {
        let join = |directory: &Directory| match directory.version {
            Version::V1 => {
                let path = directory.path.join("tasks");
                open(&path, OFlags::WRONLY).map(|tasks| (Attach::Tasks, tasks))
            }
            Version::V2 => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                open(&directory.path, flags).map(|group| (Attach::Into, group))
            }
        };
        self.directories.iter().map(join).collect()
    }

    /// Opens what the agent inside may read about its own use.
    ///
    /// # Errors
    ///
    /// Returns [`CgroupError::Step`].
    pub fn usage_files(&self) -> Result<UsageFiles, CgroupError> {
        let mut files = Vec::new();
        for (controller, version, name, kind) in USAGE {
            let Some(directory) = self.directory(*controller) else {
                continue;
            };
            if directory.version == *version {
                files.push((*kind, open(&directory.path.join(name), OFlags::RDONLY)?));
            }
        }
        Ok(files)
    }

    /// Reads what the group uses.
    pub fn usage(&self) -> GroupUsage {
        let read = |controller: Controller, v1: &str, v2: &str| {
            let directory = self.directory(controller)?;
            let name = match directory.version {
                Version::V1 => v1,
                Version::V2 => v2,
            };
            let text = fs::read_to_string(directory.path.join(name)).ok()?;
            Some((directory.version, text))
        };
        let number = |text: &str| text.trim().parse::<u64>().ok();
        let cpu_us = read(Controller::CpuAccount, "cpuacct.usage", "cpu.stat").and_then(
            |(version, text)| match version {
                Version::V1 => number(&text).map(|nanoseconds| nanoseconds / 1000),
                Version::V2 => field(&text, "usage_usec"),
            },
        );
        let memory = Controller::Memory;
        let used = read(memory, "memory.usage_in_bytes", "memory.current")
            .and_then(|(_, text)| number(&text));
        let cache = read(memory, "memory.stat", "memory.stat").and_then(|(version, text)| {
            field(
                &text,
                match version {
                    Version::V1 => "total_inactive_file",
                    Version::V2 => "inactive_file",
                },
            )
        });
        GroupUsage {
            cpu_us,
            memory_bytes: used.map(|used| used.saturating_sub(cache.unwrap_or(0))),
            pids: read(Controller::Pids, "pids.current", "pids.current")
                .and_then(|(_, text)| number(&text)),
            out_of_memory: read(memory, "memory.oom_control", "memory.events")
                .and_then(|(_, text)| field(&text, "oom_kill")),
        }
    }

    /// Suspends every process. Blocks until they stand still. Idempotent.
    ///
    /// # Errors
    ///
    /// Returns [`CgroupError::TimedOut`] after letting them go on again.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        let directory = self.freezer()?;
        let done = match directory.version {
            Version::V1 => Self::freeze_v1(&directory.path),
            Version::V2 => {
                write(&directory.path.join("cgroup.freeze"), "1")?;
                wait_for_event(&directory.path, "frozen", "1", ("frozen", FREEZE_MAX))
            }
        };
        done.inspect_err(|_| {
            let _thawed = self.thaw();
        })
    }

    /// The v1 freezer may stay at `FREEZING` when a process forked meanwhile; asking again helps.
    fn freeze_v1(directory: &Path) -> Result<(), CgroupError> {
        let state = directory.join("freezer.state");
        wait_until(directory, ("frozen", FREEZE_MAX), || {
            write(&state, "FROZEN")?;
            Ok(read(&state)?.trim() == "FROZEN")
        })
    }

    /// Lets every process go on. Idempotent.
    ///
    /// # Errors
    ///
    /// Returns [`CgroupError`].
    pub fn thaw(&self) -> Result<(), CgroupError> {
        let directory = self.freezer()?;
        match directory.version {
            Version::V1 => write(&directory.path.join("freezer.state"), "THAWED"),
            Version::V2 => write(&directory.path.join("cgroup.freeze"), "0"),
        }
    }

    /// Returns whether the group is suspended.
    pub fn is_frozen(&self) -> bool {
        self.freezer().is_ok_and(|directory| {
            let (file, value) = match directory.version {
                Version::V1 => ("freezer.state", "FROZEN"),
                Version::V2 => ("cgroup.freeze", "1"),
            };
            read(&directory.path.join(file)).is_ok_and(|text| text.trim() == value)
        })
    }

    fn freezer(&self) -> Result<&Directory, CgroupError> {
        self.directory(Controller::Freezer)
            .ok_or(CgroupError::Missing {
                controller: Controller::Freezer,
            })
    }

    /// Returns the ids of the processes that are in the group in any hierarchy.
    pub fn processes(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = self
            .directories
            .iter()
            .filter_map(|directory| fs::read_to_string(directory.path.join("cgroup.procs")).ok())
            .flat_map(|text| {
                text.lines()
                    .filter_map(|line| line.parse().ok())
                    .collect::<Vec<_>>()
            })
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Kills every process of the group and waits until all are gone.
    ///
    /// # Errors
    ///
    /// Returns [`CgroupError::TimedOut`] when a process does not end.
    pub fn kill(&self) -> Result<(), CgroupError> {
        if !self.exists() {
            return Ok(());
        }
        self.stop_forks();
        let first = self
            .directories
            .first()
            .map(|directory| directory.path.clone());
        wait_until(&first.unwrap_or_default(), ("empty", EMPTY_MAX), || {
            for directory in &self.directories {
                if directory.version == Version::V2 {
                    // Absent before kernel 5.14; the signals below do the same.
                    let _written = write(&directory.path.join("cgroup.kill"), "1");
                }
            }
            let targets = self.processes();
            if targets.is_empty() {
                return Ok(true);
            }
            self.signal(&targets);
            // A frozen v1 process dies only after it goes on.
            let _thawed = self.thaw();
            Ok(false)
        })
    }

    /// A bomb may fork faster than it is killed, so first nobody may fork any more.
    fn stop_forks(&self) {
        if let Some(directory) = self.directory(Controller::Pids) {
            let _written = write(&directory.path.join("pids.max"), "0");
        }
    }

    /// Kills processes by descriptors that are known to be of this group.
    fn signal(&self, targets: &[i32]) {
        let opened: Vec<(i32, OwnedFd)> = targets
            .iter()
            .filter_map(|raw| {
                let pid = Pid::from_raw(*raw)?;
                Some((*raw, pidfd_open(pid, PidfdFlags::empty()).ok()?))
            })
            .collect();
        // An id could have been given to somebody else before it was opened, not after.
        let still = self.processes();
        for (pid, descriptor) in opened {
            if still.contains(&pid) {
                let _ = pidfd_send_signal(&descriptor, Signal::KILL);
            }
        }
    }

    /// Removes the group from every hierarchy. Idempotent; waits until it is empty.
    ///
    /// # Errors
    ///
    /// Returns [`CgroupError::TimedOut`] when a process stays in it.
    pub fn remove(&self) -> Result<(), CgroupError> {
        for directory in &self.directories {
            wait_until(
                &directory.path,
                ("empty", EMPTY_MAX),
                || match fs::remove_dir(&directory.path) {
                    Ok(()) => Ok(true),
                    Err(source) => match source.kind() {
                        io::ErrorKind::NotFound => Ok(true),
                        io::ErrorKind::ResourceBusy => Ok(false),
                        _ => Err(step("remove the cgroup", &directory.path, source)),
                    },
                },
            )?;
            if let Some(parent) = directory.path.parent() {
                // Refused while another group is in it, which is as it should be.
                let _in_use = fs::remove_dir(parent);
            }
        }
        Ok(())
    }
}

/// What is counted where.
const USAGE: &[(Controller, Version, &str, UsageFile)] = &[
    (
        Controller::CpuAccount,
        Version::V1,
        "cpuacct.usage",
        UsageFile::CpuNanoseconds,
    ),
    (
        Controller::CpuAccount,
        Version::V2,
        "cpu.stat",
        UsageFile::CpuStat,
    ),
    (
        Controller::Memory,
        Version::V1,
        "memory.usage_in_bytes",
        UsageFile::MemoryBytes,
    ),
    (
        Controller::Memory,
        Version::V2,
        "memory.current",
        UsageFile::MemoryBytes,
    ),
    (
        Controller::Memory,
        Version::V1,
        "memory.stat",
        UsageFile::MemoryStat,
    ),
    (
        Controller::Memory,
        Version::V2,
        "memory.stat",
        UsageFile::MemoryStat,
    ),
    (
        Controller::Memory,
        Version::V1,
        "memory.oom_control",
        UsageFile::OomControl,
    ),
    (
        Controller::Memory,
        Version::V2,
        "memory.events",
        UsageFile::MemoryEvents,
    ),
];

/// Reads the number after a name in lines of `name number`.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(' ')?;
        (found == name).then(|| value.trim().parse().ok())?
    })
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, CgroupError> {
    openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty())
        .map_err(|source| step("open", path, source))
}

fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| step("read", path, source))
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|source| step("write", path, source))
}

/// Waits for a line of v2's `cgroup.events`, which the kernel announces.
fn wait_for_event(
    directory: &Path,
    name: &str,
    value: &str,
    (state, longest): (&'static str, Duration),
) -> Result<(), CgroupError> {
    let path = directory.join("cgroup.events");
    let events = open(&path, OFlags::RDONLY)?;
    wait_until_with(directory, (state, longest), &events, || {
        let text = read(&path)?;
        Ok(text
            .lines()
            .any(|line| line.split_once(' ') == Some((name, value))))
    })
}

/// Looks until something is so, at most for a time.
fn wait_until(
    path: &Path,
    (state, longest): (&'static str, Duration),
    mut is_so: impl FnMut() -> Result<bool, CgroupError>,
) -> Result<(), CgroupError> {
    let deadline = Instant::now() + longest;
    loop {
        if is_so()? {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(timed_out(path, state, longest));
        }
        // Nothing to wait on, so this is a pause between two looks.
        let _interrupted = poll(&mut [], Some(&timespec(LOOK_EVERY)));
    }
}

fn wait_until_with(
    path: &Path,
    (state, longest): (&'static str, Duration),
    events: &OwnedFd,
    mut is_so: impl FnMut() -> Result<bool, CgroupError>,
) -> Result<(), CgroupError> {
    let deadline = Instant::now() + longest;
    loop {
        // Reading the file arms its announcement, so nothing that happens after it is missed.
        if is_so()? {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(timed_out(path, state, longest));
        }
        let mut wanted = [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)];
        let _interrupted = poll(&mut wanted, Some(&timespec(left.min(LOOK_EVERY * 20))));
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

fn timed_out(path: &Path, state: &'static str, longest: Duration) -> CgroupError {
    CgroupError::TimedOut {
        path: path.to_path_buf(),
        state,
        seconds: longest.as_secs(),
    }
}
