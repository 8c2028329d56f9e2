//! Starts a process with exact ids, limits, terminal and descriptors.
//!
//! The child shares the caller's memory until it executes (`CLONE_VM | CLONE_VFORK`), so starting
//! costs the same however large the caller is, and a failure is reported through that memory. The
//! child makes only system calls: no allocation, no lock, nothing that another thread could hold.

#![expect(
    unsafe_code,
    reason = "these are the system calls that have no safe wrapper"
)]

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_uint, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

/// Stack of the child until it executes; its frames need a small part of it.
const CHILD_STACK_BYTES: usize = 64 << 10;
/// Highest number of a signal.
const SIGNAL_MAX: c_int = 64;
/// Size of the kernel's own set of signals.
const SIGNAL_SET_BYTES: usize = 8;
/// First descriptor that is not standard input, output or error.
const FIRST_OTHER_DESCRIPTOR: c_uint = 3;
/// Permissions that new files of the process lack, as everywhere.
const UMASK: libc::mode_t = 0o022;
/// Most capabilities that a kernel can have.
const CAPABILITY_BITS: u64 = 64;
/// Exit status of a child that could not execute; nobody sees it.
const CHILD_FAILED: c_int = 127;
/// Name that the kernel gives this version of its capability sets.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// What is to be started. Descriptors that are passed must not be 0, 1 or 2.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// Programs to try, in order, as a search of `PATH` gives them.
    pub candidates: &'a [CString],
    /// Arguments, the program's name first.
    pub arguments: &'a [CString],
    /// The whole environment, `NAME=value` each.
    pub environment: &'a [CString],
    /// Directory to start in.
    pub directory: Directory<'a>,
    /// Whose ids it gets; absent keeps the caller's.
    pub credentials: Option<&'a Credentials>,
    /// Its standard descriptors.
    pub streams: Streams<'a>,
    /// Resource limits to set.
    pub limits: &'a [Limit],
    /// How much sooner than others it is ended when memory is short.
    pub oom_score_adjustment: Option<i16>,
    /// Capabilities, as a bit mask, that it may at most get; absent leaves them alone.
    pub capabilities: Option<u64>,
}

/// Where a process starts.
#[derive(Debug, Clone, Copy)]
pub enum Directory<'a> {
    /// A path, looked up with the process's own ids.
    Path(&'a CStr),
    /// An open directory.
    Open(BorrowedFd<'a>),
}

/// Ids of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User.
    pub user: u32,
    /// Group.
    pub group: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Standard descriptors of a process.
#[derive(Debug, Clone, Copy)]
pub enum Streams<'a> {
    /// One each for input, output and error.
    Separate([BorrowedFd<'a>; 3]),
    /// A terminal for all three, which becomes the controlling one.
    Terminal(BorrowedFd<'a>),
}

/// One resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Number of the resource.
    pub resource: u32,
    /// Limit in force.
    pub soft: u64,
    /// What the process may raise it to.
    pub hard: u64,
}

/// Returns the number of a resource by its name in getrlimit(2), lower case without the prefix.
pub fn resource_by_name(name: &str) -> Option<u32> {
    Some(match name {
        "cpu" => libc::RLIMIT_CPU,
        "fsize" => libc::RLIMIT_FSIZE,
        "data" => libc::RLIMIT_DATA,
        "stack" => libc::RLIMIT_STACK,
        "core" => libc::RLIMIT_CORE,
        "rss" => libc::RLIMIT_RSS,
        "nproc" => libc::RLIMIT_NPROC,
        "nofile" => libc::RLIMIT_NOFILE,
        "memlock" => libc::RLIMIT_MEMLOCK,
        "as" => libc::RLIMIT_AS,
        "locks" => libc::RLIMIT_LOCKS,
        "sigpending" => libc::RLIMIT_SIGPENDING,
        "msgqueue" => libc::RLIMIT_MSGQUEUE,
        "nice" => libc::RLIMIT_NICE,
        "rtprio" => libc::RLIMIT_RTPRIO,
        "rttime" => libc::RLIMIT_RTTIME,
        _ => return None,
    })
}

/// How far a process got that could not be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Making the process.
    Clone,
    /// Making its session.
    Session,
    /// Taking its terminal.
    Terminal,
    /// Placing its standard descriptors.
    Streams,
    /// Setting a resource limit.
    Limits,
    /// Giving up capabilities.
    Capabilities,
    /// Taking its groups.
    Groups,
    /// Taking its group id.
    Group,
    /// Taking its user id.
    User,
    /// Entering its directory.
    Directory,
    /// Executing the program.
    Execute,
    /// Executing the interpreter that the program, which is there, names.
    Interpreter,
}

impl Step {
    const ALL: [Self; 12] = [
        Self::Clone,
        Self::Session,
        Self::Terminal,
        Self::Streams,
        Self::Limits,
        Self::Capabilities,
        Self::Groups,
        Self::Group,
        Self::User,
        Self::Directory,
        Self::Execute,
        Self::Interpreter,
    ];

    fn describe(self) -> &'static str {
        match self {
            Self::Clone => "make a process",
            Self::Session => "make a session",
            Self::Terminal => "take the terminal",
            Self::Streams => "place the standard descriptors",
            Self::Limits => "set a resource limit",
            Self::Capabilities => "give up capabilities",
            Self::Groups => "take the supplementary groups",
            Self::Group => "take the group id",
            Self::User => "take the user id",
            Self::Directory => "enter the working directory",
            Self::Execute => "execute the program",
            Self::Interpreter => "execute the interpreter that the program names",
        }
    }
}

