//! Templates, pools and claims.

use std::time::Duration;

use pinfold_types::api::{
    ClaimRequest, CreatePoolRequest, CreateSandboxRequest, Given, Origin, Pool, ScalePoolRequest,
    TemplateRequest, UpdateSandboxRequest,
};
use pinfold_types::spec::Deadlines;
use pinfold_types::{
    ByteSize, ErrorCode, MountSpec, Resources, SandboxId, SandboxSpec, SandboxState,
};

use super::*;
use crate::ListFilter;

pub(super) async fn put(engine: &Engine, caller: &Caller, name: &str, spec: SandboxSpec) -> u32 {
    let request = TemplateRequest {
        spec,
        shared: caller.is_admin(),
    };
    let name = name.parse().unwrap();
    let put = engine.put_template(caller, &name, request).await;
    put.unwrap().version
}

pub(super) fn pool_of(name: &str, size: u32) -> CreatePoolRequest {
    CreatePoolRequest {
        name: name.parse().unwrap(),
        template: "t".parse().unwrap(),
        size: Some(size),
        min: None,
        max: None,
    }
}

fn claim_of(template: &str) -> ClaimRequest {
    ClaimRequest {
        template: Some(template.parse().unwrap()),
        ..ClaimRequest::default()
    }
}

pub(super) async fn full(engine: &Engine, name: &str) -> Pool {
    for _ in 0..20_000 {
        let pool = engine.pool(&ADMIN, name).await.unwrap();
        if pool.metrics.depth == pool.target && pool.starting == 0 {
            return pool;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("pool {name} does not fill");
}

/// A shared template `t` and a full pool `p` of it.
async fn with_pool(dir: &Path, world: &Arc<World>, size: u32) -> Engine {
    let engine = open(dir, world).await;
    put(&engine, &ADMIN, "t", SandboxSpec::default()).await;
    engine
        .create_pool(&ADMIN, pool_of("p", size))
        .await
        .unwrap();
    full(&engine, "p").await;
    engine
}

async fn waiting(engine: &Engine) -> Vec<Sandbox> {
    let filter = ListFilter {
        warm: true,
        ..ListFilter::default()
    };
    engine.list(&ADMIN, &filter).await.unwrap().sandboxes
}

async fn warm_ids(engine: &Engine) -> Vec<SandboxId> {
    let ids = waiting(engine).await.into_iter().map(|one| one.id);
    ids.collect()
}

/// Waits until the pool `p` is full without one that died; answers who is in it.
async fn replaced(engine: &Engine, dead: &SandboxId) -> Vec<SandboxId> {
    for _ in 0..20_000 {
        let pool = full(engine, "p").await;
        let ids = warm_ids(engine).await;
        if !ids.contains(dead) && ids.len() == pool.target as usize {
            return ids;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{dead} stays");
}

#[tokio::test]
async fn a_claim_gives_a_running_sandbox_everything_late() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = with_pool(dir.path(), &world, 2).await;
    let warm = waiting(&engine).await;
    let request = ClaimRequest {
        name: Some("mine".parse().unwrap()),
        env: [("A".to_owned(), "1".to_owned())].into(),
        labels: [("team".to_owned(), "x".to_owned())].into(),
        resources: Resources {
            memory: Some(ByteSize(64 << 20)),
            ..Resources::default()
        },
        deadlines: Some(Deadlines {
            idle_ms: Some(60_000),
            ..Deadlines::default()
        }),
        ..claim_of("t")
    };
    let claim = engine.claim(&USER, request).await.unwrap();
    let sandbox = &claim.sandbox;
    assert!(claim.warm && claim.cold_reason.is_none());
    assert!(warm.iter().any(|one| one.id == sandbox.id));
    assert_eq!(
        (sandbox.origin, &sandbox.owner),
        (Origin::Warm, &USER.principal)
    );
    assert_eq!(
        (sandbox.name.as_str(), sandbox.state),
        ("mine", SandboxState::Running)
    );
    let template = sandbox.template.as_ref().unwrap();
    assert_eq!((template.name.as_str(), template.version), ("t", 1));
    assert_eq!(sandbox.spec.deadlines.idle_ms, Some(60_000));
    let instance = world.instance(&sandbox.id).unwrap();
    let memory = instance.limits.lock().unwrap().memory;
    assert_eq!(memory, Some(ByteSize(64 << 20)));
    // It is used as any other; its environment comes with the exec.
    let exec = engine.exec_start(&USER, "mine", command(&["true"])).await;
    let id = exec.unwrap().exec_id;
    let start = instance.execs.lock().unwrap()[&id].start.clone().unwrap();
    assert!(
        start
            .environment
            .contains(&("A".to_owned(), "1".to_owned()))
    );
    assert!(engine.get(&OTHER, "mine").await.is_err());
    assert!(engine.get(&OTHER, sandbox.id.as_str()).await.is_err());
    let pool = full(&engine, "p").await;
    assert_eq!((pool.metrics.claims_warm, pool.metrics.refills), (1, 3));
    assert_eq!(pool.metrics.hit_rate, Some(1.0));
    engine.remove(&USER, "mine", false).await.unwrap();
    engine.shut_down().await;
}

#[tokio::test]
async fn a_warm_sandbox_is_nobodys() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = with_pool(dir.path(), &world, 1).await;
    let warm = waiting(&engine).await.remove(0);
    for caller in [&ADMIN, &USER] {
        for target in [warm.id.as_str(), warm.name.as_str()] {
            assert!(engine.get(caller, target).await.is_err());
            let exec = engine.exec_start(caller, target, command(&["true"])).await;
            assert_eq!(exec.unwrap_err().code, ErrorCode::NotFound);
            let removed = engine.remove(caller, target, false).await;
            assert_eq!(removed.unwrap_err().code, ErrorCode::NotFound);
        }
        let list = engine.list(caller, &ListFilter::default()).await.unwrap();
        assert!(list.sandboxes.is_empty());
        assert!(engine.report(caller).await.unwrap().sandboxes.is_empty());
    }
    let filter = ListFilter {
        warm: true,
        ..ListFilter::default()
    };
    let seen = engine.list(&USER, &filter).await;
    assert_eq!(seen.unwrap_err().code, ErrorCode::PermissionDenied);
    engine.shut_down().await;
}

#[tokio::test]
async fn only_who_may_use_a_template_claims_from_its_pools() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    put(&engine, &USER, "t", SandboxSpec::default()).await;
    engine.create_pool(&USER, pool_of("p", 1)).await.unwrap();
    full(&engine, "p").await;
    for request in [
        claim_of("t"),
        ClaimRequest {
            pool: Some("p".parse().unwrap()),
            ..ClaimRequest::default()
        },
    ] {
        let claim = engine.claim(&OTHER, request.clone()).await;
        assert_eq!(claim.unwrap_err().code, ErrorCode::NotFound);
        assert!(engine.claim(&USER, request).await.unwrap().warm);
        full(&engine, "p").await;
    }
    assert!(engine.templates(&OTHER).await.templates.is_empty());
    assert!(engine.pools(&OTHER).await.pools.is_empty());
    let removed = engine.remove_pool(&OTHER, "p").await;
    assert_eq!(removed.unwrap_err().code, ErrorCode::NotFound);
    // What an admin shares may be claimed by all and changed by none.
    put(&engine, &ADMIN, "u", SandboxSpec::default()).await;
    let pool = CreatePoolRequest {
        template: "u".parse().unwrap(),
        ..pool_of("q", 1)
    };
    let made = engine.create_pool(&OTHER, pool.clone()).await;
    assert_eq!(made.unwrap_err().code, ErrorCode::PermissionDenied);
    engine.create_pool(&ADMIN, pool).await.unwrap();
    full(&engine, "q").await;
    assert!(engine.claim(&OTHER, claim_of("u")).await.unwrap().warm);
    let size = ScalePoolRequest {
        size: Some(9),
        ..ScalePoolRequest::default()
    };
    let scaled = engine.scale_pool(&OTHER, "q", size).await;
    assert_eq!(scaled.unwrap_err().code, ErrorCode::PermissionDenied);
    let shared = TemplateRequest {
        shared: true,
        ..TemplateRequest::default()
    };
    let put = engine
        .put_template(&OTHER, &"v".parse().unwrap(), shared)
        .await;
    assert_eq!(put.unwrap_err().code, ErrorCode::PermissionDenied);
    engine.shut_down().await;
}

#[tokio::test]
async fn a_burst_takes_what_is_warm_and_the_rest_is_started() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = with_pool(dir.path(), &world, 10).await;
    // Nothing comes after while the burst lasts.
    let size = ScalePoolRequest {
        size: Some(0),
        ..ScalePoolRequest::default()
    };
    let claims = (0..100).map(|_| engine.claim(&USER, claim_of("t")));
    let claims = futures::future::join_all(claims).await;
    engine.scale_pool(&ADMIN, "p", size).await.unwrap();
    let claims: Vec<_> = claims.into_iter().map(Result::unwrap).collect();
    let ids: std::collections::BTreeSet<_> = claims
        .iter()
        .map(|claim| claim.sandbox.id.clone())
        .collect();
    assert_eq!(ids.len(), 100);
    let warm = claims.iter().filter(|claim| claim.warm).count();
    assert!((10..100).contains(&warm), "{warm}");
    for claim in claims.iter().filter(|claim| !claim.warm) {
        let reason = claim.cold_reason.as_deref();
        assert_eq!(reason, Some("the pool had no warm sandbox left"));
    }
    let pool = full(&engine, "p").await;
    let served = pool.metrics.claims_warm + pool.metrics.claims_cold;
    assert_eq!((served, pool.metrics.claims_warm), (100, warm as u64));
    engine.shut_down().await;
}

