//! A driver that isolates nothing: the real agent as a plain child process in a directory.
//!
//! It is for tests of everything above a driver, and a full member of the conformance suite. It
//! has no root filesystem, no users and no limits of its own; what it cannot give it refuses.

mod binary;
mod faults;
mod launch;
mod process;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use pinfold_types::api::Granted;
use pinfold_types::doctor::Finding;
use pinfold_types::spec::IsolationTier;
use pinfold_types::{Resources, SandboxId};
use rustix::process::Signal;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OnceCell, watch};

pub use self::binary::{AgentBinaryError, agent_binary};
pub use self::faults::{Faults, Step};
use self::launch::{Launch, Places};
use self::process::{Process, ProcessKey};
use crate::contract::{
    Capabilities, Disk, Driver, DriverError, DriverErrorKind, DriverKind, GuestPort, GuestStream,
    ImageRequest, Instance, InstanceExit, InstanceRecord, InstanceSpec, PreparedImage, Progress,
    StartSource, SweepReport, Usage,
};
use crate::reach::HostMount;

/// Version of the state in this driver's records.
const RECORD_VERSION: u32 = 1;
/// Longest time that a killed process may take to be gone.
const KILL_TIME_MAX: Duration = Duration::from_secs(10);
/// Bytes of a pipe to an agent that never answers; nobody reads it.
const SILENT_PIPE_BYTES: usize = 64 << 10;

type Instances = Mutex<HashMap<SandboxId, Arc<OnceCell<Arc<FakeInstance>>>>>;

/// The fake driver.
#[derive(Debug)]
pub struct FakeDriver {
    state_dir: PathBuf,
    binary: PathBuf,
    faults: Faults,
    ignore_limits: bool,
    instances: Arc<Instances>,
}

