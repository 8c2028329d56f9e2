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

mod faults {
    use std::collections::HashSet;
    use std::time::Duration;

    use pinfold_driver::AgentClient;
    use pinfold_driver::contract::{
        Disk, DriverErrorKind, ImageRequest, InstanceSpec, NoProgress, PreparedImage, StartSource,
    };
    use pinfold_driver::fake::Step;
    use pinfold_driver::reach::HostReach;
    use pinfold_types::{ErrorCode, Resources};

    use super::*;

    /// Longest time for what happens at once.
    const AT_ONCE: Duration = Duration::from_secs(10);

    fn driver(directory: &Path) -> FakeDriver {
        let agent = agent_binary(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
        FakeDriver::new(directory, agent)
    }

    async fn image(driver: &FakeDriver) -> PreparedImage {
        let request = ImageRequest {
            reference: "host".to_owned(),
            reach: HostReach::DAEMON,
        };
        driver.prepare(&request, &NoProgress).await.unwrap()
    }

    #[tokio::test]
    async fn a_step_fails_as_often_as_wanted_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let driver = driver(directory.path());
        let image = image(&driver).await;
        let id = SandboxId::new();
        let source = StartSource::Image(&image);
        let spec = InstanceSpec::default();
        for step in [Step::Start, Step::Started] {
            driver.faults().fail(step, DriverErrorKind::Internal, 1);
            let error = driver.start(&id, source, &spec).await.unwrap_err();
            assert_eq!(error.kind, DriverErrorKind::Internal);
            let deadline = tokio::time::Instant::now() + AT_ONCE;
            while !leftovers(directory.path(), &id).is_empty() {
                assert!(tokio::time::Instant::now() < deadline);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        driver.start(&id, source, &spec).await.unwrap();
        driver.sweep(&HashSet::new()).await.unwrap();
    }

    #[tokio::test]
    async fn a_silenced_agent_is_connected_and_never_answers() {
        let directory = tempfile::tempdir().unwrap();
        let driver = driver(directory.path());
        let image = image(&driver).await;
        let id = SandboxId::new();
        let source = StartSource::Image(&image);
        let instance = driver
            .start(&id, source, &InstanceSpec::default())
            .await
            .unwrap();
        driver.faults().silence(true);
        let error = AgentClient::new(Arc::clone(&instance)).ready().await;
        assert_eq!(error.unwrap_err().code, ErrorCode::AgentSilent);
        driver.faults().silence(false);
        AgentClient::new(Arc::clone(&instance))
            .ready()
            .await
            .unwrap();
        driver.kill_agent(&id);
        let exit = tokio::time::timeout(AT_ONCE, instance.wait())
            .await
            .unwrap();
        assert_eq!(exit.reason, "agent ended with signal 9");
        instance
            .shut_down(Duration::ZERO, Disk::Remove)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_limit_that_cannot_be_held_is_refused_unless_it_is_to_be_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let strict = driver(directory.path());
        let image = image(&strict).await;
        let source = StartSource::Image(&image);
        let spec = InstanceSpec {
            resources: Resources {
                pids: Some(64),
                ..Resources::default()
            },
            ..InstanceSpec::default()
        };
        let error = strict
            .start(&SandboxId::new(), source, &spec)
            .await
            .unwrap_err();
        assert_eq!(error.kind, DriverErrorKind::NeedsCgroup);
        let lenient = driver(directory.path()).ignoring_limits();
        lenient
            .start(&SandboxId::new(), source, &spec)
            .await
            .unwrap();
        lenient.sweep(&HashSet::new()).await.unwrap();
    }
}
