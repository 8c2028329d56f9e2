//! Making a sandbox, step by step, and undoing all of it when a step fails.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use pinfold_driver::{
    Disk, DriverError, DriverErrorKind, InstanceSpec, PreparedImage, StartSource,
};
use pinfold_image::ImageStore;
use pinfold_linux::cgroup::{CgroupError, Group};
use pinfold_linux::disk::{self, DiskError};
use pinfold_linux::launcher::plan::{
    Attach, Bind, Boot, Identity, PLAN_VERSION, Plan, RootPlan, UsageFile,
};
use pinfold_linux::launcher::{Launched, LauncherIdentity};
use pinfold_linux::reach::Reach;
use pinfold_types::{SandboxId, crash_point};

use crate::claims::{CLAIMS_VERSION, Claims, DiskKind, Home, Ids, failed, make_private};
use crate::driver::Inner;
use crate::fault::FaultPoint;
use crate::grant::{DiskPlan, Grant};
use crate::instance::Live;
use crate::process::{self, Process};
use crate::ranges::RangeError;
use crate::reach::{bind_of, reach_of};
use crate::{images, teardown};

/// Name of the agent's socket in its directory.
pub(crate) const SOCKET: &str = "agent.sock";
/// Where a sandbox sees what it keeps.
const PERSIST_TARGET: &str = "/persist";

/// What a sandbox starts from, owned.
#[derive(Debug)]
pub(crate) struct Source {
    image: PreparedImage,
    /// The disk of a former instance is used again.
    again: bool,
}

impl Source {
    pub(crate) fn new(source: StartSource<'_>) -> Self {
        let (image, again) = match source {
            StartSource::Image(image) => (image, false),
            StartSource::Disk(image) => (image, true),
        };
        Self {
            image: image.clone(),
            again,
        }
    }
}

/// Everything a step may look at.
struct Making<'a> {
    inner: &'a Inner,
    home: &'a Home,
    grant: &'a Grant,
    source: &'a Source,
    spec: &'a InstanceSpec,
}

/// Starts a sandbox, or answers the one that lives. Blocks.
pub(crate) fn start(
    inner: &Arc<Inner>,
    id: &SandboxId,
    source: &Source,
    spec: &InstanceSpec,
) -> Result<Arc<Live>, DriverError> {
    let slot = inner.slot(id);
    let mut live = slot.lock();
    if let Some(instance) = live.as_ref().filter(|instance| !instance.has_ended()) {
        return Ok(Arc::clone(instance));
    }
    *live = None;
    let grant = inner.host.grant(&spec.resources)?;
    let home = Home::new(&inner.native, id);
    clear_the_way(inner, &home, id, source, &grant)?;
    let making = Making {
        inner,
        home: &home,
        grant: &grant,
        source,
        spec,
    };
    let mut claims = match making.intention(id) {
        Ok(claims) => claims,
        Err(error) => return Err(making.intend_nothing(error)),
    };
    match making.make(&mut claims) {
        Ok(process) => {
            let instance = Arc::new(Live::new(Arc::clone(inner), claims, process));
            *live = Some(Arc::clone(&instance));
            Ok(instance)
        }
        Err(error) => {
            let disk = if source.again {
                Disk::Keep
            } else {
                Disk::Remove
            };
            let left = teardown::take_away(inner, &mut claims, disk);
            Err(left
                .into_iter()
                .fold(error, |error, (what, _)| error.leaving(what)))
        }
    }
}

