//! Prints what an agent costs: `cargo run --release --example measure -- PATH-OF-THE-AGENT`.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "what cannot be measured has nothing to print"
)]

use std::io::{Seek as _, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::{Duration, Instant};

use connectrpc::client::{ClientConfig, Http2Connection, SharedHttp2Connection};
use pinfold_agent_api::v1::event::Kind;
use pinfold_agent_api::v1::{
    AcknowledgeRequest, ProcessServiceClient, ReadRequest, ReadyRequest, StartRequest,
    SystemServiceClient,
};

/// How often each thing is done.
const ROUNDS: usize = 300;
/// Bytes of the stream.
const STREAM_BYTES: usize = 1 << 30;
const SCRIPT: &str = r#"exec "$0" init measured 3<&0 4<&1 0</dev/null 1>/dev/null"#;

type Processes = ProcessServiceClient<SharedHttp2Connection>;

fn say(line: &str) {
    println!("{line}");
}

fn memory(pid: u32) -> String {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let wanted = ["Rss:", "Pss:", "Pss_Anon:", "Private_Dirty:"];
    let lines = rollup
        .lines()
        .filter(|line| wanted.iter().any(|name| line.starts_with(name)));
    lines
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect::<Vec<_>>()
        .join(", ")
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

async fn start(client: &Processes, id: &str, arguments: &[&str]) {
    let request = StartRequest {
        exec_id: id.to_owned(),
        arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
        ..StartRequest::default()
    };
    client.start(request).await.unwrap();
}

/// Reads to the exit, acknowledging as it goes, and returns how many bytes there were.
async fn finish(client: &Processes, id: &str) -> usize {
    let request = ReadRequest {
        exec_id: id.to_owned(),
        follow: true,
        ..ReadRequest::default()
    };
    let mut events = client.read(request).await.unwrap();
    let (mut bytes, mut since, mut last) = (0, 0, 0);
    while let Some(event) = events.message().await.unwrap() {
        let event = event.to_owned_message();
        last = event.sequence;
        if let Some(Kind::Output(output)) = &event.kind {
            bytes += output.data.len();
            since += output.data.len();
        }
        if since > 1 << 20 {
            since = 0;
            acknowledge(client, id, last).await;
        }
    }
    acknowledge(client, id, last).await;
    bytes
}

async fn acknowledge(client: &Processes, id: &str, sequence: u64) {
    let request = AcknowledgeRequest {
        exec_id: id.to_owned(),
        sequence,
        ..AcknowledgeRequest::default()
    };
    client.acknowledge(request).await.unwrap();
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let agent = std::env::args().nth(1).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut boot = tempfile::tempfile().unwrap();
    write!(boot, r#"{{"version":1,"plain":"/"}}"#).unwrap();
    boot.rewind().unwrap();
    let began = Instant::now();
    let mut child = Command::new("/bin/sh")
        .args(["-c", SCRIPT, &agent])
        .stdin(OwnedFd::from(listener))
        .stdout(OwnedFd::from(boot))
        .spawn()
        .unwrap();
    let connection = Http2Connection::lazy_unix(&socket, "http://a".parse().unwrap()).shared(64);
    let config = || ClientConfig::new("http://a".parse().unwrap());
    let system = SystemServiceClient::new(connection.clone(), config());
    let client = ProcessServiceClient::new(connection, config());
    system.ready(ReadyRequest::default()).await.unwrap();
    say(&format!(
        "ready after {:?}, with a shell's start",
        began.elapsed()
    ));
    say(&format!(
        "size {} KiB",
        std::fs::metadata(&agent).unwrap().len() >> 10
    ));
    say(&format!("idle, connected: {}", memory(child.id())));
    let (mut starts, mut wholes, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let id = format!("e{round}");
        let began = Instant::now();
        start(&client, &id, &["/bin/true"]).await;
        starts.push(began.elapsed());
        finish(&client, &id).await;
        wholes.push(began.elapsed());
        let began = Instant::now();
        system.ready(ReadyRequest::default()).await.unwrap();
        calls.push(began.elapsed());
    }
    say(&format!("a call alone {:?}", median(calls)));
    say(&format!("/bin/true started {:?}", median(starts)));
    say(&format!(
        "/bin/true started, read, acknowledged {:?}",
        median(wholes)
    ));
    say(&format!("after {ROUNDS} execs: {}", memory(child.id())));
    let count = STREAM_BYTES.to_string();
    let began = Instant::now();
    start(&client, "stream", &["head", "-c", &count, "/dev/zero"]).await;
    let bytes = finish(&client, "stream").await;
    let rate = bytes >> 20;
    say(&format!("{rate} MiB of output in {:?}", began.elapsed()));
    say(&format!("after it: {}", memory(child.id())));
    child.kill().unwrap();
    child.wait().unwrap();
}
