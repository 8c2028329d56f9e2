//! Pairs of a user namespace and the network namespace that it owns, made ahead of their use.
//!
//! A pair costs most of what a sandbox costs, and neither half depends on who will use it, so a
//! pool of pairs is what makes a start cheap. A pair is used once and thrown away.

#![expect(unsafe_code, reason = "fork, unshare and ioctl have no safe form")]

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};

use crate::weaken::{Defence, is_off};

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

/// A run of ids inside, and the ids of the parent namespace that they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First id inside.
    pub inside: u32,
    /// First id as the parent namespace names it.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The ids of a user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMaps {
    /// User ids.
    pub users: Vec<Extent>,
    /// Group ids.
    pub groups: Vec<Extent>,
}

impl IdMaps {
    /// Returns the maps that give a sandbox a range of its own.
    ///
    /// # Errors
    ///
    /// Refuses a range that starts at 0 or passes the largest id.
    pub fn of_range(range: IdRange) -> Result<Self, PairError> {
        if range.base == 0 || range.base.checked_add(RANGE_LENGTH).is_none() {
            return Err(PairError::Range { base: range.base });
        }
        let extent = Extent {
            inside: 0,
            outside: range.base,
            count: RANGE_LENGTH,
        };
        Ok(Self {
            users: vec![extent],
            groups: vec![extent],
        })
    }

    /// Returns maps under which one user's files on disk are those of a range's root, and nobody
    /// else's are anyone's.
    ///
    /// # Errors
    ///
    /// As [`IdMaps::of_range`].
    pub fn of_one(user: u32, group: u32, range: IdRange) -> Result<Self, PairError> {
        Self::of_range(range)?;
        let one = |inside| {
            vec![Extent {
                inside,
                outside: range.base,
                count: 1,
            }]
        };
        Ok(Self {
            users: one(user),
            groups: one(group),
        })
    }

    /// Returns maps under which every id that the calling process's namespace holds is itself.
    ///
    /// A line of a map may not cross two extents of the parent's, so there is one for each.
    ///
    /// # Errors
    ///
    /// Fails if the maps of the calling process cannot be read.
    pub fn of_caller_unchanged() -> io::Result<Self> {
        let unchanged = |path| {
            let lines = fs::read_to_string(path)?;
            let extents = lines.lines().filter_map(|line| {
                let mut numbers = line.split_whitespace().map(str::parse);
                let inside = numbers.next()?.ok()?;
                let count = numbers.nth(1)?.ok()?;
                Some(Extent {
                    inside,
                    outside: inside,
                    count,
                })
            });
            Ok::<_, io::Error>(extents.collect())
        };
        Ok(Self {
            users: unchanged("/proc/self/uid_map")?,
            groups: unchanged("/proc/self/gid_map")?,
        })
    }

    /// Returns the id outside that user 0 inside is.
    pub fn root(&self) -> Option<u32> {
        let holds_root = |extent: &&Extent| extent.inside == 0 && extent.count > 0;
        self.users
            .iter()
            .find(holds_root)
            .map(|extent| extent.outside)
    }

    fn lines(extents: &[Extent]) -> String {
        let line =
            |extent: &Extent| format!("{} {} {}\n", extent.inside, extent.outside, extent.count);
        extents.iter().map(line).collect()
    }
}

/// First of the ids that own user namespaces: above those that systems give to users and to their
/// subordinate users, so that nobody can become one.
const OWNERS_FIRST: u32 = 3_000_000_000;
/// Most `inotify` instances of one sandbox: a quarter of what the kernel gives a user by default,
/// which an ordinary user's sandboxes share with that user.
const WATCHERS_MAX: &str = "32";

/// A pair whose maps are not written yet, so that it can be made before anyone knows whose it is.
#[derive(Debug)]
pub struct Seed {
    child: Child,
    /// While this is open, the child stays.
    _stay: OwnedFd,
    user: OwnedFd,
    network: OwnedFd,
}

