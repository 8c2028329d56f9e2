//! Control groups of version 1, version 2 and both at once, always beneath the caller's own.
//!
//! Which version holds a controller is found out for each controller by itself, because hosts mix
//! them, and a process can be in a different group for each. Nothing is ever made above the
//! caller's own group, except beneath a directory that somebody delegated to it.
//!
//! A named group is a directory `pinfold/NAME` in each hierarchy that is used. The directory
//! `pinfold` goes with the last group in it, so that nothing is left.

mod discover;
mod group;
mod limits;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::launcher::plan::{Attach, UsageFile};

pub use discover::System;
pub use group::{Group, GroupUsage};
pub use limits::Limits;

/// Directory beneath the base of each hierarchy that holds the groups.
pub const PARENT: &str = "pinfold";
/// Leaf of a v2 hierarchy that the daemon moves to, because inner groups hold no processes.
pub const DAEMON_LEAF: &str = "pinfold-daemon";

/// How often a group is made again whose parent was removed meanwhile.
const CREATE_ATTEMPTS: u32 = 8;

/// What a cgroup controls or counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Controller {
    /// CPU time and its shares.
    Cpu,
    /// CPU time that was used.
    CpuAccount,
    /// Memory and swap.
    Memory,
    /// Processes and threads.
    Pids,
    /// Suspending every process.
    Freezer,
}

impl Controller {
    /// Every controller.
    pub const ALL: [Self; 5] = [
        Self::Cpu,
        Self::CpuAccount,
        Self::Memory,
        Self::Pids,
        Self::Freezer,
    ];

    /// Returns the controller's name in a v1 hierarchy.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::CpuAccount => "cpuacct",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Freezer => "freezer",
        }
    }

    /// Returns the name that has to stand in `cgroup.controllers` of v2; the others are built in.
    const fn v2_domain(self) -> Option<&'static str> {
        match self {
            Self::Cpu => Some("cpu"),
            Self::Memory => Some("memory"),
            Self::Pids => Some("pids"),
            Self::CpuAccount | Self::Freezer => None,
        }
    }
}

/// Version of a hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Version {
    /// One hierarchy for each controller.
    V1,
    /// One hierarchy for all.
    V2,
}

impl Version {
    /// Returns `v1` or `v2`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

/// Why something with cgroups failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The host gives no usable cgroup for a controller.
    #[error("no `{}` cgroup can be used here", .controller.as_str())]
    Missing {
        /// The controller.
        controller: Controller,
    },
    /// A step on one path failed.
    #[error("failed to {step} `{}`", path.display())]
    Step {
        /// What was tried.
        step: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A name is not one that this module makes.
    #[error("`{name}` is not the name of a cgroup of ours")]
    Name {
        /// The refused name, cut.
        name: String,
    },
    /// Something did not happen within its time.
    #[error("the cgroup `{}` was not {state} within {seconds} s", path.display())]
    TimedOut {
        /// The group.
        path: PathBuf,
        /// What was waited for.
        state: &'static str,
        /// How long.
        seconds: u64,
    },
}

impl CgroupError {
    fn is_absence(&self) -> bool {
        matches!(self, Self::Step { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

fn step(step: &'static str, path: &Path, source: impl Into<io::Error>) -> CgroupError {
    CgroupError::Step {
        step,
        path: path.to_path_buf(),
        source: source.into(),
    }
}

/// One hierarchy and what it is used for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    version: Version,
    mount: PathBuf,
    base: PathBuf,
    controllers: Vec<Controller>,
}

/// The hierarchies in which the caller may make groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    places: Vec<Place>,
    /// What each controller that is not usable would need.
    undelegated: Vec<Undelegated>,
    user: u32,
}

/// A controller that exists but in which the caller may make nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Undelegated {
    controller: Controller,
    version: Version,
    mount: PathBuf,
}

/// Descriptors by which a new process joins a group.
pub type Joins = Vec<(Attach, OwnedFd)>;
/// Descriptors from which the use of a group is read.
pub type UsageFiles = Vec<(UsageFile, OwnedFd)>;

impl Cgroups {
    /// Finds out where this process may make groups.
    ///
    /// `delegated` names a directory, relative to each hierarchy's mount, that was given to the
    /// caller; without it, the caller's own group is used, else a directory that the caller owns
    /// directly beneath it or one of those above it.
    ///
    /// # Errors
    ///
    /// Returns [`CgroupError`] when the kernel's own lists cannot be read; a host without any
    /// cgroup is not an error.
    pub fn discover(delegated: Option<&Path>) -> Result<Self, CgroupError> {
        Ok(discover::find(&System::of_this_process()?, delegated))
    }

    /// As [`Cgroups::discover`] for another view of the system, as tests have it.
    pub fn discover_in(system: &System, delegated: Option<&Path>) -> Self {
        discover::find(system, delegated)
    }

    /// Returns no hierarchy at all, as on a host without cgroups.
    pub fn none() -> Self {
        Self {
            places: Vec::new(),
            undelegated: Vec::new(),
            user: rustix::process::geteuid().as_raw(),
        }
    }

    /// Returns in which version a controller can be used, or nothing.
    pub fn version(&self, controller: Controller) -> Option<Version> {
        self.place(controller).map(|place| place.version)
    }

    /// Returns the directory in which groups of a controller are made.
    pub fn base(&self, controller: Controller) -> Option<&Path> {
        self.place(controller).map(|place| place.base.as_path())
    }

    fn place(&self, controller: Controller) -> Option<&Place> {
        self.places
            .iter()
            .find(|place| place.controllers.contains(&controller))
    }

