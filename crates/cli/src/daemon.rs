//! The composition root: the native driver, the engine and the server put together.
//!
//! The driver is made first of all: it starts its launcher before there is a second thread.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pinfold_driver::Driver;
use pinfold_driver_native::{NativeConfig, NativeDriver};
use pinfold_engine::{Caller, ConfiguredPool, Engine, EngineConfig};
use pinfold_linux::weaken::{Defence, is_off};
use pinfold_server::{AuditEntry, AuditLog, Listeners, REQUEST_SPAN};
use pinfold_types::api::DoctorReport;
use pinfold_types::{ByteSize, Role, TRACE_SPANS};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::agent_binary;
use crate::allocator;
use crate::arguments::ServeArguments;
use crate::autostart::{READY, make_private};
use crate::config::Config;
use crate::defaults;
use crate::environment;
use crate::error::CliError;
use crate::listen::listen;
use crate::log_file::LogFile;
use crate::pools;
use crate::port;
use crate::printer::Printer;
use crate::traces::{Endpoint, Exporter, Traces};
use crate::verb::AUDIT;

/// Permission bits that files of ours never have: images and disks need the others.
const UMASK: u32 = 0o022;

/// Longest time that tasks may take to end with the daemon.
const END_MAX: Duration = Duration::from_secs(5);

/// Most threads that serve requests. What keeps one busy is a program that floods its output, and
/// its own agent is slower than that; blocking work has threads of its own.
const WORKERS_MAX: usize = 4;

/// Runs the daemon until a signal ends it.
///
/// # Errors
///
/// Fails when the state directory is in use or the host cannot run sandboxes at all.
pub(crate) fn serve(
    config: &Config,
    arguments: &ServeArguments,
    printer: Printer,
) -> Result<u8, CliError> {
    // Everything about the port is known before anything is touched.
    let plan = port::Plan::of(config, arguments)?;
    if !arguments.detached {
        let development = plan.as_ref().is_some_and(port::Plan::is_development);
        return start(config, plan, |url| {
            if development {
                printer.warn(
                    "every program and every user of this machine may use this daemon without a key",
                );
            }
            let also = url.map_or_else(String::new, |url| format!(" and at {url}"));
            printer.note(&format!("serving at {}{also}", config.socket().display()));
        });
    }
    // Fails only for a leader of its own session, which is what is wanted.
    let _already_leads = rustix::process::setsid();
    let result = start(config, plan, |_| say(READY));
    if let Err(error) = &result {
        say(&LastWords::of(error).encode());
        printer.error(error);
        return Err(CliError::told(error.exit_code()));
    }
    result
}

/// Writes to whoever started us, who may have gone.
fn say(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _gone = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
}

/// What a daemon that cannot start tells its starter.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LastWords {
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
}

impl LastWords {
    /// Ends every message, so that its reader need not wait for the end of the stream.
    pub(crate) const END: char = '\0';

    fn of(error: &CliError) -> Self {
        Self {
            message: error.message().to_owned(),
            causes: error.causes().to_vec(),
            hint: error.hint_text().map(str::to_owned),
        }
    }

    fn encode(&self) -> String {
        let text = serde_json::to_string(self).unwrap_or_default();
        format!("{text}{}", Self::END)
    }

    /// Reads what a daemon said.
    pub(crate) fn decode(text: &str) -> Option<Self> {
        serde_json::from_str(text.trim_end_matches(Self::END)).ok()
    }

    /// Puts the words behind what failed here.
    pub(crate) fn behind(self, error: CliError) -> CliError {
        let mut error = error.caused_by(&CliError::new(self.message));
        for cause in self.causes {
            error = error.caused_by(&CliError::new(cause));
        }
        error.maybe_hint(self.hint)
    }
}

