//! The daemon's side of the launcher.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::error::{LaunchError, LaunchFailure, Timing};
use super::plan::{Bind, PLAN_VERSION, Plan};
use super::wire::{self, Answer, Hello, Outer, Refusal, Request};

/// Longest that the launcher may take to answer: longer than its own limits for one launch.
const ANSWER_MAX: Duration = Duration::from_mins(2);
/// `F_SEAL_EXEC`, from kernel 6.3: whether the file may be executed is settled.
const SEAL_EXEC: SealFlags = SealFlags::from_bits_retain(0x20);
/// Most lines of a file that grants subordinate ids.
const GRANTS_MAX: usize = 65_536;
/// Most ranges that are used of one user: the kernel takes 340 lines, the first of which is ours.
const RANGES_MAX: usize = 339;

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
        let user = rustix::process::getuid().as_raw();
        let name = user_name(user)?;
        let granted = |path: &str| match fs::read_to_string(path) {
            Ok(text) => Ok(grants(&text, user, name.as_deref())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        };
        Ok(Self {
            users: granted("/etc/subuid")?,
            groups: granted("/etc/subgid")?,
        })
    }
}

fn user_name(user: u32) -> io::Result<Option<String>> {
    let text = fs::read_to_string("/etc/passwd")?;
    Ok(text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(user)).then(|| name.to_owned())
    }))
}

/// Picks a user's ranges out of `/etc/subuid`, where users stand by name or by number.
fn grants(text: &str, user: u32, name: Option<&str>) -> Vec<(u32, u32)> {
    let number = user.to_string();
    let range = |line: &str| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        if owner != number && Some(owner) != name {
            return None;
        }
        let first: u32 = fields.next()?.trim().parse().ok()?;
        let count: u32 = fields.next()?.trim().parse().ok()?;
        (count > 0 && first.checked_add(count).is_some()).then_some((first, count))
    };
    text.lines()
        .take(GRANTS_MAX)
        .filter_map(range)
        .take(RANGES_MAX)
        .collect()
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
pub struct Launcher {
    socket: Mutex<OwnedFd>,
    process: Child,
}

