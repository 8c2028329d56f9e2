//! The audit log as the server writes it, and the ids of requests.

use std::path::Path;

use pinfold_server::{AuditLine, AuditLog, TcpDoor, audit_lines, verify_audit};
use pinfold_types::Role;
use pinfold_types::api::ExecRequest;

use crate::port::{bearer, key, send};
use crate::server::{Server, command, plain_sandbox};

fn read(directory: &Path) -> Vec<AuditLine> {
    let mut lines = Vec::new();
    audit_lines(directory, |line| lines.push(line)).unwrap();
    lines
}

fn calls(lines: &[AuditLine]) -> Vec<(&str, &str)> {
    lines
        .iter()
        .map(|line| (line.action.as_str(), line.outcome.as_str()))
        .collect()
}

#[tokio::test]
async fn every_change_is_written_before_it_is_answered_and_no_secret_is() {
    let place = tempfile::tempdir().unwrap();
    let log = AuditLog::open(place.path()).unwrap();
    let own = log.clone();
    let server = Server::with_agent_and(move |options| options.audit = Some(own)).await;
    let client = &server.client;
    let mut request = plain_sandbox();
    request
        .spec
        .env
        .insert("TOKEN".to_owned(), "hunter2".to_owned());
    let sandbox = client.create(&request).await.unwrap();
    let id = sandbox.id.as_str();
    let mut lines = read(place.path());
    assert_eq!(calls(&lines), [("POST /v1/sandboxes", "201")]);
    let made = lines.remove(0);
    assert_eq!(made.detail.as_deref(), Some(format!("made {id}").as_str()));
    assert!(made.principal.starts_with("uid:"), "{made:?}");
    assert!(
        made.peer.contains(&format!("pid={}", std::process::id())),
        "{made:?}"
    );
    let secret = ExecRequest {
        env: [("KEY".to_owned(), "hunter2".to_owned())].into(),
        ..command(&["true", "hunter2"])
    };
    client.exec(id, &secret).await.unwrap();
    client.exec_start(id, &command(&["true"])).await.unwrap();
    client.get(id).await.unwrap();
    client.pause("nobody").await.unwrap_err();
    client.remove(id, false).await.unwrap();
    let lines = read(place.path());
    assert_eq!(
        calls(&lines)[1..],
        [
            ("POST /v1/sandboxes/{id}/exec", "200"),
            ("POST /v1/sandboxes/{id}/execs", "201"),
            ("POST /v1/sandboxes/{id}/pause", "404 not_found"),
            ("DELETE /v1/sandboxes/{id}", "200"),
        ]
    );
    assert_eq!(lines[4].target, format!("/v1/sandboxes/{id}"));
    let verified = verify_audit(place.path(), None).unwrap();
    assert_eq!(verified.problems, []);
    for entry in std::fs::read_dir(place.path()).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(!text.contains("hunter2"), "{text}");
    }
    server.end().await;
    log.close().await;
}

#[tokio::test]
async fn a_creation_that_failed_line_by_line_says_so() {
    let place = tempfile::tempdir().unwrap();
    let log = AuditLog::open(place.path()).unwrap();
    let own = log.clone();
    // There is no agent, so nothing can be made.
    let server = Server::start_with(move |options| options.audit = Some(own)).await;
    server.client.create(&plain_sandbox()).await.unwrap_err();
    let lines = read(place.path());
    let [line] = lines.as_slice() else {
        panic!("{lines:?}");
    };
    assert_eq!(line.action, "POST /v1/sandboxes");
    assert!(
        line.outcome.contains(' ') && !line.outcome.starts_with('2'),
        "{line:?}"
    );
    server.end().await;
}

#[tokio::test]
async fn every_refusal_of_authority_is_written_with_whom_it_was() {
    let place = tempfile::tempdir().unwrap();
    let log = AuditLog::open(place.path()).unwrap();
    let server = Server::start_at(
        |listener| TcpDoor::with_keys(listener, None),
        move |options| options.audit = Some(log),
    )
    .await;
    let viewer = key(&server, "looker", Role::Viewer).await;
    let shown = bearer(&viewer);
    let address = server.address();
    let id = "x-request-id: ticket-4711.a";
    send(
        address,
        "POST /v1/sandboxes",
        &["host: x", &shown, id],
        "{}",
    )
    .await;
    send(address, "GET /v1/version", &["host: x"], "").await;
    send(address, "GET /v1/version", &["host: x", &shown], "").await;
    let lines = read(place.path());
    assert_eq!(
        calls(&lines),
        [
            ("POST /v1/keys", "201"),
            ("POST /v1/sandboxes", "403 permission_denied"),
            ("GET /v1/version", "401 unauthenticated"),
        ]
    );
    assert_eq!(lines[1].principal, "looker");
    assert_eq!(lines[1].key.as_deref(), Some(viewer.key.id.as_str()));
    assert_eq!(lines[1].request_id, "ticket-4711.a");
    assert!(lines[1].peer.starts_with("127.0.0.1:"), "{:?}", lines[1]);
    assert_eq!((lines[2].principal.as_str(), &lines[2].key), ("-", &None));
    // A flood of them is counted and not written.
    for _ in 0..150 {
        send(address, "GET /v1/version", &["host: x"], "").await;
    }
    let lines = read(place.path());
    assert!(lines.len() < 3 + 150, "{}", lines.len());
    assert_eq!(verify_audit(place.path(), None).unwrap().problems, []);
    server.end().await;
}

#[tokio::test]
async fn a_callers_request_id_is_taken_when_it_can_stand_in_any_line() {
    let server = Server::start().await;
    let ask = |value: &'static str| {
        let server = &server;
        async move {
            let header = format!("x-request-id: {value}\r\n");
            server
                .send_with(("GET", "/v1/version"), &header, "")
                .await
                .head
        }
    };
    let head = ask("7d0c1f52-0c7a-4f4e-9a63-aa6f2ed3c1f2").await;
    assert!(
        head.contains("x-request-id: 7d0c1f52-0c7a-4f4e-9a63-aa6f2ed3c1f2"),
        "{head}"
    );
    for bad in [
        "short",
        "with space in it",
        "\"quoted-id\"",
        "-leading-dash",
    ] {
        let head = ask(bad).await;
        assert!(!head.contains(bad), "{head}");
        assert!(head.contains("x-request-id: r"), "{head}");
    }
    // It is in the body of a refusal too.
    let header = "x-request-id: my.request_1\r\n";
    let answer = server
        .send_with(("GET", "/v1/sandboxes/nobody"), header, "")
        .await;
    assert_eq!(answer.json()["error"]["request_id"], "my.request_1");
    server.end().await;
}
