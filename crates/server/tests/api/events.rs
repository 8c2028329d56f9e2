//! Server-sent events, many readers of one exec, and readers that have gone.

use std::time::Duration;

use futures::StreamExt as _;
use pinfold_client::EventRange;
use pinfold_types::api::{Exec, ExecRequest, MakeDirectoryRequest};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::server::{Answer, Server, shell, within};

/// Readers of one exec at once, as the load that was asked for has it.
const READERS: usize = 200;

const EVENTS: &str = "accept: text/event-stream\r\n";

/// Returns id and data of each server-sent event.
fn events(text: &str) -> Vec<(Option<u64>, Value)> {
    let blocks = text.split("\n\n").filter(|block| block.contains("data: "));
    blocks
        .map(|block| {
            let line = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
            let id = line("id: ").map(|id| id.parse().unwrap());
            (id, serde_json::from_str(line("data: ").unwrap()).unwrap())
        })
        .collect()
}

async fn sent(server: &Server, exec: &Exec, query: &str, headers: &str) -> Answer {
    let (sandbox, exec) = (&exec.sandbox_id, &exec.exec_id);
    let target = format!("/v1/sandboxes/{sandbox}/stream?exec_id={exec}{query}");
    let headers = format!("{EVENTS}{headers}");
    within(server.send_with(("GET", &target), &headers, "")).await
}

#[tokio::test]
async fn server_sent_events_are_the_stream_and_go_on_where_a_reader_left() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let request =
        shell("for i in 1 2 3; do echo line $i; sleep 0.05; done; echo wrong >&2; exit 3");
    let exec = server
        .client
        .exec_start(sandbox.name.as_str(), &request)
        .await
        .unwrap();
    let answer = sent(&server, &exec, "", "").await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: text/event-stream"));
    let all = events(&answer.text());
    for (index, (id, event)) in all.iter().enumerate() {
        assert_eq!(*id, Some(index as u64 + 1));
        assert_eq!(event["seq"], index as u64 + 1);
        assert_eq!(event["exec_id"], exec.exec_id.as_str());
        assert_eq!(event["sandbox_id"], sandbox.id.as_str());
        assert!(event["time"].is_string());
    }
    assert_eq!(all[0].1["type"], "start");
    let last = &all.last().unwrap().1;
    assert_eq!(
        (&last["type"], &last["exit_code"]),
        (&"exit".into(), &3.into())
    );
    let output = |stream: &str| -> String {
        let of = all.iter().filter(|(_, event)| event["stream"] == stream);
        of.map(|(_, event)| event["data"].as_str().unwrap())
            .collect()
    };
    assert_eq!(output("stdout"), "line 1\nline 2\nline 3\n");
    assert_eq!(output("stderr"), "wrong\n");
    // The header wins over the query: it is what a browser sends when it comes back.
    for seen in 1..all.len() {
        let header = format!("last-event-id: {seen}\r\n");
        let rest = sent(&server, &exec, "&from_seq=1", &header).await;
        assert_eq!(events(&rest.text()), all[seen..]);
    }
    let tail = sent(&server, &exec, "&from_seq=3", "").await;
    assert_eq!(events(&tail.text()), all[2..]);
    let header = format!("last-event-id: {}\r\n", all.len());
    assert_eq!(sent(&server, &exec, "", &header).await.status, 204);
    sent(&server, &exec, "", "last-event-id: x\r\n")
        .await
        .refusal(400, "invalid_argument");
    server.end().await;
}

/// Reads from a connection until a text has come.
async fn read_until(stream: &mut UnixStream, text: &str) -> String {
    let mut seen = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let length = within(stream.read(&mut buffer)).await.unwrap();
        assert!(length > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..length]);
        let found = String::from_utf8_lossy(&seen);
        if found.contains(text) {
            return found.into_owned();
        }
    }
}

async fn open(server: &Server, target: &str) -> UnixStream {
    let mut stream = UnixStream::connect(&server.socket).await.unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nhost: x\r\n{EVENTS}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut stream, ": open").await;
    stream
}

#[tokio::test]
async fn a_silent_stream_shows_that_it_lives() {
    let server = Server::with_agent_and(|options| {
        options.heartbeat = Duration::from_millis(50);
    })
    .await;
    let sandbox = server.sandbox().await;
    let name = sandbox.name.as_str();
    let exec = server
        .client
        .exec_start(name, &shell("sleep 1000"))
        .await
        .unwrap();
    let target = format!("/v1/sandboxes/{name}/stream?exec_id={}", exec.exec_id);
    let mut stream = open(&server, &target).await;
    read_until(&mut stream, ": still there").await;
    drop(stream);
    server.end().await;
}

