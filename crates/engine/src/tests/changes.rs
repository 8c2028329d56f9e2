use pinfold_types::api::{StopRequest, UpdateSandboxRequest};
use pinfold_types::{ErrorCode, EventKind, ExecId, Resources};

use super::*;
use crate::ExecFilter;

fn limits(pids: u32) -> UpdateSandboxRequest {
    UpdateSandboxRequest {
        resources: Resources {
            pids: Some(pids),
            ..Resources::default()
        },
        ..UpdateSandboxRequest::default()
    }
}

#[tokio::test]
async fn labels_and_environment_change_for_what_comes_later() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    let made = create(&engine, "a").await;
    let text = r#"{"labels": {"team": "x"}, "env": {"GREETING": "hello"}}"#;
    let request: UpdateSandboxRequest = serde_json::from_str(text).unwrap();
    let updated = engine.update(&USER, "a", request).await.unwrap();
    assert_eq!(updated.spec.labels["team"], "x");
    assert_eq!(updated, engine.get(&USER, "a").await.unwrap());
    let exec = engine
        .exec_start(&USER, "a", command(&["wait"]))
        .await
        .unwrap();
    let instance = world.instance(&made.id).unwrap();
    let environment = {
        let execs = instance.execs.lock().unwrap();
        execs[&exec.exec_id]
            .start
            .as_ref()
            .unwrap()
            .environment
            .clone()
    };
    assert!(environment.contains(&("GREETING".to_owned(), "hello".to_owned())));
    let bad: UpdateSandboxRequest = serde_json::from_str(r#"{"env": {"A=B": "x"}}"#).unwrap();
    let refused = engine.update(&USER, "a", bad).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InvalidArgument);
    let refused = engine.update(&OTHER, "a", limits(9)).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::NotFound);
}

#[tokio::test]
async fn limits_change_at_once_or_not_at_all() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    create(&engine, "a").await;
    let updated = engine.update(&USER, "a", limits(100)).await.unwrap();
    assert_eq!(updated.spec.resources.pids, Some(100));
    assert_eq!(updated.granted.unwrap().limits["pids"], "100");
    world.faults().update = true;
    engine.update(&USER, "a", limits(200)).await.unwrap_err();
    let after = engine.get(&USER, "a").await.unwrap();
    assert_eq!(after.spec.resources.pids, Some(100));
    world.faults().no_live_resources = true;
    let refused = engine.update(&USER, "a", limits(300)).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unsupported);
    engine
        .stop(&USER, "a", StopRequest::default())
        .await
        .unwrap();
    let stopped = engine.update(&USER, "a", limits(300)).await.unwrap();
    assert_eq!(stopped.spec.resources.pids, Some(300));
}

#[tokio::test]
async fn a_removed_exec_is_killed_and_leaves_no_journal() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    let made = create(&engine, "a").await;
    let exec = engine
        .exec_start(&USER, "a", command(&["wait"]))
        .await
        .unwrap();
    let reader = engine
        .exec_events(&USER, "a", &exec.exec_id, 0, true)
        .await
        .unwrap();
    let journal = dir
        .path()
        .join("journals")
        .join(made.id.as_str())
        .join(exec.exec_id.as_str());
    assert!(journal.exists());
    engine.exec_remove(&USER, "a", &exec.exec_id).await.unwrap();
    assert!(!journal.exists());
    let seen = read_all(reader).await.unwrap();
    assert!(matches!(&seen.last().unwrap().kind, EventKind::Exit(exit) if exit.signal == Some(9)));
    let gone = engine
        .exec_get(&USER, "a", &exec.exec_id)
        .await
        .unwrap_err();
    assert_eq!(gone.code, ErrorCode::NotFound);
    let again = engine
        .exec_remove(&USER, "a", &exec.exec_id)
        .await
        .unwrap_err();
    assert_eq!(again.code, ErrorCode::NotFound);
    // One that has ended, of a sandbox that does not run.
    let exec = engine
        .exec_start(&USER, "a", command(&["true"]))
        .await
        .unwrap();
    engine.exec_wait(&USER, "a", &exec.exec_id).await.unwrap();
    engine
        .stop(&USER, "a", StopRequest::default())
        .await
        .unwrap();
    engine.exec_remove(&USER, "a", &exec.exec_id).await.unwrap();
    assert!(engine.exec_list(&USER, "a").await.unwrap().execs.is_empty());
}

#[tokio::test]
async fn execs_are_listed_in_pages() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    create(&engine, "a").await;
    for program in ["wait", "true", "true", "wait", "true"] {
        let exec = engine
            .exec_start(&USER, "a", command(&[program]))
            .await
            .unwrap();
        if program == "true" {
            engine.exec_wait(&USER, "a", &exec.exec_id).await.unwrap();
        }
    }
    let mut filter = ExecFilter {
        limit: 2,
        ..ExecFilter::default()
    };
    let mut seen: Vec<ExecId> = Vec::new();
    for expected in [2, 2, 1] {
        let page = engine.exec_page(&USER, "a", &filter).await.unwrap();
        assert_eq!(page.execs.len(), expected);
        seen.extend(page.execs.iter().map(|exec| exec.exec_id.clone()));
        assert_eq!(page.next.is_some(), seen.len() < 5);
        filter.after = page.next;
    }
    let all = engine.exec_list(&USER, "a").await.unwrap().execs;
    assert_eq!(
        all.iter()
            .map(|exec| exec.exec_id.clone())
            .collect::<Vec<_>>(),
        seen
    );
    for (running, expected) in [(true, 2), (false, 3)] {
        let filter = ExecFilter {
            running: Some(running),
            ..ExecFilter::default()
        };
        let page = engine.exec_page(&USER, "a", &filter).await.unwrap();
        assert_eq!((page.execs.len(), page.next), (expected, None), "{running}");
    }
}

#[tokio::test]
async fn a_daemon_that_cannot_write_is_not_ready() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    assert!(engine.ready().await.ready);
    engine.shut_down().await;
    let ended = engine.ready().await;
    assert!(
        !ended.ready && ended.reasons[0].contains("shutting down"),
        "{ended:?}"
    );
}
