//! The walkthrough of the control plane that programs were written for: its lines as they stand, typed
//! into a shell, and its stream read by a WebSocket client that is not ours.

use std::process::Command;

use serde_json::Value;

use crate::service::{Service, client};
use crate::world::{Person, World};

/// Starts an exec that is streamed.
const EXEC: &str = r#"curl -sS -X POST http://localhost:8080/sandboxes/<id>/exec \
     -H 'Content-Type: application/json' \
     -d '{"command":["bash","-lc","sleep 2; echo done"],"async":true}'"#;

/// Its events.
const STREAM: &str = "ws://localhost:8080/sandboxes/<id>/stream?exec_id=<exec_id>";

/// What its command line sends to make a sandbox, run a command and remove the sandbox.
const CREATE: &str = "curl -sS -X POST http://localhost:8080/sandboxes";
const COMMAND: &str = r#"curl -sS -X POST http://localhost:8080/sandboxes/<id>/exec \
     -H 'Content-Type: application/json' \
     -d '{"command":["bash","-lc","uname -a"]}'"#;
const DELETE: &str = "curl -sS -X DELETE http://localhost:8080/sandboxes/<id>";

/// Adds to a line what it needs where a key is asked for.
fn with_key(line: &str) -> String {
    format!("{line} -H \"Authorization: Bearer $KEY\"")
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("{value}"))
}

/// Reads a stream to its end.
fn events(service: &Service, url: &str, key: &str) -> Vec<Value> {
    let mut reader = client("stream.py");
    reader.arg(url).env("KEY", key);
    let output = service.enter(&reader).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}{told}");
    let lines = printed.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Checks that these are the events of `sleep 2; echo done`, with every field that was promised.
fn check(events: &[Value], id: &str, exec_id: &str) {
    for (event, number) in events.iter().zip(1..) {
        assert_eq!(event["sandbox_id"], id, "{event}");
        assert_eq!(event["exec_id"], exec_id, "{event}");
        assert_eq!(event["seq"], number, "{event}");
        assert!(text(event, "time").contains('T'), "{event}");
    }
    let kinds: Vec<&str> = events.iter().map(|event| text(event, "type")).collect();
    assert_eq!(kinds, ["start", "output", "exit"], "{events:?}");
    assert_eq!(events[1]["stream"], "stdout");
    assert_eq!(events[1]["data"], "done\n");
    assert_eq!(events[2]["exit_code"], 0);
}

fn walk(service: &Service, world: &World, key: &str) {
    let keyed = |line: &str| {
        if key.is_empty() {
            line.to_owned()
        } else {
            with_key(line)
        }
    };
    let made = service.json(world, &keyed(CREATE), key);
    let id = text(&made, "id");
    let of = |line: &str| keyed(&line.replace("<id>", id));
    let ran = service.json(world, &of(COMMAND), key);
    assert!(text(&ran, "stdout").starts_with("Linux"), "{ran}");
    assert_eq!(ran["exit_code"], 0);
    let started = service.json(world, &of(EXEC), key);
    let exec_id = text(&started, "exec_id");
    let stream = STREAM.replace("<id>", id).replace("<exec_id>", exec_id);
    check(&events(service, &stream, key), id, exec_id);
    // A late reader sees the same, and one that comes back what it has not seen.
    check(&events(service, &stream, key), id, exec_id);
    let rest = events(service, &format!("{stream}&from_seq=3"), key);
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0]["type"], "exit");
    service.shell(world, &of(DELETE), key);
    let listed = world.json(["list", "--all"]);
    assert_eq!(listed, serde_json::json!([]));
}

#[test]
fn the_walkthrough_works_as_it_stands_under_development() {
    for person in [Person::Root, Person::Plain] {
        let world = World::new(person);
        // In a network of its own, so that the port of the lines is free.
        let service = Service::start_apart(&world, &["--dev"]);
        assert!(service.url.ends_with(":8080"), "{}", service.url);
        walk(&service, &world, "");
        service.end();
    }
}

#[test]
fn the_walkthrough_works_with_a_key_and_not_without() {
    let world = World::new(Person::Plain);
    let service = Service::start_apart(&world, &["--listen", "127.0.0.1:8080"]);
    let key = world.run(["key", "create", "walker"]).ok();
    let status = format!("{CREATE} -o /dev/null -w '%{{http_code}}'");
    assert_eq!(service.shell(&world, &status, ""), "401");
    let mut refused: Command = client("stream.py");
    refused.arg("ws://localhost:8080/sandboxes/none/stream?exec_id=none");
    let refused = service.enter(&refused).output().unwrap();
    assert_eq!(refused.stderr, b"status 401\n");
    walk(&service, &world, key.trim());
    service.end();
}
