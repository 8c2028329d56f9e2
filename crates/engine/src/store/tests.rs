use pinfold_types::{ExecId, ExecSpec, Principal, SandboxId, SandboxSpec, SandboxState};

use super::*;

fn row(name: &str, uid: u32) -> SandboxRow {
    SandboxRow {
        id: SandboxId::new(),
        name: name.parse().unwrap(),
        owner: Principal::User(uid),
        state: SandboxState::Creating,
        reason: None,
        spec: SandboxSpec::default(),
        record: None,
        granted: None,
        image: None,
        created_ms: 1,
        changed_ms: 2,
        lifetime_done: false,
        keep_persist: false,
        provenance: crate::pool::Provenance::default(),
    }
}

fn exec(sandbox: &SandboxId) -> ExecRow {
    ExecRow {
        sandbox: sandbox.clone(),
        id: ExecId::new(),
        spec: ExecSpec {
            command: vec!["true".to_owned()],
            env: [("SECRET".to_owned(), "x".to_owned())].into(),
            ..ExecSpec::default()
        },
        started_ms: 5,
        ended_ms: None,
        exit: None,
        last_seq: 0,
    }
}

#[tokio::test]
async fn rows_survive_and_names_are_unique_per_owner() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut first = row("a", 1);
    store.insert(&first).await.unwrap();
    store.insert(&row("a", 2)).await.unwrap();
    let clash = store.insert(&row("a", 1)).await.unwrap_err();
    assert!(matches!(clash, StoreError::Conflict { .. }));
    first.state = SandboxState::Failed;
    first.reason = Some("x".to_owned());
    first.spec.volatile = true;
    store.save(&first).await.unwrap();
    let running = exec(&first.id);
    store.insert_exec(&running, 10).await.unwrap();
    store.close().await;
    assert!(matches!(store.load().await, Err(StoreError::Closed)));

    let store = Store::open(dir.path()).unwrap();
    let stored = store.load().await.unwrap();
    assert_eq!(stored.sandboxes.len(), 2);
    assert!(stored.sandboxes.contains(&first));
    assert_eq!(stored.execs.len(), 1);
    assert!(stored.execs[0].spec.env.is_empty(), "secrets are not kept");
    store.delete(&first).await.unwrap();
    assert!(store.exec(&first.id, &running.id).await.unwrap().is_none());
}

#[tokio::test]
async fn the_oldest_ended_exec_makes_room_and_running_ones_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let sandbox = row("a", 1);
    store.insert(&sandbox).await.unwrap();
    let (one, two, three) = (exec(&sandbox.id), exec(&sandbox.id), exec(&sandbox.id));
    assert_eq!(store.insert_exec(&one, 2).await.unwrap(), Inserted::Room);
    assert_eq!(store.insert_exec(&two, 2).await.unwrap(), Inserted::Room);
    assert_eq!(
        store.insert_exec(&three, 2).await.unwrap(),
        Inserted::Refused
    );
    let ended = ExecRow {
        exit: Some(pinfold_types::ExecExit::default()),
        ended_ms: Some(9),
        last_seq: 3,
        ..one.clone()
    };
    store.end_exec(&ended).await.unwrap();
    assert_eq!(
        store.insert_exec(&three, 2).await.unwrap(),
        Inserted::InPlaceOf(one.id.clone())
    );
    assert_eq!(store.execs(&sandbox.id).await.unwrap().len(), 3);
}

#[tokio::test]
async fn an_unreadable_row_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (good, bad) = (row("a", 1), row("b", 1));
    store.insert(&good).await.unwrap();
    store.insert(&bad).await.unwrap();
    store.close().await;
    let connection = Connection::open(dir.path().join(DATABASE_FILE)).unwrap();
    connection
        .execute(
            "UPDATE sandboxes SET spec = '{' WHERE id = ?1",
            [bad.id.as_str()],
        )
        .unwrap();
    drop(connection);
    let stored = Store::open(dir.path()).unwrap().load().await.unwrap();
    assert_eq!(stored.sandboxes, [good]);
    assert_eq!(stored.unreadable, [bad.id]);
}

/// What a daemon of version 1 left that had one running sandbox with three execs and a stopped one.
const VERSION_1: &[u8] = include_bytes!("tests/version-1.db");

