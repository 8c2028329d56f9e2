//! Starts the agent: takes what it inherited, guards itself, and serves until it is told to end.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use pinfold_linux::init::{self, Reap, Signals};
use pinfold_linux::launcher::plan::{Boot, PLAN_VERSION};
use pinfold_linux::weaken::{Defence, is_off};
use pinfold_types::crash_point;
use pinfold_types::error::ErrorChain;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use tokio::io::Interest;
use tokio::net::{TcpListener, UnixListener};
use tokio::time::Instant;

use crate::files::Files;
use crate::metrics::Usage;
use crate::process::Table;
use crate::root::Root;
use crate::worker::Workers;
use crate::{Agent, dial, ready, serve};

/// Most bytes of the boot record.
const BOOT_BYTES_MAX: u64 = 64 << 10;
/// Most usage descriptors.
const USAGE_FILES_MAX: usize = 16;
/// How long processes may take to end by themselves when the sandbox is told to end. Who tells it
/// has a patience of its own, normally a shorter one.
const END_TIME: Duration = Duration::from_mins(1);
/// How long readers may then take to acknowledge what they were told; who is not there does not.
const TELL_TIME: Duration = Duration::from_millis(300);
/// How often it is looked whether they have.
const END_LOOK_EVERY: Duration = Duration::from_millis(10);
/// Open files that execs get at first, as programs expect; they may raise it.
const OPEN_FILES_SOFT: u64 = 1024;

