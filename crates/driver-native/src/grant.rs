//! From what a caller named to what this host can hold, and how it says so.

use std::collections::BTreeMap;

use pinfold_driver::{DriverError, DriverErrorKind};
use pinfold_linux::cgroup::{Cgroups, Controller, Limits};
use pinfold_linux::disk::{self, DiskLimit};
use pinfold_linux::launcher::LauncherIdentity;
use pinfold_linux::launcher::plan::TmpfsLimit;
use pinfold_linux::weaken::{Defence, is_off};
use pinfold_types::api::Granted;
use pinfold_types::spec::IsolationTier;
use pinfold_types::{ByteSize, Resources};

use crate::claims::{DiskKind, Ids};

/// Processes and threads when the caller named no number: far above ordinary work, and few enough
/// that a fork bomb leaves the host responsive.
pub(crate) const PIDS_DEFAULT: u32 = 4096;
/// Smallest `kernel.pid_max` that the kernel takes.
pub(crate) const PID_MAX_LEAST: u32 = 301;
/// First kernel in which a pid namespace has a `kernel.pid_max` of its own.
pub(crate) const PID_MAX_KERNEL: (u32, u32) = (6, 14);
/// Most bytes of `/tmp` and `/dev/shm` when no memory limit says how much that may be.
pub(crate) const TMPFS_BYTES_MAX: u64 = 4 << 30;
/// Files of a disk in memory when the caller named no number; each costs about a kibibyte.
const MEMORY_DISK_INODES: u64 = 1 << 20;
/// Bytes of a disk whose number of files is limited and whose size is not: sparse, so it costs
/// nothing until it is written.
const UNNAMED_DISK_BYTES: u64 = 64 << 30;

/// What this host offers.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) cgroups: Cgroups,
    pub(crate) identity: LauncherIdentity,
    pub(crate) kernel: (u32, u32),
    pub(crate) memory_bytes: u64,
    pub(crate) cpus: u32,
    /// Sparse images can be made and mounted.
    pub(crate) disk_images: bool,
}

/// What a sandbox gets.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
    pub(crate) limits: Limits,
    pub(crate) pid_max: Option<u32>,
    pub(crate) tmpfs_bytes: u64,
    pub(crate) disk: DiskPlan,
    pub(crate) cpu_limit_milli: u32,
    pub(crate) memory_limit_bytes: u64,
    shown: BTreeMap<String, String>,
    notes: Vec<String>,
}

/// How writes are held to a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DiskPlan {
    Unlimited,
    Image(DiskLimit),
    Memory(TmpfsLimit),
}

impl DiskPlan {
    pub(crate) fn kind(self) -> DiskKind {
        match self {
            Self::Unlimited => DiskKind::Directory,
            Self::Image(_) => DiskKind::Image,
            Self::Memory(_) => DiskKind::Memory,
        }
    }
}

impl Host {
    /// Decides what a sandbox gets; a named limit that cannot be held is an error.
    pub(crate) fn grant(&self, wanted: &Resources) -> Result<Grant, DriverError> {
        let mut grant = Grant {
            limits: Limits {
                cpu_milli: wanted.cpus.map(|cpus| cpus.0),
                memory_bytes: wanted.memory.map(|size| size.0),
                pids: None,
                cpu_request_milli: wanted.cpu_request.map(|cpus| cpus.0),
                memory_request_bytes: wanted.memory_request.map(|size| size.0),
            },
            pid_max: None,
            tmpfs_bytes: self.tmpfs_bytes(wanted),
            disk: DiskPlan::Unlimited,
            cpu_limit_milli: wanted.cpus.map_or(self.cpus * 1000, |cpus| cpus.0),
            memory_limit_bytes: wanted.memory.map_or(self.memory_bytes, |size| size.0),
            shown: BTreeMap::new(),
            notes: Vec::new(),
        };
        self.grant_groups(wanted, &mut grant)?;
        self.grant_pids(wanted, &mut grant)?;
        self.grant_disk(wanted, &mut grant)?;
        self.note_what_is_weaker(&mut grant);
        Ok(grant)
    }

    fn tmpfs_bytes(&self, wanted: &Resources) -> u64 {
        let unnamed = (self.memory_bytes / 2).min(TMPFS_BYTES_MAX);
        wanted
            .memory
            .map_or(unnamed, |size| size.0.min(self.memory_bytes))
    }