/// A process could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot {}", step.describe())]
pub struct SpawnError {
    /// How far it got.
    pub step: Step,
    /// Why the kernel refused.
    #[source]
    pub source: io::Error,
}

/// Everything that the child reads, made before it exists.
struct Child {
    candidates: Vec<*const c_char>,
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    directory_path: *const c_char,
    directory_handle: c_int,
    credentials: Option<(u32, u32)>,
    groups: Vec<u32>,
    tolerate_groups: bool,
    streams: [c_int; 3],
    terminal: bool,
    limits: Vec<Limit>,
    oom_score: Vec<u8>,
    capabilities: Option<u64>,
    step: AtomicU32,
    errno: AtomicI32,
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    let mut list: Vec<_> = strings.iter().map(|string| string.as_ptr()).collect();
    list.push(ptr::null());
    list
}

impl Child {
    fn new(spawn: &Spawn<'_>) -> Self {
        let (directory_path, directory_handle) = match spawn.directory {
            Directory::Path(path) => (path.as_ptr(), -1),
            Directory::Open(handle) => (ptr::null(), handle.as_raw_fd()),
        };
        let (streams, terminal) = match spawn.streams {
            Streams::Separate(streams) => (streams.map(|stream| stream.as_raw_fd()), false),
            Streams::Terminal(terminal) => ([terminal.as_raw_fd(); 3], true),
        };
        Self {
            candidates: pointers(spawn.candidates),
            arguments: pointers(spawn.arguments),
            environment: pointers(spawn.environment),
            directory_path,
            directory_handle,
            credentials: spawn.credentials.map(|ids| (ids.user, ids.group)),
            groups: spawn
                .credentials
                .map_or_else(Vec::new, |ids| ids.groups.clone()),
            // With a single id mapped the kernel lets nobody set groups; who stays who they are
            // loses nothing by that.
            tolerate_groups: spawn.credentials.is_some_and(|ids| {
                ids.user == rustix::process::geteuid().as_raw()
                    && ids.group == rustix::process::getegid().as_raw()
            }),
            streams,
            terminal,
            limits: spawn.limits.to_vec(),
            oom_score: spawn
                .oom_score_adjustment
                .map_or_else(Vec::new, |score| score.to_string().into_bytes()),
            capabilities: spawn.capabilities,
            step: AtomicU32::new(0),
            errno: AtomicI32::new(0),
        }
    }
}

/// Starts a process in a session of its own and returns its id once the program runs.
///
/// The caller's thread waits until then. No signal handler of the caller runs in the child.
///
/// # Errors
/// Returns how far it got; nothing is left of the child then.
pub fn spawn(spawn: &Spawn<'_>) -> Result<i32, SpawnError> {
    let child = Child::new(spawn);
    let mut stack: Vec<u128> = Vec::with_capacity(CHILD_STACK_BYTES / size_of::<u128>());
    let top = stack.spare_capacity_mut().as_mut_ptr_range().end;
    let blocked = block_all_signals();
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    let argument = ptr::from_ref(&child).cast_mut().cast::<c_void>();
    // SAFETY: the stack and `child` outlive the call: CLONE_VFORK holds this thread until the
    // child has executed or ended, and `run_child` touches no other memory of ours.
    let pid = unsafe { libc::clone(run_child, top.cast(), flags, argument) };
    let error = io::Error::last_os_error();
    restore_signals(&blocked);
    if pid < 0 {
        return Err(SpawnError {
            step: Step::Clone,
            source: error,
        });
    }
    let step = child.step.load(Ordering::Acquire) as usize;
    let Some(step) = step.checked_sub(1).and_then(|index| Step::ALL.get(index)) else {
        return Ok(pid);
    };
    let mut status = 0;
    // SAFETY: waits for our own child, which has ended or is about to.
    let _ended = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    Err(SpawnError {
        step: *step,
        source: io::Error::from_raw_os_error(child.errno.load(Ordering::Acquire)),
    })
}