#[tokio::test]
async fn a_changed_template_is_served_at_once_and_its_former_version_never() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = with_pool(dir.path(), &world, 3).await;
    let former: Vec<_> = waiting(&engine).await;
    let same = put(&engine, &ADMIN, "t", SandboxSpec::default()).await;
    assert_eq!(same, 1);
    let changed = SandboxSpec {
        env: [("B".to_owned(), "2".to_owned())].into(),
        ..SandboxSpec::default()
    };
    assert_eq!(put(&engine, &ADMIN, "t", changed).await, 2);
    for _ in 0..3 {
        let claim = engine.claim(&USER, claim_of("t")).await.unwrap();
        assert_eq!(claim.sandbox.template.unwrap().version, 2);
        assert!(former.iter().all(|old| old.id != claim.sandbox.id));
        assert_eq!(claim.sandbox.spec.env["B"], "2");
    }
    let pool = full(&engine, "p").await;
    assert!(waiting(&engine).await.iter().all(|new| {
        new.template
            .as_ref()
            .is_some_and(|template| template.version == 2)
    }));
    assert!(pool.metrics.replaced >= 3);
    until(|| former.iter().all(|old| world.instance(&old.id).is_none())).await;
    engine.shut_down().await;
}

#[tokio::test]
async fn what_cannot_come_late_is_started_cold_and_says_so() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = with_pool(dir.path(), &world, 1).await;
    let mounted = || ClaimRequest {
        name: Some("m".parse().unwrap()),
        mounts: vec![MountSpec {
            source: "/".to_owned(),
            target: "/mnt/a".to_owned(),
            writable: false,
        }],
        ..claim_of("t")
    };
    let disk = ClaimRequest {
        resources: Resources {
            disk: Some(ByteSize(64 << 20)),
            ..Resources::default()
        },
        ..claim_of("t")
    };
    let cold = engine.claim(&ADMIN, disk).await.unwrap();
    let reason = cold.cold_reason.unwrap();
    assert_eq!(
        reason,
        "a running sandbox cannot be given another limit of the disk"
    );
    // A warm one that fails to become what is wanted goes, and nothing of it is left.
    let before = waiting(&engine).await.remove(0);
    world.faults().attach = true;
    let cold = engine.claim(&ADMIN, mounted()).await.unwrap();
    assert_eq!((cold.warm, cold.sandbox.name.as_str()), (false, "m"));
    let reason = cold.cold_reason.unwrap();
    assert!(
        reason.starts_with("the warm sandbox could not be changed"),
        "{reason}"
    );
    assert!(world.instance(&before.id).is_none());
    assert_eq!(
        *world
            .instance(&cold.sandbox.id)
            .unwrap()
            .mounts
            .lock()
            .unwrap(),
        mounted().mounts
    );
    world.faults().attach = false;
    engine.remove(&ADMIN, "m", false).await.unwrap();
    full(&engine, "p").await;
    let warm = engine.claim(&ADMIN, mounted()).await.unwrap();
    assert!(warm.warm);
    let taken = engine.claim(&ADMIN, mounted()).await.unwrap_err();
    assert_eq!(taken.code, ErrorCode::AlreadyExists);
    world.faults().nothing_live = true;
    engine.remove(&ADMIN, "m", false).await.unwrap();
    full(&engine, "p").await;
    let cold = engine.claim(&ADMIN, mounted()).await.unwrap();
    assert_eq!(
        cold.cold_reason.unwrap(),
        "a running sandbox cannot be given mounts"
    );
    engine.shut_down().await;
}

