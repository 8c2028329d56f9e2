//! What the engine has in memory does not grow with what it has done.

#![expect(clippy::unwrap_used, reason = "a test's own tools fail the test")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pinfold_driver::fake::{FakeDriver, agent_binary};
use pinfold_engine::{Caller, Engine, EngineConfig, Held};
use pinfold_linux::memory::Counted;
use pinfold_types::api::{CreateSandboxRequest, StopRequest};
use pinfold_types::spec::IsolationTier;
use pinfold_types::{ExecSpec, Role, SandboxSpec};

#[global_allocator]
static ALLOCATOR: Counted = Counted::new();

const USER: Caller = Caller::of_host(1000, 1000, Role::User);

/// Lives that fill what is filled once: caches of statements, threads, places for log lines.
const LIVES_BEFORE: usize = 16;
/// Lives that count.
const LIVES: usize = 48;
/// Most bytes that may be in use after them and were not before: a hundred for each life. An entry
/// of a map that is not taken out is larger; what varies is how long the runtime's own queues are.
const GROWTH_BYTES_MAX: usize = 100 * LIVES;
/// Longest time for what a life leaves behind to end.
const SETTLE_MAX: Duration = Duration::from_secs(30);

fn exec(script: &str) -> ExecSpec {
    ExecSpec {
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        workdir: Some("/".to_owned()),
        ..ExecSpec::default()
    }
}

/// One sandbox from its creation to its removal, with an exec that is waited for, one that is read,
/// one that is running still, and one that cannot be started.
async fn live(engine: &Engine) {
    let request = CreateSandboxRequest {
        spec: SandboxSpec {
            isolation: IsolationTier::None,
            ..SandboxSpec::default()
        },
        ..CreateSandboxRequest::default()
    };
    let made = engine.create(&USER, request, None).await.unwrap();
    let id = made.id.as_str();
    let start = async |script| engine.exec_start(&USER, id, exec(script)).await.unwrap();
    let waited = start("seq 1 5000; exit 3").await;
    let exit = engine.exec_wait(&USER, id, &waited.exec_id).await.unwrap();
    assert_eq!(exit.code, Some(3));
    let read = start("echo out; echo err >&2").await;
    let mut reader = engine
        .exec_events(&USER, id, &read.exec_id, 0, true)
        .await
        .unwrap();
    let mut events = 0;
    while let Some(event) = reader.next().await {
        event.unwrap();
        events += 1;
    }
    assert!(events >= 4);
    drop(reader);
    let nothing = ExecSpec {
        command: vec!["/no/such/program".to_owned()],
        ..ExecSpec::default()
    };
    engine.exec_start(&USER, id, nothing).await.unwrap_err();
    engine
        .stop(&USER, id, StopRequest::default())
        .await
        .unwrap();
    engine.start(&USER, id).await.unwrap();
    start("sleep 1000").await;
    engine.remove(&USER, id, false).await.unwrap();
}

/// Waits until nothing is left of what was removed.
async fn settle(engine: &Engine) {
    let deadline = Instant::now() + SETTLE_MAX;
    while engine.held() != Held::default() {
        assert!(Instant::now() < deadline, "{:?} is left", engine.held());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Returns the least bytes in use of a few moments: other threads are not quite at rest at once.
async fn least_used() -> usize {
    let mut least = usize::MAX;
    for _ in 0..100 {
        least = least.min(ALLOCATOR.used_bytes());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    least
}

#[test]
fn lives_leave_nothing_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let agent = agent_binary(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
    let instances = dir.path().join("native");
    std::fs::create_dir_all(&instances).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let driver = Arc::new(FakeDriver::new(instances, agent));
        let config = EngineConfig::new(dir.path());
        let engine = Engine::open(config, Arc::clone(&driver) as _)
            .await
            .unwrap();
        for _ in 0..LIVES_BEFORE {
            live(&engine).await;
        }
        settle(&engine).await;
        let before = least_used().await;
        for _ in 0..LIVES {
            live(&engine).await;
        }
        settle(&engine).await;
        let after = least_used().await;
        println!("{before} bytes in use before {LIVES} lives, {after} after");
        assert!(
            after <= before + GROWTH_BYTES_MAX,
            "{before} bytes in use became {after} in {LIVES} lives"
        );
        assert!(driver.instances_held() <= 1);
        engine.shut_down().await;
    });
}
