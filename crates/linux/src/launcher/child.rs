//! What the launcher's children do: one prepares, and process 1 of the sandbox becomes the agent.
//!
//! The launcher has one thread, so a forked child may do whatever the launcher may.

#![expect(unsafe_code, reason = "clone3, execveat and prctl have no safe form")]

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::time::Instant;

use pinfold_types::crash_point;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::error::{LaunchFailure, Timing};
use super::plan::{Attach, Boot, Identity, Plan};
use super::wire::{self, Answer, Refusal, refused};
use crate::identity::NamespacePair;
use crate::mount::{self, Durability, Ids, MountError, Private, Stack};
use crate::root::{self, Assembly};
use crate::weaken::{Defence, is_off};

/// Where descriptors wait until they can take their final numbers, above all of those.
const PARKING_DESCRIPTOR: i32 = 64;
/// What a test leaves open, beyond all of those.
const LEFT_DESCRIPTOR: i32 = 2 * PARKING_DESCRIPTOR;
/// `CLONE_INTO_CGROUP` of `clone3`.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// The whole environment of the agent; it finds programs for its execs by theirs.
pub(super) const PATH: &CStr = c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a launch has to work with.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    pub(super) plan: &'a Plan,
    /// As [`Plan`] says.
    pub(super) descriptors: &'a [OwnedFd],
    pub(super) pair: &'a NamespacePair,
    /// Maps the files of the user whom the plan names to the sandbox's root.
    pub(super) caller: Option<&'a NamespacePair>,
    pub(super) tiny: BorrowedFd<'a>,
    /// The agent's file, by [`above`].
    pub(super) agent: BorrowedFd<'a>,
    /// Where the preparing child tells of process 1.
    pub(super) birth: &'a OwnedFd,
    /// Where process 1 tells of itself, by [`above`]; closed by executing the agent.
    pub(super) report: &'a OwnedFd,
}

/// Measures steps.
#[derive(Debug)]
pub(super) struct Watch {
    last: Instant,
    timings: Vec<Timing>,
}

impl Watch {
    pub(super) fn start() -> Self {
        Self {
            last: Instant::now(),
            timings: Vec::new(),
        }
    }

    pub(super) fn lap(&mut self, step: &str) {
        let now = Instant::now();
        let micros = u64::try_from((now - self.last).as_micros()).unwrap_or(u64::MAX);
        self.last = now;
        self.timings.push(Timing {
            step: step.to_owned(),
            micros,
        });
    }

    pub(super) fn into_timings(self) -> Vec<Timing> {
        self.timings
    }
}

