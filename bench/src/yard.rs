//! A private place for one daemon, and what there is of it on the host.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal};
use serde_json::Value;

/// Longest time that anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// Names and states of sandboxes by id.
pub(crate) type States = BTreeMap<String, (String, String)>;

/// The place and who uses it.
#[derive(Debug)]
pub(crate) struct Yard {
    directory: tempfile::TempDir,
    user: Option<(u32, u32)>,
    tag: String,
}

impl Yard {
    /// Makes the place, with a copy of the product that the user can execute.
    pub(crate) fn new(product: &Path, user: Option<&str>) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!(
                "only root sees everything that may leak; use --as-user to run the product as another"
            );
        }
        let directory = tempfile::Builder::new()
            .prefix("pfsoak-")
            .tempdir_in("/var/tmp")?;
        let path = directory.path();
        let user = user.map(ids_of).transpose()?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
        fs::copy(product, path.join("pinfold"))
            .with_context(|| format!("failed to copy {}", product.display()))?;
        for name in ["home", "run"] {
            fs::create_dir(path.join(name))?;
        }
        if let Some((uid, gid)) = user {
            for path in [
                path.to_owned(),
                path.join("home"),
                path.join("run"),
                path.join("pinfold"),
            ] {
                std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
            }
        }
        let native = path.join("state/native");
        // As the driver names its groups.
        let hash = native
            .as_os_str()
            .as_bytes()
            .iter()
            .fold(0x811c_9dc5_u32, |hash, byte| {
                (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
            });
        Ok(Self {
            tag: format!("{hash:08x}"),
            directory,
            user,
        })
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("run/pinfold.sock")
    }

    /// Returns whether somebody holds the socket: of a daemon that was killed, its last thread may.
    pub(crate) fn is_served(&self) -> bool {
        UnixStream::connect(self.directory.path().join("run/pinfold.sock")).is_ok()
    }

    /// Prepares the product to run as the user.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let path = self.directory.path();
        let program = path.join("pinfold");
        let mut command = match self.user {
            None => Command::new(program),
            Some((uid, gid)) => {
                let mut command = Command::new("setpriv");
                command
                    .args([format!("--reuid={uid}"), format!("--regid={gid}")])
                    .args([
                        "--clear-groups",
                        "--inh-caps=-all",
                        "--bounding-set=+all",
                        "--",
                    ])
                    .arg(program);
                command
            }
        };
        command
            .args(words)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", path.join("home"))
            .env("PINFOLD_STATE_DIR", self.state())
            .env("PINFOLD_SOCKET", path.join("run/pinfold.sock"))
            .current_dir(path.join("home"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the product; fails when it does.
    pub(crate) fn run(&self, words: &[&str]) -> Result<String> {
        let output = self.command(words).output()?;
        if !output.status.success() {
            bail!(
                "{words:?}: {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Asks for what there is, once nothing is under way.
    pub(crate) fn states(&self) -> Result<States> {
        let mut states = States::new();
        let rest = until(|| {
            let listed: Value = serde_json::from_str(&self.run(&["--json", "list", "--all"])?)?;
            states.clear();
            for one in listed.as_array().into_iter().flatten() {
                let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
                states.insert(text("id"), (text("name"), text("state")));
            }
            let at_rest = ["running", "paused", "stopped", "failed"];
            let rests = |(id, (_, state)): (&String, &(String, String))| {
                at_rest.contains(&state.as_str())
                    && is_live(state) == agents(&self.processes()).any(|(_, of)| of == id)
            };
            Ok(states.iter().all(rests))
        })?;
        if !rest {
            bail!("something does not come to rest: {states:?}");
        }
        Ok(states)
    }

    /// Fails when something stays that no sandbox owns.
    pub(crate) fn check_owned(&self, states: &States) -> Result<()> {
        let mut found = Vec::new();
        let clean = until(|| {
            found = self.unowned(states)?;
            Ok(found.is_empty())
        })?;
        if !clean {
            bail!("nobody owns {found:#?} with {states:?}");
        }
        Ok(())
    }

    fn unowned(&self, states: &States) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let is_live = |id: &str| states.get(id).is_some_and(|(_, state)| is_live(state));
        for part in ["native", "journals", "persist"] {
            for (name, path) in list(&self.state().join(part)) {
                let is_id = name.len() == 20 && name.bytes().all(|b| b.is_ascii_alphanumeric());
                if is_id && !states.contains_key(&name) {
                    found.push(path.display().to_string());
                }
            }
        }
        found.extend(self.groups()?.into_iter().filter(|group| {
            let name = group.rsplit('/').next().unwrap_or_default();
            !name.split_once('-').is_some_and(|(id, _)| is_live(id))
        }));
        for (_, path) in list(Path::new("/run/pinfold-ids")) {
            let owner = fs::read_link(&path).unwrap_or_default();
            let id = owner.file_name().unwrap_or_default().to_string_lossy();
            if owner.starts_with(self.state()) && !is_live(&id) {
                found.push(format!("ids {}", path.display()));
            }
        }
        let native = self.state().join("native").display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        found.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&native))
                .map(str::to_owned),
        );
        let daemon = self.daemon();
        for (pid, words) in self.processes() {
            match words.get(1).map(String::as_str) {
                Some("launcher") => {
                    // A launcher has children of its name, which hold namespaces made ahead.
                    let parent = parent_of(pid);
                    if parent != daemon && parent.and_then(parent_of) != daemon {
                        found.push(format!("launcher {pid}"));
                    }
                }
                Some("init") if words.get(2).is_some_and(|id| is_live(id)) => {}
                Some("init") => found.push(format!("agent {pid}: {words:?}")),
                _ => {}
            }
        }
        Ok(found)
    }

    fn groups(&self) -> Result<Vec<String>> {
        let output = Command::new("find")
            .args([
                "/sys/fs/cgroup",
                "-type",
                "d",
                "-name",
                &format!("*-{}", self.tag),
            ])
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(str::to_owned)
            .collect())
    }

    /// Processes that say what they have to say to a file of this place.
    pub(crate) fn processes(&self) -> Vec<(i32, Vec<String>)> {
        let ours = |path: &Path| {
            let log = fs::read_link(path.join("fd/2")).unwrap_or_default();
            log.starts_with(self.directory.path())
        };
        list(Path::new("/proc"))
            .into_iter()
            .filter_map(|(name, path)| Some((name.parse().ok()?, path)))
            .filter(|(_, path)| ours(path))
            .map(|(pid, path)| {
                let line = fs::read_to_string(path.join("cmdline")).unwrap_or_default();
                (
                    pid,
                    line.split_terminator('\0').map(str::to_owned).collect(),
                )
            })
            .collect()
    }

    pub(crate) fn daemon(&self) -> Option<i32> {
        let processes = self.processes();
        let serves = |words: &Vec<String>| words.get(1).is_some_and(|word| word == "serve");
        processes
            .iter()
            .find(|(_, words)| serves(words))
            .map(|(pid, _)| *pid)
    }

    /// Ends the daemon and waits for it.
    pub(crate) fn end(&self) -> Result<()> {
        if let Some(pid) = self.daemon() {
            send(pid, Signal::TERM);
            until(|| Ok(self.daemon() != Some(pid)))?;
        }
        Ok(())
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        let _best_effort = self.command(&["rm", "--all", "--force"]).output();
        let _best_effort = self.end();
    }
}