fn start(
    config: &Config,
    plan: Option<port::Plan>,
    ready: impl FnOnce(Option<String>),
) -> Result<u8, CliError> {
    allocator::settle();
    let exporter = begin_log(config)?;
    // Nothing is taken from the environment's chance: paths are absolute, and new files plain.
    let _before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(UMASK));
    let state = config.state_dir();
    make_private(&state)?;
    let _lock = claim(&state)?;
    let driver = driver(config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers())
        .enable_all()
        .build()
        .map_err(|error| CliError::new("failed to start").caused_by(&error))?;
    let result = runtime.block_on(async {
        let sent = CancellationToken::new();
        let sending = exporter.map(|exporter| tokio::spawn(exporter.run(sent.clone())));
        let result = run(config, driver, plan, ready).await;
        sent.cancel();
        if let Some(sending) = sending {
            drop(tokio::time::timeout(END_MAX, sending).await);
        }
        result
    });
    runtime.shutdown_timeout(END_MAX);
    result.map(|()| 0)
}

/// Returns how many threads serve requests.
fn workers() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    processors.min(WORKERS_MAX)
}

/// One daemon serves a state directory; the lock goes with the process, however it ends.
fn claim(state: &Path) -> Result<File, CliError> {
    let path = state.join("daemon.lock");
    let failed = || CliError::new(format!("failed to lock {}", path.display()));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| failed().caused_by(&error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::Error(error)) => return Err(failed().caused_by(&error)),
        Err(std::fs::TryLockError::WouldBlock) => {
            let pid = std::fs::read_to_string(&path).unwrap_or_default();
            return Err(CliError::new(format!(
                "another daemon, process {}, serves {}",
                pid.trim(),
                state.display()
            ))
            .hint("end it with `kill`, or name another directory with --state-dir"));
        }
    }
    // Who holds the lock is for people only, so a full disk must not keep the daemon away.
    let written = file
        .set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    if let Err(error) = written {
        tracing::warn!(%error, "lock file not written");
    }
    Ok(file)
}

/// Makes the driver. It starts its launcher, so no thread may run yet.
fn driver(config: &Config) -> Result<Arc<NativeDriver>, CliError> {
    let mut native = NativeConfig::new(config.state_dir(), agent_binary::source());
    // Whoever reaches the socket from inside is as good as outside.
    native.hidden = vec![config.socket()];
    native.cgroup = config.text(environment::CGROUP).map(Into::into);
    NativeDriver::new(native)
        .map(Arc::new)
        .map_err(|error| CliError::new("failed to make the driver").caused_by(&error))
}

async fn run(
    config: &Config,
    driver: Arc<NativeDriver>,
    plan: Option<port::Plan>,
    ready: impl FnOnce(Option<String>),
) -> Result<(), CliError> {
    let mut terminate = heard(SignalKind::terminate())?;
    let mut interrupt = heard(SignalKind::interrupt())?;
    let pools = pools::configured(config)?;
    let collector = defaults::collector(config)?;
    let mut options = port::options(config);
    let audit = audit_log(config)?;
    options.audit = Some(audit.clone());
    let engine = Engine::open(engine_config(config), driver)
        .await
        .map_err(|error| {
            CliError::new("failed to open the daemon's state")
                .caused_by(&error)
                .maybe_hint(error.hint())
        })?;
    configure_pools(&engine, pools).await;
    let (listener, listening) = listen(&config.socket())?;
    let listener = tokio::net::UnixListener::from_std(listener)
        .map_err(|error| CliError::new("failed to listen").caused_by(&error))?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("ending; sandboxes live on");
        stopping.cancel();
    });
    tokio::spawn(tell_usage(
        engine.clone(),
        heard(SignalKind::user_defined1())?,
    ));
    let (tcp, url) = plan.map(port::Plan::open).transpose()?.unzip();
    let version = format!("version {}", env!("CARGO_PKG_VERSION"));
    let began = AuditEntry::of_daemon("daemon.started", Some(version));
    audit.record(began).await;
    ready(url);
    let listeners = Listeners {
        unix: listener,
        tcp,
    };
    let pushing = collector.map(|collector| {
        let push = pinfold_server::push(engine.clone(), collector, stop.clone());
        tokio::spawn(push)
    });
    pinfold_server::serve(engine.clone(), listeners, options, stop).await;
    if let Some(pushing) = pushing {
        // What is on its way is sent again by the next daemon.
        pushing.abort();
    }
    drop(listening);
    engine.shut_down().await;
    audit
        .record(AuditEntry::of_daemon("daemon.ended", None))
        .await;
    audit.close().await;
    Ok(())
}

