use std::time::Duration;

use pinfold_types::api::{CreateSandboxRequest, StopRequest};
use pinfold_types::spec::IsolationTier;
use pinfold_types::{ErrorCode, MountSpec, SandboxState};

use super::*;
use crate::{ListFilter, MountsAllowed};

#[tokio::test]
async fn a_life_from_creation_to_removal() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::default());
    let engine = open(dir.path(), &world).await;
    let (progress, mut heard) = tokio::sync::mpsc::channel(4);
    let made = engine
        .create(&USER, named("a"), Some(progress))
        .await
        .unwrap();
    assert_eq!(made.state, SandboxState::Running);
    assert_eq!(made.granted.unwrap().driver, "stub");
    assert_eq!(heard.recv().await.unwrap(), "unpacking (1/2)");

    assert_eq!(
        engine.pause(&USER, "a").await.unwrap().state,
        SandboxState::Paused
    );
    let illegal = engine.pause(&USER, "a").await.unwrap_err();
    assert_eq!(illegal.code, ErrorCode::IllegalState);
    assert_eq!(illegal.details["from"], "paused");
    assert_eq!(illegal.details["to"], "paused");
    assert_eq!(
        engine.resume(&USER, "a").await.unwrap().state,
        SandboxState::Running
    );
    let stop = StopRequest { grace_ms: Some(5) };
    assert_eq!(
        engine.stop(&USER, "a", stop).await.unwrap().state,
        SandboxState::Stopped
    );
    assert!(world.live.lock().unwrap().is_empty());
    let stopped = engine
        .exec_start(&USER, "a", command(&["true"]))
        .await
        .unwrap_err();
    assert_eq!(stopped.code, ErrorCode::IllegalState);
    assert!(stopped.hint.unwrap().contains("pinfold start a"));
    let id = made.id.as_str();
    assert_eq!(
        engine.start(&USER, id).await.unwrap().state,
        SandboxState::Running
    );
    assert!(engine.start(&USER, id).await.is_err());
    engine.remove(&USER, id, false).await.unwrap();
    assert_eq!(
        engine.get(&USER, id).await.unwrap_err().code,
        ErrorCode::NotFound
    );
    assert!(world.is_empty());
    assert_eq!(
        std::fs::read_dir(dir.path().join("journals"))
            .unwrap()
            .count(),
        0
    );
    create(&engine, "a").await;
}

#[tokio::test]
async fn of_two_creations_with_one_name_one_wins() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::default());
    let engine = open(dir.path(), &world).await;
    for round in 0..10 {
        let name = format!("n{round}");
        let (one, two) = tokio::join!(
            engine.create(&USER, named(&name), None),
            engine.create(&USER, named(&name), None)
        );
        let refused = [one.err(), two.err()]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>();
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0].code, ErrorCode::AlreadyExists);
        // Names are unique per owner only.
        engine.create(&OTHER, named(&name), None).await.unwrap();
    }
    let unnamed = CreateSandboxRequest::default();
    let made = engine.create(&USER, unnamed, None).await.unwrap();
    assert!(made.name.as_str().starts_with("sandbox-"));
}

#[tokio::test]
async fn many_unnamed_at_once_get_distinct_names() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::default());
    let engine = open(dir.path(), &world).await;
    let making = (0..200).map(|_| engine.create(&USER, CreateSandboxRequest::default(), None));
    let made = futures::future::try_join_all(making).await.unwrap();
    let names: std::collections::HashSet<_> = made.into_iter().map(|made| made.name).collect();
    assert_eq!(names.len(), 200);
}

