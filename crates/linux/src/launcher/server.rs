//! The launcher process.

#![expect(unsafe_code, reason = "fork, dup2 and signal have no safe form")]

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use pinfold_types::crash_point;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::child::{Launch, Watch, above};
use super::error::{LaunchFailure, Timing};
use super::job;
use super::outer;
use super::plan::{Identity, PLAN_DESCRIPTORS_MAX, PLAN_VERSION, Plan};
use super::wire::{self, Answer, Hello, Refusal, Request};
use crate::identity::{IdMaps, IdRange, NamespacePair, PairError, Seed};
use crate::root::tiny;

/// Longest that one sandbox may take to be made.
///
/// It is a matter of milliseconds; what takes this long waits for a dead network filesystem.
const LAUNCH_MAX: Duration = Duration::from_secs(30);
/// How many namespaces are made ahead: enough for a burst while refilling, at 0.2 MB each.
const SEEDS: usize = 4;

/// Serves the daemon on descriptor 0 until it closes the socket, and returns the exit code.
///
/// Must be called on the only thread of a process that was started for this. Sandboxes outlive it.
pub fn serve() -> u8 {
    match Server::start().and_then(|mut server| server.run()) {
        Ok(()) => 0,
        Err(error) => {
            // Standard error is the log; if that is gone, nobody is left to be told.
            drop(writeln!(io::stderr(), "pinfold launcher: {error}"));
            1
        }
    }
}

#[derive(Debug)]
struct Server {
    socket: OwnedFd,
    /// The agent's own file, which is the one that runs here.
    agent: OwnedFd,
    tiny: OwnedFd,
    /// The ids of every sandbox, unless each has its own range.
    maps: Option<IdMaps>,
    seeds: Vec<Seed>,
}

impl Server {
    fn start() -> io::Result<Self> {
        let socket = take_socket()?;
        // SAFETY: no handler is set; children that end leave no zombie.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        rustix::process::umask(Mode::from_raw_mode(0o022));
        rustix::process::chdir("/")?;
        let agent = openat(
            CWD,
            "/proc/self/exe",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let agent = above(&agent)?;
        let (hello, _) = expect::<Hello>(&socket)?;
        let prepared = if crate::weaken::endangers_machine() {
            let source = io::Error::from_raw_os_error(libc::EPERM);
            Err(Refusal::new(
                LaunchFailure::InvalidPlan,
                "leave defences out that guard the machine itself",
                &source,
            )
            .hint("run it in a process namespace of its own, as the test of the attacks does"))
        } else if hello.version == PLAN_VERSION {
            outer::enter(&socket, hello.outer)
        } else {
            let source = io::Error::from_raw_os_error(libc::EPROTO);
            Err(Refusal::new(
                LaunchFailure::InvalidPlan,
                "agree on a version",
                &source,
            ))
        };
        let started = prepared.and_then(|maps| Ok((maps, make_tiny()?)));
        let (maps, tiny) = match started {
            Ok(made) => made,
            Err(refusal) => {
                wire::send(&socket, &Answer::Refused(refusal), &[])?;
                return Err(io::Error::other("failed to start"));
            }
        };
        wire::send(&socket, &Answer::Done, &[])?;
        Ok(Self {
            socket,
            agent,
            tiny,
            maps,
            seeds: Vec::with_capacity(SEEDS),
        })
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            self.refill();
            let Some((request, descriptors)) = wire::receive::<Request>(&self.socket)? else {
                return Ok(());
            };
            let answer = self.answer(request, &descriptors);
            let (answer, descriptor) = match answer {
                Ok(answer) => answer,
                Err(refusal) => (Answer::Refused(refusal), None),
            };
            let descriptor: Vec<_> = descriptor.iter().map(OwnedFd::as_fd).collect();
            wire::send(&self.socket, &answer, &descriptor)?;
        }
    }

    /// Makes namespaces ahead while nobody asks for anything.
    fn refill(&mut self) {
        while self.seeds.len() < SEEDS && !is_readable(self.socket.as_fd()) {
            match Seed::make() {
                Ok(seed) => self.seeds.push(seed),
                // The launch that needs one will say why.
                Err(_) => return,
            }
        }
    }

    fn answer(
        &mut self,
        request: Request,
        descriptors: &[OwnedFd],
    ) -> Result<(Answer, Option<OwnedFd>), Refusal> {
        match request {
            Request::Launch(plan) => {
                let (answer, pidfd) = self.launch(&plan, descriptors)?;
                Ok((answer, Some(pidfd)))
            }
            Request::ConnectPort(port) => {
                let sandbox = only(descriptors)?;
                let socket = job::in_child("connect to the port", || job::connect(sandbox, port))?;
                Ok((Answer::Done, socket))
            }
            Request::Attach(bind) => {
                let sandbox = only(descriptors)?;
                job::in_child("mount in the sandbox", || {
                    job::attach(sandbox, &bind, self.maps.is_none())
                })?;
                Ok((Answer::Done, None))
            }
            Request::Detach(target) => {
                let sandbox = only(descriptors)?;
                job::in_child("unmount in the sandbox", || job::detach(sandbox, &target))?;
                Ok((Answer::Done, None))
            }
            Request::RemoveTree(path) => {
                job::start(descriptors, |_| job::remove_tree(&path))?;
                Ok((Answer::Done, None))
            }
            Request::Run(arguments) => {
                let arguments: Vec<OsString> = arguments;
                job::start(descriptors, |rest| job::run(&arguments, rest))?;
                Ok((Answer::Done, None))
            }
        }
    }