/// Takes hold of a sandbox that an earlier daemon made. Blocks.
pub(crate) fn adopt(
    inner: &Arc<Inner>,
    mut claims: Claims,
) -> Result<Option<Arc<Live>>, DriverError> {
    let slot = inner.slot(&claims.id);
    let mut live = slot.lock();
    if let Some(instance) = live.as_ref().filter(|instance| !instance.has_ended()) {
        return Ok(Some(Arc::clone(instance)));
    }
    let home = Home::new(&inner.native, &claims.id);
    // What lies beside the sandbox is newer than what the engine stored before a change of limits.
    if let Some(newer) = home.load().filter(|newer| newer.process == claims.process) {
        claims = newer;
    }
    if let Some(process) = claims.process.as_ref().and_then(Process::open) {
        let instance = Arc::new(Live::new(Arc::clone(inner), claims, process));
        *live = Some(Arc::clone(&instance));
        crash_point!("driver.adopted");
        return Ok(Some(instance));
    }
    *live = None;
    if home.path().is_dir() {
        teardown::first_failure(teardown::take_away(inner, &mut claims, Disk::Keep))?;
    }
    Ok(None)
}

/// Removes what a former instance of the same id left, except a disk that is wanted.
fn clear_the_way(
    inner: &Inner,
    home: &Home,
    id: &SandboxId,
    source: &Source,
    grant: &Grant,
) -> Result<(), DriverError> {
    let disk = if source.again {
        Disk::Keep
    } else {
        Disk::Remove
    };
    if !home.path().is_dir() {
        return if source.again {
            let message = format!("the disk of {id} is gone");
            Err(DriverError::new(DriverErrorKind::Gone, message))
        } else {
            Ok(())
        };
    }
    let mut claims = home.load().unwrap_or_else(|| teardown::unknown(inner, id));
    if source.again && claims.disk != grant.disk.kind() {
        let message = format!("the disk of {id} was made with another kind of limit");
        let error = DriverError::new(DriverErrorKind::NeedsDiskLimit, message);
        return Err(error.hint("start it with the disk limit that it was created with"));
    }
    teardown::first_failure(teardown::take_away(inner, &mut claims, disk))
}

