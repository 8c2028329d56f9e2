//! A process known by its id and its time of start, so that another with the same id is told apart.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use pinfold_linux::identity::RANGE_LENGTH;
use pinfold_linux::marks;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::claims::Ids;

/// Process 1 of a sandbox as the host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Its id on the host.
    pub(crate) pid: i32,
    /// When it started, in clock ticks since boot.
    pub(crate) start_time: u64,
    /// The boot in which it started.
    pub(crate) boot: String,
}

impl Process {
    /// Returns a hold of the process while it lives; nothing when it is gone or another one.
    pub(crate) fn open(&self) -> Option<OwnedFd> {
        if self.boot != boot_id() {
            return None;
        }
        let pid = Pid::from_raw(self.pid)?;
        let descriptor = pidfd_open(pid, PidfdFlags::NONBLOCK).ok()?;
        // Looked at after it was opened: from here on the id cannot become another process's.
        let same = marks::start_time(self.pid).ok() == Some(self.start_time);
        (same && !has_ended(&descriptor)).then_some(descriptor)
    }
}

/// Returns the first processes that the launcher marked with a sandbox's id and that may be its.
///
/// For a sandbox whose daemon died between the launch and its record. Other users can pretend any
/// mark; as an ordinary user the kernel refuses to signal theirs.
pub(crate) fn marked(id: &str, ids: Ids) -> Vec<Process> {
    let may_be = |user: u32| match ids {
        Ids::Range { base: Some(base) } => (base..=base + (RANGE_LENGTH - 1)).contains(&user),
        Ids::Range { base: None } => false,
        Ids::Shared | Ids::Single => true,
    };
    let found = marks::find(id).unwrap_or_default().into_iter();
    found
        .filter(|marked| may_be(marked.user))
        .map(|marked| Process {
            pid: marked.pid,
            start_time: marked.start_time,
            boot: boot_id(),
        })
        .collect()
}

/// Returns the id that the kernel gave this boot.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// Returns whether a process has ended.
pub(crate) fn has_ended(process: &OwnedFd) -> bool {
    wait(process, Duration::ZERO)
}

/// Waits at most that long for the end of a process, and answers whether it came.
pub(crate) fn wait(process: &OwnedFd, longest: Duration) -> bool {
    let deadline = std::time::Instant::now() + longest;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let mut wanted = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut wanted, Some(&timeout)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Sends a signal; a process that has ended is no error.
pub(crate) fn signal(process: &OwnedFd, signal: Signal) -> io::Result<()> {
    match pidfd_send_signal(process, signal) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_another_with_its_id() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let this = Process {
            pid,
            start_time: marks::start_time(pid).unwrap(),
            boot: boot_id(),
        };
        assert!(!has_ended(&this.open().unwrap()));
        let earlier = Process {
            start_time: this.start_time - 1,
            ..this.clone()
        };
        assert!(earlier.open().is_none());
        let before_boot = Process {
            boot: "x".to_owned(),
            ..this
        };
        assert!(before_boot.open().is_none());
    }
}
