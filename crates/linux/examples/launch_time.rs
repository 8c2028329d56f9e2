//! Measures how long a sandbox takes to be made, step by step.
//!
//! `cargo run --release -p pinfold-linux --example launch_time -- [COUNT]`, as root or as an ordinary
//! user. The example is its own agent: process 1 of each sandbox says that it is there and waits.

#![expect(clippy::print_stdout, reason = "its output is what an example is for")]

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Instant;

use pinfold_linux::launcher::plan::{Bind, Boot, Identity, PLAN_VERSION, Plan, RootPlan};
use pinfold_linux::launcher::{
    AgentBinary, LaunchError, Launcher, LauncherConfig, LauncherIdentity, SubordinateIds,
};

/// First host id of the first sandbox's range.
const BASE: u32 = 2_000_000;
/// Memory for `/tmp`.
const TMPFS_BYTES: u64 = 16 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("launcher") => std::process::exit(pinfold_linux::launcher::serve().into()),
        Some("init") => be_process_1(),
        count => measure(count.map_or(Ok(20), str::parse)?),
    }
}

fn be_process_1() -> Result<(), Box<dyn Error>> {
    let listener = UnixListener::from(pinfold_linux::init::take_inherited(
        Boot::LISTENER_DESCRIPTOR,
    )?);
    loop {
        let (mut caller, _) = listener.accept()?;
        caller.write_all(b"here")?;
    }
}

fn identity() -> std::io::Result<LauncherIdentity> {
    if rustix::process::geteuid().is_root() {
        return Ok(LauncherIdentity::Root);
    }
    let ids = SubordinateIds::of_caller()?;
    Ok(
        if ids.users.is_empty() || std::env::var_os("SINGLE").is_some() {
            LauncherIdentity::Single
        } else {
            LauncherIdentity::Subordinate(ids)
        },
    )
}

fn measure(count: u32) -> Result<(), Box<dyn Error>> {
    let place = tempfile::tempdir()?;
    let identity = identity()?;
    println!("identity: {identity:?}");
    let began = Instant::now();
    let launcher = Launcher::spawn(LauncherConfig {
        agent: AgentBinary::Path(std::env::current_exe()?),
        identity: identity.clone(),
        join: None,
        log: std::io::stderr().as_fd().try_clone_to_owned()?,
    })
    .map_err(|error| describe(&error))?;
    println!("launcher ready after {} us", began.elapsed().as_micros());
    let mut totals = Vec::new();
    for number in 0..count {
        let directory = place.path().join(number.to_string());
        for name in ["upper", "work"] {
            std::fs::create_dir_all(directory.join(name))?;
        }
        let layer = place.path().join("layer");
        std::fs::create_dir_all(&layer)?;
        let listener = UnixListener::bind(directory.join("socket"))?;
        let plan = plan(&identity, number, &layer, &directory);
        let began = Instant::now();
        let stderr = std::io::stderr();
        let sandbox = launcher
            .launch(&plan, &[listener.as_fd(), stderr.as_fd()])
            .map_err(|error| describe(&error))?;
        let made = began.elapsed();
        let mut caller = std::os::unix::net::UnixStream::connect(directory.join("socket"))?;
        let mut answer = String::new();
        caller.read_to_string(&mut answer)?;
        let answered = began.elapsed();
        let steps: Vec<_> = sandbox
            .timings
            .iter()
            .map(|timing| format!("{} {}", timing.step, timing.micros))
            .collect();
        println!(
            "{number}: made {} us, answered {answer} {} us: {}",
            made.as_micros(),
            answered.as_micros(),
            steps.join(", ")
        );
        totals.push(answered);
        rustix::process::pidfd_send_signal(&sandbox.pidfd, rustix::process::Signal::KILL)?;
        let mut ended = [rustix::event::PollFd::new(
            &sandbox.pidfd,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut ended, None)?;
        launcher
            .remove_tree(&directory)
            .map_err(|error| describe(&error))?;
    }
    totals.sort();
    if let Some(median) = totals.get(totals.len() / 2) {
        println!("median until the agent answers: {} us", median.as_micros());
    }
    Ok(())
}

fn plan(identity: &LauncherIdentity, number: u32, layer: &Path, private: &Path) -> Plan {
    let host = |path: &str| Bind {
        source: PathBuf::from(path),
        target: PathBuf::from(path),
        writable: false,
        setuid: false,
        mapped: false,
        reach: None,
    };
    let paths = ["/usr", "/lib", "/lib64", "/bin", "/sbin"];
    Plan {
        version: PLAN_VERSION,
        id: format!("measured{number}"),
        identity: match identity {
            LauncherIdentity::Root => Identity::Range {
                base: BASE + number * 65_536,
            },
            LauncherIdentity::Subordinate(_) => Identity::Shared,
            LauncherIdentity::Single => Identity::Single,
        },
        root: RootPlan {
            layers: vec![layer.to_path_buf()],
            private: private.to_path_buf(),
            volatile: true,
            tmpfs_upper: None,
            binds: paths
                .into_iter()
                .filter(|path| Path::new(path).exists())
                .map(host)
                .collect(),
            layer_reach: None,
        },
        tmpfs_bytes: TMPFS_BYTES,
        hostname: "measured".to_owned(),
        attach: Vec::new(),
        pid_max: None,
        boot: Boot::default(),
    }
}

fn describe(error: &LaunchError) -> Box<dyn Error> {
    let source = error.source().map(ToString::to_string).unwrap_or_default();
    format!(
        "{error}: {source}; {:?}; hint: {:?}",
        error.failure(),
        error.hint()
    )
    .into()
}
