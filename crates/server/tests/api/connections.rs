//! Whom the server answers, how much it takes from one, and how it ends.

use std::time::Duration;

use pinfold_client::Client;
use pinfold_types::ErrorCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::server::{Answer, Server, within};

#[tokio::test]
async fn a_users_daemon_refuses_everybody_else() {
    let own = rustix::process::geteuid().as_raw();
    let server = Server::start_with(|options| options.own_uid = own + 1).await;
    let error = server.client.health().await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::PermissionDenied, "{error}");
    assert!(error.to_string().contains(&format!("uid {own}")), "{error}");
    assert!(error.hint().is_some());
    let answer = server.ask("GET", "/v1/nothing").await;
    answer.refusal(403, "permission_denied");
    server.shutdown.cancel();
    within(server.task).await.unwrap();
}

#[tokio::test]
async fn one_connection_too_many_is_refused_and_its_place_comes_back() {
    let server = Server::start_with(|options| options.connections_per_user_max = 1).await;
    let request = b"GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n";
    // The connection that made the client may still hold the place for a moment.
    let held = within(async {
        loop {
            let mut held = UnixStream::connect(&server.socket).await.unwrap();
            held.write_all(request).await.unwrap();
            let mut first = [0; 12];
            held.read_exact(&mut first).await.unwrap();
            if &first == b"HTTP/1.1 200" {
                break held;
            }
        }
    })
    .await;
    let error = server.client.health().await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::LimitExceeded, "{error}");
    drop(held);
    within(async {
        while server.client.health().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    server.shutdown.cancel();
    within(server.task).await.unwrap();
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_the_connection() {
    let server =
        Server::start_with(|options| options.header_read_max = Duration::from_millis(100)).await;
    for start in [
        "",
        "GET /v1/health HT",
        "GET /v1/health HTTP/1.1\r\nhost: x\r\n",
    ] {
        let mut stream = UnixStream::connect(&server.socket).await.unwrap();
        stream.write_all(start.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        within(stream.read_to_end(&mut rest)).await.unwrap();
        assert!(!rest.starts_with(b"HTTP/1.1 200"), "{start:?}");
    }
    server.end().await;
}

#[tokio::test]
async fn a_body_that_does_not_come_is_refused() {
    let server =
        Server::start_with(|options| options.body_read_max = Duration::from_millis(100)).await;
    let mut stream = UnixStream::connect(&server.socket).await.unwrap();
    let head = "POST /v1/sandboxes HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = Answer::read(stream).await;
    let message = answer.refusal(400, "invalid_argument");
    assert!(message.contains("did not arrive"), "{message}");
    server.end().await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let server = Server::start().await;
    let long = "x".repeat(100 << 10);
    let many = "a: b\r\n".repeat(65);
    for header in [format!("long: {long}\r\n"), many] {
        let answer = server
            .raw(&format!(
                "GET /v1/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n"
            ))
            .await;
        assert_eq!(answer.status, 431, "{}", answer.head);
    }
    server.end().await;
}

#[tokio::test]
async fn what_is_not_http_ends_the_connection() {
    let server = Server::start().await;
    for noise in [
        "\0\0\0\0\r\n\r\n",
        "GET\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut stream = UnixStream::connect(&server.socket).await.unwrap();
        stream.write_all(noise.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        // Whether it says why or only closes is up to the parser.
        drop(within(stream.read_to_end(&mut rest)).await);
        assert!(!rest.starts_with(b"HTTP/1.1 200"), "{noise:?}");
    }
    server.client.health().await.unwrap();
    server.end().await;
}

#[tokio::test]
async fn the_server_ends_although_a_connection_is_idle() {
    let server = Server::start().await;
    let mut idle = UnixStream::connect(&server.socket).await.unwrap();
    server.client.health().await.unwrap();
    server.shutdown.cancel();
    within(server.task).await.unwrap();
    let mut rest = Vec::new();
    within(idle.read_to_end(&mut rest)).await.unwrap();
    assert!(Client::connect(&server.socket).await.is_err());
}