#[tokio::test]
async fn changes_of_a_directory_are_told() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let name = sandbox.name.as_str();
    let make = async |path: &str| {
        let request = MakeDirectoryRequest {
            path: path.to_owned(),
            mode: None,
            parents: false,
        };
        server.client.make_directory(name, &request).await.unwrap();
    };
    make("/watched").await;
    let target = format!("/v1/sandboxes/{name}/files/watch?path=/watched");
    let mut stream = open(&server, &target).await;
    make("/watched/new").await;
    let text = read_until(&mut stream, "created").await;
    let place = text.find("data: ").unwrap();
    let line = text[place + 6..].lines().next().unwrap();
    let change: Value = serde_json::from_str(line).unwrap();
    assert_eq!(
        (&change["name"], &change["kinds"]),
        (&"new".into(), &serde_json::json!(["created"]))
    );
    assert_eq!(change["directory"], "/watched");
    let missing = format!("/v1/sandboxes/{name}/files/watch?path=/missing");
    server.ask("GET", &missing).await.refusal(404, "not_found");
    let written = server
        .send(
            "PUT",
            &format!("/v1/sandboxes/{name}/files?path=/file"),
            "x",
        )
        .await;
    assert_eq!(written.status, 200);
    let file = format!("/v1/sandboxes/{name}/files/watch?path=/file");
    server
        .ask("GET", &file)
        .await
        .refusal(400, "invalid_argument");
    drop(stream);
    server.end().await;
}

#[tokio::test]
async fn two_hundred_readers_see_every_event_once() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let name = sandbox.name.as_str();
    let busy = ExecRequest {
        stdin: true,
        ..shell("read start; i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done")
    };
    let exec = server.client.exec_start(name, &busy).await.unwrap();
    let readers = (0..READERS).map(|number| {
        let (client, exec) = (server.client.clone(), exec.clone());
        tokio::spawn(async move {
            let (mut seen, mut output) = (0, String::new());
            // Some leave again and again and come back for the rest.
            let patience = if number % 4 == 0 { 50 } else { usize::MAX };
            loop {
                let range = EventRange {
                    from_seq: seen + 1,
                    follow: true,
                };
                let sandbox = exec.sandbox_id.as_str();
                let stream = client
                    .stream_events(sandbox, &exec.exec_id, range)
                    .await
                    .unwrap();
                let mut stream = stream.take(patience);
                while let Some(event) = stream.next().await {
                    let event = event.unwrap();
                    assert_eq!(event.seq, seen + 1, "reader {number}");
                    seen = event.seq;
                    output.push_str(event.data.as_deref().unwrap_or_default());
                    if event.kind == "exit" {
                        return (seen, output);
                    }
                }
            }
        })
    });
    let readers: Vec<_> = readers.collect();
    server
        .client
        .exec_input(
            name,
            &exec.exec_id,
            bytes::Bytes::from_static(b"go\n"),
            true,
        )
        .await
        .unwrap();
    let mut lasts = std::collections::HashSet::new();
    for reader in readers {
        let (last, output) = within(reader).await.unwrap();
        let expected = (0..2000).map(|number| number.to_string());
        assert!(output.lines().eq(expected), "{} bytes", output.len());
        lasts.insert(last);
    }
    assert_eq!(lasts.len(), 1);
    server.end().await;
}

#[tokio::test]
async fn who_answers_no_ping_is_cut_off_and_who_does_is_not() {
    let server = Server::with_agent_and(|options| {
        options.heartbeat = Duration::from_millis(20);
        options.silence_max = Duration::from_millis(400);
    })
    .await;
    let sandbox = server.sandbox().await;
    let name = sandbox.name.as_str();
    let exec = server
        .client
        .exec_start(name, &shell("sleep 1000"))
        .await
        .unwrap();
    let target = format!("/v1/sandboxes/{name}/stream?exec_id={}", exec.exec_id);
    let alive = server
        .client
        .stream_events(name, &exec.exec_id, EventRange::ALL)
        .await
        .unwrap();
    let alive = tokio::spawn(alive.collect::<Vec<_>>());
    let mut silent = UnixStream::connect(&server.socket).await.unwrap();
    let request = format!(
        "GET {target} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    );
    silent.write_all(request.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    within(silent.read_to_end(&mut all)).await.unwrap();
    assert!(all.starts_with(b"HTTP/1.1 101"));
    // A ping frame without a payload came before the end.
    assert!(all.windows(2).any(|frame| frame == [0x89, 0]));
    assert!(!alive.is_finished());
    server
        .client
        .exec_remove(name, &exec.exec_id)
        .await
        .unwrap();
    let seen = within(alive).await.unwrap();
    assert_eq!(seen.last().unwrap().as_ref().unwrap().kind, "exit");
    server.end().await;
}
