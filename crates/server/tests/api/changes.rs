//! Changing sandboxes, forgetting execs, creating once, readiness.

use pinfold_types::api::{ExecRequest, UpdateSandboxRequest};
use serde_json::json;

use crate::server::{Server, shell, within};

#[tokio::test]
async fn a_sandbox_is_changed_while_it_runs() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let name = sandbox.name.as_str();
    let change = json!({
        "labels": {"team": "blue"},
        "env": {"GREETING": "hello"},
        "deadlines": {"idle_ms": 3_600_000, "lifetime_ms": 7_200_000, "lifetime_action": "stop"},
    });
    let target = format!("/v1/sandboxes/{name}");
    let answer = server.send("PATCH", &target, &change.to_string()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let shown = server.ask("GET", &target).await.json();
    assert_eq!(answer.json(), shown);
    assert_eq!(shown["spec"]["labels"]["team"], "blue");
    assert_eq!(shown["spec"]["deadlines"]["idle_ms"], 3_600_000);
    let result = server
        .client
        .exec(name, &shell("echo $GREETING"))
        .await
        .unwrap();
    assert_eq!(result.stdout, "hello\n");
    // The fake driver has no limits to change.
    let limits = r#"{"resources": {"pids": 100}}"#;
    server
        .send("PATCH", &target, limits)
        .await
        .refusal(501, "unsupported");
    for bad in [r#"{"name": "x"}"#, r#"{"env": {"A": 1}}"#, "[]"] {
        server
            .send("PATCH", &target, bad)
            .await
            .refusal(400, "invalid_argument");
    }
    let request: UpdateSandboxRequest =
        serde_json::from_value(json!({"env": {"GREETING": null}})).unwrap();
    let updated = server.client.update(name, &request).await.unwrap();
    assert!(updated.spec.env.is_empty());
    server.end().await;
}

#[tokio::test]
async fn a_removed_exec_is_gone_whether_it_ran_or_not() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let name = sandbox.name.as_str();
    let loud = ExecRequest {
        back_pressure: true,
        ..shell("yes")
    };
    for request in [shell("sleep 1000"), loud, shell("true")] {
        let exec = server.client.exec_start(name, &request).await.unwrap();
        let target = format!("/v1/sandboxes/{name}/execs/{}", exec.exec_id);
        let answer = within(server.ask("DELETE", &target)).await;
        assert_eq!(answer.status, 204, "{answer:?}");
        server.ask("GET", &target).await.refusal(404, "not_found");
        let stream = format!("/v1/sandboxes/{name}/stream?exec_id={}", exec.exec_id);
        server
            .send_with(("GET", &stream), "accept: text/event-stream\r\n", "")
            .await
            .refusal(404, "not_found");
        server
            .ask("DELETE", &target)
            .await
            .refusal(404, "not_found");
    }
    assert!(server.client.execs(name).await.unwrap().execs.is_empty());
    server.end().await;
}

#[tokio::test]
async fn execs_come_in_pages() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let name = sandbox.name.as_str();
    for _ in 0..3 {
        server.client.exec(name, &shell("true")).await.unwrap();
    }
    let target = format!("/v1/sandboxes/{name}/execs");
    let first = server.ask("GET", &format!("{target}?limit=2")).await.json();
    assert_eq!(first["execs"].as_array().unwrap().len(), 2);
    let after = first["next"].as_str().unwrap();
    assert_eq!(first["execs"][1]["exec_id"], after);
    let rest = server
        .ask("GET", &format!("{target}?after={after}"))
        .await
        .json();
    assert_eq!(rest["execs"].as_array().unwrap().len(), 1);
    assert!(rest.get("next").is_none());
    let running = server
        .ask("GET", &format!("{target}?running=true"))
        .await
        .json();
    assert_eq!(running["execs"], json!([]));
    for bad in ["limit=0", "limit=1001", "after=x", "running=maybe"] {
        let answer = server.ask("GET", &format!("{target}?{bad}")).await;
        answer.refusal(400, "invalid_argument");
    }
    server.end().await;
}

#[tokio::test]
async fn an_idempotency_key_makes_one_sandbox() {
    let server = Server::with_agent().await;
    let body = r#"{"spec": {"isolation": "none"}}"#;
    let key = "idempotency-key: 7f3e\r\n";
    let post = ("POST", "/v1/sandboxes");
    let asked = (0..10).map(|_| server.send_with(post, key, body));
    let answers = within(futures::future::join_all(asked)).await;
    let id = answers[0].json()["id"].clone();
    assert!(
        answers
            .iter()
            .all(|answer| answer.status == 201 && answer.json()["id"] == id)
    );
    let replayed =
        |answer: &&crate::server::Answer| answer.head.contains("idempotency-replayed: true");
    assert_eq!(answers.iter().filter(replayed).count(), 9);
    // Also without the prefix, and with progress.
    let bare = server.send_with(("POST", "/sandboxes"), key, body).await;
    assert_eq!(bare.json()["id"], id);
    let lines = format!("{key}accept: application/x-ndjson\r\n");
    let lines = server.send_with(post, &lines, body).await.text();
    assert!(lines.contains(id.as_str().unwrap()), "{lines}");
    let other = r#"{"spec": {"isolation": "none", "volatile": true}}"#;
    server
        .send_with(post, key, other)
        .await
        .refusal(422, "idempotency_mismatch");
    for bad in [
        "idempotency-key: a b\r\n",
        "idempotency-key: \r\n",
        "idempotency-key: a\r\nidempotency-key: b\r\n",
    ] {
        server
            .send_with(post, bad, body)
            .await
            .refusal(400, "invalid_argument");
    }
    server.end().await;
}

#[tokio::test]
async fn a_daemon_says_whether_it_is_ready() {
    let server = Server::start().await;
    let answer = server.ask("GET", "/v1/ready").await;
    assert_eq!(
        (answer.status, answer.json()["ready"].clone()),
        (200, json!(true))
    );
    server.engine().shut_down().await;
    let answer = server.ask("GET", "/v1/ready").await;
    assert_eq!(
        (answer.status, answer.json()["ready"].clone()),
        (503, json!(false))
    );
    assert!(!answer.json()["reasons"].as_array().unwrap().is_empty());
}