#[tokio::test]
async fn a_database_of_the_first_version_is_taken_over_whole() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(DATABASE_FILE), VERSION_1).unwrap();
    // The second time there is nothing left to bring up to date.
    for _ in 0..2 {
        let store = Store::open(dir.path()).unwrap();
        let stored = store.load().await.unwrap();
        assert!(stored.unreadable.is_empty());
        let [kept, second] = stored.sandboxes.as_slice() else {
            panic!("{stored:?}");
        };
        assert_eq!(
            (kept.name.as_str(), second.name.as_str()),
            ("kept", "second")
        );
        assert_eq!(kept.state, SandboxState::Running);
        assert_eq!(second.state, SandboxState::Stopped);
        assert_eq!(kept.spec.labels["team"], "red");
        for row in [kept, second] {
            assert_eq!(row.owner, Principal::User(0));
            assert!(row.record.is_some() && row.granted.is_some() && row.image.is_some());
        }
        let execs = store.execs(&kept.id).await.unwrap();
        let codes: Vec<_> = execs
            .iter()
            .map(|exec| exec.exit.as_ref().map(|exit| exit.code))
            .collect();
        assert_eq!(codes, [Some(Some(3)), Some(Some(0)), None]);
        assert_eq!(stored.execs, [execs[2].clone()]);
        store.close().await;
    }
    // The keys between the tables and within them still hold.
    let store = Store::open(dir.path()).unwrap();
    let kept = store.load().await.unwrap().sandboxes.remove(0);
    let clash = store.insert(&row("kept", 0)).await.unwrap_err();
    assert!(matches!(clash, StoreError::Conflict { .. }));
    store.insert(&row("kept", 1)).await.unwrap();
    store.delete(&kept).await.unwrap();
    assert!(store.execs(&kept.id).await.unwrap().is_empty());
    assert_eq!(store.load().await.unwrap().sandboxes.len(), 2);
}

#[test]
fn a_newer_database_is_refused_and_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(DATABASE_FILE);
    drop(Store::open(dir.path()).unwrap());
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = Store::open(dir.path()).unwrap_err();
    assert!(
        matches!(error, OpenError::Newer { found: 99, .. }),
        "{error}"
    );
    assert!(error.hint().is_some());
}

#[tokio::test]
async fn a_damaged_database_is_named_copied_and_kept() {
    let nothing = b"this is not a database, however long one looks at it".repeat(200);
    let mut damaged = {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for number in 0..200 {
            store.insert(&row(&format!("n{number}"), 1)).await.unwrap();
        }
        store.close().await;
        std::fs::read(dir.path().join(DATABASE_FILE)).unwrap()
    };
    for byte in damaged.iter_mut().skip(4096).step_by(7) {
        *byte ^= 0x5a;
    }
    for content in [nothing, damaged] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DATABASE_FILE);
        std::fs::write(&path, &content).unwrap();
        // The second try finds the copy that the first one made.
        for _ in 0..2 {
            let error = Store::open(dir.path()).unwrap_err();
            let OpenError::Corrupt { backup, .. } = &error else {
                panic!("{error:?}");
            };
            assert!(error.to_string().contains(&path.display().to_string()));
            assert!(error.hint().unwrap().contains("rm -f"));
            assert_eq!(std::fs::read(backup).unwrap(), content);
            assert_eq!(std::fs::read(&path).unwrap(), content);
        }
        let copies = std::fs::read_dir(dir.path())
            .unwrap()
            .filter(|entry| {
                let name = entry.as_ref().unwrap().file_name();
                name.to_string_lossy().contains(".corrupt-")
            })
            .count();
        assert_eq!(copies, 1);
    }
}

#[tokio::test]
async fn events_are_bounded_and_the_oldest_go() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let most = pinfold_types::api::DAEMON_EVENTS_KEPT_MAX;
    let writer = rusqlite::Connection::open(directory.path().join(DATABASE_FILE)).unwrap();
    let more = most + 7;
    writer
        .execute(
            "WITH RECURSIVE numbers (n) AS \
             (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?1) \
             INSERT INTO events (at_ms, kind, owner) SELECT n, 'key.created', 'uid:1' FROM numbers",
            [i64::try_from(more).unwrap()],
        )
        .unwrap();
    let filter = EventFilter {
        limit: usize::MAX,
        ..EventFilter::default()
    };
    let kept = store.events(filter).await.unwrap();
    assert_eq!(kept.events.len() as u64, most);
    assert_eq!((kept.first_kept, kept.next), (8, None));
    assert_eq!(kept.events.last().unwrap().id, more);
    store.close().await;
}

#[tokio::test]
async fn an_event_is_written_with_its_change_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let filter = || EventFilter {
        limit: 10,
        ..EventFilter::default()
    };
    let mut heard = store.last_event();
    let broken: Result<(), StoreError> = store
        .run(Durability::Daemon, "fail", |transaction| {
            transaction.execute(
                "INSERT INTO events (at_ms, kind, owner) VALUES (1, 'key.created', 'uid:1')",
                [],
            )?;
            Err(rusqlite::Error::QueryReturnedNoRows)
        })
        .await;
    assert!(broken.is_err());
    assert!(!heard.has_changed().unwrap());
    assert!(store.events(filter()).await.unwrap().events.is_empty());
    store
        .run(Durability::Daemon, "write", |transaction| {
            transaction.execute(
                "INSERT INTO events (at_ms, kind, owner) VALUES (1, 'key.created', 'uid:1')",
                [],
            )
        })
        .await
        .unwrap();
    assert!(heard.has_changed().unwrap());
    assert_eq!(*heard.borrow_and_update(), 1);
    assert_eq!(store.events(filter()).await.unwrap().events.len(), 1);
    store.close().await;
}