impl Seed {
    /// Makes a user namespace and a network namespace that it owns, with `lo` up.
    ///
    /// Blocks for about a millisecond. Safe to call from any thread: the child, which lives as long
    /// as the seed does, makes only system calls that are safe after `fork`. It ends with the
    /// calling thread.
    ///
    /// # Errors
    ///
    /// Returns [`PairError`] after the child has ended and everything made is gone.
    pub fn make() -> Result<Self, PairError> {
        let step = |step: &'static str| {
            move |source: rustix::io::Errno| PairError::Step {
                step,
                source: source.into(),
            }
        };
        let (answer_read, answer_write) =
            pipe_with(PipeFlags::CLOEXEC).map_err(step("make a pipe"))?;
        let own = !is_off(Defence::WatchBounds);
        // SAFETY: the child runs `hold`, which makes system calls on plain values only, allocates
        // nothing, takes no lock and ends by `_exit`.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            hold(answer_write.as_fd(), own);
        }
        let child = Child::new(pid)?;
        drop(answer_write);
        read_answer(&answer_read)?;
        let open = |name: &str| fs::File::open(child.path(name)).map(OwnedFd::from);
        let failed = |step: &'static str| move |source: io::Error| PairError::Step { step, source };
        let user = open("ns/user").map_err(failed("open the user namespace"))?;
        let network = open("ns/net").map_err(failed("open the network namespace"))?;
        Ok(Self {
            child,
            _stay: answer_read,
            user,
            network,
        })
    }

    /// Writes the maps, once and for all.
    ///
    /// # Errors
    ///
    /// Fails if the caller does not hold those ids; the namespaces are gone then.
    pub fn map(self, maps: &IdMaps) -> Result<NamespacePair, PairError> {
        let write = |name: &str, extents: &[Extent], step: &'static str| {
            fs::write(self.child.path(name), IdMaps::lines(extents))
                .map_err(|source| PairError::Step { step, source })
        };
        write("uid_map", &maps.users, "write the user id map")?;
        write("gid_map", &maps.groups, "write the group id map")?;
        Ok(NamespacePair {
            root: maps.root().unwrap_or_default(),
            user: self.user,
            network: self.network,
        })
    }
}

/// One user namespace with its maps written, and one network namespace that it owns with `lo` up.
#[derive(Debug)]
pub struct NamespacePair {
    root: u32,
    user: OwnedFd,
    network: OwnedFd,
}

impl NamespacePair {
    /// Makes a pair whose ids are `range`. Needs root or the same rights over the range.
    ///
    /// # Errors
    ///
    /// Returns [`PairError`] after everything made is gone.
    pub fn make(range: IdRange) -> Result<Self, PairError> {
        let maps = IdMaps::of_range(range)?;
        Seed::make()?.map(&maps)
    }

    /// Returns the id that user 0 inside is, as the maker of the pair names it.
    pub fn root(&self) -> u32 {
        self.root
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

/// Makes the namespaces, with bounds of their own, raises `lo`, says so, and holds them until it is
/// killed.
fn hold(answer: BorrowedFd<'_>, own: bool) -> ! {
    // A descriptor of the maker's that stayed open here would hide from others that it was closed.
    let kept = answer.as_raw_fd().unsigned_abs();
    for (first, last) in [(3, kept.saturating_sub(1)), (kept + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: this process uses no descriptor but the one that is kept.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
    if own {
        become_owner();
    }
    // SAFETY: a plain system call on this process alone.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
    // SAFETY: a plain system call in a process with one thread.
    let made = unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) };
    if made == 0 && own {
        bound_watches();
    }
    send_answer(answer, if made == 0 { raise_loopback() } else { made });
    // Besides the signal: the parent may have ended before it was asked for.
    let mut end = libc::pollfd {
        fd: answer.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // SAFETY: the one record outlives the call.
    unsafe { libc::poll(&raw mut end, 1, -1) };
    // SAFETY: ends the child without running anything of the parent's.
    unsafe { libc::_exit(0) }
}

/// Becomes a user that nobody else is, where this process may: what a user namespace uses of the
/// kernel's tables is counted for its maker too, and root's own programs must not run short of it.
fn become_owner() {
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 {
        return;
    }
    // SAFETY: a plain system call.
    let number = unsafe { libc::getpid() }.unsigned_abs();
    // Only the effective id: the others stay root's, who has to write the maps. Where it is
    // refused, as in a namespace with few ids, the maker stays whoever it is.
    // SAFETY: a plain system call in a process with one thread.
    unsafe { libc::syscall(libc::SYS_setresuid, -1, OWNERS_FIRST + number, -1) };
}

/// Gives the new user namespace a bound of its own on watches of files.
fn bound_watches() {
    let setting = c"/proc/sys/user/max_inotify_instances";
    // SAFETY: the path is a text that lives for ever.
    let file = unsafe { libc::open(setting.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    // A kernel or a host without it has no such bound.
    if file >= 0 {
        // SAFETY: the text lives for ever and is as long as that.
        unsafe { libc::write(file, WATCHERS_MAX.as_ptr().cast(), WATCHERS_MAX.len()) };
        // SAFETY: the descriptor was made here and is used nowhere else.
        unsafe { libc::close(file) };
    }
}

/// Sends 0 or the error number of the call that gave `result`.
fn send_answer(answer: BorrowedFd<'_>, result: i32) {
    let errno = if result == 0 {
        0
    } else {
        io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO)
    };
    let _parent_gone = rustix::io::write(answer, &errno.to_ne_bytes());
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
#[derive(Debug)]
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

    fn path(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.0.as_raw_nonzero())
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
