//! Which hierarchies there are and where in each the caller may make groups.

use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};

use super::{CgroupError, Cgroups, Controller, DAEMON_LEAF, Place, Undelegated, Version, step};

/// Most entries of one directory that are looked at for a delegated one.
const DELEGATED_SEARCH_MAX: usize = 4096;

/// What the kernel says about one process's mounts and groups.
#[derive(Debug, Clone)]
pub struct System {
    /// As `/proc/self/mountinfo`.
    pub mounts: String,
    /// As `/proc/self/cgroup`.
    pub own: String,
    /// Effective user id.
    pub user: u32,
}

impl System {
    /// Reads the calling process's own.
    ///
    /// # Errors
    ///
    /// Returns [`CgroupError::Step`] when `/proc` is not readable.
    pub fn of_this_process() -> Result<Self, CgroupError> {
        let read = |path: &str| {
            let path = Path::new(path);
            fs::read_to_string(path).map_err(|source| step("read", path, source))
        };
        Ok(Self {
            mounts: read("/proc/self/mountinfo")?,
            own: read("/proc/self/cgroup")?,
            user: rustix::process::geteuid().as_raw(),
        })
    }
}

/// A mounted hierarchy.
#[derive(Debug)]
struct Hierarchy {
    version: Version,
    mount: PathBuf,
    /// The calling process's own group, as a directory beneath `mount`.
    own: PathBuf,
    controllers: Vec<Controller>,
}

pub(super) fn find(system: &System, delegated: Option<&Path>) -> Cgroups {
    let mut found = Cgroups {
        places: Vec::new(),
        undelegated: Vec::new(),
        user: system.user,
    };
    let mut taken: Vec<Controller> = Vec::new();
    for hierarchy in hierarchies(system) {
        let wanted: Vec<Controller> = hierarchy
            .controllers
            .iter()
            .copied()
            .filter(|controller| !taken.contains(controller))
            .collect();
        if wanted.is_empty() {
            continue;
        }
        let base = base(&hierarchy, delegated, system.user);
        let Some(base) = base else {
            let lacking = wanted.iter().map(|controller| Undelegated {
                controller: *controller,
                version: hierarchy.version,
                mount: hierarchy.mount.clone(),
            });
            found.undelegated.extend(lacking);
            continue;
        };
        taken.extend(&wanted);
        found.places.push(Place {
            version: hierarchy.version,
            mount: hierarchy.mount,
            base,
            controllers: wanted,
        });
    }
    found
        .undelegated
        .retain(|lacking| !taken.contains(&lacking.controller));
    found
}

/// Returns every hierarchy with a controller of use, v2 first because it does the same for less.
fn hierarchies(system: &System) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in system.mounts.lines() {
        let Some(hierarchy) = hierarchy(line, &system.own) else {
            continue;
        };
        // The same hierarchy may be mounted twice; the first is as good as any.
        let again = |other: &Hierarchy| {
            other.version == hierarchy.version && other.controllers == hierarchy.controllers
        };
        if !hierarchy.controllers.is_empty() && !found.iter().any(again) {
            found.push(hierarchy);
        }
    }
    found.sort_by_key(|hierarchy| hierarchy.version == Version::V1);
    found
}

/// Reads one line of `mountinfo`: `id parent dev ROOT MOUNT options… - TYPE source SUPEROPTIONS`.
fn hierarchy(line: &str, own: &str) -> Option<Hierarchy> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let root = unescape(left.next()?);
    let mount = unescape(left.next()?);
    let mut right = right.split(' ');
    let version = match right.next()? {
        "cgroup" => Version::V1,
        "cgroup2" => Version::V2,
        _ => return None,
    };
    let options: Vec<&str> = right.nth(1)?.split(',').collect();
    let own = own_path(own, version, &options)?;
    // A group outside what is mounted here cannot be named here.
    let beneath = Path::new(&own).strip_prefix(&root).ok()?;
    if !beneath
        .components()
        .all(|part| matches!(part, Component::Normal(_)))
    {
        return None;
    }
    let mut own = mount.join(beneath);
    if own.file_name().is_some_and(|name| name == DAEMON_LEAF) {
        own.pop();
    }
    let offered = |controller: &Controller| match version {
        Version::V1 => options.contains(&controller.as_str()),
        Version::V2 => match controller.v2_domain() {
            Some(domain) => fs::read_to_string(own.join("cgroup.controllers"))
                .is_ok_and(|list| list.split_whitespace().any(|one| one == domain)),
            // Every kernel that we run on freezes in v2 and counts CPU time in every group.
            None => true,
        },
    };
    let controllers = Controller::ALL.into_iter().filter(offered).collect();
    Some(Hierarchy {
        version,
        mount,
        own,
        controllers,
    })
}

/// Finds the line `id:controllers:path` of a hierarchy in a list like `/proc/self/cgroup`.
fn own_path(own: &str, version: Version, options: &[&str]) -> Option<String> {
    own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let same = match version {
            Version::V2 => controllers.is_empty(),
            Version::V1 => {
                !controllers.is_empty() && controllers.split(',').all(|one| options.contains(&one))
            }
        };
        same.then(|| path.to_owned())
    })
}

fn base(hierarchy: &Hierarchy, delegated: Option<&Path>, user: u32) -> Option<PathBuf> {
    if let Some(delegated) = delegated {
        let beneath = delegated.strip_prefix("/").unwrap_or(delegated);
        let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        let named = hierarchy.mount.join(beneath);
        if beneath.components().all(plain) && usable(hierarchy, &named) {
            return Some(named);
        }
    }
    if usable(hierarchy, &hierarchy.own) {
        return Some(hierarchy.own.clone());
    }
    let above = hierarchy
        .own
        .ancestors()
        .take_while(|path| path.starts_with(&hierarchy.mount));
    above
        .filter_map(|directory| owned_child(directory, user))
        .find(|directory| usable(hierarchy, directory))
}

/// Returns the first directory directly beneath one that belongs to the user.
fn owned_child(directory: &Path, user: u32) -> Option<PathBuf> {
    let mut owned: Vec<PathBuf> = fs::read_dir(directory)
        .ok()?
        .take(DELEGATED_SEARCH_MAX)
        .filter_map(Result::ok)
        .filter(|entry| {
            entry
                .metadata()
                .is_ok_and(|data| data.is_dir() && data.uid() == user)
        })
        .map(|entry| entry.path())
        .collect();
    owned.sort();
    owned.into_iter().next()
}

/// Returns whether groups can be made here and this process's children can join them.
fn usable(hierarchy: &Hierarchy, directory: &Path) -> bool {
    let writable =
        |path: &Path| rustix::fs::accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok();
    if !directory.is_dir() || !writable(directory) {
        return false;
    }
    match hierarchy.version {
        Version::V1 => true,
        // The kernel wants the right to write the `cgroup.procs` of the common ancestor of where a
        // process is and where it goes; that is the directory itself only when we are beneath it.
        Version::V2 if hierarchy.own.starts_with(directory) => {
            writable(&directory.join("cgroup.procs"))
        }
        Version::V2 => writable(&hierarchy.mount.join("cgroup.procs")),
    }
}

/// Undoes the octal escapes of `mountinfo`.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let octal = (*byte == b'\\')
            .then(|| text.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(octal.unwrap_or(*byte));
        at += if octal.is_some() { 4 } else { 1 };
    }
    PathBuf::from(std::ffi::OsString::from_vec(plain))
}
