//! The second invariant: nothing is there that no sandbox owns.

#![allow(
    dead_code,
    reason = "every test binary includes this file and uses a part of it"
)]

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use crate::world::{World, eventually};

/// Ids of sandboxes with their names and states.
pub(crate) type States = BTreeMap<String, (String, String)>;

/// Asks the daemon, which starts when there is none.
pub(crate) fn states(world: &World) -> States {
    let listed = world.json(["list", "--all"]);
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let sandboxes = listed.as_array().unwrap().iter();
    sandboxes
        .map(|one| (text(&one["id"]), (text(&one["name"]), text(&one["state"]))))
        .collect()
}

/// Returns whether no step of a sandbox in this state is under way.
pub(crate) fn is_at_rest(state: &str) -> bool {
    matches!(state, "running" | "paused" | "stopped" | "failed")
}

/// Waits until everything of a world belongs to one of some sandboxes.
#[track_caller]
pub(crate) fn check(world: &World, states: &States, context: &str) {
    let mut found = Vec::new();
    let deadline = std::time::Instant::now() + crate::world::PATIENCE;
    while std::time::Instant::now() < deadline {
        found = unowned(world, states);
        if found.is_empty() {
            return;
        }
        crate::world::pause();
    }
    panic!("{context}: nobody owns {found:#?} with {states:?}");
}

/// Everything of a world that no sandbox owns.
fn unowned(world: &World, states: &States) -> Vec<String> {
    let state = world.state();
    let mut found = Vec::new();
    let is_live = |id: &str| {
        states
            .get(id)
            .is_some_and(|(_, state)| matches!(state.as_str(), "running" | "paused"))
    };
    let is_id = |name: &str| name.len() == 20 && name.bytes().all(|b| b.is_ascii_alphanumeric());
    for directory in ["native", "journals", "persist"] {
        for entry in fs::read_dir(state.join(directory))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_id(&name) && !states.contains_key(&name) {
                found.push(entry.path().display().to_string());
            }
        }
    }
    let tag = tag(&state.join("native"));
    let groups = Command::new("find")
        .args(["/sys/fs/cgroup", "-type", "d", "-name", &format!("*-{tag}")])
        .output()
        .unwrap();
    for group in String::from_utf8_lossy(&groups.stdout).lines() {
        let name = group.rsplit('/').next().unwrap_or_default();
        if !name.split_once('-').is_some_and(|(id, _)| is_live(id)) {
            found.push(group.to_owned());
        }
    }
    let ids = fs::read_dir(pinfold_driver_native::IDS_DIRECTORY);
    for entry in ids.into_iter().flatten().flatten() {
        let owner = fs::read_link(entry.path()).unwrap_or_default();
        let id = owner
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if owner.starts_with(&state) && !is_live(&id) {
            found.push(format!("ids {} of {id}", entry.path().display()));
        }
    }
    let native = state.join("native").display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&native))
            .map(str::to_owned),
    );
    found.extend(unowned_processes(world, &native, &tag, &is_live));
    found
}

/// Agents whose sandbox is not live, what else is in a sandbox's group, and surplus launchers.
fn unowned_processes(
    world: &World,
    native: &str,
    tag: &str,
    is_live: &dyn Fn(&str) -> bool,
) -> Vec<String> {
    let mut found = Vec::new();
    let daemon = world.daemon();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&str> = line.split('\0').collect();
        let log = fs::read_link(entry.path().join("fd/2")).unwrap_or_default();
        let is_ours = log.starts_with(native);
        if is_ours && words.get(1) == Some(&"launcher") {
            // A launcher has children of its name, which hold namespaces that it made ahead.
            let parent = parent_of(pid);
            if daemon.is_some() && parent != daemon && parent.and_then(parent_of) != daemon {
                found.push(format!("launcher {pid} of {parent:?}"));
            }
        }
        if is_ours && words.get(1) == Some(&"init") && !words.get(2).is_some_and(|id| is_live(id)) {
            found.push(format!("agent {pid}: {words:?}"));
        }
        let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        for group in groups.lines().filter_map(|line| line.rsplit('/').next()) {
            if let Some((id, rest)) = group.split_once('-')
                && rest == tag
                && !is_live(id)
            {
                found.push(format!("process {pid} in {group}"));
            }
        }
    }
    found
}

fn parent_of(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:\t"))?;
    parent.parse().ok()
}

/// What ends the names of the groups of a state directory; the driver's own way to say it.
fn tag(native: &std::path::Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let bytes = native.as_os_str().as_bytes();
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    format!("{hash:08x}")
}

/// Waits until sandboxes are at rest and answers what they are.
#[track_caller]
pub(crate) fn at_rest(world: &World) -> States {
    let mut now = States::new();
    eventually("all sandboxes to be at rest", || {
        now = states(world);
        now.values().all(|(_, state)| is_at_rest(state))
    });
    now
}
