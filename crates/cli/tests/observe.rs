//! What the real daemon shows of itself: metrics, as their reference parser reads them.

#![cfg(test)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use serde_json::Value;

#[path = "world/world.rs"]
mod world;

use world::{PATIENCE, Person, World, eventually, fixtures, listening};

/// A daemon in the foreground whose standard error is a file.
struct Serving {
    child: Child,
    address: String,
}

fn serve(world: &World, variables: &[(&str, &str)]) -> Serving {
    let log = world.files().join("serve.log");
    let mut serve = world.pinfold(["serve", "--listen", "127.0.0.1:0"]);
    serve.envs(variables.iter().copied());
    let (child, url) = listening(&mut serve, &log);
    let address = url.trim_start_matches("http://").to_owned();
    Serving { child, address }
}

impl Serving {
    /// Sends a request and answers what came back.
    fn ask(&self, line: &str, headers: &str) -> String {
        self.ask_with(line, headers, "")
    }

    /// The same with a body, whose length the headers say.
    fn ask_with(&self, line: &str, headers: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let address = &self.address;
        let request = format!(
            "{line} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn end(mut self) {
        world::signal(i32::try_from(self.child.id()).unwrap(), 15);
        assert!(self.child.wait().unwrap().success());
    }
}

/// Reads an exposition with the parser of those who made the format; it refuses what breaks a rule.
const PARSE: &str = r#"
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
samples = {}
for family in parse(sys.stdin.read()):
    assert family.documentation, family
    for sample in family.samples:
        labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
        samples[f"{sample.name}{{{labels}}}"] = sample.value
print(json.dumps(samples))
"#;

fn parsed(text: &str) -> Value {
    let mut child = std::process::Command::new("python3")
        .args(["-c", PARSE])
        .env("PYTHONPATH", fixtures().join("openmetrics"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{text}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn scraped(serving: &Serving) -> Value {
    let answer = serving.ask("GET /metrics", "");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    parsed(body)
}

#[test]
fn the_reference_parser_reads_metrics_that_move() {
    for person in [Person::Root, Person::Plain] {
        let world = World::new(person);
        let serving = serve(
            &world,
            &[
                ("PINFOLD_METRICS_OPEN", "true"),
                ("PINFOLD_WARM_POOL_SIZE", "1"),
            ],
        );
        let number = |name: &str| -> f64 {
            let all = scraped(&serving);
            all[name]
                .as_f64()
                .unwrap_or_else(|| panic!("no {name} in {all:#}"))
        };
        eventually("a warm sandbox", || {
            number("pinfold_pool_depth{pool=default}") > 0.5
        });
        world.create(&["--name", "seen"]);
        assert!(number("pinfold_pool_claims_total{result=warm}") > 0.5);
        assert!((number("pinfold_pool_hit_ratio{pool=default}") - 1.0).abs() < 0.01);
        assert!(number("pinfold_pool_refill_seconds_count{}") > 0.5);
        world.run(["exec", "seen", "--", "true"]).ok();
        world.run(["exec", "seen", "--", "false"]).fails(1);
        assert!((number("pinfold_sandboxes{state=running}") - 1.0).abs() < 0.5);
        world.run(["stop", "seen"]).ok();
        world.run(["start", "seen"]).ok();
        world.run(["rm", "seen"]).ok();
        let all = scraped(&serving);
        for step in ["claim", "stop", "start", "remove"] {
            let count = &all[format!("pinfold_lifecycle_seconds_count{{outcome=ok,step={step}}}")];
            assert_eq!(count, 1.0, "{step}: {all:#}");
        }
        for (name, least) in [
            ("pinfold_execs_ended_total{kind=success}", 1.0),
            ("pinfold_execs_ended_total{kind=failure}", 1.0),
            ("pinfold_stream_events_total{kind=attach}", 4.0),
            ("pinfold_store_size_bytes{}", 4096.0),
            ("process_resident_memory_bytes{}", 1e6),
            ("process_open_fds{}", 5.0),
        ] {
            assert!(all[name].as_f64() >= Some(least), "{name}: {all:#}");
        }
        assert_eq!(all["pinfold_sandboxes{state=running}"], 0.0);
        serving.end();
    }
}

#[test]
fn events_tell_of_pools_claims_and_deadlines() {
    let world = World::new(Person::Root);
    let serving = serve(&world, &[("PINFOLD_WARM_POOL_SIZE", "1")]);
    let types = |arguments: &[&str]| -> Vec<String> {
        let mut command = vec!["--json", "events"];
        command.extend(arguments);
        let printed = world.run(command).ok();
        let line = |line: &str| -> Value { serde_json::from_str(line).unwrap() };
        let kind = |event: Value| event["type"].as_str().unwrap().to_owned();
        printed.lines().map(line).map(kind).collect()
    };
    eventually("a warm sandbox", || {
        types(&[])
            .first()
            .is_some_and(|first| first == "pool.refilled")
    });
    // Nobody's sandbox has no life of its own to tell.
    assert!(types(&[]).iter().all(|kind| kind == "pool.refilled"));
    world.create(&["--name", "brief", "--lifetime", "1s"]);
    eventually("its end", || {
        types(&["brief"])
            .last()
            .is_some_and(|last| last == "sandbox.removed")
    });
    assert_eq!(
        types(&["brief"]),
        ["sandbox.claimed", "deadline.fired", "sandbox.removed"]
    );
    let told = world.run(["events", "brief"]).ok();
    let last = told.lines().last().unwrap();
    assert!(last.contains("sandbox.removed"), "{told}");
    assert!(last.contains("lifetime reached: remove"), "{told}");
    let mut follower = world.spawn(["events", "--follow", "--type", "key.created"]);
    world.run(["key", "create", "ci"]).ok();
    let mut first = [0u8; 24];
    follower
        .stdout
        .take()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    follower.kill().unwrap();
    follower.wait().unwrap();
    serving.end();
}

#[test]
fn the_audit_log_shows_what_was_done_and_what_was_tampered_with() {
    for person in [Person::Root, Person::Plain] {
        let world = World::new(person);
        let serving = serve(&world, &[]);
        world.create(&["--name", "seen"]);
        world.run(["exec", "seen", "--", "true"]).ok();
        let listed = world.run(["audit", "list"]).ok();
        assert!(listed.contains("daemon.started"), "{listed}");
        assert!(listed.contains("POST /v1/sandboxes  "), "{listed}");
        let found = world.json(["audit", "verify"]);
        assert_eq!(found["whole"], true, "{found}");
        let head = found["head"].as_str().unwrap().to_owned();
        // A daemon that is killed goes on with the chain.
        let pid = i32::try_from(serving.child.id()).unwrap();
        world::signal(pid, 9);
        let mut serving = serving;
        serving.child.wait().unwrap();
        let serving = self::serve(&world, &[]);
        world.run(["rm", "seen"]).ok();
        serving.end();
        let found = world.json(["audit", "verify", "--expect", &head]);
        assert_eq!(found["whole"], true, "{found}");
        assert!(found["beyond_expected"].as_u64() >= Some(3), "{found}");
        // Everybody but the daemon's user is kept out.
        let directory = world.state().join("audit");
        let file = fs::read_dir(&directory)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&file).unwrap());
        assert_eq!(mode & 0o077, 0);
        let text = fs::read_to_string(&file).unwrap();
        fs::write(
            &file,
            text.replacen("POST /v1/sandboxes\"", "POST /v1/pools\"", 1),
        )
        .unwrap();
        let told = world.run(["audit", "verify"]);
        assert!(told.stdout.contains("was changed"), "{}", told.stdout);
        told.fails(1);
    }
}

#[test]
fn the_log_file_is_bounded_and_says_which_request_a_line_is_of() {
    let world = World::new(Person::Root);
    let log = world.files().join("log/pinfold.log");
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    let serving = serve(
        &world,
        &[
            ("PINFOLD_LOG_FILE", log.to_str().unwrap()),
            ("PINFOLD_LOG_FILE_SIZE", "64k"),
            ("PINFOLD_LOG_FORMAT", "json"),
            ("PINFOLD_LOG", "debug"),
        ],
    );
    let made = world.run(["key", "create", "ci"]).ok();
    let bearer = format!("authorization: Bearer {}\r\n", made.trim());
    let ask = |id: &str| {
        let headers = format!("{bearer}x-request-id: {id}\r\ncontent-length: 2\r\n");
        serving.ask_with("POST /v1/sandboxes", &headers, "{}")
    };
    // No such image: the engine, and not only the server, has something to say.
    let answer = serving.ask_with(
        "POST /v1/sandboxes",
        &format!("{bearer}x-request-id: ticket-0815\r\ncontent-length: 34\r\n"),
        "{\"spec\":{\"image\":\"no-such-image\"  }}",
    );
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert!(ask("ticket-4711").starts_with("HTTP/1.1 201"));
    let lines = || -> Vec<Value> {
        let text = fs::read_to_string(&log).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let of = |id: &str| -> Vec<Value> {
        let mut lines = lines();
        lines.retain(|line| {
            let spans = line["spans"].as_array().cloned().unwrap_or_default();
            spans.iter().any(|span| span["request_id"] == id)
        });
        lines
    };
    eventually("the request's own line", || !of("ticket-4711").is_empty());
    // Its step was done by the sandbox's own task, in another crate.
    let told = of("ticket-0815");
    assert!(
        told.iter()
            .any(|line| line["target"] != "pinfold_server::router"),
        "{told:#?}"
    );
    eventually("a second file", || {
        serving.ask_with("GET /v1/version", &bearer, "");
        log.with_extension("log.1").exists()
    });
    for entry in fs::read_dir(log.parent().unwrap()).unwrap() {
        assert!(entry.unwrap().metadata().unwrap().len() <= 64 << 10);
    }
    serving.end();
}

/// A collector of one test: takes OTLP requests and keeps their spans.
struct Collector {
    address: String,
    spans: std::sync::Arc<std::sync::Mutex<Vec<Value>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let spans = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let kept = std::sync::Arc::clone(&spans);
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let found = take(&mut stream.unwrap());
                kept.lock().unwrap().extend(found);
            }
        });
        Self { address, spans }
    }

    /// Waits for the span with this name in this trace.
    fn span(&self, trace: &str, name: &str) -> Value {
        let mut found = None;
        eventually(&format!("the span {name}"), || {
            let spans = self.spans.lock().unwrap();
            found = spans
                .iter()
                .find(|span| span["traceId"] == trace && span["name"] == name)
                .cloned();
            found.is_some()
        });
        found.unwrap()
    }
}