#[tokio::test]
async fn owners_do_not_see_each_other_and_an_admin_sees_all() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::default());
    let engine = open(dir.path(), &world).await;
    let mine = create(&engine, "mine").await;
    create(&engine, "both").await;
    engine.create(&OTHER, named("both"), None).await.unwrap();
    for target in ["mine", mine.id.as_str()] {
        assert_eq!(
            engine.get(&OTHER, target).await.unwrap_err().code,
            ErrorCode::NotFound
        );
        assert_eq!(engine.get(&ADMIN, target).await.unwrap().id, mine.id);
    }
    let ambiguous = engine.get(&ADMIN, "both").await.unwrap_err();
    assert_eq!(ambiguous.code, ErrorCode::InvalidArgument);
    let all = ListFilter {
        limit: 2,
        ..ListFilter::default()
    };
    let page = engine.list(&ADMIN, &all).await.unwrap();
    assert_eq!(page.sandboxes.len(), 2);
    let rest = ListFilter {
        after: page.next,
        ..ListFilter::default()
    };
    assert_eq!(engine.list(&ADMIN, &rest).await.unwrap().sandboxes.len(), 1);
    assert_eq!(engine.list(&OTHER, &all).await.unwrap().sandboxes.len(), 1);
}

#[tokio::test]
async fn a_creation_that_fails_leaves_nothing() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let mut config = EngineConfig::new(dir.path());
    config.agent_answer_max = Duration::from_millis(50);
    let engine = open_with(config, &world).await;
    let check = async |code: ErrorCode| {
        let error = engine.create(&USER, named("a"), None).await.unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(world.is_empty());
        let all = ListFilter {
            all: true,
            ..ListFilter::default()
        };
        assert!(engine.list(&USER, &all).await.unwrap().sandboxes.is_empty());
    };
    world.faults().prepare = true;
    check(ErrorCode::ResourceExhausted).await;
    *world.faults() = stub::Faults {
        start: true,
        ..Default::default()
    };
    check(ErrorCode::ResourceExhausted).await;
    *world.faults() = stub::Faults {
        agent_silent: true,
        ..Default::default()
    };
    check(ErrorCode::AgentSilent).await;
    *world.faults() = stub::Faults::default();
    create(&engine, "a").await;
}

#[tokio::test]
async fn removing_ends_a_creation_that_hangs() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    world.faults().start_hangs = true;
    let making = tokio::spawn({
        let engine = engine.clone();
        async move { engine.create(&USER, named("a"), None).await }
    });
    until(|| !world.disks.lock().unwrap().is_empty()).await;
    let removed = engine.remove(&USER, "a", false).await;
    assert!(removed.is_ok() || removed.unwrap_err().code == ErrorCode::NotFound);
    assert_eq!(
        making.await.unwrap().unwrap_err().code,
        ErrorCode::IllegalState
    );
    assert!(world.is_empty());
}

#[tokio::test]
async fn what_cannot_be_given_is_refused_by_name() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let mut config = EngineConfig::new(dir.path());
    config.sandboxes_max = 1;
    let engine = open_with(config, &world).await;
    let mut request = named("a");
    request.spec.isolation = IsolationTier::Vm;
    let error = engine.create(&USER, request, None).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::TierUnavailable);
    assert_eq!(error.details["asked"], "vm");
    assert_eq!(error.details["available"], "namespace");

    let mut request = named("a");
    request.spec.deadlines.idle_ms = Some(1000);
    world.faults().no_pause = true;
    let error = engine.create(&USER, request, None).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unsupported);
    world.faults().no_pause = false;

    create(&engine, "a").await;
    let full = engine.create(&USER, named("b"), None).await.unwrap_err();
    assert_eq!(full.code, ErrorCode::LimitExceeded);
    assert_eq!(full.details["limit"], 1);
}

fn with_mount(source: &str) -> CreateSandboxRequest {
    let mut request = named("a");
    request.spec.mounts = vec![MountSpec {
        source: source.to_owned(),
        target: "/in".to_owned(),
        writable: false,
    }];
    request
}