impl FakeDriver {
    /// Makes a driver that keeps its instances beneath an existing directory and runs this agent
    /// binary.
    pub fn new(state_dir: impl Into<PathBuf>, agent: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            binary: agent.into(),
            faults: Faults::default(),
            ignore_limits: false,
            instances: Arc::default(),
        }
    }

    /// Accepts limits that it cannot hold, for tests of what passes limits on.
    #[must_use]
    pub fn ignoring_limits(mut self) -> Self {
        self.ignore_limits = true;
        self
    }

    /// Returns what can be made to fail.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    /// Kills the agent of an instance without a word, as the kernel does when memory runs out.
    pub fn kill_agent(&self, id: &SandboxId) {
        if let Some(instance) = self.live(id) {
            instance.process.signal(Signal::KILL);
        }
    }

    /// Returns how many instances it knows; those that have ended go when the next one is made.
    pub fn instances_held(&self) -> usize {
        let instances = self.instances.lock();
        instances.unwrap_or_else(PoisonError::into_inner).len()
    }

    fn cell(&self, id: &SandboxId) -> Arc<OnceCell<Arc<FakeInstance>>> {
        let mut instances = self
            .instances
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Those that have ended go, of whichever sandbox, so that no more are kept than live. One that
        // is being made has a second holder, who cannot let go while this map is locked.
        instances.retain(|_, cell| match cell.get() {
            Some(instance) => instance.exit.borrow().is_none(),
            None => Arc::strong_count(cell) > 1,
        });
        Arc::clone(instances.entry(id.clone()).or_default())
    }

    fn live(&self, id: &SandboxId) -> Option<Arc<FakeInstance>> {
        let instances = self
            .instances
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        instances.get(id).and_then(|cell| cell.get()).cloned()
    }

    fn check(&self, spec: &InstanceSpec) -> Result<(), DriverError> {
        if !spec.mounts.is_empty() {
            return Err(unsupported("mounts"));
        }
        let named = &spec.resources;
        if self.ignore_limits {
            return Ok(());
        }
        if named.disk.is_some() || named.inodes.is_some() {
            return Err(DriverError::new(
                DriverErrorKind::NeedsDiskLimit,
                "the fake driver holds no disk limit",
            )
            .hint("use the native driver"));
        }
        if named.cpus.is_some() || named.memory.is_some() || named.pids.is_some() {
            return Err(DriverError::new(
                DriverErrorKind::NeedsCgroup,
                "the fake driver holds no limit",
            )
            .hint("use the native driver"));
        }
        Ok(())
    }

    async fn make(
        &self,
        id: &SandboxId,
        fresh: bool,
        spec: &InstanceSpec,
    ) -> Result<Arc<FakeInstance>, DriverError> {
        let places = Places::new(&self.state_dir, id);
        if let Some(process) = places.stored_process().and_then(Process::of_key) {
            return self.hold(id, process);
        }
        if !fresh && !places.root().is_dir() {
            return Err(DriverError::new(
                DriverErrorKind::Gone,
                format!("sandbox {id} has no disk any more"),
            )
            .hint("make a new sandbox"));
        }
        let launch = Launch {
            id: id.clone(),
            state_dir: self.state_dir.clone(),
            binary: self.binary.clone(),
            fresh,
            agent_tcp: spec.agent_tcp,
        };
        let launched = blocking(move || launch::launch(&launch))
            .await?
            .map_err(|error| internal("the agent could not be started", error))?;
        self.faults.pass(Step::Started)?;
        match launched.keep() {
            Some(process) => self.hold(id, process),
            None => Err(DriverError::new(
                DriverErrorKind::Internal,
                "the agent was not started",
            )),
        }
    }

    fn hold(&self, id: &SandboxId, process: Process) -> Result<Arc<FakeInstance>, DriverError> {
        let (said, exit) = watch::channel(None);
        process
            .when_ended(move |reason| {
                said.send_replace(Some(InstanceExit { reason }));
            })
            .map_err(|error| internal("the agent cannot be watched", error))?;
        Ok(Arc::new(FakeInstance {
            id: id.clone(),
            places: Places::new(&self.state_dir, id),
            process: Arc::new(process),
            faults: self.faults.clone(),
            exit,
            ended_before: Mutex::new(Vec::new()),
        }))
    }

    /// Ends and removes an instance that nobody owns.
    async fn remove(&self, id: &SandboxId) -> Result<(), DriverError> {
        let places = Places::new(&self.state_dir, id);
        let instance = match self.live(id) {
            Some(instance) => Some(instance),
            None => match places.stored_process().and_then(Process::of_key) {
                Some(process) => Some(self.hold(id, process)?),
                None => None,
            },
        };
        match instance {
            Some(instance) => instance.shut_down(Duration::ZERO, Disk::Remove).await,
            None => blocking(move || {
                kill_all(process::working_beneath(&places.directory));
                places.remove()
            })
            .await?
            .map_err(|error| internal("its directory could not be removed", error)),
        }
    }
}

