//! `GET /metrics`: who may read it, that its page is true, and that its numbers move.

use pinfold_server::{TcpDoor, metrics_page};
use pinfold_types::Role;
use pinfold_types::api::StopRequest;

use crate::port::{bearer, key, send};
use crate::reference::{UPDATE_VARIABLE, page};
use crate::server::{Server, command};

async fn scraped(server: &Server) -> String {
    let answer = server.ask("GET", "/metrics").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(
        answer
            .head
            .contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{}",
        answer.head
    );
    let text = answer.text();
    assert!(text.ends_with("# EOF\n"), "{text}");
    text
}

/// Returns the value of the one sample with this name and these labels.
fn value(text: &str, sample: &str) -> f64 {
    let mut found = text
        .lines()
        .filter_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    let value = found
        .next()
        .unwrap_or_else(|| panic!("no {sample} in {text}"));
    assert!(found.next().is_none(), "{sample} stands twice");
    value.parse().unwrap()
}

#[tokio::test]
async fn the_metrics_page_is_what_is_shown_reference() {
    let server = Server::start().await;
    // The first look is among the requests of the second.
    scraped(&server).await;
    let made = metrics_page(&scraped(&server).await);
    let path = page("metrics.md");
    if std::env::var_os(UPDATE_VARIABLE).is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap();
    assert_eq!(kept, made, "run `cargo xtask openapi`");
    server.end().await;
}

#[tokio::test]
async fn numbers_move_by_what_is_done_and_no_caller_makes_a_series() {
    let server = Server::with_agent().await;
    let before = scraped(&server).await;
    let sandbox = server.sandbox().await;
    let id = sandbox.id.as_str();
    let client = &server.client;
    client.exec(id, &command(&["true"])).await.unwrap();
    client.exec(id, &command(&["false"])).await.unwrap();
    client
        .exec(id, &command(&["no-such-program"]))
        .await
        .unwrap_err();
    client.stop(id, StopRequest::default()).await.unwrap();
    server
        .ask("GET", "/v1/sandboxes/nobody")
        .await
        .refusal(404, "not_found");
    server
        .ask("STEAL", "/v1/surely/not/there")
        .await
        .refusal(404, "not_found");
    let after = scraped(&server).await;
    let moved = |sample: &str| value(&after, sample) - value(&before, sample);
    let step = |name: &str| {
        moved(&format!(
            "pinfold_lifecycle_seconds_count{{step=\"{name}\",outcome=\"ok\"}}"
        ))
    };
    for (sample, by) in [
        ("pinfold_execs_started_total", 2.0),
        ("pinfold_execs_refused_total", 1.0),
        ("pinfold_execs_ended_total{kind=\"success\"}", 1.0),
        ("pinfold_execs_ended_total{kind=\"failure\"}", 1.0),
        ("pinfold_exec_duration_seconds_count", 2.0),
        ("pinfold_sandboxes{state=\"stopped\"}", 1.0),
        ("pinfold_start_phase_seconds_count{phase=\"image\"}", 1.0),
        ("pinfold_start_phase_seconds_count{phase=\"instance\"}", 1.0),
        ("pinfold_start_phase_seconds_count{phase=\"agent\"}", 1.0),
    ] {
        assert!(
            (moved(sample) - by).abs() < 0.5,
            "{sample}: {}",
            moved(sample)
        );
    }
    assert!((step("create") - 1.0).abs() < 0.5 && (step("stop") - 1.0).abs() < 0.5);
    assert!(step("remove").abs() < 0.5);
    assert!(moved("pinfold_store_write_seconds_count") > 3.0);
    assert!(value(&after, "pinfold_http_in_flight") >= 1.0);
    let of = |labels: &str| value(&after, &format!("pinfold_http_requests_total{{{labels}}}"));
    let get = "method=\"GET\",route=\"/v1/sandboxes/{id}\",status=\"404\"";
    assert!(of(get) >= 1.0);
    assert!(of("method=\"other\",route=\"(none)\",status=\"404\"") >= 1.0);
    for text in ["STEAL", "surely", "nobody", id] {
        assert!(!after.contains(text), "{text}");
    }
    server.end().await;
}

#[tokio::test]
async fn a_stream_is_counted_while_it_is_open() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let id = sandbox.id.as_str();
    let exec = server
        .client
        .exec_start(id, &command(&["sh", "-c", "echo word"]))
        .await
        .unwrap();
    let target = format!("/v1/sandboxes/{id}/stream?exec_id={}", exec.exec_id);
    let accept = "accept: text/event-stream\r\n";
    let text = server.send_with(("GET", &target), accept, "").await.text();
    assert!(text.contains("word"), "{text}");
    let after = scraped(&server).await;
    assert!(value(&after, "pinfold_stream_events_total{kind=\"sse\"}") >= 3.0);
    assert!(value(&after, "pinfold_stream_sent_bytes_total{kind=\"sse\"}") > 100.0);
    assert!(value(&after, "pinfold_streams_open{kind=\"sse\"}").abs() < 0.5);
    server.end().await;
}

#[tokio::test]
async fn who_reads_metrics_shows_a_viewers_key_or_is_let_in_by_the_setting() {
    let keyed = |listener| TcpDoor::with_keys(listener, None);
    let closed = Server::start_at(keyed, |_| {}).await;
    let viewer = bearer(&key(&closed, "scraper", Role::Viewer).await);
    let host = format!("host: {}", closed.address());
    let plain = send(closed.address(), "GET /metrics", &[&host], "").await;
    plain.refusal(401, "unauthenticated");
    let shown = send(closed.address(), "GET /metrics", &[&host, &viewer], "").await;
    assert_eq!(shown.status, 200, "{shown:?}");
    closed.end().await;
    let open = Server::start_at(keyed, |options| options.metrics_open = true).await;
    let host = format!("host: {}", open.address());
    let shown = send(open.address(), "GET /metrics", &[&host], "").await;
    assert_eq!(shown.status, 200, "{shown:?}");
    // Only that, and no web page that a browser of this machine shows.
    let other = send(open.address(), "GET /v1/version", &[&host], "").await;
    other.refusal(401, "unauthenticated");
    let page = "origin: https://evil.example";
    let page = send(open.address(), "GET /metrics", &[&host, page], "").await;
    page.refusal(403, "permission_denied");
    let rebound = send(open.address(), "GET /metrics", &["host: evil.example"], "").await;
    rebound.refusal(403, "permission_denied");
    let wrong = "authorization: Bearer pf_k0000000000000000000_x";
    let wrong = send(open.address(), "GET /metrics", &[&host, wrong], "").await;
    wrong.refusal(401, "unauthenticated");
    open.end().await;
}
