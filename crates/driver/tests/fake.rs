//! The conformance suite on the fake driver: the agent as a plain child process.

#![expect(
    clippy::unwrap_used,
    reason = "what the suite is set up with fails the test when it fails"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt as _;
use pinfold_driver::conformance::{Facts, Setup};
use pinfold_driver::contract::{Driver, InstanceRecord};
use pinfold_driver::fake::{FakeDriver, agent_binary};
use pinfold_types::SandboxId;
use rustix::process::{Pid, Signal, kill_process};

/// Lists the instance's directory, and processes that work in it or are its agent.
fn leftovers(state_dir: &Path, id: &SandboxId) -> Vec<String> {
    let directory = state_dir.join(id.as_str());
    let mut left = Vec::new();
    if directory.exists() {
        left.push(format!("the directory {}", directory.display()));
    }
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let works_here = std::fs::read_link(entry.path().join("cwd"))
            .is_ok_and(|directory_of| directory_of.starts_with(&directory));
        let is_agent = std::fs::read_to_string(entry.path().join("cmdline"))
            .is_ok_and(|line| line.split('\0').any(|word| word == id.as_str()));
        if works_here || is_agent {
            left.push(format!("process {}", entry.path().display()));
        }
    }
    left
}

fn kill_agent(record: &InstanceRecord) {
    let pid = record.state["pid"].as_i64().unwrap();
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

async fn setup() -> Setup {
    let agent = agent_binary(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let state_dir: PathBuf = directory.path().join("state");
    let host_dir = directory.path().join("host");
    std::fs::create_dir(&state_dir).unwrap();
    std::fs::create_dir(&host_dir).unwrap();
    let opened = (state_dir.clone(), agent.clone());
    let searched = state_dir.clone();
    Setup {
        driver: Arc::new(FakeDriver::new(state_dir.clone(), agent.clone())),
        facts: Facts {
            image: "host".to_owned(),
            open: Box::new(move || {
                let (state_dir, agent) = opened.clone();
                async move { Arc::new(FakeDriver::new(state_dir, agent)) as Arc<dyn Driver> }
                    .boxed()
            }),
            leftovers: Box::new(move |id| leftovers(&searched, id)),
            kill_agent: Box::new(kill_agent),
            host_dir,
            keep: Box::new(directory),
        },
    }
}

pinfold_driver::conformance::suite!(setup);