#[async_trait]
impl Driver for FakeDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::Fake
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            tier: IsolationTier::None,
            pause: true,
            live_mounts: false,
            live_resources: false,
            guest_tcp: true,
            own_root: false,
            adopt: true,
        }
    }

    async fn probe(&self) -> Vec<Finding> {
        Vec::new()
    }

    async fn prepare(
        &self,
        image: &ImageRequest,
        progress: &dyn Progress,
    ) -> Result<PreparedImage, DriverError> {
        self.faults.pass(Step::Prepare)?;
        progress.report("looking at the image", 0, None);
        let path = PathBuf::from(&image.reference);
        if image.reference != "host" && !(path.is_absolute() && path.is_dir()) {
            return Err(DriverError::new(
                DriverErrorKind::InvalidImage,
                "the image is neither `host` nor an existing directory",
            )
            .hint("name `host` or the absolute path of a directory"));
        }
        Ok(PreparedImage {
            key: image.reference.clone(),
            layers: Vec::new(),
            env: std::collections::BTreeMap::new(),
            workdir: None,
            user: None,
        })
    }

    async fn start(
        &self,
        id: &SandboxId,
        source: StartSource<'_>,
        spec: &InstanceSpec,
    ) -> Result<Arc<dyn Instance>, DriverError> {
        self.faults.pass(Step::Start)?;
        self.check(spec)?;
        let fresh = matches!(source, StartSource::Image(_));
        let cell = self.cell(id);
        let instance = cell.get_or_try_init(|| self.make(id, fresh, spec)).await?;
        Ok(Arc::clone(instance) as Arc<dyn Instance>)
    }

    async fn adopt(
        &self,
        record: &InstanceRecord,
    ) -> Result<Option<Arc<dyn Instance>>, DriverError> {
        self.faults.pass(Step::Adopt)?;
        let refused = |what: &str| DriverError::new(DriverErrorKind::InvalidRecord, what);
        if record.driver != DriverKind::Fake {
            return Err(refused("the record is of another driver"));
        }
        if record.version != RECORD_VERSION {
            return Err(refused("the record is of an unknown version")
                .hint("it was written by a newer pinfold; use that one"));
        }
        let key: ProcessKey = serde_json::from_value(record.state.clone())
            .map_err(|error| refused("the record cannot be read").caused_by(error))?;
        let cell = self.cell(&record.id);
        let Some(process) = Process::of_key(key) else {
            return Ok(None);
        };
        let instance = cell
            .get_or_try_init(|| async { self.hold(&record.id, process) })
            .await?;
        Ok(Some(Arc::clone(instance) as Arc<dyn Instance>))
    }

    async fn sweep(&self, keep: &HashSet<SandboxId>) -> Result<SweepReport, DriverError> {
        self.faults.pass(Step::Sweep)?;
        let entries = std::fs::read_dir(&self.state_dir)
            .map_err(|error| internal("the state directory cannot be read", error))?;
        let present: Vec<SandboxId> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        let mut report = SweepReport::default();
        let mut kept = HashSet::new();
        for id in present {
            if keep.contains(&id) {
                kept.extend(Places::new(&self.state_dir, &id).stored_process());
                continue;
            }
            match self.remove(&id).await {
                Ok(()) => report.removed.push(id),
                Err(error) => report.leftovers.push(format!("{id}: {error}")),
            }
        }
        for stray in launch::strays(&self.state_dir) {
            if !kept.contains(&stray.key) {
                process::kill_tree(&stray);
            }
        }
        Ok(report)
    }
}

/// One agent process with its directory.
#[derive(Debug)]
pub struct FakeInstance {
    id: SandboxId,
    places: Places,
    process: Arc<Process>,
    faults: Faults,
    exit: watch::Receiver<Option<InstanceExit>>,
    // What was alive when the end was asked for: an agent that ends orphans its execs.
    ended_before: Mutex<Vec<ProcessKey>>,
}

impl FakeInstance {
    async fn ended_within(&self, most: Duration) -> bool {
        tokio::time::timeout(most, self.wait()).await.is_ok()
    }

    fn gone(&self) -> DriverError {
        DriverError::new(
            DriverErrorKind::Gone,
            format!("the agent of sandbox {} has ended", self.id),
        )
    }

    fn check_alive(&self) -> Result<(), DriverError> {
        if self.exit.borrow().is_some() {
            return Err(self.gone());
        }
        Ok(())
    }

    async fn end(&self, grace: Duration) -> Result<(), DriverError> {
        let pid = self.process.key.pid;
        let process = Arc::clone(&self.process);
        let present = blocking(move || {
            // A paused tree must go on to hear that it shall end.
            process::continue_tree(&process);
            process::descendants(pid)
        })
        .await?;
        self.ended_before
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(present);
        if !grace.is_zero() {
            self.process.signal(Signal::TERM);
            if self.ended_within(grace).await {
                return Ok(());
            }
        }
        let process = Arc::clone(&self.process);
        blocking(move || process::kill_tree(&process)).await?;
        if self.ended_within(KILL_TIME_MAX).await {
            return Ok(());
        }
        Err(DriverError::new(
            DriverErrorKind::Internal,
            format!("the agent of sandbox {} does not end", self.id),
        )
        .leaving(format!("process {pid}")))
    }
}

#[async_trait]
impl Instance for FakeInstance {
    fn record(&self) -> InstanceRecord {
        InstanceRecord {
            version: RECORD_VERSION,
            driver: DriverKind::Fake,
            id: self.id.clone(),
            granted: Granted {
                driver: DriverKind::Fake.as_str().to_owned(),
                isolation: IsolationTier::None,
                ids: "single".to_owned(),
                limits: std::collections::BTreeMap::new(),
                notes: vec!["nothing is isolated: this driver is for tests".to_owned()],
            },
            state: serde_json::json!(self.process.key),
        }
    }

