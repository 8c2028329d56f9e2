use std::future::Future;

use pinfold_types::api::StopRequest;
use pinfold_types::{EventKind, ExecId, SandboxId, SandboxState};

use super::*;
use crate::ListFilter;
use crate::store::Store;

/// Runs an engine's life in a runtime of its own and then ends that as a crash would.
fn life<T>(part: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let value = runtime.block_on(part);
    drop(runtime);
    value
}

/// Changes a row as a crash in the middle of a step would have left it.
fn set_state(dir: &Path, id: &SandboxId, state: SandboxState) {
    life(async {
        let store = Store::open(dir).unwrap();
        let mut row = store
            .load()
            .await
            .unwrap()
            .sandboxes
            .into_iter()
            .find(|row| row.id == *id)
            .unwrap();
        row.state = state;
        store.save(&row).await.unwrap();
        store.close().await;
    });
}

#[test]
fn a_crash_loses_no_output_and_repeats_none() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let (sandbox, exec) = life(async {
        let engine = open(dir.path(), &world).await;
        let made = create(&engine, "a").await;
        let exec = engine
            .exec_start(&USER, "a", command(&["wait"]))
            .await
            .unwrap();
        let instance = world.instance(&made.id).unwrap();
        for _ in 0..50 {
            instance.emit(&exec.exec_id, b"before");
        }
        let mut reader = engine
            .exec_events(&USER, "a", &exec.exec_id, 0, true)
            .await
            .unwrap();
        for _ in 0..20 {
            reader.next().await.unwrap().unwrap();
        }
        (made.id, exec.exec_id)
    });
    let instance = world.instance(&sandbox).unwrap();
    for _ in 0..50 {
        instance.emit(&exec, b"meanwhile");
    }
    life(async {
        let engine = open(dir.path(), &world).await;
        assert_eq!(
            engine.get(&USER, "a").await.unwrap().state,
            SandboxState::Running
        );
        let reader = engine
            .exec_events(&USER, "a", &exec, 0, true)
            .await
            .unwrap();
        let reading = tokio::spawn(read_all(reader));
        instance.emit(&exec, b"after");
        instance.exit(&exec, 3);
        let events = reading.await.unwrap().unwrap();
        let seqs: Vec<u64> = events.iter().map(|event| event.seq).collect();
        assert_eq!(seqs, (1..=103).collect::<Vec<_>>());
        assert_eq!(
            engine.exec_wait(&USER, "a", &exec).await.unwrap().code,
            Some(3)
        );
    });
}

#[test]
fn what_died_meanwhile_is_marked_or_gone() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let exec = life(async {
        let engine = open(dir.path(), &world).await;
        create(&engine, "kept").await;
        let mut request = named("volatile");
        request.spec.volatile = true;
        engine.create(&USER, request, None).await.unwrap();
        engine
            .exec_start(&USER, "kept", command(&["wait"]))
            .await
            .unwrap()
            .exec_id
    });
    let live: Vec<_> = world.live.lock().unwrap().values().cloned().collect();
    for instance in live {
        instance.die();
    }
    life(async {
        let engine = open(dir.path(), &world).await;
        let kept = engine.get(&USER, "kept").await.unwrap();
        assert_eq!(kept.state, SandboxState::Failed);
        assert!(kept.reason.unwrap().contains("while the daemon was away"));
        assert!(engine.exec_wait(&USER, "kept", &exec).await.unwrap().lost);
        let events = engine
            .exec_events(&USER, "kept", &exec, 0, true)
            .await
            .unwrap();
        let events = read_all(events).await.unwrap();
        assert!(matches!(&events.last().unwrap().kind, EventKind::Exit(e) if e.lost));
        assert!(engine.get(&USER, "volatile").await.is_err());
        assert_eq!(world.disks.lock().unwrap().len(), 1);
        engine.start(&USER, "kept").await.unwrap();
    });
}

