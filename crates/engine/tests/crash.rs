//! The daemon ends without warning at every named point; the next one must find a state that is
//! whole, and after a removal nothing may be left.

#![expect(clippy::unwrap_used, reason = "a test's own tools fail the test")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use pinfold_driver::fake::{FakeDriver, agent_binary};
use pinfold_engine::{Caller, Engine, EngineConfig};
use pinfold_types::api::{CreateSandboxRequest, StopRequest};
use pinfold_types::crash::CRASH_AT;
use pinfold_types::spec::IsolationTier;
use pinfold_types::{EventKind, ExecSpec, Role, SandboxSpec, SandboxState};

/// Tells the test that it is the daemon that ends, and where its state is.
const CHILD_STATE: &str = "PINFOLD_TEST_CRASH_STATE";

static USER: Caller = Caller::of_host(1000, 1000, Role::User);

/// Every point that a life passes, in the order of the life.
const POINTS: &[&str] = &[
    "engine.adopted",
    "engine.row_inserted",
    "engine.image_prepared",
    "engine.instance_started",
    "engine.running_written",
    "engine.exec_row_written",
    "engine.exec_started",
    "engine.journal_appended",
    "engine.exec_exit_written",
    "engine.instance_paused",
    "engine.stopping_written",
    "engine.instance_stopped",
    "engine.starting_written",
    "engine.removing_written",
    "engine.instance_removed",
    "engine.files_removed",
    "engine.row_deleted",
];

async fn open(dir: &Path) -> Engine {
    let agent = agent_binary(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
    let instances = dir.join("native");
    std::fs::create_dir_all(&instances).unwrap();
    let driver = Arc::new(FakeDriver::new(instances, agent));
    Engine::open(EngineConfig::new(dir), driver).await.unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn shell(script: &str) -> ExecSpec {
    ExecSpec {
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        workdir: Some("/".to_owned()),
        ..ExecSpec::default()
    }
}

/// One life with every step in it.
async fn live(dir: &Path) {
    let engine = open(dir).await;
    let request = CreateSandboxRequest {
        name: Some("a".parse().unwrap()),
        spec: SandboxSpec {
            isolation: IsolationTier::None,
            ..SandboxSpec::default()
        },
        ..CreateSandboxRequest::default()
    };
    engine.create(&USER, request, None).await.unwrap();
    let exec = engine
        .exec_start(&USER, "a", shell("echo one; echo two"))
        .await
        .unwrap();
    engine.exec_wait(&USER, "a", &exec.exec_id).await.unwrap();
    // The row is written after the journal; the point between must be passed.
    while engine.exec_list(&USER, "a").await.unwrap().execs.is_empty() {
        tokio::task::yield_now().await;
    }
    engine.pause(&USER, "a").await.unwrap();
    engine.resume(&USER, "a").await.unwrap();
    engine
        .stop(
            &USER,
            "a",
            StopRequest {
                grace_ms: Some(100),
            },
        )
        .await
        .unwrap();
    engine.start(&USER, "a").await.unwrap();
    engine.remove(&USER, "a", false).await.unwrap();
    engine.shut_down().await;
}

/// The daemon that ends: runs only as the child of the other test.
#[test]
fn child() {
    let Some(state) = std::env::var_os(CHILD_STATE) else {
        return;
    };
    runtime().block_on(live(&PathBuf::from(state)));
}

#[test]
fn the_next_daemon_finds_a_whole_state_after_a_crash_at_any_point() {
    for point in POINTS {
        let dir = tempfile::tempdir().unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD_STATE, dir.path())
            .env(CRASH_AT, point)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{point} was not passed");
        assert!(!said.contains("panicked"), "{point}: {said}");
        runtime().block_on(check(dir.path(), point));
    }
}

async fn check(dir: &Path, point: &str) {
    let engine = open(dir).await;
    let mut found = engine.get(&USER, "a").await.ok();
    while found.as_ref().map(|s| s.state) == Some(SandboxState::Starting) {
        tokio::task::yield_now().await;
        found = engine.get(&USER, "a").await.ok();
    }
    let index = POINTS.iter().position(|p| *p == point).unwrap();
    let created = POINTS
        .iter()
        .position(|p| *p == "engine.running_written")
        .unwrap();
    let removing = POINTS
        .iter()
        .position(|p| *p == "engine.removing_written")
        .unwrap();
    let there = (created..removing).contains(&index);
    assert_eq!(found.is_some(), there, "{point}");
    if let Some(sandbox) = found {
        let settled = [
            SandboxState::Running,
            SandboxState::Paused,
            SandboxState::Stopped,
        ];
        assert!(settled.contains(&sandbox.state), "{point}: {sandbox:?}");
        for exec in engine.exec_list(&USER, "a").await.unwrap().execs {
            let exit = engine.exec_wait(&USER, "a", &exec.exec_id).await.unwrap();
            let mut reader = engine
                .exec_events(&USER, "a", &exec.exec_id, 0, true)
                .await
                .unwrap();
            let (mut text, mut next) = (Vec::new(), 1);
            while let Some(event) = reader.next().await {
                let event = event.unwrap();
                assert_eq!(event.seq, next, "{point}");
                next += 1;
                if let EventKind::Output { data, .. } = event.kind {
                    text.extend(data);
                }
            }
            // An exec whose start was never acknowledged may be lost, and no other.
            if point == "engine.exec_row_written" {
                assert!(exit.lost, "{point}");
            } else {
                assert_eq!(
                    (exit.code, text.as_slice()),
                    (Some(0), &b"one\ntwo\n"[..]),
                    "{point}"
                );
            }
        }
        if sandbox.state == SandboxState::Stopped {
            engine.start(&USER, "a").await.unwrap();
        }
        let exec = engine
            .exec_start(&USER, "a", shell("exit 5"))
            .await
            .unwrap();
        let exit = engine.exec_wait(&USER, "a", &exec.exec_id).await.unwrap();
        assert_eq!(exit.code, Some(5), "{point}");
        engine.remove(&USER, "a", false).await.unwrap();
    }
    engine.shut_down().await;
    for place in ["native", "journals", "persist"] {
        let left: Vec<_> = std::fs::read_dir(dir.join(place)).unwrap().collect();
        assert!(left.is_empty(), "{point} left {left:?} in {place}");
    }
}
