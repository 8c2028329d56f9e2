//! Requests that need no sandbox: what is refused, and how it is said.

use pinfold_client::{ClientError, WriteOptions};
use pinfold_types::ErrorCode;
use pinfold_types::api::{CreateSandboxRequest, ListQuery};

use crate::server::{Server, command, plain_sandbox};

/// An id that no sandbox has.
const NOBODY: &str = "s0000000000000000000";

#[tokio::test]
async fn the_daemon_tells_who_it_is() {
    let server = Server::start().await;
    assert_eq!(server.client.health().await.unwrap().status, "ok");
    let version = server.client.version().await.unwrap();
    assert_eq!(version.pid, std::process::id());
    assert_eq!(version.version, env!("CARGO_PKG_VERSION"));
    let list = server.client.list(&ListQuery::default()).await.unwrap();
    assert!(list.sandboxes.is_empty());
    assert!(server.client.report().await.unwrap().sandboxes.is_empty());
    server.client.doctor().await.unwrap();
    server.end().await;
}

#[tokio::test]
async fn unknown_routes_and_wrong_methods_are_refused_in_json() {
    let server = Server::start().await;
    for route in [
        "/",
        "/v1",
        "/v1/",
        "/v1/nothing",
        "/report",
        "/v1/sandboxes/a/b",
    ] {
        let message = server.ask("GET", route).await.refusal(404, "not_found");
        assert!(message.contains("no route"), "{message}");
    }
    for (method, route) in [
        ("PATCH", "/v1/sandboxes"),
        ("GET", "/v1/sandboxes/a/start"),
        ("POST", "/v1/health"),
        ("GET", "/sandboxes"),
    ] {
        let answer = server.ask(method, route).await;
        answer.refusal(405, "invalid_argument");
        assert!(answer.head.contains("\r\nallow: "), "{}", answer.head);
    }
    server.end().await;
}

#[tokio::test]
async fn a_body_that_is_not_understood_names_what_is_wrong() {
    let server = Server::start().await;
    for (target, body, part) in [
        ("/v1/sandboxes", r#"{"nmae":"a"}"#, "unknown field `nmae`"),
        (
            "/v1/sandboxes",
            r#"{"spec":{"cpu":1}}"#,
            "unknown field `cpu`",
        ),
        ("/v1/sandboxes", r#"{"name":"A"}"#, "`A` is not a name"),
        ("/v1/sandboxes", "{", "EOF"),
        ("/v1/sandboxes", "[]", "not a JSON object"),
        ("/sandboxes/a/exec", r#"{"command":"ls"}"#, "sequence"),
        (
            "/v1/sandboxes/a/exec",
            r#"{"command":["a"],"stdin":true}"#,
            "stdin",
        ),
        ("/v1/sandboxes/a/stop", r#"{"grace_ms":-1}"#, "-1"),
    ] {
        let answer = server.send("POST", target, body).await;
        let message = answer.refusal(400, "invalid_argument");
        assert!(message.contains(part), "{body}: {message}");
    }
    let deep = "[".repeat(100_000);
    server
        .send("POST", "/v1/sandboxes", &deep)
        .await
        .refusal(400, "invalid_argument");
    server.end().await;
}

#[tokio::test]
async fn paths_and_queries_are_checked() {
    let server = Server::start().await;
    for target in [
        "/v1/sandboxes/..%2F..",
        "/v1/sandboxes/A",
        "/v1/sandboxes/%ff",
        "/v1/sandboxes/a/execs/b",
        "/v1/sandboxes?state=up",
        "/v1/sandboxes?limit=0",
        "/v1/sandboxes?limit=1001",
        "/v1/sandboxes?after=b",
        "/v1/sandboxes?sort=name",
        "/v1/sandboxes/a/files",
        "/v1/sandboxes/a/files?path=etc",
        "/v1/sandboxes/a/files?path=/a/../b",
        "/v1/sandboxes/a/files?path=/a&path=/b",
        "/v1/sandboxes/a/files/stat?path=/a&follow=maybe",
        "/v1/sandboxes/a/files/list?path=/a&limit=4294967296",
        "/v1/sandboxes/a/files/tar?path=",
    ] {
        let answer = server.ask("GET", target).await;
        let message = answer.refusal(400, "invalid_argument");
        assert!(!message.is_empty(), "{target}");
    }
    for target in ["stream", "attach"] {
        let answer = server
            .ask("GET", &format!("/v1/sandboxes/a/{target}?exec_id=b"))
            .await;
        answer.refusal(426, "invalid_argument");
    }
    server.end().await;
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let server = Server::start().await;
    for sandbox in [NOBODY, "nobody"] {
        let error = server.client.get(sandbox).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::NotFound, "{error}");
        let error = server.client.remove(sandbox, false).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::NotFound, "{error}");
        let error = server
            .client
            .exec(sandbox, &command(&["true"]))
            .await
            .unwrap_err();
        assert_eq!(error.code(), ErrorCode::NotFound, "{error}");
        let error = server.client.stat(sandbox, "/", false).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::NotFound, "{error}");
    }
    server.end().await;
}

#[tokio::test]
async fn ten_megabytes_of_environment_or_arguments_are_refused_with_the_limit() {
    let server = Server::start().await;
    let huge = "x".repeat(10_000_000);
    let mut create = CreateSandboxRequest::default();
    create.spec.env.insert("A".to_owned(), huge.clone());
    let mut exec = command(&["true"]);
    exec.env.insert("A".to_owned(), huge.clone());
    let refusals = [
        server.client.create(&create).await.unwrap_err(),
        server.client.exec("a", &exec).await.unwrap_err(),
        server
            .client
            .exec_start("a", &command(&["true", &huge]))
            .await
            .unwrap_err(),
    ];
    for error in refusals {
        assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");
        assert!(error.to_string().contains("4194304"), "{error}");
        let ClientError::Api(detail) = error else {
            panic!("{error}");
        };
        assert_eq!(detail.details["limit_bytes"], 4_194_304);
    }
    server.end().await;
}

#[tokio::test]
async fn an_upload_that_is_refused_is_still_answered() {
    let server = Server::start().await;
    let chunk = bytes::Bytes::from(vec![0; 1 << 20]);
    let content = futures::stream::iter((0..32).map(move |_| Ok(chunk.clone())));
    let error = server
        .client
        .write_file("nobody", "/tmp/a", &WriteOptions::default(), content)
        .await
        .unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotFound, "{error}");
    server.end().await;
}

#[tokio::test]
async fn a_creation_that_fails_says_so_in_its_last_line_and_in_its_status() {
    let server = Server::start().await;
    let mut request = plain_sandbox();
    request.spec.image = "/nonexistent/image".to_owned();
    let error = server.client.create(&request).await.unwrap_err();
    assert!(matches!(error, ClientError::Api(_)), "{error}");
    let body = serde_json::to_string(&request).unwrap();
    let answer = server.send("POST", "/v1/sandboxes", &body).await;
    assert_eq!(answer.status, error.code().http_status(), "{answer:?}");
    server.end().await;
}
