//! What an isolation backend must offer, and nothing that the guest agent already does.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pinfold_types::api::Granted;
use pinfold_types::doctor::Finding;
use pinfold_types::spec::IsolationTier;
use pinfold_types::{ErrorCode, Resources, SandboxId};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::reach::{HostMount, HostReach};

/// Most bytes of a stored [`InstanceRecord`]; a larger one is a fault of the driver.
pub const RECORD_BYTES_MAX: usize = 64 << 10;

/// An isolation backend.
///
/// Every method is idempotent for the same id and safe to cancel; on an error it has undone what
/// it did, or the error lists what is left. A method answers [`DriverErrorKind::Unsupported`] if
/// and only if its bit in [`Capabilities`] is absent.
#[async_trait]
pub trait Driver: Debug + Send + Sync + 'static {
    /// Returns which backend this is.
    fn kind(&self) -> DriverKind;

    /// Returns what instances of this driver can do on this host.
    fn capabilities(&self) -> Capabilities;

    /// Looks at every prerequisite and answers each with its fix, not only the first missing one.
    async fn probe(&self) -> Vec<Finding>;

    /// Makes an image ready to start from: unpacks it when it is an archive, checks it always.
    async fn prepare(
        &self,
        image: &ImageRequest,
        progress: &dyn Progress,
    ) -> Result<PreparedImage, DriverError>;

    /// Starts an instance; returns when its agent's channel accepts connections.
    ///
    /// A second call with the id of a live instance answers that instance.
    async fn start(
        &self,
        id: &SandboxId,
        source: StartSource<'_>,
        spec: &InstanceSpec,
    ) -> Result<Arc<dyn Instance>, DriverError>;

    /// Takes hold of an instance that an earlier daemon started; `None` when it no longer lives.
    async fn adopt(
        &self,
        record: &InstanceRecord,
    ) -> Result<Option<Arc<dyn Instance>>, DriverError>;

    /// Removes everything of this driver's that belongs to none of the ids to keep.
    async fn sweep(&self, keep: &HashSet<SandboxId>) -> Result<SweepReport, DriverError>;
}

/// One live thing that a driver made.
#[async_trait]
pub trait Instance: Debug + Send + Sync + 'static {
    /// Returns what `adopt` needs; stored before the start is acknowledged.
    fn record(&self) -> InstanceRecord;

    /// Opens a byte stream to the agent or to a TCP port inside.
    async fn connect(&self, to: GuestPort) -> Result<GuestStream, DriverError>;

    /// Suspends every process. Idempotent. Bit: `pause`.
    async fn pause(&self) -> Result<(), DriverError>;

    /// Lets every process go on. Idempotent. Bit: `pause`.
    async fn resume(&self) -> Result<(), DriverError>;

    /// Makes a host path visible on a live instance. Bit: `live_mounts`.
    async fn attach(&self, mount: &HostMount) -> Result<(), DriverError>;

    /// Takes a live mount away. Bit: `live_mounts`.
    async fn detach(&self, target: &str) -> Result<(), DriverError>;

    /// Changes limits on a live instance. Bit: `live_resources`.
    async fn update(&self, resources: &Resources) -> Result<Granted, DriverError>;

    /// Returns the use of resources, read on the host's side and never believed from the guest.
    async fn usage(&self) -> Result<Usage, DriverError>;

    /// Waits until the instance has ended, by itself or not. Many may wait.
    async fn wait(&self) -> InstanceExit;

    /// Ends the instance: asks politely, waits `grace`, kills; then keeps or removes its disk.
    ///
    /// Idempotent, also after the instance ended by itself; on `Ok` no process, mount, cgroup or
    /// namespace of it is left, and with [`Disk::Remove`] no file.
    async fn shut_down(&self, grace: Duration, disk: Disk) -> Result<(), DriverError>;
}

/// Which backend a driver is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriverKind {
    /// The agent as a plain child process, for tests.
    Fake,
    /// Linux namespaces used directly.
    Native,
}

impl DriverKind {
    /// Returns the driver's name as the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fake => "fake",
            Self::Native => "native",
        }
    }
}

/// What instances of a driver can do. A bit that is absent means the method is unsupported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent capability bit"
)]
pub struct Capabilities {
    /// How strongly instances are separated.
    pub tier: IsolationTier,
    /// `pause` and `resume` work.
    pub pause: bool,
    /// `attach` and `detach` work.
    pub live_mounts: bool,
    /// `update` works.
    pub live_resources: bool,
    /// [`GuestPort::Tcp`] can be connected to.
    pub guest_tcp: bool,
    /// Instances have a root filesystem, users and a host name of their own.
    pub own_root: bool,
    /// Instances go on when the daemon ends and can be adopted.
    pub adopt: bool,
}

/// An image that a caller named, with the directory that a relative path is beneath.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRequest {
    /// `host`, or the absolute path of a directory or an archive.
    pub reference: String,
    /// Whose right it must be to read that path.
    pub reach: HostReach,
}

/// An image that instances can start from. Serialisable so that a stopped sandbox can start again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreparedImage {
    /// Stable name of the content, as the driver keys it.
    pub key: String,
    /// Read-only layers, topmost first; empty for drivers without a root of their own.
    pub layers: Vec<PathBuf>,
    /// Environment that the image brings.
    pub env: BTreeMap<String, String>,
    /// Directory that execs start in when nothing else says.
    pub workdir: Option<String>,
    /// User that execs run as when nothing else says.
    pub user: Option<String>,
}