#[tokio::test]
async fn host_paths_are_reached_as_who_owns_the_sandbox() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let mut config = EngineConfig::new(dir.path());
    config.as_root = true;
    let engine = open_with(config, &world).await;
    // What root names is looked for; what others name is not, since they may not be able to.
    let missing = with_mount("/no/such/place");
    let error = engine.create(&ADMIN, missing.clone(), None).await;
    let error = error.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    assert!(error.message.contains("/no/such/place"));
    engine.create(&USER, missing, None).await.unwrap();
    engine
        .stop(&USER, "a", StopRequest::default())
        .await
        .unwrap();
    // Whoever starts it again: it is its owner's.
    let id = engine.get(&USER, "a").await.unwrap().id;
    engine.start(&ADMIN, id.as_str()).await.unwrap();
    let shown = world.shown.lock().unwrap().clone();
    assert_eq!(shown.len(), 2);
    for start in shown {
        assert_eq!(start[0].reach.user, USER.uid);
        assert!(start[0].reach.own && start[0].reach.beneath.is_none());
    }
}

#[tokio::test]
async fn what_the_settings_do_not_allow_is_refused() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let mut config = EngineConfig::new(dir.path());
    config.mounts_allowed = MountsAllowed::parse([]).unwrap();
    let engine = open_with(config, &world).await;
    let mut image = named("a");
    image.spec.image = "/srv/image.tar".to_owned();
    for caller in [&USER, &ADMIN] {
        for request in [with_mount("/"), image.clone()] {
            let refused = engine.create(caller, request, None).await.unwrap_err();
            assert_eq!(refused.code, ErrorCode::PermissionDenied);
            assert!(refused.hint.unwrap().contains("mounts_allowed"));
        }
    }
    assert!(world.shown.lock().unwrap().is_empty());
    create(&engine, "a").await;
}

#[tokio::test]
async fn over_tcp_only_an_admins_key_uses_what_is_listed() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let mut config = EngineConfig::new(dir.path());
    config.as_root = true;
    config.mounts_allowed = MountsAllowed::parse(["own", "/srv/data:ro"]).unwrap();
    let engine = open_with(config, &world).await;
    let of = |principal: &str, role| {
        let key = pinfold_types::KeyId::new();
        Caller::of_key(key, principal.parse().unwrap(), role)
    };
    let admin = of("ops", Role::Admin);
    for (caller, source) in [
        (&admin, "/srv/other"),
        (&admin, "/srv/database"),
        (&of("ops", Role::User), "/srv/data/x"),
        // A key of a user's is not that user.
        (&of("uid:1000", Role::Admin), "/srv/data/x"),
        (&of("uid:0", Role::Admin), "/srv/data/x"),
    ] {
        let refused = engine.create(caller, with_mount(source), None).await;
        assert_eq!(
            refused.unwrap_err().code,
            ErrorCode::PermissionDenied,
            "{source}"
        );
    }
    engine
        .create(&admin, with_mount("/srv/data/x"), None)
        .await
        .unwrap();
    let shown = world.shown.lock().unwrap().clone();
    assert_eq!(shown.len(), 1);
    let reach = &shown[0][0].reach;
    assert!(!reach.own && reach.user.is_none());
    assert_eq!(
        reach.beneath.as_deref(),
        Some(std::path::Path::new("/srv/data"))
    );
}

#[tokio::test]
async fn a_panic_fails_one_sandbox_and_no_other() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    create(&engine, "a").await;
    create(&engine, "b").await;
    world.faults().pause_panics = true;
    let error = engine.pause(&USER, "a").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Internal);
    world.faults().pause_panics = false;
    until(|| world.live.lock().unwrap().len() == 1).await;
    // The task goes on: it answers, and the sandbox can be started again and removed.
    engine.start(&USER, "a").await.unwrap();
    assert_eq!(
        engine.pause(&USER, "b").await.unwrap().state,
        SandboxState::Paused
    );
    engine.remove(&USER, "a", false).await.unwrap();
    engine.remove(&USER, "b", false).await.unwrap();
    assert!(world.is_empty());
}