    /// Returns the exact root command that gives the caller the wanted controllers.
    pub fn delegation_command(&self, wanted: &[Controller]) -> String {
        let lacking: Vec<&Undelegated> = self
            .undelegated
            .iter()
            .filter(|lacking| wanted.contains(&lacking.controller))
            .collect();
        let mut mounts: Vec<String> = lacking
            .iter()
            .filter(|lacking| lacking.version == Version::V1)
            .map(|lacking| lacking.mount.display().to_string())
            .collect();
        mounts.dedup();
        if mounts.is_empty() {
            // Only inside a delegated group can an ordinary user attach processes in v2.
            return "systemd-run --user --scope --property=Delegate=yes pinfold serve".to_owned();
        }
        let user = self.user;
        format!(
            "sudo sh -c 'for d in {}; do mkdir -p $d/pinfold-{user} && \
             chown {user} $d/pinfold-{user} $d/pinfold-{user}/tasks $d/pinfold-{user}/cgroup.procs; \
             done'",
            mounts.join(" ")
        )
    }

    /// Returns whether a controller exists on this host though the caller may not use it.
    pub fn is_undelegated(&self, controller: Controller) -> bool {
        self.undelegated
            .iter()
            .any(|lacking| lacking.controller == controller)
    }

    /// Makes every hierarchy ready for groups; idempotent.
    ///
    /// In v2 this may move the calling process to a leaf of its own, so it comes before children.
    ///
    /// # Errors
    ///
    /// Returns [`CgroupError`]; a hierarchy in which it fails is not usable.
    pub fn prepare(&self) -> Result<(), CgroupError> {
        self.places.iter().try_for_each(Place::prepare)
    }

    /// Leaves out every hierarchy that cannot be made ready, and answers why.
    pub fn prepare_what_works(&mut self) -> Vec<CgroupError> {
        let mut failures = Vec::new();
        let places = std::mem::take(&mut self.places);
        for place in places {
            match place.prepare() {
                Ok(()) => self.places.push(place),
                Err(error) => {
                    for controller in &place.controllers {
                        self.undelegated.push(Undelegated {
                            controller: *controller,
                            version: place.version,
                            mount: place.mount.clone(),
                        });
                    }
                    failures.push(error);
                }
            }
        }
        failures
    }

    /// Makes a group with limits; on an error nothing of it is left.
    ///
    /// # Errors
    ///
    /// Returns [`CgroupError::Missing`] for a limit whose controller is not usable.
    pub fn create(&self, name: &str, limits: &Limits) -> Result<Group, CgroupError> {
        let group = self.open(name)?;
        for _ in 0..CREATE_ATTEMPTS {
            self.prepare()?;
            match group.make(limits) {
                Ok(()) => return Ok(group),
                Err(error) => {
                    // The first error is what matters; an empty group can always be removed.
                    let _removed = group.remove();
                    // Somebody may have removed the parent as it was empty for a moment.
                    if !error.is_absence() {
                        return Err(error);
                    }
                }
            }
        }
        let made = group.make(limits);
        made.inspect_err(|_| drop(group.remove()))?;
        Ok(group)
    }

    /// Returns a handle to a group by name, whether or not it exists.
    ///
    /// # Errors
    ///
    /// Returns [`CgroupError::Name`] for a name that could leave the directory.
    pub fn open(&self, name: &str) -> Result<Group, CgroupError> {
        let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            return Err(CgroupError::Name {
                name: name.chars().take(64).collect(),
            });
        }
        let places = self.places.iter().map(|place| {
            let directory = place.base.join(PARENT).join(name);
            (place.version, directory, place.controllers.clone())
        });
        Ok(Group::new(places.collect()))
    }

    /// Returns the names of all groups in any hierarchy.
    pub fn list(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .places
            .iter()
            .filter_map(|place| std::fs::read_dir(place.base.join(PARENT)).ok())
            .flatten()
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

impl Place {
    fn prepare(&self) -> Result<(), CgroupError> {
        let parent = self.base.join(PARENT);
        make_directory(&parent)?;
        let domains: Vec<&str> = self
            .controllers
            .iter()
            .filter(|_| self.version == Version::V2)
            .filter_map(|controller| controller.v2_domain())
            .collect();
        if domains.is_empty() {
            return Ok(());
        }
        if let Err(first) = enable(&self.base, &domains) {
            self.move_to_leaf()?;
            enable(&self.base, &domains).map_err(|_| first)?;
        }
        enable(&parent, &domains)
    }

    /// Moves this process out of the base, so that its controllers can be given to its children.
    fn move_to_leaf(&self) -> Result<(), CgroupError> {
        let leaf = self.base.join(DAEMON_LEAF);
        make_directory(&leaf)?;
        let procs = leaf.join("cgroup.procs");
        std::fs::write(&procs, "0").map_err(|source| step("move this process to", &procs, source))
    }
}

fn make_directory(path: &Path) -> Result<(), CgroupError> {
    match std::fs::create_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(step("make the cgroup", path, source))
        }
        _ => Ok(()),
    }
}

fn enable(directory: &Path, domains: &[&str]) -> Result<(), CgroupError> {
    let path = directory.join("cgroup.subtree_control");
    let enabled = std::fs::read_to_string(&path).map_err(|source| step("read", &path, source))?;
    let lacking: Vec<String> = domains
        .iter()
        .filter(|domain| !enabled.split_whitespace().any(|one| one == **domain))
        .map(|domain| format!("+{domain}"))
        .collect();
    if lacking.is_empty() {
        return Ok(());
    }
    std::fs::write(&path, lacking.join(" "))
        .map_err(|source| step("give controllers to the children of", &path, source))
}

#[cfg(test)]
mod tests;