/// Returns what the settings say of the engine.
fn engine_config(config: &Config) -> EngineConfig {
    let mut settings = EngineConfig::new(config.state_dir());
    if let Some(size) = config.parsed::<ByteSize>(environment::JOURNAL_SIZE) {
        settings.journal_bytes_max = size.0;
    }
    settings.mounts_allowed = config.mounts_allowed();
    if let Some(idle_ms) = config.duration_ms(environment::IDLE) {
        settings.idle_default = (idle_ms > 0).then(|| Duration::from_millis(idle_ms));
    }
    settings.quotas = port::quotas(config);
    settings.defaults = defaults::all(config);
    settings.capacity = defaults::capacity(config);
    settings.push = defaults::pushes(config);
    settings.quotas_of_users = config.text(environment::QUOTA_USERS) == Some("true");
    if is_off(Defence::JournalBounds) {
        settings.journal_bytes_max = u64::MAX;
    }
    settings
}

fn audit_log(config: &Config) -> Result<AuditLog, CliError> {
    AuditLog::open(&config.state_dir().join(AUDIT)).map_err(|error| {
        CliError::new("failed to open the audit log")
            .caused_by(&error)
            .hint("mend what the cause says; the log's files are plain text")
    })
}

/// Writes to the log what this process holds, as often as it is asked by a signal.
async fn tell_usage(engine: Engine, mut asked: tokio::signal::unix::Signal) {
    while asked.recv().await.is_some() {
        let held = engine.held();
        let heap = pinfold_linux::memory::heap();
        tracing::info!(
            heap_used_bytes = heap.map(|heap| heap.used_bytes),
            heap_free_bytes = heap.map(|heap| heap.free_bytes),
            sandboxes = held.sandboxes,
            names = held.names,
            execs = held.execs,
            tasks = held.tasks,
            "usage"
        );
    }
}

/// Keeps warm what the configuration says, in the name of the daemon's own user.
async fn configure_pools(engine: &Engine, pools: Vec<ConfiguredPool>) {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let daemon = Caller::of_host(uid, gid, Role::Admin);
    engine.configure_pools(&daemon, pools).await;
}

fn heard(kind: SignalKind) -> Result<tokio::signal::unix::Signal, CliError> {
    signal(kind).map_err(|error| CliError::new("failed to hear signals").caused_by(&error))
}

/// Begins to log, to standard error or to the file of the configuration.
fn begin_log(config: &Config) -> Result<Option<Exporter>, CliError> {
    let filter: Targets = config.parsed(environment::LOG).unwrap_or_default();
    // Whatever is logged says which request it is a part of.
    let filter = filter.with_target(REQUEST_SPAN, LevelFilter::ERROR);
    let filter = filter.with_target(TRACE_SPANS, LevelFilter::OFF);
    let endpoint = config.parsed::<Endpoint>(environment::OTLP_ENDPOINT);
    let (traces, exporter) = endpoint.map(Traces::new).unzip();
    let of_traces = Targets::new().with_target(TRACE_SPANS, LevelFilter::TRACE);
    let traces = traces.map(|traces| traces.with_filter(of_traces));
    let registry = tracing_subscriber::registry().with(traces);
    let writer = match config.text(environment::LOG_FILE) {
        None => BoxMakeWriter::new(std::io::stderr),
        Some(path) => {
            let size = config.parsed::<ByteSize>(environment::LOG_FILE_SIZE);
            let file = LogFile::open(Path::new(path), size.map(|size| size.0))?;
            BoxMakeWriter::new(std::sync::Mutex::new(file))
        }
    };
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(false);
    // The first logger stays; there is no second in this process.
    let _set_before = if config.text(environment::LOG_FORMAT) == Some("json") {
        registry.with(layer.json().with_filter(filter)).try_init()
    } else {
        registry.with(layer.with_filter(filter)).try_init()
    };
    Ok(exporter)
}

/// Looks at the host without a daemon, where none can start.
///
/// # Errors
///
/// Fails when not even the driver can be made.
pub(crate) async fn probe(config: &Config) -> Result<DoctorReport, CliError> {
    make_private(&config.state_dir())?;
    let driver = driver(config)?;
    Ok(DoctorReport {
        findings: driver.probe().await,
        tiers: Vec::new(),
    })
}
