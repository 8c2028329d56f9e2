use pinfold_types::PrincipalName;

use super::*;
use crate::tests::{ADMIN, OTHER, USER, open_empty};

fn asked(name: &str) -> CreateKeyRequest {
    CreateKeyRequest {
        name: name.parse().unwrap(),
        principal: None,
        role: Role::User,
        expires_ms: None,
        quotas: Quotas::NONE,
    }
}

fn refusal<T: fmt::Debug>(result: Result<T>) -> ErrorCode {
    result.unwrap_err().code
}

#[test]
fn secrets_are_long_distinct_and_of_every_digit() {
    let secrets: Vec<String> = (0..200).map(|_| new_secret()).collect();
    let distinct: std::collections::HashSet<_> = secrets.iter().collect();
    assert_eq!(distinct.len(), secrets.len());
    assert!(secrets.iter().all(|secret| secret.len() == SECRET_LENGTH));
    let digits: std::collections::HashSet<u8> = secrets.iter().flat_map(|s| s.bytes()).collect();
    assert_eq!(digits.len(), DIGITS.len());
}

#[tokio::test]
async fn a_key_proves_its_principal_until_it_is_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_empty(dir.path()).await;
    let made = engine.key_create(&ADMIN, asked("ci")).await.unwrap();
    let grant = engine.authenticate(made.token.reveal()).unwrap();
    let named: PrincipalName = "ci".parse().unwrap();
    assert_eq!(grant.caller.principal, Principal::Named(named));
    assert_eq!(grant.caller.role, Role::User);
    assert_eq!((grant.caller.uid, grant.caller.gid), (None, None));
    let token = made.token.reveal();
    let other = engine.key_create(&ADMIN, asked("cd")).await.unwrap();
    let swapped = format!(
        "pf_{}_{}",
        other.key.id,
        &token[token.len() - SECRET_LENGTH..]
    );
    let unknown = format!("pf_{}_{}", KeyId::new(), new_secret());
    for wrong in [
        "",
        "pf_",
        "pf__",
        &token[..token.len() - 1],
        &format!("{token}0"),
        &token.to_lowercase(),
        &swapped,
        &unknown,
    ] {
        let error = engine.authenticate(wrong).unwrap_err();
        assert_eq!(error.code, ErrorCode::Unauthenticated, "{wrong}");
        assert!(wrong.len() < 4 || !error.to_string().contains(wrong));
    }
    engine.key_revoke(&ADMIN, &made.key.id).await.unwrap();
    assert!(grant.revoked.is_cancelled());
    assert_eq!(
        refusal(engine.authenticate(token)),
        ErrorCode::Unauthenticated
    );
}

#[tokio::test]
async fn keys_outlive_the_daemon_and_their_secrets_are_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let first = open_empty(dir.path()).await;
    let kept = first.key_create(&ADMIN, asked("kept")).await.unwrap();
    let gone = first.key_create(&ADMIN, asked("gone")).await.unwrap();
    first.authenticate(kept.token.reveal()).unwrap();
    first.key_revoke(&ADMIN, &gone.key.id).await.unwrap();
    first.shut_down().await;
    for file in ["pinfold.db", "pinfold.db-wal"] {
        let bytes = std::fs::read(dir.path().join(file)).unwrap_or_default();
        for made in [&kept, &gone] {
            let (_, secret) = split(made.token.reveal()).unwrap();
            let found = bytes
                .windows(secret.len())
                .any(|part| part == secret.as_bytes());
            assert!(!found, "{file}");
        }
    }
    let second = open_empty(dir.path()).await;
    assert!(second.authenticate(kept.token.reveal()).is_ok());
    assert!(second.authenticate(gone.token.reveal()).is_err());
    let list = second.key_list(&ADMIN).keys;
    assert_eq!(list.len(), 1);
    assert!(list[0].last_used_at.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_key_expires() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_empty(dir.path()).await;
    let mut request = asked("short");
    request.expires_ms = Some(60_000);
    let made = engine.key_create(&ADMIN, request).await.unwrap();
    assert!(engine.authenticate(made.token.reveal()).is_ok());
    tokio::time::advance(std::time::Duration::from_secs(61)).await;
    assert!(engine.authenticate(made.token.reveal()).is_err());
}