    fn grant_groups(&self, wanted: &Resources, grant: &mut Grant) -> Result<(), DriverError> {
        let named = [
            (
                "cpus",
                Controller::Cpu,
                wanted.cpus.map(|cpus| cpus.to_string()),
            ),
            (
                "memory",
                Controller::Memory,
                wanted.memory.map(|size| size.to_string()),
            ),
            (
                "cpu_request",
                Controller::Cpu,
                wanted.cpu_request.map(|cpus| cpus.to_string()),
            ),
            (
                "memory_request",
                Controller::Memory,
                wanted.memory_request.map(|size| size.to_string()),
            ),
        ];
        for (name, controller, value) in named {
            let shown = match (value, self.cgroups.version(controller)) {
                (Some(value), Some(version)) => format!("{value} (cgroup {})", version.as_str()),
                (Some(value), None) => return Err(self.needs_cgroup(name, &value, controller)),
                (None, _) if name.ends_with("request") => continue,
                (None, _) => "not limited".to_owned(),
            };
            grant.shown.insert(name.to_owned(), shown);
        }
        Ok(())
    }

    /// Says which cgroup a named limit needs, with the exact command that gives it.
    pub(crate) fn needs_cgroup(
        &self,
        name: &str,
        value: &str,
        controller: Controller,
    ) -> DriverError {
        let message = format!(
            "the limit {name} of {value} needs a {} cgroup, and none is delegated to this user",
            controller.as_str()
        );
        let command = self.cgroups.delegation_command(&Controller::ALL);
        DriverError::new(DriverErrorKind::NeedsCgroup, message).hint(format!("run: {command}"))
    }

    fn grant_pids(&self, wanted: &Resources, grant: &mut Grant) -> Result<(), DriverError> {
        let pids = wanted.pids.unwrap_or(PIDS_DEFAULT);
        let own_pid_max = self.kernel >= PID_MAX_KERNEL && pids >= PID_MAX_LEAST;
        let shown = if let Some(version) = self.cgroups.version(Controller::Pids) {
            grant.limits.pids = Some(pids);
            format!("{pids} (cgroup {})", version.as_str())
        } else if own_pid_max {
            grant.pid_max = Some(pids);
            format!("{pids} (pid namespace)")
        } else if wanted.pids.is_some() {
            return Err(self.needs_cgroup("pids", &pids.to_string(), Controller::Pids));
        } else {
            "not limited".to_owned()
        };
        grant.shown.insert("pids".to_owned(), shown);
        Ok(())
    }

    fn grant_disk(&self, wanted: &Resources, grant: &mut Grant) -> Result<(), DriverError> {
        let names = [
            ("disk", wanted.disk.map(|size| size.to_string())),
            ("inodes", wanted.inodes.map(|count| count.to_string())),
        ];
        let how =
            if is_off(Defence::DiskLimit) || (wanted.disk.is_none() && wanted.inodes.is_none()) {
                ""
            } else if self.identity == LauncherIdentity::Root && self.disk_images {
                grant.disk = DiskPlan::Image(DiskLimit {
                    bytes: wanted
                        .disk
                        .map_or_else(|| unnamed_bytes(wanted), |size| size.0),
                    files: wanted.inodes,
                });
                "image file"
            } else {
                grant.disk = DiskPlan::Memory(memory_disk(wanted)?);
                grant.notes.push(
                    "the disk is kept in memory, counts to the memory limit, and is lost at a stop"
                        .to_owned(),
                );
                "memory"
            };
        for (name, value) in names {
            let shown = value.map_or("not limited".to_owned(), |value| format!("{value} ({how})"));
            grant.shown.insert(name.to_owned(), shown);
        }
        Ok(())
    }

    fn note_what_is_weaker(&self, grant: &mut Grant) {
        if self.cgroups.version(Controller::Memory).is_none() {
            let command = self.cgroups.delegation_command(&Controller::ALL);
            grant.notes.push(format!(
                "no memory cgroup is delegated, so memory cannot be limited; run: {command}"
            ));
        }
        if self.cgroups.version(Controller::Freezer).is_none() {
            grant
                .notes
                .push("no freezer cgroup is delegated, so it cannot be paused".to_owned());
        }
        match self.identity {
            LauncherIdentity::Root => {}
            LauncherIdentity::Subordinate(_) => grant
                .notes
                .push("its host ids are shared by all sandboxes of this user".to_owned()),
            LauncherIdentity::Single => grant.notes.push(format!(
                "it has one user only, and its host id is this user's; {}",
                crate::probe::SUBIDS_FIX
            )),
        }
    }
}

