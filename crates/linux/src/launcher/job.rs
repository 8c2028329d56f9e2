//! What children of the launcher do besides making sandboxes.

#![expect(
    unsafe_code,
    reason = "waitpid, dup2, execveat and signal have no safe form"
)]

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect as connect_socket, socket_with};
use rustix::process::Signal;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::child::above;
use super::error::LaunchFailure;
use super::plan::Bind;
use super::server::{channel, fork, no_pair, report_channel};
use super::wire::{self, Answer, Refusal, refused};
use crate::beneath::Beneath;
use crate::identity::{IdMaps, IdRange, NamespacePair, Seed};
use crate::root;

/// Longest that the launcher waits for a connection on a sandbox's loopback.
const CONNECT_WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// What a job that answers at once gives back.
type Given = Result<Option<OwnedFd>, Refusal>;

/// Does something in a child, because it changes the namespaces of who does it, and waits for it.
pub(super) fn in_child(
    step: &str,
    run: impl FnOnce() -> Given,
) -> Result<Option<OwnedFd>, Refusal> {
    let unheard = |source: io::Error| Refusal::new(LaunchFailure::Internal, step, &source);
    let (near, far) = channel().map_err(unheard)?;
    fork(|| {
        let sent = match run() {
            Ok(given) => {
                let given: Vec<_> = given.iter().map(OwnedFd::as_fd).collect();
                wire::send(&far, &Answer::Done, &given)
            }
            Err(refusal) => wire::send(&far, &Answer::Refused(refusal), &[]),
        };
        u8::from(sent.is_err())
    })?;
    drop(far);
    match wire::receive::<Answer>(&near).map_err(unheard)? {
        Some((Answer::Done, mut given)) => Ok(given.pop()),
        Some((Answer::Refused(refusal), _)) => Err(refusal),
        _ => Err(unheard(io::Error::from_raw_os_error(libc::ECHILD))),
    }
}

/// Starts something in a child that answers on the first descriptor by itself, whenever it is done.
pub(super) fn start(
    descriptors: &[OwnedFd],
    run: impl FnOnce(&[OwnedFd]) -> Result<Answer, Refusal>,
) -> Result<(), Refusal> {
    let [answer, rest @ ..] = descriptors else {
        let source = io::Error::from_raw_os_error(libc::EINVAL);
        return Err(Refusal::new(
            LaunchFailure::InvalidPlan,
            "take the job's descriptors",
            &source,
        ));
    };
    fork(|| {
        let _unsupported = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        let message = run(rest).unwrap_or_else(Answer::Refused);
        u8::from(wire::send(answer, &message, &[]).is_err())
    })?;
    Ok(())
}

/// Connects to a port on the loopback of a sandbox.
pub(super) fn connect(sandbox: BorrowedFd<'_>, port: u16) -> Given {
    let gone = refused(LaunchFailure::NotFound, "enter the sandbox's network");
    move_into_thread_name_spaces(sandbox, ThreadNameSpaceType::NETWORK).map_err(gone)?;
    let first = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, port));
    let second = std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
    let connected = match dial(AddressFamily::INET, &first) {
        Err(Errno::CONNREFUSED) => dial(AddressFamily::INET6, &second),
        connected => connected,
    };
    connected.map(Some).map_err(|errno| {
        let failure = match errno {
            Errno::CONNREFUSED | Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL => {
                LaunchFailure::ConnectionRefused
            }
            _ => LaunchFailure::Internal,
        };
        refused(failure, "connect to the port")(errno)
    })
}

fn dial(family: AddressFamily, address: &std::net::SocketAddr) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect_socket(&socket, address) {
        Err(Errno::INPROGRESS) => {}
        connected => return connected.map(|()| socket),
    }
    // Even on a loopback the answer may come a moment after the call. If none does, the listener's
    // queue is full, and the socket becomes writable when there is place.
    let mut polled = [PollFd::new(&socket, PollFlags::OUT)];
    poll(&mut polled, Some(&CONNECT_WAIT))?;
    rustix::net::sockopt::socket_error(&socket)??;
    Ok(socket)
}

/// Mounts a host path in a sandbox that runs.
pub(super) fn attach(sandbox: BorrowedFd<'_>, bind: &Bind, mapped: bool) -> Given {
    let user = user_namespace(sandbox)?;
    let caller = pair_of_caller(sandbox, bind, mapped)?;
    let users = root::Users {
        sandbox: mapped.then(|| user.as_fd()),
        caller: caller.as_ref().map(NamespacePair::user),
    };
    let prepared = root::prepare(bind, users)?;
    let root = enter(sandbox)?;
    root::place(&root, &prepared)?;
    Ok(None)
}

/// Makes what maps the files of the bind's caller to the root of a sandbox that runs.
fn pair_of_caller(
    sandbox: BorrowedFd<'_>,
    bind: &Bind,
    mapped: bool,
) -> Result<Option<NamespacePair>, Refusal> {
    let Some(user) = bind.reach.as_ref().and_then(|reach| reach.user.as_ref()) else {
        return Ok(None);
    };
    let failed = |source: io::Error| {
        Refusal::new(LaunchFailure::Internal, "read the sandbox's ids", &source)
    };
    if !mapped {
        return Err(failed(io::Error::from_raw_os_error(libc::EINVAL)));
    }
    let map = std::fs::read_to_string(format!(
        "/proc/{}/uid_map",
        pid_of(sandbox).map_err(failed)?
    ))
    .map_err(failed)?;
    // Its user namespace was opened before and the process lived then; if its number is another's
    // by now, the mount is attached to nothing.
    let base = map
        .split_whitespace()
        .nth(1)
        .and_then(|base| base.parse().ok());
    let base = base.ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ESRCH)))?;
    if super::server::is_readable(sandbox) {
        return Err(failed(io::Error::from_raw_os_error(libc::ESRCH)));
    }
    let maps = IdMaps::of_one(user.uid, user.gid, IdRange { base }).map_err(no_pair)?;
    let pair = Seed::make().and_then(|seed| seed.map(&maps));
    Ok(Some(pair.map_err(no_pair)?))
}