#[test]
fn every_half_done_step_is_finished() {
    use SandboxState::{Creating, Failed, Paused, Removing, Running, Starting, Stopped, Stopping};
    let left_as = [
        (Creating, None),
        (Removing, None),
        (Stopping, Some(Stopped)),
        (Starting, Some(Running)),
        (Paused, Some(Paused)),
        (Running, Some(Running)),
        (Failed, Some(Failed)),
    ];
    for (left, found) in left_as {
        for alive in [true, false] {
            let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
            let id = life(async {
                let engine = open(dir.path(), &world).await;
                create(&engine, "a").await.id
            });
            set_state(dir.path(), &id, left);
            if !alive {
                world.instance(&id).unwrap().die();
            }
            let found = match found {
                Some(Running | Paused) if !alive && left != Starting => Some(Failed),
                found => found,
            };
            life(async {
                let engine = open(dir.path(), &world).await;
                let shown = async || engine.get(&USER, "a").await.ok().map(|s| s.state);
                while shown().await == Some(Starting) {
                    tokio::task::yield_now().await;
                }
                assert_eq!(shown().await, found, "left {left}, alive {alive}");
                let instance = world.instance(&id);
                assert_eq!(instance.is_some(), matches!(found, Some(Running | Paused)));
                if let Some(instance) = instance {
                    assert_eq!(*instance.paused.borrow(), found == Some(Paused));
                }
                assert_eq!(world.disks.lock().unwrap().is_empty(), found.is_none());
                if found.is_some() {
                    engine.remove(&USER, "a", false).await.unwrap();
                }
                assert!(world.is_empty());
            });
        }
    }
}

#[test]
fn nothing_without_a_row_is_left_and_stopped_disks_are() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let stray = SandboxId::new();
    life(async {
        let engine = open(dir.path(), &world).await;
        create(&engine, "a").await;
        engine
            .stop(&USER, "a", StopRequest::default())
            .await
            .unwrap();
        let persist = dir.path().join("persist").join(stray.as_str());
        let journals = dir.path().join("journals").join(stray.as_str());
        std::fs::create_dir_all(persist).unwrap();
        std::fs::create_dir_all(journals).unwrap();
        world.disks.lock().unwrap().insert(stray.clone());
    });
    life(async {
        let engine = open(dir.path(), &world).await;
        assert_eq!(world.disks.lock().unwrap().len(), 1);
        assert!(!dir.path().join("journals").join(stray.as_str()).exists());
        assert!(
            dir.path().join("persist").join(stray.as_str()).exists(),
            "kept on purpose"
        );
        // Nothing but a sweep can remove a stopped sandbox's disk after a restart.
        create(&engine, "b").await;
        engine.remove(&USER, "a", false).await.unwrap();
        assert_eq!(world.disks.lock().unwrap().len(), 1);
        let all = ListFilter {
            all: true,
            ..ListFilter::default()
        };
        let left = engine.list(&USER, &all).await.unwrap().sandboxes;
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].state, SandboxState::Running);
    });
}

#[test]
fn an_exec_that_only_the_agent_knows_is_followed() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let (sandbox, exec): (SandboxId, ExecId) = life(async {
        let engine = open(dir.path(), &world).await;
        let made = create(&engine, "a").await;
        let exec = engine
            .exec_start(&USER, "a", command(&["wait"]))
            .await
            .unwrap();
        (made.id, exec.exec_id)
    });
    life(async {
        let store = Store::open(dir.path()).unwrap();
        store.delete_exec(&sandbox, &exec).await.unwrap();
        store.close().await;
    });
    world.instance(&sandbox).unwrap().exit(&exec, 4);
    life(async {
        let engine = open(dir.path(), &world).await;
        loop {
            let found = engine.exec_get(&USER, "a", &exec).await;
            if let Some(exit) = found.ok().and_then(|exec| exec.exit) {
                assert_eq!(exit.code, Some(4));
                break;
            }
            tokio::task::yield_now().await;
        }
    });
}