impl Launcher {
    /// Starts the launcher process and waits until it is ready.
    ///
    /// # Errors
    ///
    /// Fails if the process cannot be started or the ids that it should have cannot be given to it;
    /// the hint says what the host lacks.
    pub fn spawn(config: LauncherConfig) -> Result<Self, LaunchError> {
        let outer = match (&config.identity, config.join) {
            (LauncherIdentity::Root, _) => Outer::Host,
            (_, Some(pid)) => Outer::Of(pid),
            (LauncherIdentity::Subordinate(_), None) => Outer::Mapped,
            (LauncherIdentity::Single, None) => Outer::Single,
        };
        let flags = SocketFlags::CLOEXEC;
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|errno| start("make a socket")(errno.into()))?;
        let timeout = rustix::net::sockopt::Timeout::Recv;
        rustix::net::sockopt::set_socket_timeout(&near, timeout, Some(ANSWER_MAX))
            .map_err(|errno| start("set up a socket")(errno.into()))?;
        let process = execute(&config.agent, far, config.log)?;
        let launcher = Self {
            socket: Mutex::new(near),
            process,
        };
        let hello = || Hello {
            version: PLAN_VERSION,
            outer,
        };
        launcher.exchange(&hello(), &[])?;
        if let (LauncherIdentity::Subordinate(ids), Outer::Mapped) = (&config.identity, outer) {
            launcher.map_ids(ids)?;
        }
        launcher.exchange(&hello(), &[])?;
        Ok(launcher)
    }

    /// Has the system's own programs give the launcher the caller's subordinate ids.
    fn map_ids(&self, ids: &SubordinateIds) -> Result<(), LaunchError> {
        let user = rustix::process::getuid().as_raw();
        let group = rustix::process::getgid().as_raw();
        for (program, own, ranges) in [
            ("newuidmap", user, &ids.users),
            ("newgidmap", group, &ids.groups),
        ] {
            let mut command = Command::new(program);
            command.arg(self.process.id().to_string());
            let mut inside = 0;
            for (first, count) in std::iter::once(&(own, 1)).chain(ranges) {
                command.args([inside, *first, *count].map(|number: u32| number.to_string()));
                inside += count;
            }
            let output = command.stdin(Stdio::null()).output();
            let output = output.map_err(|source| needs_subids(program, &source))?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                return Err(needs_subids(program, &io::Error::other(said)));
            }
        }
        Ok(())
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
        let request = Request::Launch(Box::new(plan.clone()));
        let (answer, pidfd) = self.exchange(&request, descriptors)?;
        match (answer, pidfd) {
            (
                Answer::Launched {
                    pid,
                    start_time,
                    timings,
                },
                Some(pidfd),
            ) => Ok(Launched {
                pid,
                pidfd,
                start_time,
                timings,
            }),
            _ => Err(unexpected()),
        }
    }

    /// Shows a host path inside a sandbox that runs; `sandbox` is the pidfd of its process 1.
    ///
    /// # Errors
    ///
    /// Returns [`LaunchError`]; nothing was mounted then.
    pub fn attach(&self, sandbox: BorrowedFd<'_>, bind: &Bind) -> Result<(), LaunchError> {
        self.exchange(&Request::Attach(bind.clone()), &[sandbox])?;
        Ok(())
    }

    /// Takes away what [`Launcher::attach`] mounted at a path inside.
    ///
    /// # Errors
    ///
    /// Returns [`LaunchError`]; among others when nothing is mounted there.
    pub fn detach(&self, sandbox: BorrowedFd<'_>, target: &Path) -> Result<(), LaunchError> {
        self.exchange(&Request::Detach(target.to_path_buf()), &[sandbox])?;
        Ok(())
    }

    /// Connects to a TCP port on a sandbox's own loopback, `127.0.0.1` first and then `::1`.
    ///
    /// `sandbox` is the pidfd of its process 1. The socket is in non-blocking mode; where the
    /// listener's queue is full it is still connecting, and becomes writable when it is done.
    ///
    /// # Errors
    ///
    /// Returns [`LaunchError`], with `ConnectionRefused` when nobody listens there.
    pub fn connect_port(&self, sandbox: BorrowedFd<'_>, port: u16) -> Result<OwnedFd, LaunchError> {
        let (_, socket) = self.exchange(&Request::ConnectPort(port), &[sandbox])?;
        socket.ok_or_else(unexpected)
    }

    /// Removes a directory and everything in it, whoever of the launcher's ids owns it.
    ///
    /// A directory that is not there is as good as removed. No link is followed beneath its parent.
    ///
    /// # Errors
    ///
    /// Returns [`LaunchError`]; a part may be gone already.
    pub fn remove_tree(&self, path: &Path) -> Result<(), LaunchError> {
        self.job(&Request::RemoveTree(path.to_path_buf()), &[])?;
        Ok(())
    }

    /// Runs a program as the launcher's own root (as an ordinary user: root of the outer namespace,
    /// holding every subordinate id) and waits for its end.
    ///
    /// `program` is its executable file, opened for reading; `arguments` begin with its own name.
    /// `descriptors` become its descriptors 0, 1, 2, … in order; it gets no others, and only `PATH`
    /// in its environment. Where fewer than three are given, the launcher's own stand in: nothing to
    /// read, and its log. It is killed if the launcher ends first.
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
        let descriptors = [&[program], descriptors].concat();
        match self.job(&Request::Run(arguments.to_vec()), &descriptors)? {
            Answer::Exited(code) => Ok(Exit::Code(code)),
            Answer::Signalled(signal) => Ok(Exit::Signal(signal)),
            _ => Err(unexpected()),
        }
    }

    /// Has something done that takes long, and waits beside the launcher's other work.
    fn job(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Answer, LaunchError> {
        let flags = SocketFlags::CLOEXEC;
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|errno| gone(errno.into()))?;
        let descriptors = [&[far.as_fd()], descriptors].concat();
        self.exchange(request, &descriptors)?;
        drop(far);
        let (answer, _) = hear(&near)?;
        Ok(answer)
    }

    fn exchange<T: serde::Serialize>(
        &self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Answer, Option<OwnedFd>), LaunchError> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(source) = wire::send(&socket, message, descriptors) {
            return Err(match source.raw_os_error() {
                Some(libc::EMSGSIZE) => Refusal::new(
                    LaunchFailure::InvalidPlan,
                    "send a plan of that size",
                    &source,
                )
                .into(),
                _ => gone(source),
            });
        }
        let (answer, mut given) = hear(&socket).inspect_err(|error| {
            if matches!(error, LaunchError::Gone { .. }) {
                // What comes later would be taken for the answer to something else.
                let _already_gone = rustix::net::shutdown(&*socket, rustix::net::Shutdown::Both);
            }
        })?;
        Ok((answer, given.pop()))
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        let socket = self
            .socket
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let _already_gone = rustix::net::shutdown(&*socket, rustix::net::Shutdown::Both);
        // It ends as soon as it has answered what it was asked last.
        let _status = self.process.wait();
    }
}

