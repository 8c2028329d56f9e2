//! A product of its own that is attacked in this process: an engine and a server over a driver
//! that separates nothing.
//!
//! An agent that lies cannot be put into a sandbox of the daemon, so its lies are told to the same
//! parts here.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pinfold_driver::{
    Capabilities, Disk, Driver, DriverError, DriverErrorKind, DriverKind, GuestPort, GuestStream,
    HostMount, ImageRequest, Instance, InstanceExit, InstanceRecord, InstanceSpec, PreparedImage,
    Progress, StartSource, SweepReport, Usage,
};
use pinfold_engine::{Engine, EngineConfig};
use pinfold_server::ServerOptions;
use pinfold_types::SandboxId;
use pinfold_types::api::Granted;
use pinfold_types::doctor::Finding;
use pinfold_types::spec::{IsolationTier, Resources};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::error::CliError;

/// Version of the record, which nobody reads again.
const RECORD_VERSION: u32 = 1;

/// An engine and a server, at a socket of their own.
#[derive(Debug)]
pub(super) struct Stand {
    engine: Engine,
    stop: CancellationToken,
    served: JoinHandle<()>,
    directory: PathBuf,
}

impl Stand {
    /// Starts both with their state in a new directory.
    pub(super) async fn open(directory: &Path, driver: Arc<dyn Driver>) -> Result<Self, CliError> {
        let failed = || CliError::new("failed to start what the attacks are made on");
        std::fs::create_dir(directory).map_err(|error| failed().caused_by(&error))?;
        let engine = Engine::open(EngineConfig::new(directory), driver)
            .await
            .map_err(|error| failed().caused_by(&error))?;
        let socket = directory.join("pinfold.sock");
        let listener = UnixListener::bind(socket).map_err(|error| failed().caused_by(&error))?;
        let stop = CancellationToken::new();
        let options = ServerOptions::new(directory);
        let serving = pinfold_server::serve(engine.clone(), listener, options, stop.clone());
        Ok(Self {
            engine,
            stop,
            served: tokio::spawn(serving),
            directory: directory.to_owned(),
        })
    }

    /// Where it answers.
    pub(super) fn socket(&self) -> PathBuf {
        self.directory.join("pinfold.sock")
    }

    /// Where it keeps its state.
    pub(super) fn state(&self) -> &Path {
        &self.directory
    }

    /// Ends both.
    pub(super) async fn close(self) {
        self.stop.cancel();
        // A server that panicked has been attacked well; the report says so.
        let _ended = self.served.await;
        self.engine.shut_down().await;
    }
}

/// A driver whose instances are whoever listens at a path.
#[derive(Debug)]
pub(super) struct Believing {
    agent: PathBuf,
}

impl Believing {
    /// Makes one for an agent at this path.
    pub(super) fn new(agent: PathBuf) -> Arc<Self> {
        Arc::new(Self { agent })
    }

    fn instance(&self, id: &SandboxId) -> Arc<dyn Instance> {
        Arc::new(Believed {
            id: id.clone(),
            agent: self.agent.clone(),
            ended: CancellationToken::new(),
        })
    }
}

#[async_trait::async_trait]
impl Driver for Believing {
    fn kind(&self) -> DriverKind {
        DriverKind::Fake
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            // It separates nothing, but what is made on it may ask for what it would elsewhere.
            tier: IsolationTier::Namespace,
            ..Capabilities::default()
        }
    }

    async fn probe(&self) -> Vec<Finding> {
        Vec::new()
    }

    async fn prepare(
        &self,
        image: &ImageRequest,
        _progress: &dyn Progress,
    ) -> Result<PreparedImage, DriverError> {
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
        _source: StartSource<'_>,
        _spec: &InstanceSpec,
    ) -> Result<Arc<dyn Instance>, DriverError> {
        Ok(self.instance(id))
    }

    async fn adopt(
        &self,
        record: &InstanceRecord,
    ) -> Result<Option<Arc<dyn Instance>>, DriverError> {
        Ok(Some(self.instance(&record.id)))
    }

    async fn sweep(&self, _keep: &HashSet<SandboxId>) -> Result<SweepReport, DriverError> {
        Ok(SweepReport::default())
    }
}

#[derive(Debug)]
struct Believed {
    id: SandboxId,
    agent: PathBuf,
    ended: CancellationToken,
}

#[async_trait::async_trait]
impl Instance for Believed {
    fn record(&self) -> InstanceRecord {
        InstanceRecord {
            version: RECORD_VERSION,
            driver: DriverKind::Fake,
            id: self.id.clone(),
            granted: Granted::default(),
            state: serde_json::Value::Null,
        }
    }

    async fn connect(&self, to: GuestPort) -> Result<GuestStream, DriverError> {
        let gone = || DriverError::new(DriverErrorKind::Gone, "nobody listens");
        match to {
            GuestPort::Agent => match UnixStream::connect(&self.agent).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(gone().caused_by(error)),
            },
            GuestPort::Tcp(_) => Err(unsupported()),
        }
    }

    async fn pause(&self) -> Result<(), DriverError> {
        Err(unsupported())
    }

    async fn resume(&self) -> Result<(), DriverError> {
        Err(unsupported())
    }

    async fn attach(&self, _mount: &HostMount) -> Result<(), DriverError> {
        Err(unsupported())
    }

    async fn detach(&self, _target: &str) -> Result<(), DriverError> {
        Err(unsupported())
    }

    async fn update(&self, _resources: &Resources) -> Result<Granted, DriverError> {
        Err(unsupported())
    }

    async fn usage(&self) -> Result<Usage, DriverError> {
        Ok(Usage::default())
    }

    async fn wait(&self) -> InstanceExit {
        self.ended.cancelled().await;
        InstanceExit {
            reason: "it was ended".to_owned(),
        }
    }

    async fn shut_down(&self, _grace: Duration, _disk: Disk) -> Result<(), DriverError> {
        self.ended.cancel();
        Ok(())
    }
}

fn unsupported() -> DriverError {
    DriverError::new(DriverErrorKind::Unsupported, "this driver only believes")
}
