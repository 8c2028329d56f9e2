//! Starts an agent as a plain child process.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pinfold_types::SandboxId;

use super::process::{Process, ProcessKey, kill_tree, with_variable};

/// Marks every agent with the state directory it belongs to, so that a sweep finds strays. Execs
/// do not inherit it: their environment is theirs alone.
pub(super) const STATE_VARIABLE: &str = "PINFOLD_FAKE_STATE";

/// Version of the boot record.
const BOOT_VERSION: u32 = 1;

/// Moves standard input and output to the descriptors that the agent reads: a listening socket on
/// 3, its boot record on 4. The shell does it, since nothing safe in the standard library does.
///
/// The agent gets a session of its own: when a process's parent ends, the kernel hangs up on the
/// stopped members of its group, and a paused instance must outlive the daemon.
const SCRIPT: &str = r#"exec setsid "$0" init "$1" 3<&0 4<&1 0</dev/null 1>/dev/null"#;

/// Where everything of one instance is.
#[derive(Debug, Clone)]
pub(super) struct Places {
    pub(super) directory: PathBuf,
}

impl Places {
    pub(super) fn new(state_dir: &Path, id: &SandboxId) -> Self {
        Self {
            directory: state_dir.join(id.as_str()),
        }
    }

    /// The instance's files.
    pub(super) fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.join("agent.sock")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.directory.join("agent.log")
    }

    /// The process, for a driver that was not there when it was started.
    pub(super) fn process(&self) -> PathBuf {
        self.directory.join("process.json")
    }

    fn boot(&self) -> PathBuf {
        self.directory.join("boot.json")
    }

    /// Removes everything but the disk.
    pub(super) fn clear(&self) -> io::Result<()> {
        for path in [self.socket(), self.boot(), self.process()] {
            absent_is_fine(std::fs::remove_file(path))?;
        }
        Ok(())
    }

    /// Removes everything.
    pub(super) fn remove(&self) -> io::Result<()> {
        absent_is_fine(std::fs::remove_dir_all(&self.directory))
    }

    pub(super) fn stored_process(&self) -> Option<ProcessKey> {
        let text = std::fs::read(self.process()).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// What to start.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    pub(super) id: SandboxId,
    pub(super) state_dir: PathBuf,
    pub(super) binary: PathBuf,
    /// Start with an empty disk instead of the one that is there.
    pub(super) fresh: bool,
    pub(super) agent_tcp: bool,
}

/// An agent that dies with this value unless it is kept.
#[derive(Debug)]
pub(super) struct Launched {
    process: Option<Process>,
    places: Places,
    fresh: bool,
}

impl Launched {
    pub(super) fn keep(mut self) -> Option<Process> {
        self.process.take()
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            kill_tree(&process);
            // What cannot be removed is found by the next sweep.
            drop(if self.fresh {
                self.places.remove()
            } else {
                self.places.clear()
            });
        }
    }
}

/// Starts the agent; blocks.
pub(super) fn launch(launch: &Launch) -> io::Result<Launched> {
    let places = Places::new(&launch.state_dir, &launch.id);
    let result = start(launch, &places);
    if result.is_err() {
        drop(if launch.fresh {
            places.remove()
        } else {
            places.clear()
        });
    }
    result.map(|process| Launched {
        process: Some(process),
        places,
        fresh: launch.fresh,
    })
}

fn start(launch: &Launch, places: &Places) -> io::Result<Process> {
    places.clear()?;
    if launch.fresh {
        absent_is_fine(std::fs::remove_dir_all(places.root()))?;
    }
    std::fs::create_dir_all(places.root())?;
    let boot = serde_json::json!({
        "version": BOOT_VERSION,
        "tcp": launch.agent_tcp,
        "plain": places.root(),
    });
    std::fs::write(places.boot(), serde_json::to_vec(&boot)?)?;
    let listener = OwnedFd::from(UnixListener::bind(places.socket())?);
    let child = Command::new("/bin/sh")
        .args(["-c", SCRIPT])
        .arg(&launch.binary)
        .arg(launch.id.as_str())
        .env_clear()
        .env(STATE_VARIABLE, &launch.state_dir)
        .current_dir(places.root())
        .stdin(Stdio::from(listener))
        .stdout(Stdio::from(File::open(places.boot())?))
        .stderr(Stdio::from(File::create(places.log())?))
        .spawn()?;
    // Nobody waits for the child but its watcher, so the number is still its own.
    let process = Process::of_child(child.id())?;
    std::fs::write(places.process(), serde_json::to_vec(&process.key)?)?;
    Ok(process)
}

/// Returns agents of a state directory that no stored record names.
pub(super) fn strays(state_dir: &Path) -> Vec<Process> {
    let Some(value) = state_dir.to_str() else {
        return Vec::new();
    };
    with_variable(STATE_VARIABLE, value)
        .into_iter()
        .filter_map(Process::of_key)
        .collect()
}