impl Making<'_> {
    /// Writes down everything that may be made, before any of it is.
    fn intention(&self, id: &SandboxId) -> Result<Claims, DriverError> {
        let ids = match self.inner.launchers.identity() {
            LauncherIdentity::Root => Ids::Range { base: None },
            LauncherIdentity::Subordinate(_) => Ids::Shared,
            LauncherIdentity::Single => Ids::Single,
        };
        let group = self.inner.host.cgroups.open(&self.inner.group_name(id));
        let claims = Claims {
            version: CLAIMS_VERSION,
            id: id.clone(),
            ids,
            group: group.ok().filter(|group| !group.is_nowhere()),
            disk: self.grant.disk.kind(),
            process: None,
            granted: self.grant.shown(ids),
            resources: self.spec.resources,
            mounts: Vec::new(),
        };
        self.home.make()?;
        self.home.store(&claims)?;
        Ok(claims)
    }

    /// Removes the directory whose claims could not be written, as on a full disk.
    fn intend_nothing(&self, error: DriverError) -> DriverError {
        if self.source.again {
            // It holds the disk, and the claims that it had.
            return error;
        }
        match fs::remove_dir_all(self.home.path()) {
            Err(left) if left.kind() != io::ErrorKind::NotFound => {
                error.leaving(format!("directory {}", self.home.path().display()))
            }
            _ => error,
        }
    }

    fn make(&self, claims: &mut Claims) -> Result<OwnedFd, DriverError> {
        let faults = &self.inner.faults;
        crash_point!("driver.recorded");
        faults.pass(FaultPoint::Recorded)?;
        if let Ids::Range { base } = &mut claims.ids {
            *base = Some(self.inner.ranges.take(&claims.id).map_err(describe_range)?);
            crash_point!("driver.range_taken");
            claims.granted = self.grant.shown(claims.ids);
            self.home.store(claims)?;
        }
        faults.pass(FaultPoint::Range)?;
        if claims.group.is_some() {
            let name = self.inner.group_name(&claims.id);
            let created = self.inner.host.cgroups.create(&name, &self.grant.limits);
            claims.group = Some(created.map_err(describe_cgroup)?);
        }
        crash_point!("driver.cgroup_made");
        faults.pass(FaultPoint::Cgroup)?;
        self.make_disk()?;
        crash_point!("driver.disk_made");
        faults.pass(FaultPoint::Disk)?;
        let listener = self.listen()?;
        crash_point!("driver.listening");
        faults.pass(FaultPoint::Listener)?;
        let launched = self.launch(claims, &listener)?;
        claims.process = Some(Process {
            pid: launched.pid,
            start_time: launched.start_time,
            boot: process::boot_id(),
        });
        tracing::debug!(id = %claims.id, timings = ?launched.timings, "launched");
        crash_point!("driver.launched");
        faults.pass(FaultPoint::Launched)?;
        self.home.store(claims)?;
        crash_point!("driver.stored");
        faults.pass(FaultPoint::Stored)?;
        Ok(launched.pidfd)
    }

    fn make_disk(&self) -> Result<(), DriverError> {
        let private = self.home.private();
        make_private(&private)?;
        if matches!(self.grant.disk, DiskPlan::Memory(_)) {
            return Ok(());
        }
        for name in ["upper", "work"] {
            // The root directory of the sandbox has the mode of this one.
            let path = private.join(name);
            match DirBuilder::new().mode(0o755).create(&path) {
                Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("make", &path, source));
                }
                _ => {}
            }
        }
        let image = self.home.image();
        match self.grant.disk {
            DiskPlan::Image(limit) if !image.exists() => {
                disk::create_image(&image, limit, &private).map_err(describe_disk)
            }
            _ => Ok(()),
        }
    }

    fn listen(&self) -> Result<UnixListener, DriverError> {
        let directory = self.home.agent();
        make_private(&directory)?;
        let held = fs::File::open(&directory).map_err(|e| failed("open", &directory, e))?;
        let listener = UnixListener::bind(socket_in(held.as_fd()));
        listener.map_err(|source| failed("listen in", &directory, source))
    }

    fn launch(&self, claims: &Claims, listener: &UnixListener) -> Result<Launched, DriverError> {
        let log_path = self.home.log();
        let log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&log_path)
            .map_err(|source| failed("open", &log_path, source))?;
        let joins = with_group(claims, Group::joins)?;
        let usage = with_group(claims, Group::usage_files)?;
        let attach = joins.iter().map(|(how, _)| *how).collect();
        let kinds = usage.iter().map(|(kind, _)| *kind).collect();
        let plan = self.plan(claims, attach, kinds)?;
        let files = joins.iter().map(|(_, file)| file.as_fd());
        let files = files.chain(usage.iter().map(|(_, file)| file.as_fd()));
        let descriptors: Vec<BorrowedFd<'_>> = [listener.as_fd(), log.as_fd()]
            .into_iter()
            .chain(files)
            .collect();
        self.inner
            .launchers
            .ask(|launcher| launcher.launch(&plan, &descriptors))
    }

    fn plan(
        &self,
        claims: &Claims,
        attach: Vec<Attach>,
        usage: Vec<UsageFile>,
    ) -> Result<Plan, DriverError> {
        let identity = match claims.ids {
            Ids::Range { base } => Identity::Range {
                base: base.unwrap_or_default(),
            },
            Ids::Shared => Identity::Shared,
            Ids::Single => Identity::Single,
        };
        let tmpfs_upper = match self.grant.disk {
            DiskPlan::Memory(limit) => Some(limit),
            DiskPlan::Unlimited | DiskPlan::Image(_) => None,
        };
        let private = match self.grant.disk {
            DiskPlan::Image(_) => self.home.image(),
            DiskPlan::Unlimited | DiskPlan::Memory(_) => self.home.private(),
        };
        Ok(Plan {
            version: PLAN_VERSION,
            id: claims.id.to_string(),
            identity,
            root: RootPlan {
                layers: self.source.image.layers.clone(),
                private,
                volatile: self.spec.volatile,
                tmpfs_upper,
                binds: self.binds(claims)?,
                layer_reach: self.layer_reach()?,
            },
            tmpfs_bytes: self.grant.tmpfs_bytes,
            hostname: self.spec.hostname.clone(),
            attach,
            pid_max: self.grant.pid_max,
            boot: Boot {
                version: PLAN_VERSION,
                tcp: self.spec.agent_tcp,
                plain: None,
                cpu_limit_milli: self.grant.cpu_limit_milli,
                memory_limit_bytes: self.grant.memory_limit_bytes,
                usage,
            },
        })
    }

    /// A directory that the caller named is opened again, by their rights, each time it is used.
    fn layer_reach(&self) -> Result<Option<Reach>, DriverError> {
        let reach = &self.spec.image_reach;
        let named = ImageStore::is_directory(&self.source.image.key) && !reach.is_unlimited();
        named.then(|| reach_of(self.inner, reach)).transpose()
    }

    fn binds(&self, claims: &Claims) -> Result<Vec<Bind>, DriverError> {
        // Of the host's root's own files the sandbox sees the owners; of a user's, it is the owner.
        let mapped = matches!(claims.ids, Ids::Range { .. });
        let mut binds = images::binds(self.inner.images()?.as_ref(), &self.source.image);
        for mount in &self.spec.mounts {
            binds.push(bind_of(self.inner, mount, mapped)?);
        }
        if let Some(persist) = &self.spec.persist {
            binds.push(Bind {
                source: persist.clone(),
                target: PathBuf::from(PERSIST_TARGET),
                writable: true,
                setuid: false,
                mapped,
                reach: None,
            });
        }
        Ok(binds)
    }
}