/// Without a memory limit that it counts to, a disk in memory would be a hole in the host's.
fn memory_disk(wanted: &Resources) -> Result<TmpfsLimit, DriverError> {
    let Some(memory) = wanted.memory else {
        let error = DriverError::new(
            DriverErrorKind::NeedsDiskLimit,
            "a disk limit of this user is held in memory, which needs a memory limit",
        );
        return Err(
            error.hint("name a memory limit too, as in `--memory 512m`, or run the daemon as root")
        );
    };
    let bytes = wanted.disk.map_or(memory.0, |size| size.0);
    if bytes > memory.0 {
        let message = format!(
            "a disk of {} is held in memory here and is larger than the memory limit of {memory}",
            ByteSize(bytes)
        );
        return Err(DriverError::new(DriverErrorKind::NeedsDiskLimit, message)
            .hint("raise the memory limit, lower the disk limit, or run the daemon as root"));
    }
    Ok(TmpfsLimit {
        bytes,
        inodes: wanted.inodes.unwrap_or(MEMORY_DISK_INODES),
    })
}

/// Returns the size of a disk of which only the number of files was named.
fn unnamed_bytes(wanted: &Resources) -> u64 {
    let most = wanted.inodes.map_or(u64::MAX, disk::bytes_for_files);
    most.min(UNNAMED_DISK_BYTES)
}

impl Grant {
    /// Returns what the caller is shown.
    pub(crate) fn shown(&self, ids: Ids) -> Granted {
        let ids = match ids {
            Ids::Range { base: Some(base) } => {
                format!("range {base}+{}", pinfold_linux::identity::RANGE_LENGTH)
            }
            Ids::Range { base: None } => "range".to_owned(),
            Ids::Shared => "shared".to_owned(),
            Ids::Single => "single".to_owned(),
        };
        Granted {
            driver: "native".to_owned(),
            isolation: IsolationTier::Namespace,
            ids,
            limits: self.shown.clone(),
            notes: self.notes.clone(),
        }
    }

    /// Keeps what is said about the disk, which a live sandbox keeps whatever is asked.
    pub(crate) fn keep_disk_of(&mut self, before: &Granted) {
        for name in ["disk", "inodes"] {
            if let Some(shown) = before.limits.get(name) {
                self.shown.insert(name.to_owned(), shown.clone());
            }
        }
        self.notes.clone_from(&before.notes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinfold_types::MilliCpu;

    fn host(identity: LauncherIdentity) -> Host {
        Host {
            cgroups: Cgroups::none(),
            identity,
            kernel: (6, 14),
            memory_bytes: 16 << 30,
            cpus: 2,
            disk_images: true,
        }
    }

    fn check(host: &Host, wanted: Resources, kind: DriverErrorKind, hint: &str) {
        let error = host.grant(&wanted).unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.hint.as_deref().unwrap().contains(hint), "{error:?}");
    }

    #[test]
    fn what_is_named_and_cannot_be_held_is_refused_with_the_fix() {
        let user = host(LauncherIdentity::Single);
        let none = Resources::default();
        let cgroup = DriverErrorKind::NeedsCgroup;
        let memory = Some(ByteSize::from_mib(256));
        let cpus = Some(MilliCpu(1000));
        check(&user, Resources { memory, ..none }, cgroup, "Delegate=yes");
        check(&user, Resources { cpus, ..none }, cgroup, "Delegate=yes");
        let pids = Some(100);
        check(&user, Resources { pids, ..none }, cgroup, "Delegate=yes");
        let old = Host {
            kernel: (6, 13),
            ..user.clone()
        };
        let pids = Some(1000);
        check(&old, Resources { pids, ..none }, cgroup, "Delegate=yes");
        let disk = Some(ByteSize::from_mib(64));
        let needs = DriverErrorKind::NeedsDiskLimit;
        check(&user, Resources { disk, ..none }, needs, "--memory");
    }

    #[test]
    fn what_is_not_named_is_the_best_there_is_and_is_shown() {
        let user = host(LauncherIdentity::Single);
        let grant = user.grant(&Resources::default()).unwrap();
        assert_eq!(grant.pid_max, Some(PIDS_DEFAULT));
        let shown = grant.shown(Ids::Single);
        assert_eq!(shown.limits["pids"], "4096 (pid namespace)");
        assert_eq!(shown.limits["memory"], "not limited");
        assert!(shown.notes.iter().any(|note| note.contains("Delegate=yes")));
        let old = Host {
            kernel: (6, 13),
            ..user
        };
        let grant = old.grant(&Resources::default()).unwrap();
        assert_eq!(grant.shown(Ids::Single).limits["pids"], "not limited");
    }

    #[test]
    fn roots_disk_is_an_image() {
        let root = host(LauncherIdentity::Root);
        let wanted = Resources {
            inodes: Some(1000),
            ..Resources::default()
        };
        let grant = root.grant(&wanted).unwrap();
        let disk = DiskPlan::Image(DiskLimit {
            bytes: 62 * (128 << 20),
            files: Some(1000),
        });
        assert_eq!(grant.disk, disk);
        let ids = Ids::Range { base: Some(65_536) };
        assert_eq!(grant.shown(ids).ids, "range 65536+65536");
    }
}
