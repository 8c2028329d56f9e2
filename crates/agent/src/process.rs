//! The process table: starts execs, journals their output, feeds, signals and reaps them.

mod error;
mod exec;
mod start;
mod streams;
mod supervise;

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pinfold_linux::init::{self, Reaped};
use pinfold_types::crash_point;
use pinfold_types::exec::TerminalSize;

pub use error::{ExecError, StartError};
pub use exec::{Exec, INPUT_BYTES_MAX};

use crate::journal::Budget;
use crate::metrics::Usage;
use crate::root::Root;

/// Most execs that run at once.
pub const RUNNING_MAX: usize = 1024;
/// Most ended execs whose events nobody has acknowledged.
pub const ENDED_MAX: usize = 4096;
/// How many ended and acknowledged execs are remembered, so that a call that is repeated because
/// its answer was lost finds the same exec.
pub const SETTLED_MAX: usize = 64;

/// From how much output of an exec on its memory is given back when it is over.
const RELEASE_FROM_BYTES: u64 = 256 << 10;

/// What is to be started.
#[derive(Debug, Clone, Default)]
pub struct StartRequest {
    /// Chosen by the caller; starting the same id again answers what the first start did.
    pub id: String,
    /// Program and arguments.
    pub arguments: Vec<String>,
    /// The whole environment.
    pub environment: Vec<(String, String)>,
    /// Absolute path; empty is the root.
    pub directory: String,
    /// `name`, `uid`, `name:group`, `uid:gid`; empty is root.
    pub user: String,
    /// Size of its terminal, when it gets one.
    pub terminal: Option<TerminalSize>,
    /// Whether standard input stays open for input.
    pub input: bool,
    /// Milliseconds until its process tree is killed; 0 is never.
    pub timeout_ms: u64,
    /// Name, soft and hard limit.
    pub limits: Vec<(String, u64, u64)>,
    /// Free label.
    pub tag: String,
}

/// Every exec that is running or whose end was not acknowledged.
#[derive(Debug)]
pub struct Table {
    entries: Mutex<Entries>,
    budget: Arc<Budget>,
    root: Arc<Root>,
    usage: Arc<Usage>,
    /// A plain child of the fake driver, which keeps its ids and capabilities.
    plain: bool,
    /// `/dev/null` as it was before any program ran.
    null: OwnedFd,
    /// The limit on open files that execs get, since the agent raised its own.
    open_files: (u64, u64),
    /// Most execs that run at once.
    running_max: usize,
}

#[derive(Debug, Default)]
struct Entries {
    execs: HashMap<String, Arc<Exec>>,
    by_pid: HashMap<i32, Arc<Exec>>,
    /// Ended and acknowledged, oldest first.
    settled: VecDeque<String>,
    serial: u32,
}

impl Entries {
    fn ended(&self) -> usize {
        self.execs.len() - self.running() - self.settled.len()
    }

    fn running(&self) -> usize {
        self.execs.values().filter(|exec| exec.is_running()).count()
    }
}

impl Table {
    pub(crate) fn new(
        root: Arc<Root>,
        usage: Arc<Usage>,
        plain: bool,
        (null, open_files): (OwnedFd, (u64, u64)),
    ) -> Self {
        Self {
            entries: Mutex::default(),
            budget: Arc::default(),
            root,
            usage,
            plain,
            null,
            open_files,
            running_max: RUNNING_MAX,
        }
    }

    /// Starts none: what is fuzzed must not run the programs of its host.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn closed(mut self) -> Self {
        self.running_max = 0;
        self
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds an exec.
    ///
    /// # Errors
    /// Fails when there is none of this id.
    pub fn get(&self, id: &str) -> Result<Arc<Exec>, ExecError> {
        let found = self.entries().execs.get(id).map(Arc::clone);
        found.ok_or_else(|| ExecError::Unknown(crate::shorten(id)))
    }

    /// Lists every exec, in no order.
    pub fn list(&self) -> Vec<Arc<Exec>> {
        self.entries().execs.values().map(Arc::clone).collect()
    }

    /// Drops events up to and including a sequence number, and in the end the exec itself.
    ///
    /// # Errors
    /// Fails when there is no such exec.
    pub fn acknowledge(&self, id: &str, sequence: u64) -> Result<(), ExecError> {
        let exec = self.get(id)?;
        let before = exec.journal().is_settled();
        exec.journal().acknowledge(sequence);
        crash_point!("agent.acknowledged");
        if before || !exec.journal().is_settled() {
            return Ok(());
        }
        if exec.journal().total() >= RELEASE_FROM_BYTES {
            init::release_memory();
        }
        let mut entries = self.entries();
        entries.settled.push_back(id.to_owned());
        if entries.settled.len() > SETTLED_MAX
            && let Some(oldest) = entries.settled.pop_front()
        {
            entries.execs.remove(&oldest);
        }
        Ok(())
    }

    /// Forgets an ended exec with all its events.
    ///
    /// # Errors
    /// Fails when there is no such exec, or it is running.
    pub fn forget(&self, id: &str) -> Result<(), ExecError> {
        if self.get(id)?.is_running() {
            return Err(ExecError::Running);
        }
        let mut entries = self.entries();
        entries.execs.remove(id);
        entries.settled.retain(|settled| settled != id);
        crash_point!("agent.forgotten");
        Ok(())
    }

    /// Returns whether the exit of every exec was acknowledged.
    pub(crate) fn is_settled(&self) -> bool {
        let entries = self.entries();
        entries
            .execs
            .values()
            .all(|exec| exec.journal().is_settled())
    }

    /// Takes note of a process that was reaped.
    pub(crate) fn reaped(&self, reaped: Reaped) {
        let exec = self.entries().by_pid.remove(&reaped.pid);
        if let Some(exec) = exec {
            exec.ended_with(reaped);
        }
    }

    /// Kills the trees of all execs, for an agent that is not alone in its pid namespace.
    pub(crate) fn kill_trees(&self) {
        for exec in self.list() {
            drop(exec.signal_tree(libc::SIGKILL));
        }
    }
}