fn block_all_signals() -> libc::sigset_t {
    // SAFETY: an all-zero signal set is a valid empty one.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: fills the set that it is given.
    unsafe { libc::sigfillset(&raw mut all) };
    let mut before = all;
    // SAFETY: both sets are valid; only this thread's mask changes.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) };
    before
}

fn restore_signals(before: &libc::sigset_t) {
    // SAFETY: the set was given by the kernel; only this thread's mask changes.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, ptr::null_mut()) };
}

extern "C" fn run_child(argument: *mut c_void) -> c_int {
    // SAFETY: the pointer is the `Child` of the waiting caller.
    let child = unsafe { &*argument.cast::<Child>() };
    let Err(step) = prepare_and_execute(child);
    child.step.store(step as u32 + 1, Ordering::Release);
    // SAFETY: ends the child without running anything of the caller's.
    unsafe { libc::_exit(CHILD_FAILED) }
}

/// Notes the error of the last system call and names the step.
fn failed(child: &Child, step: Step) -> Step {
    child.errno.store(last_errno(), Ordering::Release);
    step
}

/// Allocates nothing: the error is only a number.
fn last_errno() -> c_int {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn check(child: &Child, step: Step, result: c_long) -> Result<(), Step> {
    if result < 0 {
        Err(failed(child, step))
    } else {
        Ok(())
    }
}

fn prepare_and_execute(child: &Child) -> Result<std::convert::Infallible, Step> {
    reset_signal_actions();
    // SAFETY: a plain system call.
    check(child, Step::Session, unsafe { libc::setsid() }.into())?;
    place_streams(child)?;
    set_limits(child)?;
    raise_oom_score(child);
    // SAFETY: a plain system call.
    unsafe { libc::umask(UMASK) };
    give_up_capabilities(child)?;
    take_ids(child)?;
    enter_directory(child)?;
    unblock_signals();
    execute(child)
}

/// The kernel's own call: the C library's refuses the signals that it keeps for itself, which a
/// careless ancestor may have left ignored.
fn reset_signal_actions() {
    // Handler, flags, restorer and mask; all zero is the default action.
    let action = [0_u64; 4];
    for signal in 1..=SIGNAL_MAX {
        let (new, old) = (&raw const action, ptr::null_mut::<c_void>());
        // SAFETY: the record lives through the call; the child's table is its own.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, new, old, SIGNAL_SET_BYTES) };
    }
}

fn place_streams(child: &Child) -> Result<(), Step> {
    if child.terminal {
        let [terminal, ..] = child.streams;
        // SAFETY: the descriptor is the caller's terminal; no memory is passed.
        let taken = unsafe { libc::ioctl(terminal, libc::TIOCSCTTY, 0) };
        check(child, Step::Terminal, taken.into())?;
    }
    for (target, source) in (0..).zip(child.streams) {
        // SAFETY: the descriptors are open and the child's table is its own.
        let placed = unsafe { libc::dup2(source, target) };
        check(child, Step::Streams, placed.into())?;
    }
    if crate::weaken::is_off(crate::weaken::Defence::Descriptors) {
        return Ok(());
    }
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: marks descriptors of the child's own table.
    let marked = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST_OTHER_DESCRIPTOR,
            c_uint::MAX,
            flags,
        )
    };
    check(child, Step::Streams, marked)
}

fn set_limits(child: &Child) -> Result<(), Step> {
    for limit in &child.limits {
        let value = libc::rlimit64 {
            rlim_cur: limit.soft,
            rlim_max: limit.hard,
        };
        let nothing = ptr::null_mut::<libc::rlimit64>();
        // SAFETY: `value` lives through the call.
        let set = unsafe {
            libc::syscall(
                libc::SYS_prlimit64,
                0,
                limit.resource,
                &raw const value,
                nothing,
            )
        };
        check(child, Step::Limits, set)?;
    }
    Ok(())
}