fn take(stream: &mut TcpStream) -> Vec<Value> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    let mut part = [0u8; 4096];
    loop {
        let count = stream.read(&mut part).unwrap();
        assert!(count > 0, "the request ended early");
        bytes.extend_from_slice(&part[..count]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .unwrap();
        if body.len() < length.parse::<usize>().unwrap() {
            continue;
        }
        assert!(head.starts_with("POST /v1/traces HTTP/1.1"), "{head}");
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            .unwrap();
        let message: Value = serde_json::from_str(body).unwrap();
        let resource = &message["resourceSpans"][0];
        let service = &resource["resource"]["attributes"][0];
        assert_eq!(service["value"]["stringValue"], "pinfold", "{message}");
        let spans = resource["scopeSpans"][0]["spans"].as_array();
        return spans.unwrap().clone();
    }
}

#[test]
fn a_callers_trace_goes_on_to_the_calls_of_the_agent() {
    let world = World::new(Person::Root);
    let collector = Collector::start();
    let serving = serve(&world, &[("PINFOLD_OTLP_ENDPOINT", &collector.address)]);
    let made = world.run(["key", "create", "ci"]).ok();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let headers = format!(
        "authorization: Bearer {}\r\ncontent-length: 2\r\nx-request-id: ticket-4711\r\n\
         traceparent: 00-{trace}-00f067aa0ba902b7-01\r\n",
        made.trim()
    );
    let answer = serving.ask_with("POST /v1/sandboxes", &headers, "{}");
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    let request = collector.span(trace, "POST /v1/sandboxes");
    assert_eq!(request["parentSpanId"], "00f067aa0ba902b7");
    assert_eq!(request["kind"], 2);
    let attributes = request["attributes"].to_string();
    assert!(attributes.contains("ticket-4711"), "{attributes}");
    assert!(attributes.contains("\"intValue\":\"201\""), "{attributes}");
    let mut above = request;
    for name in ["create", "agent", "agent ready"] {
        let span = collector.span(trace, name);
        assert_eq!(span["parentSpanId"], above["spanId"], "{name}: {span}");
        let time =
            |span: &Value, field: &str| -> u128 { span[field].as_str().unwrap().parse().unwrap() };
        assert!(time(&span, "startTimeUnixNano") >= time(&above, "startTimeUnixNano"));
        assert!(time(&span, "endTimeUnixNano") >= time(&span, "startTimeUnixNano"));
        above = span;
    }
    assert_eq!(above["kind"], 3);
    for name in ["image", "instance"] {
        let create = collector.span(trace, "create");
        assert_eq!(
            collector.span(trace, name)["parentSpanId"],
            create["spanId"]
        );
    }
    // What its caller does not want recorded is not.
    let other = "5bf92f3577b34da6a3ce929d0e0e4736";
    let unsampled = headers.replace(trace, other).replace("b7-01", "b7-00");
    serving.ask_with("POST /v1/sandboxes", &unsampled, "{}");
    serving.end();
    let spans = collector.spans.lock().unwrap();
    assert!(spans.iter().all(|span| span["traceId"] != other));
}

#[test]
fn a_collector_that_is_gone_costs_spans_and_nothing_else() {
    let world = World::new(Person::Root);
    // A port that nobody listens on: it is free again at once.
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let endpoint = format!("http://{gone}");
    let serving = serve(&world, &[("PINFOLD_OTLP_ENDPOINT", &endpoint)]);
    world.create(&["--name", "seen"]);
    world.run(["exec", "seen", "--", "true"]).ok();
    let log = world.files().join("serve.log");
    eventually("a complaint", || {
        fs::read_to_string(&log)
            .unwrap()
            .contains("the collector took no spans")
    });
    serving.end();
}