    fn launch(
        &mut self,
        plan: &Plan,
        descriptors: &[OwnedFd],
    ) -> Result<(Answer, OwnedFd), Refusal> {
        crash_point!("launcher.asked");
        check(plan, descriptors, self.maps.is_some())?;
        let mut watch = Watch::start();
        let pair = self.pair(plan.identity)?;
        let caller = self.pair_of_caller(plan)?;
        watch.lap("take a pair of namespaces");
        let (birth, birth_far) = channel().map_err(unheard)?;
        let (report, report_far) = report_channel().map_err(unheard)?;
        let launch = Launch {
            plan,
            descriptors,
            pair: &pair,
            caller: caller.as_ref(),
            tiny: self.tiny.as_fd(),
            agent: self.agent.as_fd(),
            birth: &birth_far,
            report: &report_far,
        };
        let preparer = fork(|| launch.run(watch))?;
        // At once, so that its number cannot be another's yet.
        let preparer = pidfd_open(preparer, PidfdFlags::empty());
        drop((birth_far, report_far));
        crash_point!("launcher.forked");
        let born = match hear(&birth) {
            Ok((Answer::Launched { pid, .. }, mut pidfd)) if pidfd.len() == 1 => {
                Ok((pid, pidfd.remove(0)))
            }
            Ok((Answer::Refused(refusal), _)) => Err(refusal),
            Ok(_) => Err(unheard(io::Error::from_raw_os_error(libc::EPROTO))),
            Err(error) => Err(unheard(error)),
        };
        let (pid, pidfd) = born.inspect_err(|_| {
            if let Ok(preparer) = &preparer {
                kill(preparer);
            }
        })?;
        crash_point!("launcher.born");
        let made = hear_ready(&report);
        crash_point!("launcher.ready");
        match made.and_then(|timings| Ok((start_time(pid).map_err(unheard)?, timings))) {
            Ok((start_time, timings)) => Ok((
                Answer::Launched {
                    pid,
                    start_time,
                    timings,
                },
                pidfd,
            )),
            Err(refusal) => {
                kill(&pidfd);
                Err(refusal)
            }
        }
    }

    /// Makes what maps the files of the plan's caller; it costs as much as the sandbox's own pair.
    fn pair_of_caller(&mut self, plan: &Plan) -> Result<Option<NamespacePair>, Refusal> {
        let Some((user, group)) = plan.caller() else {
            return Ok(None);
        };
        let Identity::Range { base } = plan.identity else {
            return Err(invalid("take a user's rights without being root"));
        };
        let maps = IdMaps::of_one(user, group, IdRange { base }).map_err(no_pair)?;
        let seed = match self.seeds.pop() {
            Some(seed) => seed,
            None => Seed::make().map_err(no_pair)?,
        };
        Ok(Some(seed.map(&maps).map_err(no_pair)?))
    }

