//! Messages between the daemon and the launcher: a length, descriptors beside it, then JSON.

use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::{LaunchError, LaunchFailure, Timing};
use super::plan::{Bind, PLAN_BYTES_MAX, PLAN_DESCRIPTORS_MAX, Plan};

/// Most bytes of one message; a plan is the largest.
const MESSAGE_BYTES_MAX: usize = PLAN_BYTES_MAX;
/// Most descriptors of one message: those of a plan, and two that a job adds.
pub(crate) const DESCRIPTORS_MAX: usize = PLAN_DESCRIPTORS_MAX + 2;
/// Most characters of a path that are repeated in an answer.
const SHOWN_PATH_MAX: usize = 1024;

/// First message of the daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hello {
    pub(super) version: u32,
    pub(super) outer: Outer,
}

/// Which user namespace the launcher works in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outer {
    /// The one it was started in.
    Host,
    /// A new one, whose maps the daemon has others write.
    Mapped,
    /// A new one, with the caller's id alone.
    Single,
    /// That which holds the user namespace of this process.
    Of(i32),
}

/// What the daemon asks for; descriptors as each says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// With the plan's descriptors. Answered by the pidfd.
    Launch(Box<Plan>),
    /// With the pidfd of the sandbox. Answered by the socket.
    ConnectPort(u16),
    /// With the pidfd of the sandbox.
    Attach(Bind),
    /// With the pidfd of the sandbox.
    Detach(PathBuf),
    /// With a socket on which the job itself answers.
    RemoveTree(PathBuf),
    /// With a socket on which the job itself answers, the program, and its descriptors.
    Run(Vec<std::ffi::OsString>),
}

/// What the launcher or a job answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// Done, or: the job has begun.
    Done,
    /// With its pidfd.
    Launched {
        pid: i32,
        start_time: u64,
        timings: Vec<Timing>,
    },
    /// The job's program has ended.
    Exited(i32),
    /// This signal has ended the job's program.
    Signalled(i32),
    /// It failed.
    Refused(Refusal),
}

/// A step that failed in the launcher or in one of its children.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) failure: LaunchFailure,
    pub(crate) step: String,
    pub(crate) path: Option<PathBuf>,
    pub(crate) hint: Option<String>,
    pub(crate) errno: i32,
}

impl Refusal {
    /// Names a step that failed, and sorts errors that mean the same everywhere.
    pub(crate) fn new(failure: LaunchFailure, step: &str, source: &io::Error) -> Self {
        let errno = source.raw_os_error().unwrap_or(libc::EIO);
        Self {
            failure: exhausted(errno).unwrap_or(failure),
            step: step.to_owned(),
            path: None,
            hint: None,
            errno,
        }
    }

    /// Says which path it was about.
    pub(crate) fn at(mut self, path: impl Into<PathBuf>) -> Self {
        let path: PathBuf = path.into();
        let shown: String = path
            .to_string_lossy()
            .chars()
            .take(SHOWN_PATH_MAX)
            .collect();
        self.path = Some(PathBuf::from(shown));
        self
    }

    /// Says what to do about it.
    pub(crate) fn hint(mut self, hint: &str) -> Self {
        self.hint = Some(hint.to_owned());
        self
    }
}

impl From<Refusal> for LaunchError {
    fn from(refusal: Refusal) -> Self {
        Self::Step {
            failure: refusal.failure,
            step: refusal.step,
            path: refusal.path,
            hint: refusal.hint,
            source: io::Error::from_raw_os_error(refusal.errno),
        }
    }
}

/// Returns a way to turn an error number into a refusal.
pub(crate) fn refused(failure: LaunchFailure, step: &'static str) -> impl Fn(Errno) -> Refusal {
    move |errno| Refusal::new(failure, step, &errno.into())
}

fn exhausted(errno: i32) -> Option<LaunchFailure> {
    const EXHAUSTED: [i32; 7] = [
        libc::ENOSPC,
        libc::EDQUOT,
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOMEM,
        libc::EAGAIN,
        libc::EUSERS,
    ];
    EXHAUSTED
        .contains(&errno)
        .then_some(LaunchFailure::ResourceExhausted)
}

/// Sends one message.
///
/// # Errors
///
/// Fails if the message is too large or the other side is gone.
pub(super) fn send<T: Serialize>(
    socket: &OwnedFd,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= MESSAGE_BYTES_MAX && descriptors.len() <= DESCRIPTORS_MAX)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EMSGSIZE))?;
    let header = length.to_ne_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let parts = [IoSlice::new(&header), IoSlice::new(&body)];
    let sent = retry(|| sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL))?;
    let rest = [&header[..], &body].concat().split_off(sent);
    Socket(socket.as_fd()).write_all(&rest)
}

/// Receives one message, or nothing when the other side has closed.
///
/// # Errors
///
/// Fails if the message is malformed or larger than any should be.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: &OwnedFd,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut header = [0u8; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let message = retry(|| {
        recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut header)],
            &mut control,
            flags,
        )
    })?;
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            descriptors.extend(rights);
        }
    }
    if message.bytes == 0 {
        return Ok(None);
    }
    let length = u32::from_ne_bytes(header) as usize;
    if message.bytes != header.len()
        || length > MESSAGE_BYTES_MAX
        || message.flags.contains(rustix::net::ReturnFlags::CTRUNC)
    {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    let mut body = vec![0u8; length];
    io::Read::read_exact(&mut Socket(socket.as_fd()), &mut body)?;
    Ok(Some((serde_json::from_slice(&body)?, descriptors)))
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}

/// Reads and writes a socket without ever raising a signal.
pub(crate) struct Socket<'a>(pub(crate) BorrowedFd<'a>);

impl io::Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.0, buffer)?)
    }
}

impl io::Write for Socket<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(self.0, buffer, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap()
    }

    #[test]
    fn messages_arrive_with_their_descriptors() {
        let (near, far) = pair();
        let file = tempfile::tempfile().unwrap();
        let message = Request::RemoveTree(PathBuf::from("/a/b"));
        send(&near, &message, &[file.as_fd(), near.as_fd()]).unwrap();
        let (request, descriptors) = receive::<Request>(&far).unwrap().unwrap();
        assert!(matches!(request, Request::RemoveTree(path) if path == *"/a/b"));
        assert_eq!(descriptors.len(), 2);
        drop(near);
        drop(descriptors);
        assert!(receive::<Request>(&far).unwrap().is_none());
    }

    #[test]
    fn hostile_lengths_and_texts_are_refused() {
        for bytes in [&u32::MAX.to_ne_bytes()[..], &[2, 0, 0, 0, b'{', b'x'], &[1]] {
            let (near, far) = pair();
            rustix::io::write(&near, bytes).unwrap();
            drop(near);
            assert!(receive::<Request>(&far).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_shortage_is_one_whatever_was_tried() {
        let refusal = refused(LaunchFailure::Internal, "make a thing")(Errno::NFILE);
        assert_eq!(refusal.failure, LaunchFailure::ResourceExhausted);
        let refusal = refused(LaunchFailure::InvalidMount, "make a thing")(Errno::NOENT);
        assert_eq!(refusal.failure, LaunchFailure::InvalidMount);
    }
}