#[tokio::test]
async fn an_instance_that_ends_by_itself_fails_its_sandbox() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    let made = create(&engine, "a").await;
    let exec = engine
        .exec_start(&USER, "a", command(&["wait"]))
        .await
        .unwrap();
    world.instance(&made.id).unwrap().die();
    let exit = engine.exec_wait(&USER, "a", &exec.exec_id).await.unwrap();
    assert!(exit.lost);
    let mut state = engine.get(&USER, "a").await.unwrap();
    while state.state != SandboxState::Failed {
        tokio::task::yield_now().await;
        state = engine.get(&USER, "a").await.unwrap();
    }
    assert_eq!(state.reason.as_deref(), Some("killed by a test"));
    let gone = engine.metrics(&USER, "a").await.unwrap_err();
    assert_eq!(gone.code, ErrorCode::InstanceGone);
    assert_eq!(
        engine.start(&USER, "a").await.unwrap().state,
        SandboxState::Running
    );
}

#[tokio::test]
async fn a_removal_that_fails_can_be_tried_again() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    create(&engine, "a").await;
    world.faults().shut_down = true;
    assert!(engine.remove(&USER, "a", false).await.is_err());
    assert_eq!(
        engine.get(&USER, "a").await.unwrap().state,
        SandboxState::Removing
    );
    let taken = engine.create(&USER, named("a"), None).await.unwrap_err();
    assert_eq!(taken.code, ErrorCode::AlreadyExists);
    world.faults().shut_down = false;
    engine.remove(&USER, "a", false).await.unwrap();
    assert!(world.is_empty());
}

#[tokio::test]
async fn persist_directories_stay_when_asked() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    for keep in [true, false] {
        let mut request = named("a");
        request.spec.persist = true;
        let made = engine.create(&USER, request, None).await.unwrap();
        let path = dir.path().join("persist").join(made.id.as_str());
        std::fs::write(path.join("x"), "kept").unwrap();
        engine
            .stop(&USER, "a", StopRequest::default())
            .await
            .unwrap();
        engine.start(&USER, "a").await.unwrap();
        let kept = engine.remove(&USER, "a", keep).await.unwrap();
        assert_eq!(kept.is_some(), keep);
        assert_eq!(path.join("x").exists(), keep);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_agent_costs_a_report_its_named_time() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    for number in 0..60 {
        create(&engine, &format!("n{number}")).await;
    }
    let alive = engine.report(&USER).await.unwrap();
    assert!(alive.sandboxes.iter().all(|line| line.metrics.is_some()));
    world.faults().agent_silent = true;
    let before = tokio::time::Instant::now();
    let report = engine.report(&USER).await.unwrap();
    assert_eq!(report.sandboxes.len(), 60);
    assert!(report.sandboxes.iter().all(|line| line.error.is_some()));
    let took = before.elapsed();
    assert!(
        took >= Duration::from_secs(2) && took < Duration::from_millis(2100),
        "{took:?}"
    );
}

#[tokio::test]
async fn a_closed_engine_refuses_and_leaves_sandboxes_alone() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    create(&engine, "a").await;
    let busy = Engine::open(
        EngineConfig::new(dir.path()),
        Arc::new(StubDriver(Arc::clone(&world))),
    );
    assert!(matches!(busy.await, Err(crate::OpenError::Locked { .. })));
    engine.shut_down().await;
    assert_eq!(
        engine
            .create(&USER, named("b"), None)
            .await
            .unwrap_err()
            .code,
        ErrorCode::Unavailable
    );
    assert_eq!(
        engine.pause(&USER, "a").await.unwrap_err().code,
        ErrorCode::Unavailable
    );
    assert_eq!(world.live.lock().unwrap().len(), 1);
    // The same process can open the directory again.
    let engine = open(dir.path(), &world).await;
    assert_eq!(
        engine.get(&USER, "a").await.unwrap().state,
        SandboxState::Running
    );
}