/// Returns the agent's socket in an open directory: the whole path may be longer than the kernel
/// takes for a socket.
pub(crate) fn socket_in(directory: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()))
}

fn with_group<T>(
    claims: &Claims,
    open: impl Fn(&Group) -> Result<Vec<T>, CgroupError>,
) -> Result<Vec<T>, DriverError> {
    claims
        .group
        .as_ref()
        .map_or(Ok(Vec::new()), |group| open(group).map_err(describe_cgroup))
}

fn describe_range(error: RangeError) -> DriverError {
    let kind = match error {
        RangeError::Exhausted => DriverErrorKind::ResourceExhausted,
        RangeError::Directory { .. } => DriverErrorKind::Internal,
    };
    DriverError::new(kind, "failed to take a range of host ids").caused_by(error)
}

/// Says an error of a cgroup in the driver's words.
pub(crate) fn describe_cgroup(error: CgroupError) -> DriverError {
    let kind = match &error {
        CgroupError::Missing { .. } => DriverErrorKind::NeedsCgroup,
        CgroupError::Step { .. } | CgroupError::Name { .. } | CgroupError::TimedOut { .. } => {
            DriverErrorKind::Internal
        }
    };
    DriverError::new(kind, "failed to use the sandbox's cgroup").caused_by(error)
}

fn describe_disk(error: DiskError) -> DriverError {
    let (kind, hint) = match &error {
        DiskError::TooSmall { .. } => (DriverErrorKind::NeedsDiskLimit, "name a larger limit"),
        DiskError::TooFewFiles { .. } => (
            DriverErrorKind::NeedsDiskLimit,
            "allow more files or fewer bytes",
        ),
        DiskError::NoProgram => (
            DriverErrorKind::NeedsDiskLimit,
            "run: sudo apt-get install e2fsprogs",
        ),
        DiskError::Step { source, .. } if source.kind() == std::io::ErrorKind::FileTooLarge => (
            DriverErrorKind::NeedsDiskLimit,
            "name a smaller limit: the host's filesystem has no files that large",
        ),
        DiskError::Program { .. } | DiskError::Step { .. } => {
            (DriverErrorKind::Internal, "see the daemon's log")
        }
    };
    DriverError::new(kind, "failed to make a disk with a limit")
        .hint(hint)
        .caused_by(error)
}

/// Returns whether a disk of this kind survives the end of its sandbox.
pub(crate) fn is_durable(kind: DiskKind) -> bool {
    match kind {
        DiskKind::Directory | DiskKind::Image => true,
        DiskKind::Memory => false,
    }
}
