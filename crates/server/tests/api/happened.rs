//! `GET /v1/events`: what happened, in order, to its owner only, in pages and as a stream.

use pinfold_server::TcpDoor;
use pinfold_types::Role;
use pinfold_types::api::{DaemonEventKind, DaemonEventQuery, StopRequest};

use crate::port::{bearer, key, send};
use crate::server::{Server, command, within};

fn all() -> DaemonEventQuery {
    DaemonEventQuery::default()
}

async fn kinds(server: &Server, query: &DaemonEventQuery) -> Vec<&'static str> {
    let page = server.client.events(query).await.unwrap();
    page.events
        .iter()
        .map(|event| event.kind.as_str())
        .collect()
}

#[tokio::test]
async fn a_sandboxs_life_is_told_in_order_also_when_it_is_gone() {
    let server = Server::with_agent().await;
    let client = &server.client;
    let sandbox = server.sandbox().await;
    let id = sandbox.id.as_str();
    client.exec(id, &command(&["false"])).await.unwrap();
    client
        .exec(id, &command(&["no-such-program"]))
        .await
        .unwrap_err();
    client.stop(id, StopRequest::default()).await.unwrap();
    client.start(id).await.unwrap();
    client.remove(id, false).await.unwrap();
    let made = key(&server, "ci", Role::User).await;
    client.key_revoke(&made.key.id).await.unwrap();
    let expected = [
        "sandbox.created",
        "sandbox.running",
        "exec.started",
        "exec.ended",
        "exec.started",
        "exec.failed",
        "sandbox.stopped",
        "sandbox.running",
        "sandbox.removed",
        "key.created",
        "key.revoked",
    ];
    assert_eq!(kinds(&server, &all()).await, expected);
    let page = client.events(&all()).await.unwrap();
    assert!(page.events.is_sorted_by(|one, next| one.id < next.id));
    assert_eq!(page.first_kept, page.events[0].id);
    let ended = &page.events[3];
    assert_eq!(ended.exit.as_ref().unwrap().code, Some(1));
    assert_eq!(ended.name.as_deref(), Some(sandbox.name.as_str()));
    assert_eq!(page.events[9].key_id.as_ref(), Some(&made.key.id));
    // By the name of a sandbox that is gone, by its id, and by type.
    for named in [sandbox.name.as_str(), id] {
        let query = DaemonEventQuery {
            sandbox: Some(named.to_owned()),
            ..all()
        };
        assert_eq!(kinds(&server, &query).await, expected[..9]);
    }
    let query = DaemonEventQuery {
        kinds: vec![DaemonEventKind::KeyRevoked, DaemonEventKind::ExecFailed],
        ..all()
    };
    assert_eq!(kinds(&server, &query).await, ["exec.failed", "key.revoked"]);
    // In pages without a gap or a repetition.
    let mut query = DaemonEventQuery { limit: 4, ..all() };
    let mut told = Vec::new();
    loop {
        let page = client.events(&query).await.unwrap();
        told.extend(page.events.iter().map(|event| event.kind.as_str()));
        match page.next {
            Some(next) => query.after = next,
            None => break,
        }
    }
    assert_eq!(told, expected);
    server.end().await;
}

#[tokio::test]
async fn a_failed_creation_says_why_it_went() {
    let server = Server::start().await;
    let refused = server.client.create(&crate::server::plain_sandbox()).await;
    refused.unwrap_err();
    let page = server.client.events(&all()).await.unwrap();
    let last = page.events.last().unwrap();
    assert_eq!(last.kind, DaemonEventKind::SandboxRemoved);
    let reason = last.reason.as_deref().unwrap();
    assert!(reason.starts_with("not created: "), "{reason}");
    server.end().await;
}

#[tokio::test]
async fn others_events_are_not_shown() {
    let server = Server::with_agent_at(|listener| TcpDoor::with_keys(listener, None)).await;
    let sandbox = server.sandbox().await;
    let other = bearer(&key(&server, "other", Role::User).await);
    let admin = bearer(&key(&server, "boss", Role::Admin).await);
    let ask = |who: String| {
        let address = server.address();
        async move {
            send(address, "GET /v1/events", &["host: x", &who], "")
                .await
                .json()
        }
    };
    let seen = ask(other.clone()).await;
    let events = seen["events"].as_array().unwrap();
    assert_eq!(events.len(), 1, "{seen}");
    assert_eq!(events[0]["type"], "key.created");
    assert_eq!(events[0]["owner"], "other");
    let seen = ask(admin).await.to_string();
    assert!(seen.contains(sandbox.id.as_str()), "{seen}");
    // Naming somebody else's sandbox does not help.
    let line = format!("GET /v1/events?sandbox={}", sandbox.id);
    let seen = send(server.address(), &line, &["host: x", &other], "")
        .await
        .json();
    assert_eq!(seen["events"].as_array().map(Vec::len), Some(0), "{seen}");
    server.end().await;
}

#[tokio::test]
async fn a_stream_goes_on_behind_what_was_seen() {
    let server = Server::with_agent().await;
    let client = &server.client;
    let mut stream = client.follow_events(&all()).await.unwrap();
    let sandbox = server.sandbox().await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.push(within(stream.next()).await.unwrap().unwrap());
    }
    assert_eq!(seen[1].kind, DaemonEventKind::SandboxRunning);
    drop(stream);
    client
        .exec(sandbox.id.as_str(), &command(&["true"]))
        .await
        .unwrap();
    let header = format!(
        "accept: text/event-stream\r\nlast-event-id: {}\r\n",
        seen[1].id
    );
    let mut events = Vec::new();
    let query = DaemonEventQuery {
        after: seen[1].id,
        ..all()
    };
    let mut stream = client.follow_events(&query).await.unwrap();
    while events.len() < 2 {
        events.push(within(stream.next()).await.unwrap().unwrap());
    }
    let kinds: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["exec.started", "exec.ended"]);
    // The same by the header, as a browser comes back.
    let shutdown = server.shutdown.clone();
    let task = tokio::spawn(async move {
        while let Ok(Some(_)) = stream.next().await {}
        shutdown.cancelled().await;
    });
    let answer = async {
        let answer = server.send_with(("GET", "/v1/events"), &header, "");
        let stop = async {
            // It ends with the server, and not before.
            let page = server.client.events(&query).await.unwrap();
            assert_eq!(page.events.len(), 2);
            server.shutdown.cancel();
        };
        tokio::join!(answer, stop).0
    };
    let text = answer.await.text();
    assert!(text.contains(&format!("id: {}\n", events[0].id)), "{text}");
    assert!(!text.contains(&format!("id: {}\n", seen[1].id)), "{text}");
    assert!(text.contains("event: error\n"), "{text}");
    within(task).await.unwrap();
    let engine = server.engine();
    let own = crate::server::own_caller();
    engine
        .remove(&own, sandbox.id.as_str(), false)
        .await
        .unwrap();
    engine.shut_down().await;
}

#[tokio::test]
async fn a_wrong_query_is_refused() {
    let server = Server::start().await;
    for target in [
        "/v1/events?type=nothing",
        "/v1/events?after=x",
        "/v1/events?limit=0",
        "/v1/events?what=1",
    ] {
        server
            .ask("GET", target)
            .await
            .refusal(400, "invalid_argument");
    }
    let long = format!("/v1/events?sandbox={}", "a".repeat(65));
    server
        .ask("GET", &long)
        .await
        .refusal(413, "invalid_argument");
    server.end().await;
}