/// Asks again and again whether something is so; answers `false` when it does not come to be.
pub(crate) fn until(so: impl FnMut() -> Result<bool>) -> Result<bool> {
    until_within(PATIENCE, so)
}

/// As [`until`], for so long.
pub(crate) fn until_within(time: Duration, mut so: impl FnMut() -> Result<bool>) -> Result<bool> {
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        if so()? {
            return Ok(true);
        }
        wait(Duration::from_millis(10));
    }
    Ok(false)
}

/// Lets time pass, of which only how long it is matters.
pub(crate) fn wait(time: Duration) {
    let timeout = rustix::time::Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(1),
        tv_nsec: time.subsec_nanos().into(),
    };
    let _interrupted = rustix::event::poll(&mut [], Some(&timeout));
}

/// Signals a process, which may be gone already.
pub(crate) fn send(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _gone = rustix::process::kill_process(pid, signal);
    }
}

fn is_live(state: &str) -> bool {
    matches!(state, "running" | "paused")
}

/// Agents among some processes, with the ids of their sandboxes.
fn agents(processes: &[(i32, Vec<String>)]) -> impl Iterator<Item = (i32, &String)> {
    processes
        .iter()
        .filter_map(|(pid, words)| match &words[..] {
            [_, mode, id, ..] if mode == "init" => Some((*pid, id)),
            _ => None,
        })
}

fn parent_of(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:\t"))?;
    parent.parse().ok()
}

pub(crate) fn list(directory: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            (
                entry.file_name().to_string_lossy().into_owned(),
                entry.path(),
            )
        })
        .collect()
}

fn ids_of(user: &str) -> Result<(u32, u32)> {
    let id = |flag: &str| -> Result<u32> {
        let output = Command::new("id").args([flag, user]).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.trim()
            .parse()
            .with_context(|| format!("there is no user {user}"))
    };
    Ok((id("-u")?, id("-g")?))
}
