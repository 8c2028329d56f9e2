//! The driver itself: what it holds and how each call reaches it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use pinfold_driver::{
    Capabilities, Driver, DriverError, DriverKind, ImageRequest, Instance, InstanceRecord,
    InstanceSpec, PreparedImage, Progress, StartSource, SweepReport,
};
use pinfold_image::ImageStore;
use pinfold_linux::cgroup::{CgroupError, Cgroups, Controller};
use pinfold_linux::disk;
use pinfold_linux::launcher::{LauncherIdentity, SubordinateIds};
use pinfold_types::SandboxId;
use pinfold_types::doctor::Finding;
use pinfold_types::spec::IsolationTier;
use tokio::sync::mpsc;

use crate::claims::{Claims, make_private};
use crate::config::NativeConfig;
use crate::fault::Faults;
use crate::grant::Host;
use crate::instance::{Live, NativeInstance};
use crate::launchers::{Launchers, MappedSelf};
use crate::ranges::Ranges;
use crate::start::{self, Source};
use crate::{blocking, images, probe, sweep};

/// Reports of progress that may wait to be heard; what does not fit is left out.
const PROGRESS_WAITING_MAX: usize = 16;

/// Why the driver cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum NewError {
    /// Its part of the state directory cannot be made.
    #[error("failed to make the driver's part of the state directory")]
    StateDirectory(#[source] DriverError),
    /// The kernel's own lists of cgroups cannot be read.
    #[error("failed to look for cgroups")]
    Cgroups(#[from] CgroupError),
}

/// Makes sandboxes from the kernel's own parts.
#[derive(Debug)]
pub struct NativeDriver {
    inner: Arc<Inner>,
}

/// What calls and instances share.
pub(crate) struct Inner {
    /// Directory of all sandboxes.
    pub(crate) native: PathBuf,
    pub(crate) host: Host,
    pub(crate) ranges: Ranges,
    pub(crate) launchers: Arc<Launchers>,
    pub(crate) faults: Faults,
    /// What no caller may show in a sandbox.
    pub(crate) hidden: Vec<PathBuf>,
    images_dir: PathBuf,
    images: Mutex<Option<Arc<ImageStore>>>,
    unpacker: PathBuf,
    slots: Mutex<HashMap<SandboxId, Arc<Slot>>>,
    /// Tells the cgroups of this state directory from another's.
    tag: String,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("native", &self.native)
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

/// The place of one sandbox: whoever holds its lock makes it or takes it away.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    live: Mutex<Option<Arc<Live>>>,
}

impl Slot {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Option<Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NativeDriver {
    /// Looks at the host and makes the driver. In v2 cgroups this may move this process to a leaf.
    ///
    /// # Errors
    ///
    /// Returns [`NewError`]; what the host lacks is not an error here but in `probe` and `start`.
    pub fn new(config: NativeConfig) -> Result<Self, NewError> {
        let native = config.state_dir.join("native");
        make_private(&native).map_err(NewError::StateDirectory)?;
        // Cgroups and entries of ids are named after it, whatever directory a later daemon is in.
        let native = std::path::absolute(&native).unwrap_or(native);
        let mut cgroups = Cgroups::discover(config.cgroup.as_deref())?;
        for error in cgroups.prepare_what_works() {
            let error = pinfold_types::ErrorChain(&error).to_string();
            tracing::warn!(error, "a cgroup hierarchy is not usable");
        }
        let identity = identity();
        let host = Host {
            cgroups,
            identity: identity.clone(),
            kernel: probe::kernel_version(),
            memory_bytes: probe::memory_bytes(),
            cpus: probe::cpus(),
            disk_images: disk::program().is_some() && probe::loop_devices(),
        };
        let mut hidden = config.hidden;
        hidden.extend([&config.state_dir, &config.images_dir, &config.ids_dir].map(PathBuf::clone));
        let ranges = Ranges::new(config.ids_dir, native.clone());
        let launchers = Launchers::new(config.agent, identity, native.clone());
        Ok(Self {
            inner: Arc::new(Inner {
                tag: tag(&native),
                native,
                host,
                ranges,
                launchers: Arc::new(launchers),
                faults: Faults::default(),
                hidden,
                images_dir: config.images_dir,
                images: Mutex::new(None),
                unpacker: config.unpacker,
                slots: Mutex::new(HashMap::new()),
            }),
        })
    }

    #[cfg(test)]
    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

/// Finds out whose ids this process can give.
fn identity() -> LauncherIdentity {
    if rustix::process::geteuid().is_root() && probe::holds_every_id() {
        return LauncherIdentity::Root;
    }
    match SubordinateIds::of_caller() {
        Ok(ids) if !ids.users.is_empty() && !ids.groups.is_empty() && probe::maps_ids() => {
            LauncherIdentity::Subordinate(ids)
        }
        _ => LauncherIdentity::Single,
    }
}

/// Hashes a path (FNV-1a) to eight digits.
fn tag(path: &std::path::Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let hash = path
        .as_os_str()
        .as_bytes()
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
    format!("{hash:08x}")
}

impl Inner {
    /// Returns the name of a sandbox's cgroup.
    pub(crate) fn group_name(&self, id: &SandboxId) -> String {
        format!("{id}-{}", self.tag)
    }

    /// Reads the id from a cgroup's name; nothing for those of other daemons.
    pub(crate) fn id_of_group(&self, name: &str) -> Option<SandboxId> {
        let (id, tag) = name.split_once('-')?;
        (tag == self.tag).then(|| id.parse().ok())?
    }

    pub(crate) fn slot(&self, id: &SandboxId) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(id.clone()).or_default())
    }

    /// Forgets the places that nobody uses, so that their number is that of the live sandboxes.
    pub(crate) fn forget_empty_slots(&self) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|_, slot| {
            // Nobody can take another hold of it while the map is locked.
            Arc::strong_count(slot) > 1 || slot.lock().is_some()
        });
    }

    /// Returns the store of images, opened when it is first needed.
    pub(crate) fn images(&self) -> Result<Arc<ImageStore>, DriverError> {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = images.as_ref() {
            return Ok(Arc::clone(store));
        }
        let mapped = Arc::new(MappedSelf {
            launchers: Arc::clone(&self.launchers),
            program: self.unpacker.clone(),
        });
        let identity = self.launchers.identity();
        let store = Arc::new(images::open(&self.images_dir, identity, mapped)?);
        *images = Some(Arc::clone(&store));
        Ok(store)
    }
}