/// Hears how far long work is. Calls are cheap and may come often.
pub trait Progress: Send + Sync {
    /// Says what is being done and how much of it is done; `total` may be unknown.
    fn report(&self, what: &str, done: u64, total: Option<u64>);
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn report(&self, _what: &str, _done: u64, _total: Option<u64>) {}
}

/// What an instance starts from.
#[derive(Debug, Clone, Copy)]
pub enum StartSource<'a> {
    /// A new disk over an image.
    Image(&'a PreparedImage),
    /// The disk that a former instance of the same id left, over the image it was made from.
    Disk(&'a PreparedImage),
}

/// Everything a driver must know to start an instance.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InstanceSpec {
    /// Host name inside.
    pub hostname: String,
    /// Limits and weights.
    pub resources: Resources,
    /// Host paths made visible, in this order.
    pub mounts: Vec<HostMount>,
    /// Whose right it must be to read the image, where that is a directory of the host.
    pub image_reach: HostReach,
    /// Nothing of the disk is wanted after the end.
    pub volatile: bool,
    /// The agent serves `/ready` and `/metrics` on TCP 8888 inside.
    pub agent_tcp: bool,
    /// Host directory to show at `/persist`, writable.
    pub persist: Option<PathBuf>,
}

/// What `adopt` needs to find a live instance again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Format of `state`; a driver refuses one that it does not know.
    pub version: u32,
    /// The driver that made it.
    pub driver: DriverKind,
    /// The sandbox.
    pub id: SandboxId,
    /// What the caller really got.
    pub granted: Granted,
    /// The driver's own state.
    pub state: serde_json::Value,
}

/// Where inside an instance a stream leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestPort {
    /// The guest agent.
    Agent,
    /// A TCP port on the instance's loopback.
    Tcp(u16),
}

/// A byte stream into an instance.
pub type GuestStream = Box<dyn ByteStream>;

/// Anything that can be read, written and moved between tasks.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// What an instance uses, read on the host's side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time since the start, microseconds; `None` when this host does not count it.
    pub cpu_us: Option<u64>,
    /// Memory in use, bytes.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Times that the memory limit ended a process.
    pub out_of_memory: Option<u64>,
}

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceExit {
    /// One line for people, as in `agent ended with signal 9`.
    pub reason: String,
}

/// What happens to an instance's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// It stays and `start` can use it again.
    Keep,
    /// It goes.
    Remove,
}

/// What a sweep found and removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Instances that nobody owned and that are gone now.
    pub removed: Vec<SandboxId>,
    /// What could not be removed, one line each.
    pub leftovers: Vec<String>,
}

/// Why a driver could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct DriverError {
    /// What kind of failure, as callers may depend on it.
    pub kind: DriverErrorKind,
    /// Lower-case fragment for people; does not repeat the source.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// What could not be undone, one line each.
    pub leftovers: Vec<String>,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl DriverError {
    /// Makes an error without hint, leftovers or cause.
    pub fn new(kind: DriverErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
            leftovers: Vec::new(),
            source: None,
        }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn caused_by(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds something that could not be undone.
    #[must_use]
    pub fn leaving(mut self, leftover: impl Into<String>) -> Self {
        self.leftovers.push(leftover.into());
        self
    }
}

/// Kinds of driver failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DriverErrorKind {
    /// This driver cannot do that; its capability bit is absent.
    Unsupported,
    /// The image is not there or not an image.
    InvalidImage,
    /// A mount's source or target is not usable.
    InvalidMount,
    /// It is not the caller's right to use that host path.
    Forbidden,
    /// More host ids are needed than this user has.
    NeedsSubids,
    /// A named limit needs a cgroup that this host does not give.
    NeedsCgroup,
    /// A named disk limit cannot be held on this host.
    NeedsDiskLimit,
    /// The host lacks something that sandboxes need.
    HostUnsupported,
    /// The instance is gone.
    Gone,
    /// Nothing listens on the port inside.
    ConnectionRefused,
    /// The host's disk, memory or ids are used up.
    ResourceExhausted,
    /// A record is of an unknown version or of another driver.
    InvalidRecord,
    /// A fault of ours.
    Internal,
}

impl DriverErrorKind {
    /// Returns the API's code for it.
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::Unsupported => ErrorCode::Unsupported,
            Self::InvalidImage => ErrorCode::InvalidImage,
            Self::InvalidMount => ErrorCode::InvalidArgument,
            Self::Forbidden => ErrorCode::PermissionDenied,
            Self::NeedsSubids => ErrorCode::NeedsSubids,
            Self::NeedsCgroup => ErrorCode::NeedsCgroup,
            Self::NeedsDiskLimit => ErrorCode::NeedsDiskLimit,
            Self::HostUnsupported => ErrorCode::HostUnsupported,
            Self::Gone => ErrorCode::InstanceGone,
            Self::ConnectionRefused => ErrorCode::Unavailable,
            Self::ResourceExhausted => ErrorCode::ResourceExhausted,
            Self::InvalidRecord | Self::Internal => ErrorCode::Internal,
        }
    }
}
