//! Readiness, metrics and dials over plain HTTP.

use pinfold_agent_api::v1::{MetricsRequest, ReadyRequest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};

use crate::world::World;

async fn ask(world: &World, request: &str) -> String {
    let mut stream = UnixStream::connect(world.socket()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
}

#[tokio::test]
async fn readiness_and_metrics_are_json_and_calls() {
    let world = World::new();
    let ready = ask(&world, &get("/ready")).await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    assert!(ready.contains(r#"{"ready":true,"version":"#), "{ready}");
    let metrics = ask(&world, &get("/metrics")).await;
    let (_, body) = metrics.split_once("\r\n\r\n").unwrap();
    let metrics: pinfold_types::api::Metrics = serde_json::from_str(body).unwrap();
    assert!(metrics.disk_free_mb > 0 && metrics.timestamp.ends_with('Z'));
    let called = world.system.ready(ReadyRequest::default()).await.unwrap();
    assert!(called.view().ready);
    let called = world
        .system
        .metrics(MetricsRequest::default())
        .await
        .unwrap();
    assert!(!called.view().uptime.is_empty());
}

#[tokio::test]
async fn a_busy_loop_is_seen() {
    let world = World::with_boot(r#","cpu_limit_milli":1000"#);
    world.shell("busy", "while :; do :; done").await;
    let mut best = 0.0_f64;
    for _ in 0..20 {
        let metrics = world
            .system
            .metrics(MetricsRequest::default())
            .await
            .unwrap();
        best = best.max(metrics.view().cpu_percent);
        if best > 50.0 {
            break;
        }
    }
    assert!(best > 50.0, "{best}");
}

#[tokio::test]
async fn a_port_is_dialled() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).await.unwrap();
        stream
            .write_all(format!("got {got}").as_bytes())
            .await
            .unwrap();
    });
    let mut stream = UnixStream::connect(world.socket()).await.unwrap();
    let request = format!(
        "GET /dial?port={port} HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\n\
         Upgrade: pinfold-dial\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(
        head.starts_with(b"HTTP/1.1 101"),
        "{}",
        String::from_utf8_lossy(&head)
    );
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "got hello");
    served.await.unwrap();
}

#[tokio::test]
async fn a_bad_dial_is_refused_with_a_reason() {
    let world = World::new();
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = unused.local_addr().unwrap().port();
    drop(unused);
    let dial = |port: &str| {
        format!(
            "GET /dial?port={port} HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade, close\r\n\
             Upgrade: pinfold-dial\r\n\r\n"
        )
    };
    for bad in ["", "0", "65536", "x", "1&2"] {
        let answer = ask(&world, &dial(bad)).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    let answer = ask(&world, &dial(&port.to_string())).await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(
        answer.contains(&format!("listens on port {port}")),
        "{answer}"
    );
    let answer = ask(&world, &get("/dial?port=1")).await;
    assert!(answer.starts_with("HTTP/1.1 426"), "{answer}");
}

#[tokio::test]
async fn tcp_has_readiness_and_metrics_only_and_survives_abuse() {
    let world = World::with_boot(r#","tcp":true"#);
    world.system.ready(ReadyRequest::default()).await.unwrap();
    let ask = async |request: &str| {
        let mut stream = tokio::net::TcpStream::connect("127.0.0.1:8888")
            .await
            .unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // An answer may come before all of a long request was taken.
        drop(stream.read_to_string(&mut answer).await);
        answer
    };
    assert!(ask(&get("/ready")).await.starts_with("HTTP/1.1 200"));
    assert!(ask(&get("/metrics")).await.contains("cpu_percent"));
    for path in ["/dial?port=1", "/pinfold.agent.v1.ProcessService/List", "/"] {
        assert!(ask(&get(path)).await.starts_with("HTTP/1.1 404"), "{path}");
    }
    let post = "POST /ready HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    assert!(ask(post).await.starts_with("HTTP/1.1 404"));
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let answer = ask(&long).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
        "{answer}"
    );
    let mut silent = Vec::new();
    for _ in 0..31 {
        silent.push(
            tokio::net::TcpStream::connect("127.0.0.1:8888")
                .await
                .unwrap(),
        );
    }
    assert!(ask(&get("/ready")).await.starts_with("HTTP/1.1 200"));
}
