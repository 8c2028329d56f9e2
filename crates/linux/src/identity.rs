//! Pairs of a user namespace and the network namespace that it owns, made ahead of their use.
//!
//! A pair costs most of what a sandbox costs, and neither half depends on who will use it, so a
//! pool of pairs is what makes a start cheap. A pair is used once and thrown away.

#![expect(unsafe_code, reason = "fork, unshare and ioctl have no safe form")]

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};

/// Ids that one sandbox gets: enough for every user of an ordinary system, and for `nobody`.
pub const RANGE_LENGTH: u32 = 65_536;

/// A contiguous range of the host's user and group ids that belongs to one sandbox alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdRange {
    /// The host id that the sandbox's id 0 is.
    pub base: u32,
}

impl IdRange {
    /// Returns the host id of an id inside, or nothing when the range does not hold it.
    pub fn host_id(self, inside: u32) -> Option<u32> {
        (inside < RANGE_LENGTH)
            .then(|| self.base.checked_add(inside))
            .flatten()
    }

    /// Returns the line that the kernel's `uid_map` and `gid_map` take.
    fn map_line(self) -> String {
        format!("0 {} {RANGE_LENGTH}\n", self.base)
    }
}

/// Why a pair could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// The base is 0 or the range would pass the largest id.
    #[error("the id range at {base} is not usable: it starts at 0 or passes the largest id")]
    Range {
        /// Where it would start.
        base: u32,
    },
    /// A step failed; what was made is gone again.
    #[error("failed to {step}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused new namespaces, for instance because a limit is reached.
    #[error("the kernel refused a new user and network namespace with error number {errno}")]
    Unshare {
        /// As in `errno(3)`.
        errno: i32,
    },
}

/// One user namespace with its maps written, and one network namespace that it owns with `lo` up.
#[derive(Debug)]
pub struct NamespacePair {
    range: IdRange,
    user: OwnedFd,
    network: OwnedFd,
}

impl NamespacePair {
    /// Makes a pair whose ids are `range`. Needs root or the same rights over the range.
    ///
    /// Blocks for about a millisecond. Safe to call from any thread: the short-lived child makes
    /// only system calls that are safe after `fork`.
    ///
    /// # Errors
    ///
    /// Returns [`PairError`] after the child has ended and everything made is gone.
    pub fn make(range: IdRange) -> Result<Self, PairError> {
        if range.base == 0 || range.base.checked_add(RANGE_LENGTH).is_none() {
            return Err(PairError::Range { base: range.base });
        }
        let step = |step: &'static str| {
            move |source: rustix::io::Errno| PairError::Step {
                step,
                source: source.into(),
            }
        };
        let (answer_read, answer_write) =
            pipe_with(PipeFlags::CLOEXEC).map_err(step("make a pipe"))?;
        let (go_read, go_write) = pipe_with(PipeFlags::CLOEXEC).map_err(step("make a pipe"))?;
        let ends = ChildEnds {
            answer: answer_write.as_fd(),
            go: go_read.as_fd(),
        };
        // SAFETY: the child runs `ChildEnds::run`, which makes system calls on plain values only,
        // allocates nothing, takes no lock and ends by `_exit`.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            ends.run();
        }
        let child = Child::new(pid)?;
        drop(answer_write);
        drop(go_read);
        read_answer(&answer_read)?;
        let pair = Self::take(&child, range)?;
        rustix::io::write(&go_write, &[1]).map_err(step("let the child go on"))?;
        // The second answer says that `lo` is up, which needs the maps written above.
        read_answer(&answer_read)?;
        Ok(pair)
    }

    /// Writes the maps of a child that waits in its new namespaces, and takes hold of them.
    fn take(child: &Child, range: IdRange) -> Result<Self, PairError> {
        let path = |name: &str| format!("/proc/{}/{name}", child.0.as_raw_nonzero());
        let step = |step: &'static str| move |source: io::Error| PairError::Step { step, source };
        fs::write(path("uid_map"), range.map_line()).map_err(step("write the user id map"))?;
        fs::write(path("gid_map"), range.map_line()).map_err(step("write the group id map"))?;
        let open = |name: &str| fs::File::open(path(name)).map(OwnedFd::from);
        let user = open("ns/user").map_err(step("open the user namespace"))?;
        let network = open("ns/net").map_err(step("open the network namespace"))?;
        Ok(Self {
            range,
            user,
            network,
        })
    }

    /// Returns the ids of the pair.
    pub fn range(&self) -> IdRange {
        self.range
    }

    /// Returns the user namespace, for `setns` and for mounts that are mapped by it.
    pub fn user(&self) -> BorrowedFd<'_> {
        self.user.as_fd()
    }

    /// Returns the network namespace.
    pub fn network(&self) -> BorrowedFd<'_> {
        self.network.as_fd()
    }
}

