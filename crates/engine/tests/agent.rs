//! The engine with the real agent, as a plain process of the fake driver.

#![expect(clippy::unwrap_used, reason = "a test's own tools fail the test")]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pinfold_driver::fake::{FakeDriver, agent_binary};
use pinfold_engine::{Caller, Engine, EngineConfig};
use pinfold_types::api::{CreateSandboxRequest, SignalRequest};
use pinfold_types::exec::TerminalSize;
use pinfold_types::spec::{DeadlineAction, Deadlines, IsolationTier};
use pinfold_types::{EventKind, ExecEvent, ExecId, ExecSpec, Role, SandboxSpec, SandboxState};

static USER: Caller = Caller::of_host(1000, 1000, Role::User);

fn agent() -> PathBuf {
    agent_binary(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap()
}

/// Runs an engine's life in a runtime of its own and then ends that as a crash would.
fn life<T>(part: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(part)
}

async fn open(dir: &Path, journal_bytes_max: u64) -> Engine {
    let instances = dir.join("native");
    std::fs::create_dir_all(&instances).unwrap();
    let mut config = EngineConfig::new(dir);
    config.journal_bytes_max = journal_bytes_max;
    let driver = Arc::new(FakeDriver::new(instances, agent()));
    Engine::open(config, driver).await.unwrap()
}

async fn create(engine: &Engine, name: &str, deadlines: Deadlines) {
    let request = CreateSandboxRequest {
        name: Some(name.parse().unwrap()),
        spec: SandboxSpec {
            isolation: IsolationTier::None,
            deadlines,
            ..SandboxSpec::default()
        },
        ..CreateSandboxRequest::default()
    };
    engine.create(&USER, request, None).await.unwrap();
}

fn shell(script: &str) -> ExecSpec {
    ExecSpec {
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        workdir: Some("/".to_owned()),
        ..ExecSpec::default()
    }
}

async fn start(engine: &Engine, spec: ExecSpec) -> ExecId {
    engine.exec_start(&USER, "a", spec).await.unwrap().exec_id
}

async fn follow(engine: &Engine, exec: &ExecId) -> Vec<ExecEvent> {
    let mut reader = engine.exec_events(&USER, "a", exec, 0, true).await.unwrap();
    let mut events = Vec::new();
    while let Some(event) = reader.next().await {
        events.push(event.unwrap());
    }
    events
}

fn text(events: &[ExecEvent]) -> String {
    let mut bytes = Vec::new();
    for event in events {
        if let EventKind::Output { data, .. } = &event.kind {
            bytes.extend_from_slice(data);
        }
    }
    String::from_utf8(bytes).unwrap()
}

#[test]
fn execs_run_with_input_signals_and_terminals() {
    let dir = tempfile::tempdir().unwrap();
    life(async {
        let engine = open(dir.path(), 64 << 20).await;
        create(&engine, "a", Deadlines::default()).await;
        let exec = start(&engine, shell("echo out; echo err >&2; exit 3")).await;
        let events = follow(&engine, &exec).await;
        let exit = engine.exec_wait(&USER, "a", &exec).await.unwrap();
        assert_eq!((exit.code, events.len()), (Some(3), 4));

        let cat = ExecSpec {
            stdin: true,
            ..shell("cat")
        };
        let exec = start(&engine, cat).await;
        let input = Bytes::from_static(b"hello");
        engine
            .exec_input(&USER, "a", &exec, input, true)
            .await
            .unwrap();
        assert_eq!(text(&follow(&engine, &exec).await), "hello");

        let terminal = ExecSpec {
            terminal: Some(TerminalSize {
                columns: 91,
                rows: 17,
            }),
            ..shell("stty size; echo $TERM")
        };
        let exec = start(&engine, terminal).await;
        assert_eq!(
            text(&follow(&engine, &exec).await),
            "17 91\r\nxterm-256color\r\n"
        );

        let exec = start(&engine, shell("sleep 1000")).await;
        let kill = SignalRequest {
            signal: 15,
            tree: true,
        };
        engine.exec_signal(&USER, "a", &exec, kill).await.unwrap();
        let exit = engine.exec_wait(&USER, "a", &exec).await.unwrap();
        assert_eq!(exit.signal, Some(15));

        let missing = ExecSpec {
            command: vec!["no-such-program".to_owned()],
            workdir: Some("/".to_owned()),
            ..ExecSpec::default()
        };
        let error = engine.exec_start(&USER, "a", missing).await.unwrap_err();
        assert_eq!(error.code, pinfold_types::ErrorCode::CommandNotFound);
        let metrics = engine.metrics(&USER, "a").await.unwrap();
        assert!(!metrics.timestamp.is_empty());
        engine.remove(&USER, "a", false).await.unwrap();
        engine.shut_down().await;
    });
    assert_eq!(
        std::fs::read_dir(dir.path().join("journals"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_crash_while_lines_are_printed_loses_and_repeats_none() {
    let dir = tempfile::tempdir().unwrap();
    let exec = life(async {
        let engine = open(dir.path(), 64 << 20).await;
        create(&engine, "a", Deadlines::default()).await;
        let script = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.01; done";
        let exec = start(&engine, shell(script)).await;
        let mut reader = engine
            .exec_events(&USER, "a", &exec, 0, true)
            .await
            .unwrap();
        for _ in 0..20 {
            reader.next().await.unwrap().unwrap();
        }
        exec
    });
    for _ in 0..3 {
        life(async {
            let engine = open(dir.path(), 64 << 20).await;
            let state = engine.get(&USER, "a").await.unwrap().state;
            assert_eq!(state, SandboxState::Running);
            let seq = engine.exec_get(&USER, "a", &exec).await.unwrap().last_seq;
            let mut reader = engine
                .exec_events(&USER, "a", &exec, seq + 20, true)
                .await
                .unwrap();
            reader.next().await.unwrap().unwrap();
        });
    }
    life(async {
        let engine = open(dir.path(), 64 << 20).await;
        let events = follow(&engine, &exec).await;
        let seqs: Vec<u64> = events.iter().map(|event| event.seq).collect();
        assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
        let expected: Vec<String> = (0..300).map(|i| format!("line {i}\n")).collect();
        assert_eq!(text(&events), expected.concat());
        let list = engine.exec_list(&USER, "a").await.unwrap();
        assert_eq!(list.execs.len(), 1);
        engine.remove(&USER, "a", false).await.unwrap();
        engine.shut_down().await;
    });
    assert_eq!(
        std::fs::read_dir(dir.path().join("native"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_long_stream_passes_whole_through_a_small_journal() {
    /// Far more than the journal holds, and still quick without optimisation.
    const STREAM_BYTES: u64 = 96 << 20;
    let dir = tempfile::tempdir().unwrap();
    life(async {
        let engine = open(dir.path(), 4 << 20).await;
        create(&engine, "a", Deadlines::default()).await;
        let spec = ExecSpec {
            back_pressure: true,
            ..shell(&format!("head -c {STREAM_BYTES} /dev/zero"))
        };
        let started = std::time::Instant::now();
        let exec = start(&engine, spec).await;
        let mut reader = engine
            .exec_events(&USER, "a", &exec, 0, true)
            .await
            .unwrap();
        let (mut next, mut bytes) = (1, 0);
        while let Some(event) = reader.next().await {
            let event = event.unwrap();
            assert_eq!(event.seq, next);
            next += 1;
            match event.kind {
                EventKind::Output { data, .. } => bytes += data.len() as u64,
                EventKind::Dropped { .. } => panic!("dropped"),
                EventKind::Start { .. } | EventKind::Exit(_) => {}
            }
        }
        println!("{bytes} bytes in {:?}", started.elapsed());
        assert_eq!(bytes, STREAM_BYTES);
        engine.remove(&USER, "a", false).await.unwrap();
        engine.shut_down().await;
    });
}

#[test]
fn an_idle_sandbox_is_frozen_and_a_request_wakes_it() {
    let dir = tempfile::tempdir().unwrap();
    life(async {
        let engine = open(dir.path(), 64 << 20).await;
        let deadlines = Deadlines {
            idle_ms: Some(200),
            idle_action: DeadlineAction::Pause,
            ..Deadlines::default()
        };
        create(&engine, "a", deadlines).await;
        let frozen = async || {
            let waited = tokio::time::timeout(Duration::from_secs(20), async {
                while engine.get(&USER, "a").await.unwrap().state != SandboxState::Paused {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
            waited.await.expect("it did not freeze");
        };
        frozen().await;
        // A frozen sandbox is not asked, and costs a report nothing.
        let report = engine.report(&USER).await.unwrap();
        assert_eq!(report.sandboxes[0].error.as_deref(), Some("paused"));
        let exec = start(&engine, shell("echo awake; sleep 0.5; echo still")).await;
        assert_eq!(text(&follow(&engine, &exec).await), "awake\nstill\n");
        let files = engine.files(&USER, "a").await.unwrap();
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(
            engine.get(&USER, "a").await.unwrap().state,
            SandboxState::Running
        );
        drop(files);
        frozen().await;
        engine.remove(&USER, "a", false).await.unwrap();
        engine.shut_down().await;
    });
}
