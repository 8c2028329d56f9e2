use std::time::Duration;

use pinfold_types::api::{DeadlinesUpdate, UpdateSandboxRequest};
use pinfold_types::spec::{DeadlineAction, Deadlines};
use pinfold_types::{ErrorCode, SandboxState};

use super::*;

async fn with(engine: &Engine, deadlines: Deadlines) -> Sandbox {
    let mut request = named("a");
    request.spec.deadlines = deadlines;
    engine.create(&USER, request, None).await.unwrap()
}

async fn state(engine: &Engine) -> Option<SandboxState> {
    match engine.get(&USER, "a").await {
        Ok(sandbox) => Some(sandbox.state),
        Err(error) => {
            assert_eq!(error.code, ErrorCode::NotFound);
            None
        }
    }
}

async fn wait_for(engine: &Engine, wanted: Option<SandboxState>) -> Duration {
    let start = tokio::time::Instant::now();
    for _ in 0..200_000 {
        if state(engine).await == wanted {
            return start.elapsed();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the sandbox did not become {wanted:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_sandbox_is_paused_and_woken_by_the_next_request() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    let deadlines = Deadlines {
        idle_ms: Some(60_000),
        ..Deadlines::default()
    };
    let born = tokio::time::Instant::now();
    let made = with(&engine, deadlines).await;
    wait_for(&engine, Some(SandboxState::Paused)).await;
    assert!(born.elapsed() >= Duration::from_mins(1));
    let exec = engine
        .exec_start(&USER, "a", command(&["wait"]))
        .await
        .unwrap();
    assert_eq!(state(&engine).await, Some(SandboxState::Running));

    // Output counts as use.
    let instance = world.instance(&made.id).unwrap();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(40)).await;
        instance.emit(&exec.exec_id, b"x");
        until(|| !instance.execs.lock().unwrap().is_empty()).await;
    }
    assert_eq!(state(&engine).await, Some(SandboxState::Running));

    // So does an attached reader, however silent.
    let reader = engine
        .exec_events(&USER, "a", &exec.exec_id, 0, true)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_mins(10)).await;
    assert_eq!(state(&engine).await, Some(SandboxState::Running));
    // And so does a program that runs, however silent and alone.
    drop(reader);
    tokio::time::sleep(Duration::from_mins(10)).await;
    assert_eq!(state(&engine).await, Some(SandboxState::Running));
    instance.exit(&exec.exec_id, 0);
    let waited = wait_for(&engine, Some(SandboxState::Paused)).await;
    assert!(waited >= Duration::from_secs(59), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_time_that_nobody_named_is_the_daemons_and_0_is_for_ever() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    let born = tokio::time::Instant::now();
    let made = with(&engine, Deadlines::default()).await;
    assert_eq!(made.spec.deadlines.idle_ms, Some(900_000));
    wait_for(&engine, Some(SandboxState::Paused)).await;
    assert!(born.elapsed() >= Duration::from_mins(15));
    engine.remove(&USER, "a", false).await.unwrap();
    let never = Deadlines {
        idle_ms: Some(0),
        ..Deadlines::default()
    };
    assert_eq!(with(&engine, never).await.spec.deadlines.idle_ms, None);
    tokio::time::sleep(Duration::from_hours(24)).await;
    assert_eq!(state(&engine).await, Some(SandboxState::Running));
    engine.remove(&USER, "a", false).await.unwrap();
    // A host that cannot pause has no default, and a sandbox can be made there.
    world.faults().no_pause = true;
    let made = with(&engine, Deadlines::default()).await;
    assert_eq!(made.spec.deadlines.idle_ms, None);
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_somebody_paused_is_idle_whatever_is_frozen_in_it() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    let deadlines = Deadlines {
        idle_ms: Some(60_000),
        idle_action: DeadlineAction::Stop,
        ..Deadlines::default()
    };
    with(&engine, deadlines).await;
    engine
        .exec_start(&USER, "a", command(&["wait"]))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert_eq!(state(&engine).await, Some(SandboxState::Running));
    let paused = tokio::time::Instant::now();
    engine.pause(&USER, "a").await.unwrap();
    wait_for(&engine, Some(SandboxState::Stopped)).await;
    assert!(paused.elapsed() >= Duration::from_mins(1));
}

fn change(deadlines: DeadlinesUpdate) -> UpdateSandboxRequest {
    UpdateSandboxRequest {
        deadlines,
        ..UpdateSandboxRequest::default()
    }
}

#[tokio::test(start_paused = true)]
async fn deadlines_change_while_the_sandbox_runs() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    let hour = Deadlines {
        lifetime_ms: Some(3_600_000),
        idle_ms: Some(0),
        ..Deadlines::default()
    };
    let born = tokio::time::Instant::now();
    with(&engine, hour).await;
    tokio::time::sleep(Duration::from_mins(30)).await;
    let longer = change(DeadlinesUpdate {
        lifetime_ms: Some(3 * 3_600_000),
        lifetime_action: Some(DeadlineAction::Stop),
        ..DeadlinesUpdate::default()
    });
    engine.update(&USER, "a", longer).await.unwrap();
    wait_for(&engine, Some(SandboxState::Stopped)).await;
    assert!(born.elapsed() >= Duration::from_hours(3));
    // Changed again, it is taken again.
    engine.start(&USER, "a").await.unwrap();
    let over = change(DeadlinesUpdate {
        lifetime_ms: Some(60_000),
        ..DeadlinesUpdate::default()
    });
    let refused = engine.update(&USER, "a", over).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InvalidArgument);
    let none = change(DeadlinesUpdate {
        lifetime_ms: Some(0),
        idle_ms: Some(120_000),
        idle_action: Some(DeadlineAction::Remove),
        ..DeadlinesUpdate::default()
    });
    let updated = engine.update(&USER, "a", none).await.unwrap();
    assert_eq!(updated.spec.deadlines.lifetime_ms, None);
    let changed = tokio::time::Instant::now();
    wait_for(&engine, None).await;
    assert!(changed.elapsed() >= Duration::from_mins(2));
}

