use bytes::Bytes;
use pinfold_types::api::SignalRequest;
use pinfold_types::{ErrorCode, EventKind, SandboxSpec};

use super::*;

#[tokio::test]
async fn an_exec_gets_every_layer_of_the_environment() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    let mut request = named("a");
    request.spec = SandboxSpec {
        env: [("A", "sandbox"), ("B", "sandbox")]
            .map(|(name, value)| (name.into(), value.into()))
            .into(),
        ..SandboxSpec::default()
    };
    let made = engine.create(&USER, request, None).await.unwrap();
    let spec = ExecSpec {
        env: [("A".to_owned(), "exec".to_owned())].into(),
        ..command(&["cat"])
    };
    let exec = engine.exec_start(&USER, "a", spec).await.unwrap();
    let instance = world.instance(&made.id).unwrap();
    let execs = instance.execs.lock().unwrap();
    let start = execs[&exec.exec_id].start.as_ref().unwrap();
    assert_eq!(start.working_directory, "/workspace");
    let wanted = [
        ("A", Some("exec")),
        ("B", Some("sandbox")),
        ("IMAGE", Some("1")),
        ("HOME", Some("/root")),
        ("TERM", None),
    ];
    for (name, value) in wanted {
        let found = start.environment.iter().find(|(key, _)| key == name);
        assert_eq!(found.map(|(_, value)| value.as_str()), value, "{name}");
    }
}

#[tokio::test]
async fn an_exec_from_start_to_exit() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    let made = create(&engine, "a").await;
    let instance = world.instance(&made.id).unwrap();
    let exec = engine
        .exec_start(&USER, "a", command(&["cat"]))
        .await
        .unwrap();
    let id = &exec.exec_id;
    let live = engine.exec_events(&USER, "a", id, 0, true).await.unwrap();
    let live = tokio::spawn(read_all(live));
    engine
        .exec_input(&USER, "a", id, Bytes::from_static(b"in"), true)
        .await
        .unwrap();
    instance.emit(id, b"one");
    instance.emit(id, b"two");
    let signal = SignalRequest {
        signal: 9,
        tree: true,
    };
    engine.exec_signal(&USER, "a", id, signal).await.unwrap();
    let exit = engine.exec_wait(&USER, "a", id).await.unwrap();
    assert_eq!(exit.signal, Some(9));
    let live = live.await.unwrap().unwrap();
    assert_eq!(live.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2, 3, 4]);

    // The agent is let forget what the disk holds.
    until(|| instance.execs.lock().unwrap().is_empty()).await;
    let shown = engine.exec_get(&USER, "a", id).await.unwrap();
    assert_eq!((shown.exit.unwrap().signal, shown.last_seq), (Some(9), 4));
    let again = engine.exec_events(&USER, "a", id, 2, true).await.unwrap();
    assert_eq!(read_all(again).await.unwrap(), live[1..]);
    assert_eq!(engine.exec_list(&USER, "a").await.unwrap().execs.len(), 1);
    let ended = engine
        .exec_signal(&USER, "a", id, signal)
        .await
        .unwrap_err();
    assert_eq!(ended.code, ErrorCode::IllegalState);
    let unknown = pinfold_types::ExecId::new();
    let missing = engine
        .exec_events(&USER, "a", &unknown, 0, true)
        .await
        .unwrap_err();
    assert_eq!(missing.code, ErrorCode::NotFound);
}

#[tokio::test]
async fn an_exec_that_does_not_start_leaves_nothing() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    let made = create(&engine, "a").await;
    let error = engine
        .exec_start(&USER, "a", command(&["missing"]))
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::CommandNotFound);
    assert!(engine.exec_list(&USER, "a").await.unwrap().execs.is_empty());
    let journals = dir.path().join("journals").join(made.id.as_str());
    assert_eq!(std::fs::read_dir(journals).unwrap().count(), 0);
    let empty = engine
        .exec_start(&USER, "a", command(&[]))
        .await
        .unwrap_err();
    assert_eq!(empty.code, ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn old_execs_make_room_and_running_ones_are_a_limit() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let mut config = EngineConfig::new(dir.path());
    config.execs_per_sandbox_max = 2;
    let engine = open_with(config, &world).await;
    let made = create(&engine, "a").await;
    let mut last = None;
    for _ in 0..5 {
        let exec = engine
            .exec_start(&USER, "a", command(&["true"]))
            .await
            .unwrap();
        engine.exec_wait(&USER, "a", &exec.exec_id).await.unwrap();
        let instance = world.instance(&made.id).unwrap();
        until(|| instance.execs.lock().unwrap().is_empty()).await;
        last = Some(exec.exec_id);
    }
    let kept = engine.exec_list(&USER, "a").await.unwrap().execs;
    assert_eq!(kept.len(), 2);
    assert_eq!(kept[1].exec_id, last.unwrap());
    for _ in 0..2 {
        engine
            .exec_start(&USER, "a", command(&["wait"]))
            .await
            .unwrap();
    }
    let full = engine
        .exec_start(&USER, "a", command(&["wait"]))
        .await
        .unwrap_err();
    assert_eq!(full.code, ErrorCode::LimitExceeded);
    let journals = dir.path().join("journals").join(made.id.as_str());
    assert_eq!(std::fs::read_dir(journals).unwrap().count(), 2);
}

#[tokio::test]
async fn back_pressure_loses_nothing_and_holds_the_agent_back() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let mut config = EngineConfig::new(dir.path());
    config.journal_bytes_max = 64 << 10;
    let engine = open_with(config, &world).await;
    let made = create(&engine, "a").await;
    let spec = ExecSpec {
        back_pressure: true,
        ..command(&["flood"])
    };
    let exec = engine.exec_start(&USER, "a", spec).await.unwrap();
    let mut reader = engine
        .exec_events(&USER, "a", &exec.exec_id, 0, true)
        .await
        .unwrap();
    let instance = world.instance(&made.id).unwrap();
    for _ in 0..2000 {
        instance.emit(&exec.exec_id, &[7; 1000]);
    }
    instance.exit(&exec.exec_id, 0);
    let mut next = 1;
    while let Some(event) = reader.next().await {
        let event = event.unwrap();
        assert_eq!(event.seq, next);
        assert!(!matches!(event.kind, EventKind::Dropped { .. }));
        next += 1;
    }
    assert_eq!(next, 2003);
}

#[tokio::test]
async fn removing_a_sandbox_ends_its_readers() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    create(&engine, "a").await;
    let exec = engine
        .exec_start(&USER, "a", command(&["wait"]))
        .await
        .unwrap();
    let reader = engine
        .exec_events(&USER, "a", &exec.exec_id, 0, true)
        .await
        .unwrap();
    let reading = tokio::spawn(read_all(reader));
    engine.remove(&USER, "a", false).await.unwrap();
    let events = reading.await.unwrap();
    let Ok(events) = events else {
        assert_eq!(events.unwrap_err().code, ErrorCode::NotFound);
        return;
    };
    assert!(matches!(&events.last().unwrap().kind, EventKind::Exit(exit) if exit.lost));
}