/// The agent could not start.
#[derive(Debug, thiserror::Error)]
enum BootError {
    /// A descriptor is missing.
    #[error("cannot take inherited descriptor {0}")]
    Descriptor(i32, #[source] io::Error),
    /// The boot record cannot be read.
    #[error("cannot read the boot record")]
    Read(#[source] io::Error),
    /// The boot record is none.
    #[error("the boot record is malformed")]
    Malformed(#[source] serde_json::Error),
    /// The boot record is another version's.
    #[error("the boot record has version {0}, and this agent knows {PLAN_VERSION}")]
    Version(u32),
    /// The kernel refused something.
    #[error("cannot {0}")]
    Kernel(&'static str, #[source] io::Error),
}

fn kernel<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> BootError {
    move |error| BootError::Kernel(what, error.into())
}

/// Serves one sandbox until it is told to end.
pub fn init() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let line = format!("pinfold-agent: {}\n", ErrorChain(&error));
            drop(io::stderr().write_all(line.as_bytes()));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), BootError> {
    // Before anything else, so that nothing that could trace this process ever runs beside it.
    if !is_off(Defence::Dumpable) {
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(kernel("keep this process from being traced"))?;
    }
    let boot = read_boot()?;
    if boot.plain.is_some() {
        rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)
            .map_err(kernel("let this process be looked at"))?;
        // Not process 1, and yet orphans of its execs are its to reap.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(kernel("adopt orphans"))?;
    }
    if is_off(Defence::PidNamespace) {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(kernel("adopt orphans"))?;
    }
    let listener = take(Boot::LISTENER_DESCRIPTOR)?;
    let mut usage = Vec::new();
    for number in (Boot::USAGE_DESCRIPTOR..).take(boot.usage.len().min(USAGE_FILES_MAX)) {
        usage.push(take(number)?);
    }
    let root = Root::open(boot.plain.as_deref().unwrap_or(Path::new("/")))
        .map_err(kernel("open the root directory"))?;
    let root = Arc::new(root);
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(kernel("open /dev/null"))?;
    let open_files = raise_open_files();
    let usage = Arc::new(Usage::new(&boot, usage, Arc::clone(&root)));
    let plain = boot.plain.is_some();
    let agent = Agent {
        table: Table::new(
            Arc::clone(&root),
            Arc::clone(&usage),
            plain,
            (null.into(), open_files),
        ),
        files: Files::new(root),
        workers: Workers::default(),
        usage,
        dials: dial::Dials::default(),
    };
    let signals =
        Signals::hear(&[libc::SIGCHLD, libc::SIGTERM]).map_err(kernel("listen for signals"))?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(kernel("make the runtime"))?
        .block_on(main(Arc::new(agent), &boot, listener, signals))
}

fn take(descriptor: i32) -> Result<OwnedFd, BootError> {
    init::take_inherited(descriptor).map_err(|error| BootError::Descriptor(descriptor, error))
}

fn read_boot() -> Result<Boot, BootError> {
    let mut text = Vec::new();
    File::from(take(Boot::DESCRIPTOR)?)
        .take(BOOT_BYTES_MAX)
        .read_to_end(&mut text)
        .map_err(BootError::Read)?;
    let boot: Boot = serde_json::from_slice(&text).map_err(BootError::Malformed)?;
    if boot.version != PLAN_VERSION {
        return Err(BootError::Version(boot.version));
    }
    Ok(boot)
}

/// Lets the agent open as many files as it may, and returns the limit that execs get.
fn raise_open_files() -> (u64, u64) {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // With the lower limit fewer execs run at once, and starting one more says so.
    let _unraised = rustix::process::setrlimit(Resource::Nofile, raised).is_err();
    (OPEN_FILES_SOFT.min(hard), hard)
}

async fn main(
    agent: Arc<Agent>,
    boot: &Boot,
    listener: OwnedFd,
    signals: Signals,
) -> Result<(), BootError> {
    let listener = std::os::unix::net::UnixListener::from(listener);
    let listening = kernel("listen on the inherited socket");
    listener.set_nonblocking(true).map_err(&listening)?;
    let listener = UnixListener::from_std(listener).map_err(&listening)?;
    tokio::spawn(serve::serve(Arc::clone(&agent), listener));
    if boot.tcp {
        listen_on_tcp(&agent).await?;
    }
    if is_off(Defence::AgentSocket) {
        let named = UnixListener::bind("/run/pinfold-agent.sock")
            .map_err(kernel("listen on a socket with a name"))?;
        tokio::spawn(serve::serve(Arc::clone(&agent), named));
    }
    crash_point!("agent.serving");
    let plain = boot.plain.is_some();
    let signals =
        ready::watched(signals, Interest::READABLE).map_err(kernel("listen for signals"))?;
    loop {
        let mut ready = signals
            .readable()
            .await
            .map_err(kernel("wait for a signal"))?;
        loop {
            match signals.get_ref().read().map_err(kernel("take a signal"))? {
                None => break,
                Some(got)
                    if got.signal == libc::SIGTERM
                        && (got.from_outside || plain || is_off(Defence::AgentSignals)) =>
                {
                    // Only in a namespace of its own does it meet nobody else.
                    end(&agent, plain || is_off(Defence::PidNamespace)).await;
                    return Ok(());
                }
                // Whatever the signal was: of several that wait, the kernel tells one.
                Some(_) => drop(reap(&agent)),
            }
        }
        ready.clear_ready();
    }
}

/// The loopback has both addresses, or only the first where IPv6 is switched off.
async fn listen_on_tcp(agent: &Arc<Agent>) -> Result<(), BootError> {
    let permits = serve::tcp_permits();
    let first = TcpListener::bind(("127.0.0.1", serve::TCP_PORT))
        .await
        .map_err(kernel("listen on 127.0.0.1"))?;
    tokio::spawn(serve::serve_tcp(
        Arc::clone(agent),
        first,
        Arc::clone(&permits),
    ));
    if let Ok(second) = TcpListener::bind(("::1", serve::TCP_PORT)).await {
        tokio::spawn(serve::serve_tcp(Arc::clone(agent), second, permits));
    }
    Ok(())
}

/// Reaps everything that has ended; returns whether any child is left.
fn reap(agent: &Agent) -> bool {
    loop {
        match init::reap() {
            Ok(Reap::One(reaped)) => agent.table.reaped(reaped),
            Ok(Reap::Running) | Err(_) => return true,
            Ok(Reap::Childless) => return false,
        }
    }
}

/// Asks every process to end and waits until all have; what is stubborn is killed.
async fn end(agent: &Agent, plain: bool) {
    crash_point!("agent.ending");
    let everyone = |signal| {
        if plain {
            agent.table.kill_trees();
        } else {
            // Fails only when nobody is left.
            drop(init::signal_everything(signal));
        }
    };
    everyone(libc::SIGTERM);
    let deadline = Instant::now() + END_TIME;
    while reap(agent) && Instant::now() < deadline {
        tokio::time::sleep(END_LOOK_EVERY).await;
        if plain {
            // What was made while the others were being killed.
            agent.table.kill_trees();
        }
    }
    everyone(libc::SIGKILL);
    // The ends of those that ended now are still to be told to who reads.
    let deadline = Instant::now() + TELL_TIME;
    while !agent.table.is_settled() && Instant::now() < deadline {
        tokio::time::sleep(END_LOOK_EVERY).await;
        reap(agent);
    }
}
