//! Events pushed to a collector that fails, hangs and restarts, with the real binary.

#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[path = "world/serving.rs"]
mod serving;
#[path = "world/world.rs"]
mod world;

use serde_json::Value;
use serving::Serving;
use world::{Person, World, eventually};

/// Writes down what it is sent, or does what the file `mode` says instead.
const COLLECTOR: &str = r#"
import http.server, os, pathlib, sys, threading
home = pathlib.Path(sys.argv[1])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        mode = (home / "mode").read_text()
        if mode == "hang":
            threading.Event().wait()
        status = 200 if mode == "ok" else int(mode)
        if self.headers["authorization"] != "Bearer secret":
            status = 401
        if status == 200:
            with open(home / "got", "ab") as got:
                got.write(body + b"\n")
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler)
server.daemon_threads = True
print(server.server_address[1], flush=True)
server.serve_forever()
"#;

/// A collector in a process of its own.
struct Collector {
    home: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Collector {
    /// Finds a port that is free.
    fn new(home: &Path) -> Self {
        fs::write(home.join("collector.py"), COLLECTOR).unwrap();
        let mut collector = Self {
            home: home.to_owned(),
            port: 0,
            child: None,
        };
        collector.begin("ok");
        collector.end();
        collector
    }

    fn mode(&self, mode: &str) {
        let partial = self.home.join("mode.partial");
        fs::write(&partial, mode).unwrap();
        fs::rename(partial, self.home.join("mode")).unwrap();
    }

    fn begin(&mut self, mode: &str) {
        self.mode(mode);
        let mut child = Command::new("python3")
            .arg(self.home.join("collector.py"))
            .arg(&self.home)
            .arg(self.port.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        self.port = line.trim().parse().unwrap();
        self.child = Some(child);
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Everything that it took, by the exec, and each event once.
    fn got(&self) -> BTreeMap<String, BTreeMap<u64, Value>> {
        let text = fs::read_to_string(self.home.join("got")).unwrap_or_default();
        let mut execs: BTreeMap<String, BTreeMap<u64, Value>> = BTreeMap::new();
        for line in text.lines() {
            let batch: Vec<Value> = serde_json::from_str(line).unwrap();
            for event in batch {
                let exec = event["exec_id"].as_str().unwrap().to_owned();
                let seq = event["seq"].as_u64().unwrap();
                let before = execs.entry(exec).or_default().insert(seq, event.clone());
                // What is sent again is the same.
                assert!(before.is_none_or(|before| before == event));
            }
        }
        execs
    }

    /// Waits until it has all of an exec, from its start to its exit without a gap; answers its output.
    #[track_caller]
    fn output(&self, exec: &str) -> String {
        let mut output = String::new();
        eventually("the whole exec", || {
            let Some(events) = self.got().remove(exec) else {
                return false;
            };
            let last = events.values().next_back().unwrap();
            let seqs: BTreeSet<u64> = events.keys().copied().collect();
            let whole = seqs.len() as u64 == *seqs.last().unwrap() && last["type"] == "exit";
            let data = events.values().filter_map(|event| event["data"].as_str());
            output = data.collect();
            whole
        });
        output
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs a script and answers its exec's id, however the collector is.
fn run(serving: &Serving, sandbox: &str, script: &str) -> String {
    let body = serde_json::json!({ "command": ["sh", "-c", script], "async": false });
    let path = format!("POST /v1/sandboxes/{sandbox}/exec");
    let done = serving.get(&path, &body.to_string(), 200);
    done["exec_id"].as_str().unwrap().to_owned()
}

/// Lines with numbers.
fn counted(before: &str, count: u32) -> String {
    let lines: Vec<String> = (1..=count).map(|i| format!("{before}{i}")).collect();
    lines.join("\n") + "\n"
}

fn config(world: &World, collector: &Collector) -> PathBuf {
    let token = world.write("token", "secret\n");
    world.write(
        "daemon.yaml",
        format!(
            "stream_mode: sidecar\nstream_endpoint: http://127.0.0.1:{}/events\n\
             stream_token_file: {}\nstream_buffer: 50\n",
            collector.port,
            token.display()
        ),
    )
}

#[test]
fn a_collector_that_fails_hangs_and_restarts_gets_everything() {
    let world = World::new(Person::Root);
    let mut collector = Collector::new(&world.files());
    let serving = Serving::begin(&world, &config(&world, &collector), &[]);
    world.create(&["--name", "one"]);
    // Nobody is there, and no exec waits for that.
    let began = Instant::now();
    let lines = "for i in $(seq 500); do echo line $i; done";
    let absent = run(&serving, "one", lines);
    assert!(began.elapsed() < Duration::from_secs(30));
    collector.begin("500");
    let failing = run(
        &serving,
        "one",
        "echo while it fails; echo dropped >/sbx-events/log",
    );
    let failures = || {
        let report = serving.get("GET /v1/report", "", 200);
        report["push"]["failures"].as_u64().unwrap()
    };
    eventually("failures to be counted", || failures() > 3);
    collector.mode("ok");
    assert_eq!(collector.output(&absent), counted("line ", 500));
    assert_eq!(collector.output(&failing), "while it fails\n");
    eventually("the dropped event", || {
        let got = collector.got();
        let events = got.get("events00000000000000");
        events.is_some_and(|events| events[&1]["data"] == "dropped")
    });
    // One that hangs is given up when it goes, and the next one gets what it had.
    collector.mode("hang");
    let hanging = run(&serving, "one", "echo while it hangs");
    collector.end();
    collector.begin("ok");
    assert_eq!(collector.output(&hanging), "while it hangs\n");
    let report = serving.get("GET /v1/report", "", 200);
    let taken: usize = collector.got().values().map(BTreeMap::len).sum();
    assert!(
        report["push"]["events"].as_u64().unwrap() >= taken as u64,
        "{report}"
    );
    eventually("nothing to wait", || {
        serving.get("GET /v1/report", "", 200)["push"]["waiting"] == 0
    });
    serving.end();
}

#[test]
fn nothing_is_lost_when_the_daemon_is_killed_or_the_sandbox_removed() {
    let world = World::new(Person::Root);
    let mut collector = Collector::new(&world.files());
    let config = config(&world, &collector);
    collector.begin("503");
    let mut serving = Serving::begin(&world, &config, &[]);
    world.create(&["--name", "gone"]);
    world.create(&["--name", "stays"]);
    // It is removed while the collector takes nothing, and so is one exec of another.
    let gone = run(
        &serving,
        "gone",
        "echo from the removed; echo bye >/sbx-events/x",
    );
    world.run(["rm", "gone"]).ok();
    let forgotten = run(&serving, "stays", "echo from the forgotten");
    let path = format!("DELETE /v1/sandboxes/stays/execs/{forgotten}");
    let (head, _) = serving.ask(&path, "");
    assert!(head.starts_with("http/1.1 20"), "{head}");
    let killed = run(&serving, "stays", "for i in $(seq 3000); do echo $i; done");
    collector.mode("ok");
    for _ in 0..3 {
        serving.kill();
        serving = Serving::begin(&world, &config, &[]);
    }
    assert_eq!(collector.output(&gone), "from the removed\n");
    assert_eq!(collector.output(&forgotten), "from the forgotten\n");
    assert_eq!(collector.output(&killed), counted("", 3000));
    eventually("the event of the removed", || {
        let text = fs::read_to_string(world.files().join("got")).unwrap();
        text.contains("\"bye\"")
    });
    let aside = world.state().join("outbox");
    eventually("nothing to be kept aside", || {
        fs::read_dir(&aside).map_or(0, Iterator::count) == 0
    });
    serving.end();
}

#[test]
fn a_push_without_an_endpoint_or_with_a_wrong_one_does_not_start() {
    let world = World::new(Person::Root);
    for (settings, expected) in [
        ("stream_mode: push\n", "stream_endpoint"),
        (
            "stream_mode: push\nstream_endpoint: ftp://a\n",
            "is not a URL",
        ),
        (
            "stream_mode: push\nstream_endpoint: https://a\nstream_ca_file: /no/such\n",
            "/no/such",
        ),
    ] {
        let config = world.write("wrong.yaml", settings);
        let mut serve = world.pinfold(["serve", "--config"]);
        let said = serve.arg(config).output().unwrap();
        assert!(!said.status.success());
        let text = String::from_utf8_lossy(&said.stderr);
        assert!(text.contains(expected), "{text}");
    }
}