fn hear(socket: &OwnedFd) -> Result<(Answer, Vec<OwnedFd>), LaunchError> {
    let heard = wire::receive::<Answer>(socket).map_err(gone)?;
    match heard.ok_or_else(|| gone(io::Error::from(io::ErrorKind::UnexpectedEof)))? {
        (Answer::Refused(refusal), _) => Err(refusal.into()),
        answered => Ok(answered),
    }
}

/// Starts the launcher process with its socket as standard input.
fn execute(agent: &AgentBinary, socket: OwnedFd, log: OwnedFd) -> Result<Child, LaunchError> {
    let sealed;
    let program = match agent {
        AgentBinary::Path(path) => path.clone(),
        AgentBinary::Bytes(bytes) => {
            sealed = seal(bytes).map_err(|source| LaunchError::Step {
                failure: LaunchFailure::HostUnsupported,
                step: "put the agent into an executable memory file".to_owned(),
                path: None,
                hint: Some("allow it (sysctl vm.memfd_noexec) or use a file".to_owned()),
                source,
            })?;
            PathBuf::from(format!("/proc/self/fd/{}", sealed.as_raw_fd()))
        }
    };
    let log_too = log
        .try_clone()
        .map_err(start("copy the log's descriptor"))?;
    let mut command = Command::new(&program);
    command
        .arg0("pinfold-agent")
        .arg("launcher")
        .env_clear()
        .envs(pinfold_types::crash::wanted().map(|at| (pinfold_types::crash::CRASH_AT, at)));
    if cfg!(feature = "test-weaken")
        && let Some(names) = std::env::var_os(crate::weaken::VARIABLE)
    {
        command.env(crate::weaken::VARIABLE, names);
    }
    command
        .stdin(Stdio::from(socket))
        .stdout(Stdio::from(log_too))
        .stderr(Stdio::from(log))
        .spawn()
        .map_err(start("execute it"))
}

/// Puts a program into a file of memory that nobody can change any more.
fn seal(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match rustix::fs::memfd_create("pinfold-agent", flags | MemfdFlags::EXEC) {
        // Kernels before 6.3 know no other than executable ones.
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create("pinfold-agent", flags),
        made => made,
    }?;
    let mut writer = File::from(file.try_clone()?);
    writer.write_all(bytes)?;
    drop(writer);
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    if rustix::fs::fcntl_add_seals(&file, seals | SEAL_EXEC).is_err() {
        rustix::fs::fcntl_add_seals(&file, seals)?;
    }
    Ok(file)
}

fn start(step: &'static str) -> impl Fn(io::Error) -> LaunchError {
    move |source| LaunchError::Start { step, source }
}

fn gone(source: io::Error) -> LaunchError {
    LaunchError::Gone { source }
}

fn unexpected() -> LaunchError {
    gone(io::Error::from(io::ErrorKind::InvalidData))
}

fn needs_subids(program: &str, source: &io::Error) -> LaunchError {
    LaunchError::Step {
        failure: LaunchFailure::NeedsSubids,
        step: format!("map subordinate ids by `{program}`"),
        path: None,
        hint: Some(
            "install `uidmap` and give the user ids: usermod --add-subuids 100000-165535 \
             --add-subgids 100000-165535 USER"
                .to_owned(),
        ),
        source: io::Error::new(source.kind(), source.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_and_sane_grants_count() {
        let text = "ada:100000:65536\n7:300000:10\nbob:1:1\nada:x:1\nada:4294967295:2\nada\n";
        assert_eq!(
            grants(text, 7, Some("ada")),
            [(100_000, 65_536), (300_000, 10)]
        );
        assert_eq!(grants(text, 8, None), []);
    }

    #[test]
    fn a_sealed_program_runs_and_cannot_be_changed() {
        let program = fs::read("/bin/true").unwrap();
        let sealed = seal(&program).unwrap();
        let path = format!("/proc/self/fd/{}", sealed.as_raw_fd());
        assert!(Command::new(path).status().unwrap().success());
        assert!(File::from(sealed).write_all(b"x").is_err());
    }
}