    fn pair(&mut self, identity: Identity) -> Result<NamespacePair, Refusal> {
        let failed = no_pair;
        let of_range;
        let maps = match (identity, &self.maps) {
            (Identity::Range { base }, _) => {
                of_range = IdMaps::of_range(IdRange { base }).map_err(failed)?;
                &of_range
            }
            (_, Some(maps)) => maps,
            (_, None) => return Err(invalid("give ids to the sandbox")),
        };
        let seed = match self.seeds.pop() {
            Some(seed) => seed,
            None => Seed::make().map_err(failed)?,
        };
        seed.map(maps).map_err(failed)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is mapped over")]
pub(super) fn no_pair(error: PairError) -> Refusal {
    let errno = match &error {
        PairError::Unshare { errno } => Some(*errno),
        PairError::Step { source, .. } => source.raw_os_error(),
        PairError::Range { .. } => Some(libc::EINVAL),
    };
    let source = io::Error::from_raw_os_error(errno.unwrap_or(libc::EIO));
    let step = error.to_string();
    let step = step
        .strip_prefix("failed to ")
        .unwrap_or("make the namespaces");
    Refusal::new(LaunchFailure::HostUnsupported, step, &source)
}

/// Hears until process 1 executes the agent, which closes its end of the report.
fn hear_ready(report: &OwnedFd) -> Result<Vec<Timing>, Refusal> {
    let timings = match hear(report).map_err(unheard)? {
        (Answer::Launched { timings, .. }, _) => timings,
        (Answer::Refused(refusal), _) => return Err(refusal),
        _ => return Err(unheard(io::Error::from_raw_os_error(libc::EPROTO))),
    };
    match wire::receive::<Answer>(report).map_err(unheard)? {
        None => Ok(timings),
        Some((Answer::Refused(refusal), _)) => Err(refusal),
        Some(_) => Err(unheard(io::Error::from_raw_os_error(libc::EPROTO))),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is mapped over")]
fn unheard(source: io::Error) -> Refusal {
    if source.kind() == io::ErrorKind::WouldBlock {
        let source = io::Error::from_raw_os_error(libc::ETIMEDOUT);
        return Refusal::new(LaunchFailure::Internal, "hear from the child", &source)
            .hint("one of its paths may be on a filesystem that does not answer");
    }
    Refusal::new(LaunchFailure::Internal, "hear from the child", &source)
}

fn hear(from: &OwnedFd) -> io::Result<(Answer, Vec<OwnedFd>)> {
    wire::receive(from)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ECHILD))
}

fn expect<T: serde::de::DeserializeOwned>(socket: &OwnedFd) -> io::Result<(T, Vec<OwnedFd>)> {
    wire::receive(socket)?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
}

/// Makes a pair of sockets, of which the first gives up waiting after [`LAUNCH_MAX`].
pub(super) fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    let (near, far) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let timeout = rustix::net::sockopt::Timeout::Recv;
    rustix::net::sockopt::set_socket_timeout(&near, timeout, Some(LAUNCH_MAX))?;
    Ok((near, far))
}

/// As [`channel`], with the second socket out of the way of the agent's descriptors.
pub(super) fn report_channel() -> io::Result<(OwnedFd, OwnedFd)> {
    let (near, far) = channel()?;
    Ok((near, above(&far)?))
}

/// Runs something in a child, which ends with the number that it returns.
pub(super) fn fork(run: impl FnOnce() -> u8) -> Result<Pid, Refusal> {
    // SAFETY: the launcher has one thread, so the child's copy of its memory is consistent.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let code = run();
        // SAFETY: ends the child; what the launcher wanted to do at its own end is not for it.
        unsafe { libc::_exit(code.into()) }
    }
    Pid::from_raw(pid.max(0))
        .ok_or_else(|| Refusal::new(LaunchFailure::Internal, "fork", &io::Error::last_os_error()))
}

/// Ends a child that may have ended already.
fn kill(child: &OwnedFd) {
    let _already_gone = pidfd_send_signal(child, Signal::KILL);
}

/// Takes the daemon's socket, closes what else the daemon left open, and leaves `/dev/null` there.
fn take_socket() -> io::Result<OwnedFd> {
    let first = u32::try_from(libc::STDERR_FILENO + 1).unwrap_or(3);
    // SAFETY: nothing of this process is open but what it was started with.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    let inherited = crate::init::take_inherited(libc::STDIN_FILENO)?;
    let socket = above(&inherited)?;
    let null = openat(
        CWD,
        "/dev/null",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // SAFETY: the number stays that of `inherited`, which is leaked so that nothing closes it.
    let done = unsafe { libc::dup2(null.as_raw_fd(), libc::STDIN_FILENO) };
    std::mem::forget(inherited);
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

fn make_tiny() -> Result<OwnedFd, Refusal> {
    job::in_child("make a mount namespace", || {
        tiny::enter()?;
        let namespace = tiny::current().map_err(|source| {
            Refusal::new(
                LaunchFailure::HostUnsupported,
                "open the mount namespace",
                &source,
            )
        })?;
        Ok(Some(namespace))
    })?
    .ok_or_else(|| unheard(io::Error::from_raw_os_error(libc::EPROTO)))
}

/// Returns whether something can be read, or, of a pidfd, whether the process has ended.
pub(super) fn is_readable(socket: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
}

fn only(descriptors: &[OwnedFd]) -> Result<BorrowedFd<'_>, Refusal> {
    match descriptors {
        [one] => Ok(one.as_fd()),
        _ => Err(invalid("take the sandbox's descriptor")),
    }
}

fn invalid(step: &str) -> Refusal {
    let source = io::Error::from_raw_os_error(libc::EINVAL);
    Refusal::new(LaunchFailure::InvalidPlan, step, &source)
}

pub(crate) fn check(plan: &Plan, descriptors: &[OwnedFd], mapped: bool) -> Result<(), Refusal> {
    if plan.version != PLAN_VERSION {
        return Err(invalid("read a plan of another version"));
    }
    let wanted = 2 + plan.attach.len() + plan.boot.usage.len();
    if descriptors.len() != wanted || wanted > PLAN_DESCRIPTORS_MAX {
        return Err(invalid("take the plan's descriptors"));
    }
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if plan.id.is_empty() || !plan.id.bytes().all(alphanumeric) {
        return Err(invalid("use the sandbox's id"));
    }
    match plan.identity {
        Identity::Range { .. } if mapped => Err(invalid("give a range of ids without being root")
            .hint("only a launcher of the host's root gives sandboxes a range of their own")),
        Identity::Shared | Identity::Single if !mapped => {
            Err(invalid("share the host's own ids with a sandbox"))
        }
        _ => Ok(()),
    }
}

/// Reads when a process started, in clock ticks since boot.
fn start_time(pid: i32) -> io::Result<u64> {
    crate::marks::start_time(pid)
}
