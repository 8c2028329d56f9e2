//! The daemon's side of the launcher.

use std::ffi::OsString;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::error::{LaunchError, Timing};
use super::plan::{Bind, Plan};

/// The static agent binary, which is both the launcher and process 1 of every sandbox.
#[derive(Debug)]
pub enum AgentBinary {
    /// Its bytes; they are put into a sealed memory file, or, where the kernel forbids to execute
    /// such a file, the variant [`AgentBinary::Path`] is needed.
    Bytes(&'static [u8]),
    /// A file that no sandbox can write.
    Path(PathBuf),
}

/// Subordinate ids of the caller, as `/etc/subuid` and `/etc/subgid` grant them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubordinateIds {
    /// Ranges of user ids: first id and count, in the order in which they appear inside from 1.
    pub users: Vec<(u32, u32)>,
    /// The same for groups.
    pub groups: Vec<(u32, u32)>,
}

impl SubordinateIds {
    /// Reads what the system grants the calling process's user; empty where it grants nothing.
    ///
    /// # Errors
    ///
    /// Fails if a file exists and cannot be read.
    pub fn of_caller() -> io::Result<Self> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }
}

/// What the launcher may make of its own ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LauncherIdentity {
    /// It is the host's root, and each sandbox gets a range of its own (`Identity::Range`).
    Root,
    /// An ordinary user with subordinate ids, mapped by `newuidmap` and `newgidmap`
    /// (`Identity::Shared`).
    Subordinate(SubordinateIds),
    /// An ordinary user with one id only (`Identity::Single`).
    Single,
}

/// How the launcher is started.
#[derive(Debug)]
pub struct LauncherConfig {
    /// What it executes, and what process 1 of each sandbox is.
    pub agent: AgentBinary,
    /// What it may make of its own ids.
    pub identity: LauncherIdentity,
    /// Process 1 of a sandbox that an earlier launcher of this user made: its outer namespace is
    /// entered rather than a new one made, without which ports of older sandboxes are out of reach.
    /// Means nothing as root.
    pub join: Option<i32>,
    /// Where it and what it starts write their standard error.
    pub log: OwnedFd,
}

/// A sandbox that was made: its process 1 runs the agent.
#[derive(Debug)]
pub struct Launched {
    /// Process id on the host.
    pub pid: i32,
    /// The process itself; readable once it has ended.
    pub pidfd: OwnedFd,
    /// When it started, in clock ticks since boot: with `pid`, its identity against reuse.
    pub start_time: u64,
    /// How long each step took.
    pub timings: Vec<Timing>,
}

/// How a program that was run for the daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// A running launcher process. It ends when this is dropped; sandboxes do not.
///
/// Every method blocks (call it where blocking is allowed) and may be called from several threads;
/// launches are made one after the other, jobs beside them.
#[derive(Debug)]
pub struct Launcher;

impl Launcher {
    /// Starts the launcher process and waits until it is ready.
    ///
    /// # Errors
    ///
    /// Fails if the process cannot be started or the ids that it should have cannot be given to it;
    /// the hint says what the host lacks.
    pub fn spawn(config: LauncherConfig) -> Result<Self, LaunchError> {
        let LauncherConfig {
            agent,
            identity,
            join,
            log,
        } = config;
        drop((agent, identity, join, log));
        Err(not_yet())
    }

    /// Makes one sandbox; when this returns, its process 1 executes the agent.
    ///
    /// `descriptors` are those that [`Plan`] names, in its order.
    ///
    /// # Errors
    ///
    /// Returns [`LaunchError`] with nothing left of the sandbox, except what was written to the
    /// private directory.
    pub fn launch(
        &self,
        plan: &Plan,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Launched, LaunchError> {
        let _ = (plan, descriptors);
        Err(not_yet())
    }

    /// Shows a host path inside a sandbox that runs.
    ///
    /// # Errors
    ///
    /// Returns [`LaunchError`]; nothing was mounted then.
    pub fn attach(&self, sandbox: BorrowedFd<'_>, bind: &Bind) -> Result<(), LaunchError> {
        let _ = (sandbox, bind);
        Err(not_yet())
    }

    /// Takes away what [`Launcher::attach`] mounted at a path inside.
    ///
    /// # Errors
    ///
    /// Returns [`LaunchError`]; among others when nothing is mounted there.
    pub fn detach(&self, sandbox: BorrowedFd<'_>, target: &Path) -> Result<(), LaunchError> {
        let _ = (sandbox, target);
        Err(not_yet())
    }

    /// Connects to a TCP port on a sandbox's own loopback, `127.0.0.1` first and then `::1`.
    ///
    /// `sandbox` is the pidfd of its process 1. The socket is in non-blocking mode.
    ///
    /// # Errors
    ///
    /// Returns [`LaunchError`], with `ConnectionRefused` when nobody listens there.
    pub fn connect_port(&self, sandbox: BorrowedFd<'_>, port: u16) -> Result<OwnedFd, LaunchError> {
        let _ = (sandbox, port);
        Err(not_yet())
    }

    /// Removes a directory and everything in it, whoever of the launcher's ids owns it.
    ///
    /// A directory that is not there is as good as removed. No link is followed beneath its parent.
    ///
    /// # Errors
    ///
    /// Returns [`LaunchError`]; a part may be gone already.
    pub fn remove_tree(&self, path: &Path) -> Result<(), LaunchError> {
        let _ = path;
        Err(not_yet())
    }

    /// Runs a program as the launcher's own root (as an ordinary user: root of the outer namespace,
    /// holding every subordinate id) and waits for its end.
    ///
    /// `program` is its executable file, opened for reading; `arguments` begin with its own name.
    /// `descriptors` become its descriptors 0, 1, 2, … in order; it gets no others, and only `PATH`
    /// in its environment. It is killed if the launcher ends first.
    ///
    /// # Errors
    ///
    /// Returns [`LaunchError`] if it cannot be started.
    pub fn run_mapped(
        &self,
        program: BorrowedFd<'_>,
        arguments: &[OsString],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Exit, LaunchError> {
        let _ = (program, arguments, descriptors);
        Err(not_yet())
    }
}

fn not_yet() -> LaunchError {
    LaunchError::Gone {
        source: io::Error::from(io::ErrorKind::Unsupported),
    }
}