impl Launch<'_> {
    /// Prepares everything outside and makes process 1, in a child that ends after it.
    pub(super) fn run(&self, mut watch: Watch) -> u8 {
        watch.lap("fork");
        let answer = self
            .prepare(&mut watch)
            .inspect(|_| crash_point!("launcher.prepared"))
            .and_then(|assembly| match self.make_first_process()? {
                Born::Parent(pid, pidfd) => Ok(Some((pid, pidfd))),
                Born::Child => {
                    let Err(refusal) = self.become_agent(&assembly, &mut watch);
                    let _launcher_gone = wire::send(self.report, &Answer::Refused(refusal), &[]);
                    Ok(None)
                }
            });
        let sent = match answer {
            Ok(Some((pid, pidfd))) => {
                let message = Answer::Launched {
                    pid,
                    start_time: 0,
                    timings: Vec::new(),
                };
                wire::send(self.birth, &message, &[pidfd.as_fd()])
            }
            // Only in process 1, after it failed.
            Ok(None) => return 1,
            Err(refusal) => wire::send(self.birth, &Answer::Refused(refusal), &[]),
        };
        u8::from(sent.is_err())
    }

    fn prepare(&self, watch: &mut Watch) -> Result<Assembly<'_>, Refusal> {
        let plan = self.plan;
        let ids = match plan.identity {
            Identity::Range { .. } if !is_off(Defence::UserNamespace) => Ids::Mapped(self.pair),
            Identity::Range { .. } | Identity::Shared | Identity::Single => Ids::Unchanged,
        };
        let users = root::Users {
            sandbox: matches!(ids, Ids::Mapped(_)).then(|| self.pair.user()),
            caller: self.caller.map(NamespacePair::user),
        };
        let reach = plan.root.layer_reach.as_ref();
        let given = reach
            .map(|reach| root::prepare_layer(&plan.root.layers, reach, users))
            .transpose()?;
        let stack = mount::stack(&Stack {
            layers: &plan.root.layers,
            given: given.as_ref().map(OwnedFd::as_fd),
            private: match plan.root.tmpfs_upper {
                Some(limit) => Private::Memory(limit),
                None if plan.root.private.is_file() => Private::Image(&plan.root.private),
                None => Private::Directory(&plan.root.private),
            },
            durability: if plan.root.volatile {
                Durability::Volatile
            } else {
                Durability::Durable
            },
            ids,
        })
        .map_err(refused_stack)?;
        watch.lap("stack the layers");
        let binds = plan
            .root
            .binds
            .iter()
            .map(|bind| root::prepare(bind, users));
        let binds = binds.collect::<Result<Vec<_>, _>>()?;
        watch.lap("clone the binds");
        if is_off(Defence::Descriptors) {
            leave_open()?;
        }
        self.join()?;
        watch.lap("join the namespaces");
        Ok(Assembly {
            stack,
            binds,
            tmpfs_bytes: plan.tmpfs_bytes,
            pid_max: plan.pid_max.filter(|_| {
                // Without a namespace of its own the limit would be everybody's.
                !is_off(Defence::ProcessLimit) && !is_off(Defence::PidNamespace)
            }),
            terminal_group: !matches!(plan.identity, Identity::Single),
        })
    }

    fn join(&self) -> Result<(), Refusal> {
        let failed = refused(LaunchFailure::HostUnsupported, "join the namespaces");
        // The order matters: after the user namespace is joined the rights over the host's are gone.
        for (namespace, kind, defence) in [
            (self.tiny, LinkNameSpaceType::Mount, Defence::MountNamespace),
            (
                self.pair.user(),
                LinkNameSpaceType::User,
                Defence::UserNamespace,
            ),
            (
                self.pair.network(),
                LinkNameSpaceType::Network,
                Defence::NetworkNamespace,
            ),
        ] {
            if is_off(defence) {
                continue;
            }
            move_into_link_name_space(namespace, Some(kind)).map_err(&failed)?;
        }
        Ok(())
    }

    /// Makes process 1 with `clone3`; both it and the caller return from here.
    fn make_first_process(&self) -> Result<Born, Refusal> {
        let failed = refused(LaunchFailure::HostUnsupported, "make process 1");
        let attaches = self.plan.attach.iter().zip(self.attach_descriptors());
        let attaches = attaches.filter(|_| !is_off(Defence::ProcessLimit));
        let into = attaches
            .filter(|(how, _)| matches!(how, Attach::Into))
            .map(|(_, descriptor)| descriptor)
            .next();
        let born = clone_first_process(into);
        match born {
            // A delegation may forbid it; then the process itself asks to be moved.
            Err(Errno::ACCESS | Errno::PERM | Errno::BUSY | Errno::OPNOTSUPP) if into.is_some() => {
                clone_first_process(None)
            }
            born => born,
        }
        .map_err(failed)
    }

    fn attach_descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let attaches = self.plan.attach.len();
        self.descriptors
            .iter()
            .skip(2)
            .take(attaches)
            .map(OwnedFd::as_fd)
    }

    /// Runs in process 1, and returns only on failure.
    fn become_agent(
        &self,
        assembly: &Assembly<'_>,
        watch: &mut Watch,
    ) -> Result<Infallible, Refusal> {
        watch.lap("make process 1");
        crash_point!("launcher.first_process");
        let failed = |step| refused(LaunchFailure::HostUnsupported, step);
        if !is_off(Defence::ProcessLimit) {
            self.attach_to_cgroups()?;
        }
        self.take_ids()?;
        // After the attach, so that its own group is the root that it sees.
        // SAFETY: only this process's view of control groups changes.
        match unsafe { unshare_unsafe(cgroup_namespace()) } {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(failed("make a cgroup namespace")(errno)),
        }
        if !is_off(Defence::UtsNamespace) {
            rustix::system::sethostname(self.plan.hostname.as_bytes())
                .map_err(failed("set the host name"))?;
        }
        watch.lap("attach and take ids");
        root::enter(assembly)?;
        watch.lap("make the root");
        self.place_descriptors()?;
        reset_process().map_err(failed("start a session"))?;
        confine()?;
        watch.lap("confine");
        let timings = std::mem::replace(watch, Watch::start()).into_timings();
        let ready = Answer::Launched {
            pid: 1,
            start_time: 0,
            timings,
        };
        // Nobody would know of this sandbox if the launcher is gone.
        wire::send(self.report, &ready, &[]).map_err(|source| {
            Refusal::new(LaunchFailure::LauncherGone, "tell the launcher", &source)
        })?;
        Err(failed("execute the agent")(execute(
            self.agent,
            &self.plan.id,
        )))
    }

    fn attach_to_cgroups(&self) -> Result<(), Refusal> {
        let failed = refused(LaunchFailure::HostUnsupported, "join the control group");
        for (how, descriptor) in self.plan.attach.iter().zip(self.attach_descriptors()) {
            match how {
                Attach::Tasks => drop(rustix::io::write(descriptor, b"0").map_err(&failed)?),
                Attach::Into if is_member(descriptor) => {}
                Attach::Into => {
                    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
                    let file = openat(descriptor, "cgroup.procs", flags, Mode::empty())
                        .map_err(&failed)?;
                    rustix::io::write(&file, b"0").map_err(&failed)?;
                }
            }
        }
        Ok(())
    }

    fn take_ids(&self) -> Result<(), Refusal> {
        let failed = refused(LaunchFailure::HostUnsupported, "take the sandbox's ids");
        let (user, group) = (rustix::process::Uid::ROOT, rustix::process::Gid::ROOT);
        // With a single id the kernel lets nobody give up groups, which are of no id inside then.
        if !matches!(self.plan.identity, Identity::Single) {
            rustix::thread::set_thread_groups(&[]).map_err(&failed)?;
        }
        rustix::thread::set_thread_res_gid(group, group, group).map_err(&failed)?;
        rustix::thread::set_thread_res_uid(user, user, user).map_err(&failed)
    }

    /// Gives every descriptor of the agent its number; all others are closed by executing it.
    fn place_descriptors(&self) -> Result<(), Refusal> {
        let failed = |source: io::Error| {
            Refusal::new(LaunchFailure::Internal, "place the descriptors", &source)
        };
        // Everything that is used after this, also the report and the agent's file, has a number
        // above those that are taken now.
        for (number, descriptor) in (0..).zip(self.park().map_err(failed)?) {
            // SAFETY: nothing of this process that has such a number is used or closed any more.
            if unsafe { libc::dup2(descriptor.as_raw_fd(), number) } < 0 {
                return Err(failed(io::Error::last_os_error()));
            }
        }
        crate::descriptors::close_on_exec_from(self.first_foreign()).map_err(failed)?;
        if is_off(Defence::Descriptors) {
            // SAFETY: a plain system call; `leave_open` has opened the descriptor.
            unsafe { libc::fcntl(LEFT_DESCRIPTOR, libc::F_SETFD, 0) };
        }
        Ok(())
    }

    fn first_foreign(&self) -> u32 {
        let usage = self.plan.boot.usage.len();
        Boot::USAGE_DESCRIPTOR.unsigned_abs() + u32::try_from(usage).unwrap_or(u32::MAX >> 1)
    }

    /// Returns the agent's descriptors in their order, out of the way.
    fn park(&self) -> io::Result<Vec<OwnedFd>> {
        let boot = boot_file(&self.plan.boot)?;
        let null = openat(
            CWD,
            "/dev/null",
            OFlags::RDWR | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let [listener, log, rest @ ..] = self.descriptors else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        let usage = rest.iter().skip(self.plan.attach.len());
        let order = [&null, log, log, listener, &boot].into_iter().chain(usage);
        order
            .map(|descriptor| Ok(above(descriptor)?))
            .collect::<io::Result<Vec<_>>>()
    }
}