    async fn connect(&self, to: GuestPort) -> Result<GuestStream, DriverError> {
        self.faults.pass(Step::Connect)?;
        self.check_alive()?;
        match to {
            GuestPort::Agent if self.faults.silent() => {
                let (ours, theirs) = tokio::io::duplex(SILENT_PIPE_BYTES);
                let exit = self.exit.clone();
                // Holds the other end, unread, for as long as the instance lives.
                tokio::spawn(async move {
                    ended(exit).await;
                    drop(theirs);
                });
                Ok(Box::new(ours))
            }
            GuestPort::Agent => match UnixStream::connect(self.places.socket()).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(self.gone().caused_by(error)),
            },
            GuestPort::Tcp(port) => match TcpStream::connect(("127.0.0.1", port)).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(DriverError::new(
                    DriverErrorKind::ConnectionRefused,
                    format!("nothing listens on port {port}"),
                )
                .caused_by(error)),
            },
        }
    }

    async fn pause(&self) -> Result<(), DriverError> {
        self.faults.pass(Step::Pause)?;
        self.check_alive()?;
        let process = Arc::clone(&self.process);
        blocking(move || drop(process::stop_tree(&process))).await
    }

    async fn resume(&self) -> Result<(), DriverError> {
        self.faults.pass(Step::Resume)?;
        self.check_alive()?;
        let process = Arc::clone(&self.process);
        blocking(move || process::continue_tree(&process)).await
    }

    async fn attach(&self, _mount: &HostMount) -> Result<(), DriverError> {
        Err(unsupported("live mounts"))
    }

    async fn detach(&self, _target: &str) -> Result<(), DriverError> {
        Err(unsupported("live mounts"))
    }

    async fn update(&self, _resources: &Resources) -> Result<Granted, DriverError> {
        Err(unsupported("live limits"))
    }

    async fn usage(&self) -> Result<Usage, DriverError> {
        self.check_alive()?;
        Ok(Usage::default())
    }

    async fn wait(&self) -> InstanceExit {
        ended(self.exit.clone()).await
    }

    async fn shut_down(&self, grace: Duration, disk: Disk) -> Result<(), DriverError> {
        self.faults.pass(Step::ShutDown)?;
        if self.exit.borrow().is_none() {
            self.end(grace).await?;
        }
        let places = self.places.clone();
        let left: Vec<ProcessKey> = self
            .ended_before
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let own = self.process.key;
        blocking(move || {
            kill_all(left);
            kill_all(process::working_beneath(&places.directory));
            // A later instance of the same id owns what is there now.
            if places.stored_process().is_some_and(|stored| stored != own) {
                return Ok(());
            }
            match disk {
                Disk::Keep => places.clear(),
                Disk::Remove => places.remove(),
            }
        })
        .await?
        .map_err(|error| internal("the instance's directory could not be cleared", error))
    }
}

/// Waits for the end that a watch tells.
async fn ended(mut exit: watch::Receiver<Option<InstanceExit>>) -> InstanceExit {
    match exit.wait_for(Option::is_some).await {
        Ok(exit) => exit.clone(),
        Err(_) => None,
    }
    .unwrap_or_else(|| InstanceExit {
        reason: "the agent is no longer watched".to_owned(),
    })
}

fn kill_all(keys: Vec<ProcessKey>) {
    for process in keys.into_iter().filter_map(Process::of_key) {
        process.signal(Signal::KILL);
    }
}

/// Runs what reads `/proc` or removes trees where it does not hold up the runtime.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, DriverError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| internal("the work was given up", error))
}

fn unsupported(what: &str) -> DriverError {
    DriverError::new(
        DriverErrorKind::Unsupported,
        format!("the fake driver has no {what}"),
    )
    .hint("use the native driver")
}

fn internal(what: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> DriverError {
    DriverError::new(DriverErrorKind::Internal, what).caused_by(error)
}