#[async_trait]
impl Driver for NativeDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::Native
    }

    fn capabilities(&self) -> Capabilities {
        let has = |controller| self.inner.host.cgroups.version(controller).is_some();
        let limits = [Controller::Cpu, Controller::Memory, Controller::Pids];
        Capabilities {
            tier: IsolationTier::Namespace,
            pause: has(Controller::Freezer),
            live_mounts: true,
            live_resources: limits.into_iter().any(has),
            guest_tcp: true,
            own_root: true,
            adopt: true,
        }
    }

    async fn probe(&self) -> Vec<Finding> {
        let inner = Arc::clone(&self.inner);
        blocking::run("probe the host", move || Ok(probe::findings(&inner.host)))
            .await
            .unwrap_or_default()
    }

    async fn prepare(
        &self,
        image: &ImageRequest,
        progress: &dyn Progress,
    ) -> Result<PreparedImage, DriverError> {
        let (sender, mut receiver) = mpsc::channel::<images::Said>(PROGRESS_WAITING_MAX);
        let inner = Arc::clone(&self.inner);
        let image = image.clone();
        let work = blocking::run("prepare an image", move || {
            let report = move |what: &str, done: u64, total: Option<u64>| {
                let what = what.to_owned();
                let _full = sender.try_send(images::Said { what, done, total });
            };
            images::prepare(&inner, inner.images()?.as_ref(), &image, &report)
        });
        tokio::pin!(work);
        loop {
            tokio::select! {
                Some(said) = receiver.recv() => said.pass_on(progress),
                done = &mut work => return done,
            }
        }
    }

    async fn start(
        &self,
        id: &SandboxId,
        source: StartSource<'_>,
        spec: &InstanceSpec,
    ) -> Result<Arc<dyn Instance>, DriverError> {
        let inner = Arc::clone(&self.inner);
        let (id, source, spec) = (id.clone(), Source::new(source), spec.clone());
        let work = move || start::start(&inner, &id, &source, &spec);
        let live = blocking::run("start a sandbox", work).await?;
        Ok(Arc::new(NativeInstance::new(live)))
    }

    async fn adopt(
        &self,
        record: &InstanceRecord,
    ) -> Result<Option<Arc<dyn Instance>>, DriverError> {
        let claims = Claims::from_record(record)?;
        let inner = Arc::clone(&self.inner);
        let work = move || start::adopt(&inner, claims);
        let live = blocking::run("adopt a sandbox", work).await?;
        Ok(live.map(|live| Arc::new(NativeInstance::new(live)) as Arc<dyn Instance>))
    }

    async fn sweep(&self, keep: &HashSet<SandboxId>) -> Result<SweepReport, DriverError> {
        let inner = Arc::clone(&self.inner);
        let keep = keep.clone();
        blocking::run("sweep", move || sweep::sweep(&inner, &keep)).await
    }
}