/// The pipe ends that the child holds.
#[derive(Clone, Copy)]
struct ChildEnds<'a> {
    answer: BorrowedFd<'a>,
    go: BorrowedFd<'a>,
}

impl ChildEnds<'_> {
    /// Makes the namespaces, waits until the parent wrote the maps, raises `lo`, and ends.
    fn run(self) -> ! {
        // SAFETY: a plain system call in a process with one thread.
        let made = unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) };
        self.answer(made);
        // A byte, not the end of file: a child of another thread may hold a copy of the other end.
        let _parent_gone = rustix::io::read(self.go, &mut [0u8; 1]);
        self.answer(raise_loopback());
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(0) }
    }

    /// Sends 0 or the error number of the call that gave `result`.
    fn answer(self, result: i32) {
        let errno = if result == 0 {
            0
        } else {
            io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EIO)
        };
        let _parent_gone = rustix::io::write(self.answer, &errno.to_ne_bytes());
    }
}

/// Brings `lo` up in the calling thread's network namespace; answers like a system call.
fn raise_loopback() -> i32 {
    // SAFETY: a plain system call.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return -1;
    }
    // SAFETY: all zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, letter) in request.ifr_name.iter_mut().zip(*b"lo") {
        *place = libc::c_char::from_ne_bytes([letter]);
    }
    // IFF_UP is 1 and fits.
    request.ifr_ifru.ifru_flags = 1;
    // SAFETY: the request outlives the call and has the type that this request takes.
    let result = unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request) };
    // SAFETY: the socket was opened above and is not used again.
    unsafe { libc::close(socket) };
    result
}

fn read_answer(from: &OwnedFd) -> Result<(), PairError> {
    let mut bytes = [0u8; 4];
    let length = rustix::io::read(from, &mut bytes).map_err(|source| PairError::Step {
        step: "hear from the child that makes the namespaces",
        source: source.into(),
    })?;
    match (length, i32::from_ne_bytes(bytes)) {
        (4, 0) => Ok(()),
        (4, errno) => Err(PairError::Unshare { errno }),
        _ => Err(PairError::Unshare {
            errno: libc::ECHILD,
        }),
    }
}

/// A child that is ended and reaped when dropped.
struct Child(rustix::process::Pid);

impl Child {
    fn new(fork_result: libc::pid_t) -> Result<Self, PairError> {
        rustix::process::Pid::from_raw(fork_result.max(0))
            .map(Self)
            .ok_or_else(|| PairError::Step {
                step: "fork",
                source: io::Error::last_os_error(),
            })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        use rustix::process::{Signal, WaitOptions, kill_process, waitpid};
        let _already_gone = kill_process(self.0, Signal::KILL);
        let _status = waitpid(Some(self.0), WaitOptions::empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_their_ids_and_no_others() {
        let range = IdRange { base: 200_000 };
        assert_eq!(range.host_id(0), Some(200_000));
        assert_eq!(range.host_id(RANGE_LENGTH - 1), Some(265_535));
        assert_eq!(range.host_id(RANGE_LENGTH), None);
        for base in [0, u32::MAX] {
            assert!(matches!(
                NamespacePair::make(IdRange { base }),
                Err(PairError::Range { .. })
            ));
        }
    }

    #[test]
    fn pairs_are_distinct_and_their_loopback_is_up() {
        if !crate::capability_to_test() {
            return;
        }
        let first = NamespacePair::make(IdRange { base: 300_000 }).unwrap();
        let second = NamespacePair::make(IdRange { base: 400_000 }).unwrap();
        let inode = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_ne!(inode(first.user()), inode(second.user()));
        assert_ne!(inode(first.network()), inode(second.network()));
        let flags = std::thread::scope(|scope| {
            let enter = scope.spawn(|| {
                rustix::thread::move_into_link_name_space(first.network(), None).unwrap();
                // Loopback answers only when it is up.
                let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                std::net::TcpStream::connect(listener.local_addr().unwrap()).is_ok()
            });
            enter.join().unwrap()
        });
        assert!(flags);
    }
}