#[tokio::test]
async fn a_creation_names_a_template_and_overrides_it() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = with_pool(dir.path(), &world, 1).await;
    let read = |text: &str| serde_json::from_str::<CreateSandboxRequest>(text).unwrap();
    let request = read(r#"{"template":"t","name":"a","spec":{"env":{"A":"1"},"volatile":true}}"#);
    let sandbox = engine.create(&USER, request, None).await.unwrap();
    assert_eq!((sandbox.origin, sandbox.name.as_str()), (Origin::Warm, "a"));
    assert!(sandbox.spec.volatile && sandbox.spec.env["A"] == "1");
    let unknown = read(r#"{"template":"nothing"}"#);
    let error = engine.create(&USER, unknown, None).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    // Without a template nothing is claimed, unless the configuration has a default pool.
    full(&engine, "p").await;
    let plain = engine.create(&USER, named("b"), None).await.unwrap();
    assert_eq!((plain.origin, plain.template), (Origin::Cold, None));
    let configured = |size| crate::ConfiguredPool {
        name: "default".parse().unwrap(),
        template: "default".parse().unwrap(),
        spec: Some(SandboxSpec::default()),
        size: pinfold_types::api::PoolSize::Fixed(size),
    };
    engine.configure_pools(&ADMIN, vec![configured(1)]).await;
    full(&engine, "default").await;
    let warm = engine.create(&USER, named("c"), None).await.unwrap();
    assert_eq!(warm.origin, Origin::Warm);
    let mut other = named("d");
    other.spec.image = "/images/other".to_owned();
    let cold = engine.create(&ADMIN, other, None).await.unwrap();
    assert_eq!((cold.origin, cold.cold_reason), (Origin::Cold, None));
    engine.configure_pools(&ADMIN, Vec::new()).await;
    while engine.pool(&ADMIN, "default").await.is_ok() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(engine.pool(&ADMIN, "p").await.is_ok());
    engine.shut_down().await;
}

#[tokio::test]
async fn of_a_burst_as_many_are_warm_as_the_pool_held() {
    const CLAIMS: usize = 100;
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = with_pool(dir.path(), &world, 10).await;
    // Nothing that begins now is warm before every claim has looked.
    world.faults().start_hangs = true;
    let claims: Vec<_> = (0..CLAIMS)
        .map(|_| {
            let engine = engine.clone();
            tokio::spawn(async move { engine.claim(&USER, claim_of("t")).await.unwrap() })
        })
        .collect();
    for round in 0.. {
        assert!(round < 20_000, "not every claim begins");
        let starting = engine.pool(&ADMIN, "p").await.unwrap().starting as usize;
        if world.disks.lock().unwrap().len() == CLAIMS + starting {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.faults().start_hangs = false;
    let (mut warm, mut ids) = (0, std::collections::HashSet::new());
    for claim in claims {
        let claim = claim.await.unwrap();
        warm += usize::from(claim.warm);
        assert_eq!(claim.warm, claim.cold_reason.is_none());
        assert!(ids.insert(claim.sandbox.id));
    }
    assert_eq!((warm, ids.len()), (10, CLAIMS));
    engine.shut_down().await;
}

#[tokio::test]
async fn removing_a_pool_drains_it_and_leaves_what_was_claimed() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = with_pool(dir.path(), &world, 4).await;
    let claim = engine.claim(&USER, claim_of("t")).await.unwrap();
    let used = engine.remove_template(&ADMIN, "t").await.unwrap_err();
    assert_eq!(used.code, ErrorCode::IllegalState);
    engine.remove_pool(&ADMIN, "p").await.unwrap();
    assert!(waiting(&engine).await.is_empty());
    assert_eq!(world.live.lock().unwrap().len(), 1);
    assert!(engine.pool(&ADMIN, "p").await.is_err());
    let state = engine.get(&USER, claim.sandbox.id.as_str()).await.unwrap();
    assert_eq!(state.state, SandboxState::Running);
    let cold = engine.claim(&USER, claim_of("t")).await.unwrap();
    let reason = cold.cold_reason.unwrap();
    assert_eq!(reason, "no pool keeps sandboxes of the template warm");
    engine.remove_template(&ADMIN, "t").await.unwrap();
    engine.shut_down().await;
    // A drained pool is not there for the next daemon either.
    let engine = open(dir.path(), &world).await;
    assert!(engine.pools(&ADMIN).await.pools.is_empty());
    engine.shut_down().await;
}

#[tokio::test]
async fn warm_sandboxes_survive_a_daemon_and_those_that_died_are_replaced() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = with_pool(dir.path(), &world, 3).await;
    let mut before = warm_ids(&engine).await;
    engine.shut_down().await;
    world.instance(&before[0]).unwrap().die();
    let engine = open(dir.path(), &world).await;
    let dead = before.remove(0);
    let after = replaced(&engine, &dead).await;
    assert!(
        before.iter().all(|id| after.contains(id)),
        "{before:?} {after:?}"
    );
    assert_eq!((after.len(), world.live.lock().unwrap().len()), (3, 3));
    // The same while the daemon lives.
    world.instance(&after[0]).unwrap().die();
    let rest = replaced(&engine, &after[0]).await;
    assert!(after[1..].iter().all(|id| rest.contains(id)));
    engine.shut_down().await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_cannot_be_filled_says_why_and_tries_again() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    world.faults().start = true;
    put(&engine, &ADMIN, "t", SandboxSpec::default()).await;
    engine.create_pool(&ADMIN, pool_of("p", 2)).await.unwrap();
    for _ in 0..20_000 {
        let pool = engine.pool(&ADMIN, "p").await.unwrap();
        if pool.metrics.refills_failed > 8 {
            assert!(pool.error.unwrap().contains("a test wanted it"));
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(world.is_empty());
    let cold = engine.claim(&USER, claim_of("t")).await.unwrap_err();
    assert_eq!(cold.code, ErrorCode::ResourceExhausted);
    world.faults().start = false;
    let mut depth = 0;
    while depth < 2 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        depth = engine.pool(&ADMIN, "p").await.unwrap().metrics.depth;
    }
    assert_eq!(engine.pool(&ADMIN, "p").await.unwrap().error, None);
    engine.shut_down().await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_sized_by_itself_grows_with_claims_and_shrinks_without() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = open(dir.path(), &world).await;
    put(&engine, &ADMIN, "t", SandboxSpec::default()).await;
    let request = CreatePoolRequest {
        size: None,
        min: Some(1),
        max: Some(6),
        ..pool_of("p", 0)
    };
    engine.create_pool(&ADMIN, request).await.unwrap();
    assert_eq!(full(&engine, "p").await.metrics.depth, 1);
    for _ in 0..20 {
        engine.claim(&USER, claim_of("t")).await.unwrap();
    }
    assert_eq!(full(&engine, "p").await.metrics.depth, 6);
    tokio::time::sleep(Duration::from_hours(3)).await;
    assert_eq!(full(&engine, "p").await.metrics.depth, 1);
    engine.shut_down().await;
}

#[tokio::test]
async fn quotas_hold_for_claims_and_for_pools() {
    use pinfold_types::api::keys::Quotas;
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let mut config = EngineConfig::new(dir.path());
    config.quotas_of_users = true;
    config.quotas = Quotas {
        sandboxes: Some(2),
        ..Quotas::NONE
    };
    let engine = open_with(config, &world).await;
    put(&engine, &ADMIN, "t", SandboxSpec::default()).await;
    engine.create_pool(&ADMIN, pool_of("p", 5)).await.unwrap();
    full(&engine, "p").await;
    let claims = (0..8).map(|_| engine.claim(&USER, claim_of("t")));
    let claims = futures::future::join_all(claims).await;
    assert_eq!(claims.iter().filter(|claim| claim.is_ok()).count(), 2);
    for refused in claims.iter().filter_map(|claim| claim.as_ref().err()) {
        assert_eq!(refused.code, ErrorCode::QuotaExceeded);
    }
    // What was refused is as warm as before, and what is removed makes room.
    let first = claims.into_iter().find_map(Result::ok).unwrap();
    engine
        .remove(&USER, first.sandbox.id.as_str(), false)
        .await
        .unwrap();
    assert!(engine.claim(&USER, claim_of("t")).await.unwrap().warm);
    assert_eq!(full(&engine, "p").await.metrics.depth, 5);
    put(&engine, &OTHER, "u", SandboxSpec::default()).await;
    let pool = |size| CreatePoolRequest {
        template: "u".parse().unwrap(),
        ..pool_of("mine", size)
    };
    let refused = engine.create_pool(&OTHER, pool(3)).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::QuotaExceeded);
    engine.create_pool(&OTHER, pool(2)).await.unwrap();
    full(&engine, "mine").await;
    // Warm ones count for who keeps them.
    let refused = engine
        .create(&OTHER, named("more"), None)
        .await
        .unwrap_err();
    assert_eq!(refused.code, ErrorCode::QuotaExceeded);
    assert!(engine.claim(&OTHER, claim_of("u")).await.unwrap().warm);
    engine.shut_down().await;
}

#[tokio::test]
async fn a_creation_with_a_key_takes_one_warm_sandbox_and_finds_it_again() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = with_pool(dir.path(), &world, 2).await;
    let key: crate::OnceKey = "k".parse().unwrap();
    let request = CreateSandboxRequest {
        template: Some("t".parse().unwrap()),
        ..named("a")
    };
    let asked = (0..20).map(|_| engine.create_once(&USER, &key, request.clone(), None));
    let outcomes = futures::future::try_join_all(asked).await.unwrap();
    let first = &outcomes[0].sandbox;
    assert_eq!(first.origin, Origin::Warm);
    let same = |outcome: &crate::Outcome| outcome.sandbox.id == first.id;
    assert!(outcomes.iter().all(same));
    let made = outcomes.iter().filter(|outcome| !outcome.replayed).count();
    assert_eq!(made, 1);
    full(&engine, "p").await;
    engine.shut_down().await;
    drop(engine);
    // The key was written with the new owner, and what it made was done.
    let engine = open(dir.path(), &world).await;
    let again = engine.create_once(&USER, &key, request.clone(), None).await;
    let again = again.unwrap();
    assert!(again.replayed && same(&again));
    engine.remove(&USER, "a", false).await.unwrap();
    let gone = engine.create_once(&USER, &key, request.clone(), None).await;
    assert_eq!(gone.unwrap_err().code, ErrorCode::InstanceGone);
    // A claim that fails leaves its key free.
    let key: crate::OnceKey = "other".parse().unwrap();
    let changed = CreateSandboxRequest {
        given: Given::default().with("resources", serde_json::json!({ "memory": 64 << 20 })),
        ..request
    };
    full(&engine, "p").await;
    world.faults().update = true;
    world.faults().start = true;
    let failed = engine.create_once(&USER, &key, changed.clone(), None).await;
    failed.unwrap_err();
    world.faults().update = false;
    world.faults().start = false;
    let anew = engine.create_once(&USER, &key, changed, None).await;
    assert!(!anew.unwrap().replayed);
    engine.shut_down().await;
}