/// Copies a descriptor to a number that the agent's own never have.
pub(super) fn above(descriptor: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(descriptor, PARKING_DESCRIPTOR)
}

enum Born {
    /// In the maker: the process and its pidfd.
    Parent(i32, OwnedFd),
    /// In the process itself.
    Child,
}

/// As the kernel wants it, `struct clone_args`.
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

fn clone_first_process(into: Option<BorrowedFd<'_>>) -> Result<Born, Errno> {
    let mut namespaces = libc::CLONE_NEWNS;
    if !is_off(Defence::PidNamespace) {
        namespaces |= libc::CLONE_NEWPID;
    }
    if !is_off(Defence::IpcNamespace) {
        namespaces |= libc::CLONE_NEWIPC;
    }
    if !is_off(Defence::UtsNamespace) {
        namespaces |= libc::CLONE_NEWUTS;
    }
    // A child of the launcher, not of the child that prepares: that one ends now.
    let flags = namespaces | libc::CLONE_PARENT | libc::CLONE_PIDFD;
    let mut pidfd: i32 = -1;
    let mut arguments = CloneArguments {
        flags: u64::from(flags.unsigned_abs()),
        pidfd: (&raw mut pidfd).addr() as u64,
        ..CloneArguments::default()
    };
    if let Some(group) = into {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::from(group.as_raw_fd().unsigned_abs());
    }
    // SAFETY: without CLONE_VM this is a fork: the child has a copy of the memory. The record and
    // the place for the pidfd outlive the call.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of::<CloneArguments>(),
        )
    };
    match i32::try_from(pid).unwrap_or(-1) {
        0 => Ok(Born::Child),
        pid if pid > 0 => {
            // SAFETY: the kernel has just made it for this process.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Born::Parent(pid, pidfd))
        }
        _ => Err(last_errno()),
    }
}

