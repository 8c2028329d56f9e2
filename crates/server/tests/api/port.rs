//! The port: keys, roles, origins, TLS, and what it does with crowds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pinfold_client::Client;
use pinfold_server::{ServerOptions, TcpDoor, Tls};
use pinfold_types::Role;
use pinfold_types::api::keys::{CreateKeyRequest, CreatedKey, Quotas};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::server::{Answer, Server, command, within};

async fn keyed() -> Server {
    Server::start_at(|listener| TcpDoor::with_keys(listener, None), |_| {}).await
}

async fn development() -> Server {
    Server::start_at(
        |listener| TcpDoor::for_development(listener).unwrap(),
        |_| {},
    )
    .await
}

fn asked(name: &str, role: Role) -> CreateKeyRequest {
    CreateKeyRequest {
        name: name.parse().unwrap(),
        principal: None,
        role,
        expires_ms: None,
        quotas: Quotas::NONE,
    }
}

pub(crate) async fn key(server: &Server, name: &str, role: Role) -> CreatedKey {
    server.client.key_create(&asked(name, role)).await.unwrap()
}

/// Sends a request with some headers over the port.
pub(crate) async fn send(address: SocketAddr, line: &str, headers: &[&str], body: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let headers: String = headers.iter().flat_map(|header| [header, "\r\n"]).collect();
    let length = body.len();
    let request = format!(
        "{line} HTTP/1.1\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    Answer::read(stream).await
}

pub(crate) fn bearer(key: &CreatedKey) -> String {
    format!("authorization: Bearer {}", key.token.reveal())
}

#[tokio::test]
async fn the_port_answers_whoever_shows_a_key_and_nobody_else() {
    let server = keyed().await;
    let address = server.address();
    let made = key(&server, "ci", Role::User).await;
    let good = bearer(&made);
    let basic = format!("authorization: Basic {}", made.token.reveal());
    let short = good[..good.len() - 1].to_owned();
    let refused: [&[&str]; 6] = [
        &[],
        &["authorization: Bearer"],
        &["authorization: Bearer pf_k0000000000000000000_x"],
        &[&basic],
        &[&short],
        &[&good, &good],
    ];
    for headers in refused {
        for line in ["GET /v1/health", "GET /v1/nothing", "POST /v1/sandboxes"] {
            let all: Vec<&str> = ["host: x"].iter().chain(headers).copied().collect();
            let answer = send(address, line, &all, "").await;
            answer.refusal(401, "unauthenticated");
            assert!(
                answer.head.contains("www-authenticate: bearer"),
                "{}",
                answer.head
            );
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            assert!(!body.contains(made.token.reveal()), "{body}");
        }
    }
    let answer = send(address, "GET /v1/health", &["host: x", &good], "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = send(address, "GET /v1/nothing", &["host: x", &good], "").await;
    answer.refusal(404, "not_found");
    let list = server.ask("GET", "/v1/keys").await;
    let list = String::from_utf8_lossy(&list.body).into_owned();
    assert!(list.contains(made.key.id.as_str()), "{list}");
    assert!(!list.contains(made.token.reveal()), "{list}");
    server.client.key_revoke(&made.key.id).await.unwrap();
    let answer = send(address, "GET /v1/health", &["host: x", &good], "").await;
    answer.refusal(401, "unauthenticated");
    server.end().await;
}

#[tokio::test]
async fn a_viewer_is_refused_every_route_that_changes_anything() {
    let server = keyed().await;
    let address = server.address();
    let viewer = bearer(&key(&server, "viewer", Role::Viewer).await);
    let user = bearer(&key(&server, "user", Role::User).await);
    let mut refused = 0;
    for (method, target) in crate::reference::routes() {
        let line = format!("{method} {target}");
        let of_viewer = send(address, &line, &["host: x", &viewer], "").await;
        let of_user = send(address, &line, &["host: x", &user], "").await;
        // A route without a role is an internal error for everybody.
        assert_ne!(of_viewer.status, 500, "{line}");
        assert_ne!(of_user.status, 403, "{line}");
        if method == "GET" && !target.contains("/files") && !target.ends_with("/attach") {
            assert_ne!(of_viewer.status, 403, "{line}");
        } else {
            let message = of_viewer.refusal(403, "permission_denied");
            assert!(message.contains("viewer"), "{line}: {message}");
            refused += 1;
        }
    }
    assert!(refused >= 20, "{refused}");
    server.end().await;
}

#[tokio::test]
async fn a_revoked_key_cuts_its_open_stream() {
    let server = Server::with_agent_at(|listener| TcpDoor::with_keys(listener, None)).await;
    let address = server.address();
    // An admin, since the sandbox is the daemon's own user's.
    let made = key(&server, "watch", Role::Admin).await;
    let kept = key(&server, "kept", Role::Admin).await;
    let sandbox = server.sandbox().await;
    let id = sandbox.id.as_str();
    let exec = server
        .client
        .exec_start(id, &command(&["sh", "-c", "echo one; exec sleep 600"]))
        .await
        .unwrap();
    let mut streams = Vec::new();
    for key in [&made, &kept] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "GET /v1/sandboxes/{id}/stream?exec_id={} HTTP/1.1\r\nhost: x\r\n{}\r\n\
             connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            exec.exec_id,
            bearer(key)
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut read = Vec::new();
        within(async {
            while !String::from_utf8_lossy(&read).contains("one") {
                assert!(stream.read_buf(&mut read).await.unwrap() > 0);
            }
        })
        .await;
        assert!(read.starts_with(b"HTTP/1.1 101"));
        streams.push(stream);
    }
    server.client.key_revoke(&made.key.id).await.unwrap();
    let mut rest = Vec::new();
    // Whether it ends or breaks is the kernel's matter.
    drop(within(streams[0].read_to_end(&mut rest)).await);
    let signal = pinfold_types::api::SignalRequest {
        signal: 9,
        tree: false,
    };
    // The other one is still there and hears the end.
    server
        .client
        .exec_signal(id, &exec.exec_id, signal)
        .await
        .unwrap();
    let mut read = Vec::new();
    within(async {
        while !String::from_utf8_lossy(&read).contains("exit") {
            assert!(streams[1].read_buf(&mut read).await.unwrap() > 0);
        }
    })
    .await;
    assert!(!String::from_utf8_lossy(&rest).contains("exit"));
    server.end().await;
}

#[tokio::test]
async fn an_expired_key_cuts_its_connection() {
    let server = keyed().await;
    let mut request = asked("short", Role::User);
    request.expires_ms = Some(700);
    let made = server.client.key_create(&request).await.unwrap();
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let request = format!(
        "GET /v1/health HTTP/1.1\r\nhost: x\r\n{}\r\n\r\n",
        bearer(&made)
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    let began = std::time::Instant::now();
    drop(within(stream.read_to_end(&mut read)).await);
    assert!(
        read.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&read)
    );
    // Not the ten seconds of an idle connection.
    assert!(began.elapsed() < ServerOptions::new("/").header_read_max);
    server.end().await;
}

#[tokio::test]
async fn quotas_are_told_with_when_to_try_again() {
    let server = Server::with_agent_at(|listener| TcpDoor::with_keys(listener, None)).await;
    let mut request = asked("small", Role::User);
    request.quotas.sandboxes = Some(1);
    let made = server.client.key_create(&request).await.unwrap();
    let body = serde_json::to_string(&crate::server::plain_sandbox()).unwrap();
    let create = async || {
        let headers = ["host: x", &bearer(&made)];
        send(server.address(), "POST /v1/sandboxes", &headers, &body).await
    };
    assert_eq!(create().await.status, 201);
    let answer = create().await;
    answer.refusal(429, "quota_exceeded");
    assert!(answer.head.contains("retry-after: "), "{}", answer.head);
    let details = answer.json()["error"]["details"].clone();
    assert_eq!(
        (&details["quota"], &details["limit"]),
        (&"sandboxes".into(), &1.into())
    );
    server.end().await;
}

#[tokio::test]
async fn development_needs_no_key_and_lets_no_foreign_page_in() {
    let server = development().await;
    let address = server.address();
    let local = format!("host: localhost:{}", address.port());
    let answer = send(address, "GET /v1/version", &[&local], "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    // The route that programs for the seed's service use.
    let answer = send(address, "POST /sandboxes/nobody/exec", &[&local], "{}").await;
    answer.refusal(400, "invalid_argument");
    let own = format!("origin: http://localhost:{}", address.port());
    assert_eq!(
        send(address, "GET /v1/version", &[&local, &own], "")
            .await
            .status,
        200
    );
    let foreign: [&[&str]; 5] = [
        &["host: evil.example"],
        &[&local, "origin: http://evil.example"],
        &[&local, "origin: null"],
        &[&local, "sec-fetch-site: cross-site"],
        &[&local, "origin: http://localhost:1"],
    ];
    for headers in foreign {
        let answer = send(address, "GET /v1/version", headers, "").await;
        answer.refusal(403, "permission_denied");
    }
    server.end().await;
}

#[tokio::test]
async fn development_is_for_this_machine_only() {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let error = TcpDoor::for_development(listener).unwrap_err();
    assert!(error.to_string().contains("other machines"), "{error}");
}

#[tokio::test]
async fn pages_may_ask_only_where_the_configuration_names_them() {
    let closed = keyed().await;
    let open = Server::start_at(
        |listener| TcpDoor::with_keys(listener, None),
        |options| options.cors_origins = vec!["https://app.example".to_owned()],
    )
    .await;
    let preflight = [
        "host: x",
        "origin: https://app.example",
        "access-control-request-method: POST",
    ];
    let answer = send(closed.address(), "OPTIONS /v1/sandboxes", &preflight, "").await;
    answer.refusal(401, "unauthenticated");
    assert!(!answer.head.contains("access-control"), "{}", answer.head);
    let answer = send(open.address(), "OPTIONS /v1/sandboxes", &preflight, "").await;
    assert_eq!(answer.status, 204);
    for header in [
        "access-control-allow-origin: https://app.example",
        "access-control-allow-headers: authorization",
        "vary: origin",
    ] {
        assert!(answer.head.contains(header), "{}", answer.head);
    }
    let made = bearer(&key(&open, "page", Role::User).await);
    for (origin, told) in [
        ("https://app.example", true),
        ("https://evil.example", false),
    ] {
        let origin = format!("origin: {origin}");
        let headers = ["host: x", &made, &origin];
        let answer = send(open.address(), "GET /v1/health", &headers, "").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.head.contains("access-control-allow-origin"), told);
        let upgrade = ["connection: upgrade", "upgrade: websocket"];
        let headers: Vec<&str> = headers.into_iter().chain(upgrade).collect();
        let line = "GET /v1/sandboxes/nobody/stream?exec_id=x0000000000000000000";
        let status = send(open.address(), line, &headers, "").await.status;
        assert_eq!(status == 403, !told, "{status}");
    }
    closed.end().await;
    open.end().await;
}

#[tokio::test]
async fn a_crowd_at_the_port_keeps_nobody_from_the_socket() {
    let server = Server::start_at(
        |listener| TcpDoor::with_keys(listener, None),
        |options| {
            options.tcp_connections_max = 8;
            options.tcp_connections_per_address_max = 8;
            options.header_read_max = Duration::from_millis(300);
        },
    )
    .await;
    let made = bearer(&key(&server, "ci", Role::User).await);
    let mut crowd = Vec::new();
    for number in 0..8 {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        // A byte now and then is what such clients send.
        let start = &b"GET /v1/health HTTP/1.1\r\nhost:"[..number * 3];
        stream.write_all(start).await.unwrap();
        crowd.push(stream);
    }
    // The socket has places of its own.
    Client::connect(&server.socket)
        .await
        .unwrap()
        .health()
        .await
        .unwrap();
    // The crowd is cut off, and then the port answers again.
    for mut stream in crowd {
        let mut rest = Vec::new();
        drop(within(stream.read_to_end(&mut rest)).await);
        assert!(!rest.starts_with(b"HTTP/1.1 200"));
    }
    let answer = send(server.address(), "GET /v1/health", &["host: x", &made], "").await;
    assert_eq!(answer.status, 200);
    server.end().await;
}

#[tokio::test]
async fn one_address_gets_no_more_than_its_share() {
    let server = Server::start_at(
        |listener| TcpDoor::with_keys(listener, None),
        |options| options.tcp_connections_per_address_max = 1,
    )
    .await;
    let made = bearer(&key(&server, "ci", Role::User).await);
    let request = format!("GET /v1/health HTTP/1.1\r\nhost: x\r\n{made}\r\n\r\n");
    let mut held = TcpStream::connect(server.address()).await.unwrap();
    held.write_all(request.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    within(held.read_exact(&mut first)).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let mut second = TcpStream::connect(server.address()).await.unwrap();
    let mut rest = Vec::new();
    drop(within(second.read_to_end(&mut rest)).await);
    assert!(rest.is_empty());
    drop(held);
    within(async {
        loop {
            let mut third = TcpStream::connect(server.address()).await.unwrap();
            let sent = third.write_all(request.as_bytes()).await;
            let mut first = [0; 12];
            if sent.is_ok() && third.read_exact(&mut first).await.is_ok() {
                assert_eq!(&first, b"HTTP/1.1 200");
                return;
            }
        }
    })
    .await;
    server.end().await;
}

#[tokio::test]
async fn what_is_too_large_is_refused_before_it_is_read() {
    let server = keyed().await;
    let made = bearer(&key(&server, "ci", Role::User).await);
    let long = format!("long: {}", "x".repeat(100 << 10));
    let answer = send(
        server.address(),
        "GET /v1/health",
        &["host: x", &made, &long],
        "",
    )
    .await;
    assert_eq!(answer.status, 431, "{}", answer.head);
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    // Nothing of the body is ever sent.
    let head = format!(
        "POST /v1/sandboxes HTTP/1.1\r\nhost: x\r\n{made}\r\nexpect: 100-continue\r\n\
         connection: close\r\ncontent-length: 99999999999\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    within(stream.read_exact(&mut first)).await.unwrap();
    let first = String::from_utf8_lossy(&first).into_owned();
    assert!(first.ends_with("413") || first.ends_with("100"), "{first}");
    drop(stream);
    server.end().await;
}

struct Pair {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key_pem: String,
}

fn pair() -> Pair {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    Pair {
        certificate: made.cert.der().clone(),
        certificate_pem: made.cert.pem(),
        key_pem: made.signing_key.serialize_pem(),
    }
}

/// Asks over TLS, trusting one certificate only.
async fn over_tls(address: SocketAddr, trusted: &Pair, key: &str) -> std::io::Result<u16> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.certificate.clone()).unwrap();
    let provider = tokio_rustls::rustls::crypto::ring::default_provider();
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await?;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let request =
        format!("GET /v1/health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{key}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    Ok(Answer::read(stream).await.status)
}

#[tokio::test]
async fn a_new_certificate_is_used() {
    let directory = tempfile::tempdir().unwrap();
    let (certificate, secret) = (directory.path().join("cert"), directory.path().join("key"));
    let write = |pair: &Pair| {
        std::fs::write(&certificate, &pair.certificate_pem).unwrap();
        std::fs::write(&secret, &pair.key_pem).unwrap();
    };
    let (old, new) = (pair(), pair());
    write(&old);
    let tls = Tls::open(&certificate, &secret).unwrap();
    let server = Server::start_at(
        move |listener| TcpDoor::with_keys(listener, Some(tls)),
        |_| {},
    )
    .await;
    let address = server.address();
    let made = bearer(&key(&server, "ci", Role::User).await);
    assert_eq!(over_tls(address, &old, &made).await.unwrap(), 200);
    assert_eq!(over_tls(address, &old, "x: y").await.unwrap(), 401);
    assert!(over_tls(address, &new, &made).await.is_err());
    // Not over plain text.
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain
        .write_all(b"GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut rest = Vec::new();
    drop(within(plain.read_to_end(&mut rest)).await);
    assert!(!rest.starts_with(b"HTTP/1.1"));

    write(&new);
    within(async {
        while over_tls(address, &new, &made).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    write(&old);
    within(async {
        while over_tls(address, &old, &made).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    server.end().await;
}

#[test]
fn files_that_are_no_pair_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (one, other) = (pair(), pair());
    std::fs::write(path("cert"), &one.certificate_pem).unwrap();
    std::fs::write(path("key"), &other.key_pem).unwrap();
    std::fs::write(path("noise"), "noise").unwrap();
    for (certificate, key, named) in [
        ("cert", "missing", "missing"),
        ("cert", "noise", "noise"),
        ("noise", "key", "together"),
        ("cert", "key", "together"),
    ] {
        let error = Tls::open(&path(certificate), &path(key)).unwrap_err();
        assert!(
            error.to_string().contains(named),
            "{certificate} {key}: {error}"
        );
    }
}
