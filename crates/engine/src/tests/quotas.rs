use pinfold_types::api::keys::{CreateKeyRequest, Quotas};
use pinfold_types::{ErrorCode, ExecSpec, MilliCpu, Role};

use super::stub::World;
use super::*;

/// Makes a key with quotas and returns who shows it.
async fn with_quotas(engine: &Engine, name: &str, quotas: Quotas) -> Caller {
    let request = CreateKeyRequest {
        name: name.parse().unwrap(),
        principal: None,
        role: Role::User,
        expires_ms: None,
        quotas,
    };
    let made = engine.key_create(&ADMIN, request).await.unwrap();
    engine.authenticate(made.token.reveal()).unwrap().caller
}

fn any() -> CreateSandboxRequest {
    CreateSandboxRequest::default()
}

#[tokio::test]
async fn of_a_hundred_creations_at_once_ten_pass_a_quota_of_ten() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_empty(dir.path()).await;
    let quotas = Quotas {
        sandboxes: Some(10),
        ..Quotas::NONE
    };
    let caller = with_quotas(&engine, "burst", quotas).await;
    let making = (0..100).map(|_| {
        let (engine, caller) = (engine.clone(), caller.clone());
        tokio::spawn(async move { engine.create(&caller, any(), None).await })
    });
    let mut made = Vec::new();
    for result in futures::future::join_all(making).await {
        match result.unwrap() {
            Ok(sandbox) => made.push(sandbox),
            Err(error) => {
                assert_eq!(error.code, ErrorCode::QuotaExceeded, "{error}");
                assert_eq!(error.details["quota"], "sandboxes");
                assert_eq!(error.details["limit"], 10);
            }
        }
    }
    assert_eq!(made.len(), 10);
    // A stopped one counts, a removed one does not.
    let stop = pinfold_types::api::StopRequest::default();
    engine
        .stop(&caller, made[0].id.as_str(), stop)
        .await
        .unwrap();
    assert!(engine.create(&caller, any(), None).await.is_err());
    engine
        .remove(&caller, made[0].id.as_str(), false)
        .await
        .unwrap();
    engine.create(&caller, any(), None).await.unwrap();
    assert!(engine.create(&caller, any(), None).await.is_err());
    // Neither an admin nor a user of the host is held to it.
    engine.create(&ADMIN, any(), None).await.unwrap();
    engine.create(&USER, any(), None).await.unwrap();
    engine.shut_down().await;

    // What an earlier daemon made counts too.
    let engine = open_empty(dir.path()).await;
    let error = engine.create(&caller, any(), None).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::QuotaExceeded);
    engine.shut_down().await;
}

#[tokio::test]
async fn the_daemons_quotas_hold_where_a_key_names_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = EngineConfig::new(dir.path());
    config.quotas.sandboxes = Some(1);
    config.quotas.cpus = Some(MilliCpu(1000));
    config.quotas_of_users = true;
    let engine = open_with(config, &Arc::<World>::default()).await;
    let more = Quotas {
        sandboxes: Some(2),
        ..Quotas::NONE
    };
    let caller = with_quotas(&engine, "more", more).await;
    let error = engine.create(&caller, any(), None).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument, "{error}");
    let mut request = any();
    request.spec.resources.cpus = Some(MilliCpu(600));
    engine.create(&caller, request.clone(), None).await.unwrap();
    let error = engine
        .create(&caller, request.clone(), None)
        .await
        .unwrap_err();
    assert_eq!(error.details["quota"], "cpus");
    request.spec.resources.cpus = Some(MilliCpu(400));
    engine.create(&caller, request.clone(), None).await.unwrap();
    engine.create(&USER, request.clone(), None).await.unwrap();
    let error = engine.create(&USER, request, None).await.unwrap_err();
    assert_eq!(error.details["quota"], "sandboxes");
    engine.create(&ADMIN, any(), None).await.unwrap();
}

#[tokio::test]
async fn execs_at_once_are_counted_over_all_sandboxes() {
    let dir = tempfile::tempdir().unwrap();
    let world = Arc::<World>::default();
    let engine = open(dir.path(), &world).await;
    let quotas = Quotas {
        execs: Some(2),
        ..Quotas::NONE
    };
    let caller = with_quotas(&engine, "execs", quotas).await;
    let one = engine.create(&caller, any(), None).await.unwrap();
    let two = engine.create(&caller, any(), None).await.unwrap();
    let start = async |sandbox: &Sandbox, spec: ExecSpec| {
        engine.exec_start(&caller, sandbox.id.as_str(), spec).await
    };
    let wait = || command(&["wait"]);
    let first = start(&one, wait()).await.unwrap();
    start(&two, wait()).await.unwrap();
    let error = start(&one, wait()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::QuotaExceeded);
    assert_eq!(error.details["quota"], "execs");
    let signal = pinfold_types::api::SignalRequest {
        signal: 9,
        tree: false,
    };
    let (sandbox, exec) = (one.id.as_str(), &first.exec_id);
    engine
        .exec_signal(&caller, sandbox, exec, signal)
        .await
        .unwrap();
    engine.exec_wait(&caller, sandbox, exec).await.unwrap();
    let mut result = start(&one, wait()).await;
    // The place is given back when the end is written down, a moment after it is told.
    for _ in 0..1000 {
        if result.is_ok() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        result = start(&one, wait()).await;
    }
    result.unwrap();
}

#[tokio::test]
async fn a_change_is_held_to_the_quota_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_empty(dir.path()).await;
    let quotas = Quotas {
        cpus: Some(MilliCpu(2000)),
        ..Quotas::NONE
    };
    let caller = with_quotas(&engine, "grows", quotas).await;
    let cpus = |cpus| pinfold_types::Resources {
        cpus: Some(MilliCpu(cpus)),
        ..pinfold_types::Resources::default()
    };
    let mut first = any();
    first.spec.resources = cpus(1000);
    let made = engine.create(&caller, first.clone(), None).await.unwrap();
    let change = |milli| pinfold_types::api::UpdateSandboxRequest {
        resources: cpus(milli),
        ..pinfold_types::api::UpdateSandboxRequest::default()
    };
    let id = made.id.as_str();
    let refused = engine.update(&caller, id, change(2001)).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::QuotaExceeded);
    engine.update(&caller, id, change(2000)).await.unwrap();
    let refused = engine
        .create(&caller, first.clone(), None)
        .await
        .unwrap_err();
    assert_eq!(refused.code, ErrorCode::QuotaExceeded);
    engine.update(&caller, id, change(500)).await.unwrap();
    engine.create(&caller, first, None).await.unwrap();
}
