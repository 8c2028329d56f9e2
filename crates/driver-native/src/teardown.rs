//! Taking a sandbox away: also one that is half made, half gone, or an earlier daemon's.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use pinfold_driver::{Disk, DriverError, DriverErrorKind};
use pinfold_linux::beneath::Beneath;
use pinfold_linux::cgroup::Group;
use pinfold_types::{Resources, SandboxId, crash_point};
use rustix::process::Signal;

use crate::claims::{CLAIMS_VERSION, Claims, DiskKind, Home, Ids};
use crate::driver::Inner;
use crate::process::{self, Process};
use crate::start::{describe_cgroup, is_durable};

/// Longest time for a killed process to be gone.
const KILLED_MAX: Duration = Duration::from_secs(20);

/// What could not be taken away, and why.
pub(crate) type Leftovers = Vec<(String, DriverError)>;

/// Ends every process of a sandbox, then takes away all that it had. Idempotent. Blocks.
///
/// While a process lives, what it uses stays claimed, so that a later sweep finds all of it.
pub(crate) fn take_away(inner: &Inner, claims: &mut Claims, disk: Disk) -> Leftovers {
    let id = claims.id.clone();
    if let Err(error) = end_processes(claims) {
        return vec![(format!("processes of {id}"), error)];
    }
    crash_point!("driver.processes_ended");
    let mut left = Vec::new();
    if let Some(group) = &claims.group {
        match group.remove() {
            Ok(()) => claims.group = None,
            Err(error) => left.push((format!("cgroup of {id}"), describe_cgroup(error))),
        }
    }
    crash_point!("driver.cgroup_removed");
    claims.process = None;
    if let Ids::Range { base } = &mut claims.ids
        && let Some(first) = *base
    {
        match inner.ranges.give_back(&id, first) {
            Ok(()) => *base = None,
            Err(source) => {
                let what = "failed to give back a range of host ids";
                let error = DriverError::new(DriverErrorKind::Internal, what).caused_by(source);
                left.push((format!("ids of {id}"), error));
            }
        }
    }
    crash_point!("driver.range_given_back");
    let home = Home::new(&inner.native, &id);
    if !home.path().is_dir() {
        return left;
    }
    let removed = match disk {
        Disk::Remove if left.is_empty() => {
            let removed = remove(inner, home.path());
            crash_point!("driver.directory_removed");
            removed
        }
        Disk::Remove | Disk::Keep => {
            let kept = keep(inner, &home, claims);
            crash_point!("driver.directory_kept");
            kept
        }
    };
    if let Err(error) = removed {
        left.push((format!("directory {}", home.path().display()), error));
    }
    left
}

/// Turns leftovers into an error that lists them.
pub(crate) fn first_failure(left: Leftovers) -> Result<(), DriverError> {
    let mut left = left.into_iter();
    let Some((what, first)) = left.next() else {
        return Ok(());
    };
    Err(left.fold(first.leaving(what), |error, (what, _)| error.leaving(what)))
}

/// Returns claims for a sandbox whose own are lost: all that it can have by its id alone.
pub(crate) fn unknown(inner: &Inner, id: &SandboxId) -> Claims {
    let group = inner.host.cgroups.open(&inner.group_name(id)).ok();
    Claims {
        version: CLAIMS_VERSION,
        id: id.clone(),
        ids: Ids::Single,
        group: group.filter(Group::exists),
        disk: DiskKind::Directory,
        process: None,
        granted: pinfold_types::api::Granted::default(),
        resources: Resources::default(),
        mounts: Vec::new(),
    }
}

fn end_processes(claims: &Claims) -> Result<(), DriverError> {
    let stays = |error: std::io::Error| {
        DriverError::new(
            DriverErrorKind::Internal,
            "failed to end process 1 of a sandbox",
        )
        .caused_by(error)
    };
    let mut known: Vec<Process> = claims.process.iter().cloned().collect();
    if claims.group.is_none() || known.is_empty() {
        // A launcher or a daemon that died may have left a process that nobody wrote down. With a
        // cgroup it is found there, which costs less than to look at every process of the host.
        known.extend(process::marked(claims.id.as_str(), claims.ids));
    }
    let first: Vec<OwnedFd> = known.iter().filter_map(Process::open).collect();
    for process in &first {
        // With process 1 the kernel ends all others of its pid namespace.
        process::signal(process, Signal::KILL).map_err(stays)?;
    }
    if let Some(group) = &claims.group {
        // Also because a frozen process does not end before it goes on.
        group.kill().map_err(describe_cgroup)?;
    }
    if first
        .iter()
        .all(|process| process::wait(process, KILLED_MAX))
    {
        Ok(())
    } else {
        Err(stays(std::io::ErrorKind::TimedOut.into()))
    }
}

/// Removes what only a live sandbox needs, and keeps its disk.
fn keep(inner: &Inner, home: &Home, claims: &Claims) -> Result<(), DriverError> {
    remove(inner, &home.agent())?;
    // The kernel takes much longer to use a former `work` again than to begin with a new one.
    remove(inner, &home.private().join("work"))?;
    if !is_durable(claims.disk) {
        remove(inner, &home.private())?;
    }
    home.store(claims)
}

/// Removes a directory of ours with everything in it, whose files may belong to subordinate ids.
fn remove(inner: &Inner, path: &Path) -> Result<(), DriverError> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    let own = Beneath::open(parent).and_then(|parent| parent.remove_all(Path::new(name)));
    match own {
        Ok(()) => Ok(()),
        // The launcher holds the ids that its sandboxes' files can belong to.
        Err(_) => inner.launchers.ask(|launcher| launcher.remove_tree(path)),
    }
}
