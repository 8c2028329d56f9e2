//! What the real daemon shows of itself: metrics, as their reference parser reads them.

#![cfg(test)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use serde_json::Value;

#[path = "world/world.rs"]
mod world;

use world::{PATIENCE, Person, World, eventually, fixtures};

/// A daemon in the foreground whose standard error is a file.
struct Serving {
    child: Child,
    address: String,
}

fn serve(world: &World, variables: &[(&str, &str)]) -> Serving {
    let log = world.files().join("serve.log");
    let child = world
        .pinfold(["serve", "--listen", "127.0.0.1:0"])
        .envs(variables.iter().copied())
        .stderr(fs::File::create(&log).unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut address = String::new();
    eventually("the daemon to say where it listens", || {
        let text = fs::read_to_string(&log).unwrap();
        let found = text
            .lines()
            .find(|line| line.contains("serving at "))
            .and_then(|line| line.split_once("http://"))
            .map(|(_, address)| address.trim().to_owned());
        address = found.unwrap_or_default();
        !address.is_empty()
    });
    Serving { child, address }
}

impl Serving {
    /// Sends a request and answers what came back.
    fn ask(&self, line: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let address = &self.address;
        let request =
            format!("{line} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}\r\n");
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