/// Takes a mount away from a sandbox that runs.
pub(super) fn detach(sandbox: BorrowedFd<'_>, target: &Path) -> Given {
    let root = enter(sandbox)?;
    root::take_away(&root, target)?;
    Ok(None)
}

fn user_namespace(sandbox: BorrowedFd<'_>) -> Result<OwnedFd, Refusal> {
    let gone = |source: io::Error| {
        Refusal::new(
            LaunchFailure::NotFound,
            "open the sandbox's user namespace",
            &source,
        )
    };
    let pid = pid_of(sandbox).map_err(gone)?;
    let user = std::fs::File::open(format!("/proc/{pid}/ns/user")).map_err(gone)?;
    // Only if the process lives is it certain that its number was not given to another.
    if super::server::is_readable(sandbox) {
        return Err(gone(io::Error::from_raw_os_error(libc::ESRCH)));
    }
    Ok(user.into())
}

/// Reads the number of the process that a pidfd is of.
fn pid_of(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("Pid:"))
        .and_then(|pid| pid.trim().parse().ok())
        .filter(|&pid: &i32| pid > 0)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// Becomes root of the sandbox in its mount namespace, and returns its root directory.
fn enter(sandbox: BorrowedFd<'_>) -> Result<OwnedFd, Refusal> {
    let gone = refused(LaunchFailure::NotFound, "enter the sandbox");
    let both = ThreadNameSpaceType::USER | ThreadNameSpaceType::MOUNT;
    move_into_thread_name_spaces(sandbox, both).map_err(&gone)?;
    let (user, group) = (rustix::process::Uid::ROOT, rustix::process::Gid::ROOT);
    rustix::thread::set_thread_res_gid(group, group, group).map_err(&gone)?;
    rustix::thread::set_thread_res_uid(user, user, user).map_err(&gone)?;
    root::open_root(Path::new("/")).map_err(&gone)
}

/// Removes a directory and what is in it, following no link in it.
pub(super) fn remove_tree(path: &Path) -> Result<Answer, Refusal> {
    let failed =
        |source: io::Error| Refusal::new(LaunchFailure::Internal, "remove", &source).at(path);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(io::Error::from_raw_os_error(libc::EINVAL)));
    };
    let removed = Beneath::open(parent).and_then(|beneath| beneath.remove_all(Path::new(name)));
    match removed {
        Ok(()) => Ok(Answer::Done),
        Err(error) if error.source.raw_os_error() == Some(libc::ENOENT) => Ok(Answer::Done),
        Err(error) => Err(failed(error.source)),
    }
}

/// Runs a program, the first descriptor, with the rest as its descriptors from 0, to its end.
pub(super) fn run(arguments: &[OsString], descriptors: &[OwnedFd]) -> Result<Answer, Refusal> {
    let failed =
        |source: io::Error| Refusal::new(LaunchFailure::Internal, "run the program", &source);
    // The launcher ignores the end of its children; this process wants to know of it.
    for signal in [libc::SIGCHLD, libc::SIGPIPE] {
        // SAFETY: the default action has no handler that could run.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let (near, far) = report_channel().map_err(failed)?;
    let child = fork(|| {
        let _unsupported = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        let refusal = match execute(arguments, descriptors) {
            Ok(never) => match never {},
            Err(source) => failed(source),
        };
        u8::from(wire::send(&far, &Answer::Refused(refusal), &[]).is_err())
    })?;
    drop(far);
    if let Some((Answer::Refused(refusal), _)) = wire::receive::<Answer>(&near).map_err(failed)? {
        return Err(refusal);
    }
    let mut status = 0;
    loop {
        // SAFETY: waits for a child of this process, and writes to a number of its own.
        let done = unsafe { libc::waitpid(child.as_raw_nonzero().get(), &raw mut status, 0) };
        let error = io::Error::last_os_error();
        match done {
            -1 if error.kind() == io::ErrorKind::Interrupted => {}
            -1 => return Err(failed(error)),
            _ => break,
        }
    }
    if libc::WIFSIGNALED(status) {
        Ok(Answer::Signalled(libc::WTERMSIG(status)))
    } else {
        Ok(Answer::Exited(libc::WEXITSTATUS(status)))
    }
}

fn execute(arguments: &[OsString], descriptors: &[OwnedFd]) -> io::Result<Infallible> {
    let [program, inherited @ ..] = descriptors else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    let arguments = arguments
        .iter()
        .map(|argument| Ok(CString::new(argument.as_bytes())?))
        .collect::<io::Result<Vec<_>>>()?;
    let mut pointers: Vec<_> = arguments.iter().map(|argument| argument.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let environment = [super::child::PATH.as_ptr(), std::ptr::null()];
    let program = above(program)?;
    let parked = inherited.iter().map(above).collect::<Result<Vec<_>, _>>()?;
    for (number, descriptor) in (0..).zip(&parked) {
        // SAFETY: what had that number is not used any more; this process executes or ends.
        if unsafe { libc::dup2(descriptor.as_raw_fd(), number) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let first = u32::try_from(parked.len()).unwrap_or(0).max(3);
    crate::descriptors::close_on_exec_from(first)?;
    // SAFETY: both lists end in null and their strings in zero, and they outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            pointers.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Err(io::Error::last_os_error())
}
