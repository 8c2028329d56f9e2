//! What a first process does: takes inherited descriptors, hears signals, reaps, ends processes.

#![expect(
    unsafe_code,
    reason = "these are the system calls that have no safe wrapper"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

/// Takes a descriptor that this process was started with, and keeps it from its children.
///
/// # Errors
/// Fails when it is not open.
///
/// # Panics
/// Never; taking the same one twice is refused, because the first taking marks it.
pub fn take_inherited(descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: reads flags of a number that need not be open.
    let flags = unsafe { libc::fcntl(descriptor, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "the descriptor is not an inherited one",
        ));
    }
    // SAFETY: the descriptor is open.
    if unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was inherited and, being unmarked until now, is owned by nothing in this process.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// A signal that was sent to this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Its number.
    pub signal: i32,
    /// Whether a process outside this pid namespace sent it; nothing inside can make it look so.
    pub from_outside: bool,
}

/// Hears signals through a descriptor instead of handlers.
#[derive(Debug)]
pub struct Signals {
    queue: OwnedFd,
}

impl Signals {
    /// Blocks signals for this thread, and those that it starts later, and queues them here.
    ///
    /// # Errors
    /// Fails when no descriptor is left.
    pub fn hear(signals: &[i32]) -> io::Result<Self> {
        // SAFETY: an all-zero signal set is a valid empty one.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        for &signal in signals {
            // SAFETY: the set is valid; a bad number is refused.
            if unsafe { libc::sigaddset(&raw mut set, signal) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: the set is valid.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: the set is valid.
        let queue = unsafe { libc::signalfd(-1, &raw const set, flags) };
        if queue < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it for us.
        let queue = unsafe { OwnedFd::from_raw_fd(queue) };
        Ok(Self { queue })
    }

    /// Takes one signal, or nothing when none is queued.
    ///
    /// # Errors
    /// Fails when the kernel does.
    pub fn read(&self) -> io::Result<Option<Received>> {
        // SAFETY: all-zero is a valid record.
        let mut record: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        let size = size_of_val(&record);
        // SAFETY: the kernel writes at most `size` bytes into the record.
        let got = unsafe { libc::read(self.queue.as_raw_fd(), (&raw mut record).cast(), size) };
        if got < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        }
        Ok(Some(Received {
            signal: i32::try_from(record.ssi_signo).unwrap_or(0),
            from_outside: record.ssi_code == libc::SI_USER && record.ssi_pid == 0,
        }))
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.queue.as_raw_fd()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signalled(i32),
}

/// A process that has ended, and what it and the children that it waited for used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reaped {
    /// Its id, free again now.
    pub pid: i32,
    /// How it ended.
    pub ended: Ended,
    /// CPU time in user mode, microseconds.
    pub user_time_us: u64,
    /// CPU time in the kernel, microseconds.
    pub system_time_us: u64,
    /// Largest resident size, bytes.
    pub memory_max_bytes: u64,
}

/// Whether any child is left, when none has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reap {
    /// A child has ended.
    One(Reaped),
    /// None has ended.
    Running,
    /// There are no children.
    Childless,
}

/// Reaps one child that has ended, whichever it is, without waiting.
///
/// # Errors
/// Fails when the kernel does.
pub fn reap() -> io::Result<Reap> {
    let mut status = 0;
    // SAFETY: all-zero is a valid record.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both records live through the call.
    let pid = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage) };
    match pid {
        0 => return Ok(Reap::Running),
        pid if pid > 0 => {}
        _ => {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ECHILD) => Ok(Reap::Childless),
                Some(libc::EINTR) => Ok(Reap::Running),
                _ => Err(error),
            };
        }
    }
    let ended = if libc::WIFSIGNALED(status) {
        Ended::Signalled(libc::WTERMSIG(status))
    } else {
        Ended::Exited(libc::WEXITSTATUS(status))
    };
    Ok(Reap::One(Reaped {
        pid,
        ended,
        user_time_us: microseconds(usage.ru_utime),
        system_time_us: microseconds(usage.ru_stime),
        memory_max_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) << 10,
    }))
}

fn microseconds(time: libc::timeval) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000 + u64::try_from(time.tv_usec).unwrap_or(0)
}

/// Signals every process that this one may signal, but not itself.
///
/// # Errors
/// Fails when there is none.
pub fn signal_everything(signal: i32) -> io::Result<()> {
    kill(-1, signal)
}

/// Signals a process group.
///
/// # Errors
/// Fails when the group is gone, or the number is no signal.
pub fn signal_group(group: i32, signal: i32) -> io::Result<()> {
    if group <= 1 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    kill(-group, signal)
}

/// Signals one process if `is_it` still says so once the process cannot be mistaken for another.
///
/// # Errors
/// Fails when the process is gone, or the number is no signal.
pub fn signal_if(pid: i32, signal: i32, is_it: impl FnOnce() -> bool) -> io::Result<()> {
    let gone = || io::Error::from_raw_os_error(libc::ESRCH);
    let target = rustix::process::Pid::from_raw(pid).ok_or_else(gone)?;
    let handle = rustix::process::pidfd_open(target, rustix::process::PidfdFlags::empty())?;
    if !is_it() {
        return Err(gone());
    }
    let info = ptr::null::<libc::siginfo_t>();
    // SAFETY: no signal information is passed, so the kernel reads no memory of ours.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            handle.as_raw_fd(),
            signal,
            info,
            0,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Gives memory that was freed back to the kernel.
///
/// The allocator keeps what it once had. In a process that idles most of its life beside a thousand
/// others, what one burst took would be missing everywhere else.
pub fn release_memory() {
    // SAFETY: touches only memory that is free.
    unsafe { libc::malloc_trim(0) };
}

fn kill(target: i32, signal: i32) -> io::Result<()> {
    // SAFETY: a plain system call.
    if unsafe { libc::kill(target, signal) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