#[tokio::test]
async fn the_default_idle_time_comes_with_the_claim_unless_the_template_has_none() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = with_pool(dir.path(), &world, 1).await;
    assert_eq!(waiting(&engine).await[0].spec.deadlines.idle_ms, None);
    let claim = engine.claim(&USER, claim_of("t")).await.unwrap();
    assert!(claim.warm && claim.sandbox.spec.deadlines.idle_ms.is_some());
    let mut forever = SandboxSpec::default();
    forever.deadlines.idle_ms = Some(0);
    put(&engine, &ADMIN, "t", forever).await;
    full(&engine, "p").await;
    let claim = engine.claim(&USER, claim_of("t")).await.unwrap();
    assert_eq!(claim.sandbox.spec.deadlines.idle_ms, None);
    engine.shut_down().await;
}

#[tokio::test]
async fn a_warm_sandbox_is_not_changed_until_it_is_claimed() {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let engine = with_pool(dir.path(), &world, 1).await;
    let warm = waiting(&engine).await.remove(0);
    let request = UpdateSandboxRequest {
        labels: [("a".to_owned(), Some("b".to_owned()))].into(),
        ..UpdateSandboxRequest::default()
    };
    for target in [warm.id.as_str(), warm.name.as_str()] {
        let refused = engine.update(&ADMIN, target, request.clone()).await;
        assert_eq!(refused.unwrap_err().code, ErrorCode::NotFound);
    }
    let claim = engine.claim(&USER, claim_of("t")).await.unwrap();
    let id = claim.sandbox.id.as_str();
    let updated = engine.update(&USER, id, request).await.unwrap();
    assert_eq!(updated.spec.labels["a"], "b");
    assert_eq!(updated.origin, Origin::Warm);
    engine.shut_down().await;
}