#[tokio::test(start_paused = true)]
async fn a_lifetime_ends_a_sandbox_whatever_it_does() {
    for (action, after) in [
        (DeadlineAction::Remove, None),
        (DeadlineAction::Stop, Some(SandboxState::Stopped)),
        (DeadlineAction::Pause, Some(SandboxState::Paused)),
    ] {
        let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
        let engine = open(dir.path(), &world).await;
        let deadlines = Deadlines {
            lifetime_ms: Some(3_600_000),
            lifetime_action: action,
            ..Deadlines::default()
        };
        // The turned clock leaps while the database's thread works, so only the whole can be measured.
        let born = tokio::time::Instant::now();
        with(&engine, deadlines).await;
        let exec = engine
            .exec_start(&USER, "a", command(&["wait"]))
            .await
            .unwrap();
        let _reader = engine
            .exec_events(&USER, "a", &exec.exec_id, 0, true)
            .await
            .unwrap();
        wait_for(&engine, after).await;
        let lived = born.elapsed();
        assert!(lived >= Duration::from_hours(1), "{lived:?}");
        match action {
            DeadlineAction::Remove => assert!(world.is_empty()),
            // It is taken once: who starts or wakes it afterwards means it.
            DeadlineAction::Stop => {
                engine.start(&USER, "a").await.unwrap();
            }
            DeadlineAction::Pause => {
                engine.resume(&USER, "a").await.unwrap();
            }
        }
        if action != DeadlineAction::Remove {
            tokio::time::sleep(Duration::from_hours(2)).await;
            assert_eq!(state(&engine).await, Some(SandboxState::Running));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_fails_is_tried_again() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    let deadlines = Deadlines {
        lifetime_ms: Some(10_000),
        ..Deadlines::default()
    };
    with(&engine, deadlines).await;
    world.faults().shut_down = true;
    wait_for(&engine, Some(SandboxState::Removing)).await;
    world.faults().shut_down = false;
    wait_for(&engine, None).await;
    assert!(world.is_empty());
}