/// Best effort: without `/proc` memory pressure chooses by size alone.
fn raise_oom_score(child: &Child) {
    if child.oom_score.is_empty() {
        return;
    }
    let path = c"/proc/self/oom_score_adj".as_ptr();
    // SAFETY: the path is a constant string.
    let file = unsafe { libc::open(path, libc::O_WRONLY | libc::O_CLOEXEC) };
    if file >= 0 {
        // SAFETY: the bytes belong to the waiting caller.
        unsafe { libc::write(file, child.oom_score.as_ptr().cast(), child.oom_score.len()) };
        // SAFETY: opened above.
        unsafe { libc::close(file) };
    }
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Limits what `execve` can give. The present sets stay until then, so that until then nobody who
/// has less may trace the child, which still shares the caller's memory.
fn give_up_capabilities(child: &Child) -> Result<(), Step> {
    let Some(kept) = child.capabilities else {
        return Ok(());
    };
    let step = Step::Capabilities;
    for bit in 0..CAPABILITY_BITS {
        if kept & (1 << bit) != 0 {
            continue;
        }
        // SAFETY: a plain system call.
        let known = unsafe { libc::prctl(libc::PR_CAPBSET_READ, bit, 0, 0, 0) };
        if known == 1 {
            // SAFETY: a plain system call.
            let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, bit, 0, 0, 0) };
            check(child, step, dropped.into())?;
        }
    }
    // SAFETY: a plain system call.
    let cleared = unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        )
    };
    check(child, step, cleared.into())?;
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let mut data = [CapabilityData::default(); 2];
    // SAFETY: version 3 has two records, which live through the call.
    let read = unsafe { libc::syscall(libc::SYS_capget, &raw const header, &raw mut data) };
    check(child, step, read)?;
    for record in &mut data {
        record.inheritable = 0;
    }
    // SAFETY: as above.
    let written = unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const data) };
    check(child, step, written)?;
    // SAFETY: a plain system call; execve clears it.
    let kept = unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) };
    check(child, step, kept.into())
}

/// Raw system calls: the C library's wrappers would change every thread of the caller.
fn take_ids(child: &Child) -> Result<(), Step> {
    let Some((user, group)) = child.credentials else {
        return Ok(());
    };
    let groups = child.groups.as_ptr();
    // SAFETY: the list belongs to the waiting caller.
    let set = unsafe { libc::syscall(libc::SYS_setgroups, child.groups.len(), groups) };
    if set < 0 && !(child.tolerate_groups && last_errno() == libc::EPERM) {
        return Err(failed(child, Step::Groups));
    }
    // SAFETY: a plain system call that changes only the child.
    let set = unsafe { libc::syscall(libc::SYS_setresgid, group, group, group) };
    check(child, Step::Group, set)?;
    // SAFETY: a plain system call that changes only the child.
    let set = unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) };
    check(child, Step::User, set)
}

fn enter_directory(child: &Child) -> Result<(), Step> {
    let entered = if child.directory_path.is_null() {
        // SAFETY: the descriptor is the caller's.
        unsafe { libc::fchdir(child.directory_handle) }
    } else {
        // SAFETY: the path belongs to the waiting caller.
        unsafe { libc::chdir(child.directory_path) }
    };
    check(child, Step::Directory, entered.into())
}

fn unblock_signals() {
    // SAFETY: an all-zero signal set is a valid empty one.
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is valid.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) };
}