/// Forgets to close the root directory of the host, as a test of that wants.
fn leave_open() -> Result<(), Refusal> {
    let failed = refused(LaunchFailure::Internal, "leave a directory open");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, "/", flags, Mode::empty()).map_err(&failed)?;
    // SAFETY: nothing of this process has that number.
    if unsafe { libc::dup2(root.as_raw_fd(), LEFT_DESCRIPTOR) } < 0 {
        return Err(failed(last_errno()));
    }
    Ok(())
}

fn cgroup_namespace() -> UnshareFlags {
    if is_off(Defence::CgroupNamespace) {
        UnshareFlags::empty()
    } else {
        UnshareFlags::NEWCGROUP
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Returns whether the calling process is alone in, or at least in, the group it was made into.
fn is_member(group: BorrowedFd<'_>) -> bool {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    openat(group, "cgroup.procs", flags, Mode::empty())
        .map(std::fs::File::from)
        .and_then(|file| io::read_to_string(file).map_err(|_| Errno::IO))
        // A process of its own pid namespace reads of others only zeros.
        .is_ok_and(|members| members.lines().any(|member| member == "1"))
}

/// Writes what the agent is told to a file of memory, and rewinds it.
fn boot_file(boot: &Boot) -> io::Result<OwnedFd> {
    let text = serde_json::to_vec(boot)?;
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = rustix::fs::memfd_create("boot", flags)?;
    let mut file = std::fs::File::from(file);
    io::Write::write_all(&mut file, &text)?;
    io::Seek::rewind(&mut file)?;
    Ok(file.into())
}

/// Undoes what the launcher has of its daemon: session, signals, mask of permissions.
fn reset_process() -> rustix::io::Result<()> {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    rustix::process::setsid()?;
    for signal in [libc::SIGPIPE, libc::SIGCHLD] {
        // SAFETY: the default action has no handler that could run.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    Ok(())
}

/// Gives up every right that the agent does not need, in the order in which it still may.
fn confine() -> Result<(), Refusal> {
    let failed =
        |step| move |source: io::Error| Refusal::new(LaunchFailure::HostUnsupported, step, &source);
    crate::capability::limit_to_agent().map_err(failed("give up capabilities"))?;
    if is_off(Defence::Seccomp) {
        return Ok(());
    }
    crate::seccomp::install().map_err(failed("install the system call filter"))
}

/// Becomes the agent, and returns only on failure.
fn execute(agent: BorrowedFd<'_>, id: &str) -> Errno {
    let Ok(id) = CString::new(id) else {
        return Errno::INVAL;
    };
    let arguments = [
        c"pinfold-agent".as_ptr(),
        c"init".as_ptr(),
        id.as_ptr(),
        std::ptr::null(),
    ];
    let crash_at = crash_at();
    // The agent of a test build leaves out what the launcher does.
    let weakened = std::env::var(crate::weaken::VARIABLE).ok();
    let weakened = weakened
        .filter(|_| cfg!(feature = "test-weaken"))
        .and_then(|names| CString::new(format!("{}={names}", crate::weaken::VARIABLE)).ok());
    let mut environment = vec![PATH.as_ptr()];
    environment.extend(crash_at.iter().chain(&weakened).map(|text| text.as_ptr()));
    environment.push(std::ptr::null());
    // SAFETY: both lists end in null and their strings in zero, and they outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            agent.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    last_errno()
}

/// Returns what tells the agent at which point to end, in a build for such tests.
fn crash_at() -> Option<CString> {
    let point = pinfold_types::crash::wanted()?;
    let text = format!("{}={}", pinfold_types::crash::CRASH_AT, point.display());
    CString::new(text).ok()
}

fn refused_stack(error: MountError) -> Refusal {
    match error {
        MountError::Step { step, path, source } => {
            let failure = match source.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => LaunchFailure::InvalidImage,
                _ => LaunchFailure::HostUnsupported,
            };
            Refusal::new(failure, step, &source).at(path)
        }
        MountError::TooManyLayers { .. } => Refusal::new(
            LaunchFailure::InvalidImage,
            "stack that many layers",
            &io::Error::from_raw_os_error(libc::E2BIG),
        ),
    }
}
