use std::future::Future;

use pinfold_types::ErrorCode;

use super::*;
use crate::OnceKey;

fn key(text: &str) -> OnceKey {
    text.parse().unwrap()
}

/// Runs an engine's life in a runtime of its own and then ends that as a crash would.
fn life<T>(part: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(part)
}

#[tokio::test]
async fn the_same_key_makes_one_sandbox_however_many_ask_at_once() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    // With a name and without: a taken name must not be seen by the second.
    for request in [named("a"), CreateSandboxRequest::default()] {
        let key = key(if request.name.is_some() {
            "with"
        } else {
            "without"
        });
        let asked = (0..50).map(|_| engine.create_once(&USER, &key, request.clone(), None));
        let outcomes = futures::future::try_join_all(asked).await.unwrap();
        let first = &outcomes[0].sandbox.id;
        assert!(outcomes.iter().all(|outcome| outcome.sandbox.id == *first));
        let made = outcomes.iter().filter(|outcome| !outcome.replayed).count();
        assert_eq!(made, 1);
    }
    assert_eq!(world.live.lock().unwrap().len(), 2);
    // Keys belong to their owner.
    let other = engine
        .create_once(&OTHER, &key("with"), named("a"), None)
        .await
        .unwrap();
    assert!(!other.replayed);
}

#[tokio::test]
async fn a_key_with_another_request_or_a_removed_sandbox_is_refused() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    let key = key("k");
    engine
        .create_once(&USER, &key, named("a"), None)
        .await
        .unwrap();
    let other = engine
        .create_once(&USER, &key, named("b"), None)
        .await
        .unwrap_err();
    assert_eq!(other.code, ErrorCode::IdempotencyMismatch);
    engine.remove(&USER, "a", false).await.unwrap();
    let gone = engine
        .create_once(&USER, &key, named("a"), None)
        .await
        .unwrap_err();
    assert_eq!(gone.code, ErrorCode::InstanceGone);
    assert!(world.is_empty());
}

#[tokio::test]
async fn a_creation_that_failed_leaves_its_key_free() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    let key = key("k");
    world.faults().start = true;
    engine
        .create_once(&USER, &key, named("a"), None)
        .await
        .unwrap_err();
    world.faults().start = false;
    let outcome = engine
        .create_once(&USER, &key, named("b"), None)
        .await
        .unwrap();
    assert!(!outcome.replayed);
}

#[tokio::test]
async fn who_asks_again_after_its_first_request_broke_off_gets_what_that_made() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    world.faults().agent_silent = true;
    let key = key("k");
    let asked = engine.create_once(&USER, &key, named("a"), None);
    let broken_off = tokio::time::timeout(std::time::Duration::from_millis(300), asked).await;
    assert!(broken_off.is_err());
    world.faults().agent_silent = false;
    let outcome = engine
        .create_once(&USER, &key, named("a"), None)
        .await
        .unwrap();
    assert_eq!(world.live.lock().unwrap().len(), 1);
    assert_eq!(outcome.sandbox.state, pinfold_types::SandboxState::Running);
}

#[test]
fn a_key_outlives_a_crash_and_is_forgotten_after_a_day() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let first = life(async {
        let engine = open(dir.path(), &world).await;
        engine
            .create_once(&USER, &key("k"), named("a"), None)
            .await
            .unwrap()
    });
    let second = life(async {
        let engine = open(dir.path(), &world).await;
        engine
            .create_once(&USER, &key("k"), named("a"), None)
            .await
            .unwrap()
    });
    assert!(second.replayed);
    assert_eq!(first.sandbox.id, second.sandbox.id);
    let kept = rusqlite::Connection::open(dir.path().join("pinfold.db")).unwrap();
    kept.execute("UPDATE once SET made_ms = made_ms - 86400001", [])
        .unwrap();
    life(async {
        let engine = open(dir.path(), &world).await;
        engine.remove(&USER, "a", false).await.unwrap();
        let anew = engine
            .create_once(&USER, &key("k"), named("a"), None)
            .await
            .unwrap();
        assert!(!anew.replayed);
    });
}

#[test]
fn what_a_crash_left_half_made_leaves_its_key_free() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    life(async {
        let engine = open(dir.path(), &world).await;
        world.faults().agent_silent = true;
        let key = key("k");
        let asked = engine.create_once(&USER, &key, named("a"), None);
        drop(tokio::time::timeout(std::time::Duration::from_millis(300), asked).await);
    });
    world.faults().agent_silent = false;
    life(async {
        let engine = open(dir.path(), &world).await;
        let outcome = engine
            .create_once(&USER, &key("k"), named("b"), None)
            .await
            .unwrap();
        assert!(!outcome.replayed);
        assert_eq!(world.live.lock().unwrap().len(), 1);
    });
}

#[test]
fn keys_are_checked() {
    for bad in ["", " ", "a b", "ä", "a\n", &"x".repeat(256)] {
        assert!(bad.parse::<OnceKey>().is_err(), "{bad:?}");
    }
    assert!("x".repeat(255).parse::<OnceKey>().is_ok());
}