/// Tries the candidates as execvp(3) does, but never hands a file to a shell.
fn execute(child: &Child) -> Result<std::convert::Infallible, Step> {
    let mut worst = (Step::Execute, libc::ENOENT);
    for &candidate in &child.candidates {
        if candidate.is_null() {
            break;
        }
        let (arguments, environment) = (child.arguments.as_ptr(), child.environment.as_ptr());
        // SAFETY: all three belong to the waiting caller and end with a null pointer.
        unsafe { libc::execve(candidate, arguments, environment) };
        match last_errno() {
            libc::ENOENT if worst.1 == libc::ENOENT => {
                // SAFETY: the path belongs to the waiting caller.
                if unsafe { libc::access(candidate, libc::F_OK) } == 0 {
                    worst = (Step::Interpreter, libc::ENOENT);
                }
            }
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => worst = (Step::Execute, libc::EACCES),
            other => {
                worst = (Step::Execute, other);
                break;
            }
        }
    }
    child.errno.store(worst.1, Ordering::Release);
    Err(worst.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::fd::{AsFd, OwnedFd};

    fn strings(list: &[&str]) -> Vec<CString> {
        list.iter()
            .map(|text| CString::new(*text).unwrap())
            .collect()
    }

    struct Change<'a> {
        environment: &'a [&'a str],
        directory: &'a CStr,
        limits: &'a [Limit],
        credentials: Option<&'a Credentials>,
        capabilities: Option<u64>,
    }

    const PLAIN: Change<'static> = Change {
        environment: &[],
        directory: c"/",
        limits: &[],
        credentials: None,
        capabilities: None,
    };

    /// Runs a command, returns what it wrote and its wait status.
    fn run(
        candidates: &[&str],
        arguments: &[&str],
        change: &Change<'_>,
    ) -> Result<(String, i32), SpawnError> {
        let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let (mut output, input) = std::io::pipe().unwrap();
        let pid = spawn(&Spawn {
            candidates: &strings(candidates),
            arguments: &strings(arguments),
            environment: &strings(change.environment),
            directory: Directory::Path(change.directory),
            credentials: change.credentials,
            streams: Streams::Separate([null.as_fd(), input.as_fd(), null.as_fd()]),
            limits: change.limits,
            oom_score_adjustment: Some(500),
            capabilities: change.capabilities,
        })?;
        drop(input);
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        let mut status = 0;
        // SAFETY: waits for our own child.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        Ok((text, status))
    }

    #[test]
    fn a_process_gets_what_was_asked_and_nothing_else() {
        let script = "pwd; env; ulimit -n; cat /proc/self/oom_score_adj; ls /proc/self/fd; \
                      grep SigIgn /proc/self/status; grep SigBlk /proc/self/status";
        let change = Change {
            environment: &["A=b"],
            directory: c"/usr",
            limits: &[Limit {
                resource: libc::RLIMIT_NOFILE,
                soft: 77,
                hard: 99,
            }],
            ..PLAIN
        };
        let (text, status) = run(&["/bin/sh"], &["sh", "-c", script], &change).unwrap();
        assert_eq!(status, 0);
        assert!(text.starts_with("/usr\n"), "{text}");
        assert!(text.contains("\nA=b\n"), "{text}");
        assert!(!text.contains("CARGO"), "{text}");
        // `ls` itself opens the directory that it lists.
        assert!(text.contains("\n77\n500\n0\n1\n2\n3\nSig"), "{text}");
        assert!(text.contains("SigIgn:\t0000000000000000\n"), "{text}");
        assert!(text.contains("SigBlk:\t0000000000000000\n"), "{text}");
    }

    #[test]
    fn a_failure_says_how_far_it_got() {
        let scratch = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str, mode| {
            use std::os::unix::fs::PermissionsExt as _;
            let path = scratch.path().join(name);
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let closed = file("closed", "#!/bin/sh\n", 0o644);
        let data = file("data", "no program\n", 0o755);
        let orphan = file("orphan", "#!/nowhere/sh\n", 0o755);
        let outcome = |candidates: &[&str]| {
            let error = run(candidates, &["x"], &PLAIN).unwrap_err();
            (error.step, error.source.raw_os_error().unwrap())
        };
        assert_eq!(outcome(&["/a", "/b/c"]), (Step::Execute, libc::ENOENT));
        assert_eq!(outcome(&[&closed, "/a"]), (Step::Execute, libc::EACCES));
        assert_eq!(outcome(&[&data, "/a"]), (Step::Execute, libc::ENOEXEC));
        assert_eq!(outcome(&["/a", &orphan]), (Step::Interpreter, libc::ENOENT));
        assert_eq!(outcome(&[&orphan, &closed]), (Step::Execute, libc::EACCES));
        let nowhere = Change {
            directory: c"/nowhere",
            ..PLAIN
        };
        let error = run(&["/bin/true"], &["true"], &nowhere).unwrap_err();
        assert_eq!(error.step, Step::Directory);
        assert_eq!(
            run(&["/nowhere/true", "/bin/true"], &["true"], &PLAIN)
                .unwrap()
                .1,
            0
        );
    }

    #[test]
    fn ids_and_capabilities_are_taken() {
        if !crate::capability_to_test() {
            return;
        }
        let kept = 1_u64 << 10;
        let status = |user| {
            let credentials = Credentials {
                user,
                group: 1234,
                groups: vec![7, 8],
            };
            let change = Change {
                credentials: Some(&credentials),
                capabilities: Some(kept),
                ..PLAIN
            };
            run(&["/bin/cat"], &["cat", "/proc/self/status"], &change)
                .unwrap()
                .0
        };
        let root = status(0);
        for line in [
            "Gid:\t1234\t1234",
            "Groups:\t7 8",
            "CapInh:\t0000000000000000",
        ] {
            assert!(root.contains(line), "{line} in {root}");
        }
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert!(root.contains(&format!("{set}:\t{kept:016x}")), "{root}");
        }
        let user = status(1234);
        assert!(user.contains("Uid:\t1234\t1234\t1234\t1234"), "{user}");
        assert!(user.contains("CapPrm:\t0000000000000000"), "{user}");
    }
}