#[tokio::test]
async fn nobody_makes_a_key_that_may_more_than_they_may() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_empty(dir.path()).await;
    let own = engine.key_create(&USER, asked("own")).await.unwrap();
    assert_eq!(own.key.principal, USER.principal);
    let mut foreign = asked("foreign");
    foreign.principal = Some(OTHER.principal.clone());
    let mut admin = asked("admin");
    admin.role = Role::Admin;
    let mut quotas = asked("quotas");
    quotas.quotas.sandboxes = Some(1000);
    for request in [foreign, admin, quotas] {
        assert_eq!(
            refusal(engine.key_create(&USER, request.clone()).await),
            ErrorCode::PermissionDenied
        );
        assert!(engine.key_create(&ADMIN, request).await.is_ok());
    }
    let viewer = Caller::of_host(1000, 1000, Role::Viewer);
    let mut looking = asked("looking");
    looking.role = Role::Viewer;
    assert_eq!(
        refusal(engine.key_create(&viewer, looking).await),
        ErrorCode::PermissionDenied
    );
    assert_eq!(
        refusal(engine.key_create(&USER, asked("own")).await),
        ErrorCode::AlreadyExists
    );
}

#[tokio::test]
async fn a_key_of_a_key_inherits_its_bounds_and_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_empty(dir.path()).await;
    let mut request = asked("parent");
    request.expires_ms = Some(3_600_000);
    request.quotas.sandboxes = Some(3);
    let parent = engine.key_create(&ADMIN, request).await.unwrap();
    let caller = engine.authenticate(parent.token.reveal()).unwrap().caller;
    let mut longer = asked("child");
    longer.expires_ms = Some(u64::MAX);
    let child = engine.key_create(&caller, longer).await.unwrap();
    assert_eq!(child.key.expires_at, parent.key.expires_at);
    assert_eq!(child.key.quotas.sandboxes, Some(3));
    let caller = engine.authenticate(child.token.reveal()).unwrap().caller;
    let grandchild = engine
        .key_create(&caller, asked("grandchild"))
        .await
        .unwrap();
    let unrelated = engine.key_create(&ADMIN, asked("unrelated")).await.unwrap();
    let revoked = engine.key_revoke(&ADMIN, &parent.key.id).await.unwrap();
    assert_eq!(revoked.revoked.len(), 3);
    assert!(engine.authenticate(grandchild.token.reveal()).is_err());
    assert!(engine.authenticate(unrelated.token.reveal()).is_ok());
    // What was proved before does not make keys after.
    assert_eq!(
        refusal(engine.key_create(&caller, asked("late")).await),
        ErrorCode::Unauthenticated
    );
}

#[tokio::test]
async fn others_keys_are_not_seen() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_empty(dir.path()).await;
    let made = engine.key_create(&USER, asked("mine")).await.unwrap();
    assert_eq!(engine.key_list(&USER).keys.len(), 1);
    assert_eq!(engine.key_list(&ADMIN).keys.len(), 1);
    assert!(engine.key_list(&OTHER).keys.is_empty());
    assert_eq!(
        refusal(engine.key_revoke(&OTHER, &made.key.id).await),
        ErrorCode::NotFound
    );
    engine.key_revoke(&USER, &made.key.id).await.unwrap();
}

#[tokio::test]
async fn there_are_only_so_many_keys() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_empty(dir.path()).await;
    for number in 0..KEYS_PER_PRINCIPAL_MAX {
        engine
            .key_create(&USER, asked(&format!("n{number}")))
            .await
            .unwrap();
    }
    assert_eq!(
        refusal(engine.key_create(&USER, asked("more")).await),
        ErrorCode::LimitExceeded
    );
    engine.key_create(&OTHER, asked("more")).await.unwrap();
}
