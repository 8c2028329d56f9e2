//! Events that programs of a sandbox drop as files, with the real binary.

#![cfg(test)]

use std::collections::BTreeMap;

#[path = "world/serving.rs"]
mod serving;
#[path = "world/world.rs"]
mod world;

use serde_json::Value;
use serving::Serving;
use world::{Person, World, eventually};

/// A sandbox with a directory of events.
struct Dropping<'a> {
    world: &'a World,
    name: &'a str,
}

impl Dropping<'_> {
    #[track_caller]
    fn shell(&self, script: &str) {
        self.world
            .run(["exec", self.name, "--", "sh", "-c", script])
            .ok();
    }

    /// Waits until the stream has as many events, and checks that they are numbered without a gap.
    #[track_caller]
    fn events(&self, serving: &Serving, count: usize) -> Vec<Value> {
        let path = format!(
            "/v1/sandboxes/{}/stream?exec_id=events&follow=false",
            self.name
        );
        let mut events = Vec::new();
        eventually(&format!("{count} events"), || {
            events = serving.events(&path);
            events.len() >= count
        });
        assert_eq!(events.len(), count, "{events:?}");
        for (index, event) in events.iter().enumerate() {
            assert_eq!(event["seq"], index + 1);
            assert_eq!(event["type"], "event");
        }
        events
    }
}

/// The content of every event, by the file that it came from.
fn by_file(events: &[Value]) -> BTreeMap<String, Vec<String>> {
    let mut files: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for event in events {
        let text = |field: &str| event[field].as_str().unwrap().to_owned();
        files.entry(text("stream")).or_default().push(text("data"));
    }
    files
}

#[test]
fn files_lines_and_whole_json_are_events() {
    for person in [Person::Root, Person::Plain] {
        let world = World::new(person);
        let config = world.write("daemon.yaml", "events: true\n");
        let serving = Serving::begin(&world, &config, &[]);
        world.create(&["--name", "one"]);
        let dropping = Dropping {
            world: &world,
            name: "one",
        };
        dropping.shell(
            "cd /sbx-events && printf 'first\nsecond\n\n' >log && printf 'no end' >text && \
             printf '{\n \"a\": 1\n}' >whole.json && printf '\\377' >binary",
        );
        let files = by_file(&dropping.events(&serving, 5));
        assert_eq!(files["log"], ["first", "second"]);
        assert_eq!(files["text"], ["no end"]);
        assert_eq!(files["whole.json"], ["{\n \"a\": 1\n}"]);
        assert_eq!(files["binary"], ["/w=="], "base64");
        // What is appended comes too, and a file that is written again is an event again.
        dropping.shell("cd /sbx-events && echo third >>log && printf '[2]' >whole.json");
        let files = by_file(&dropping.events(&serving, 7));
        assert_eq!(files["log"], ["first", "second", "third"]);
        assert_eq!(files["whole.json"].last().unwrap(), "[2]");
        // Written aside and renamed, it is seen once and whole.
        dropping.shell("cd /sbx-events && echo aside >.x && mv .x named");
        let events = dropping.events(&serving, 8);
        assert_eq!(by_file(&events)["named"], ["aside"]);
        assert_eq!(events[7]["exec_id"], "events00000000000000");
        // One without such a directory says so.
        let without = serving.get(
            "POST /v1/sandboxes",
            r#"{"name":"none","spec":{"events_dir":null}}"#,
            201,
        );
        assert!(without["spec"]["events_dir"].is_null());
        serving.get("GET /v1/sandboxes/one/stream?exec_id=x", "", 426);
        let refused = serving.ask("GET /v1/sandboxes/none/stream", "");
        assert!(refused.0.starts_with("http/1.1 4"), "{}", refused.0);
        serving.end();
    }
}

#[test]
fn hostile_files_are_passed_over_and_bound() {
    let world = World::new(Person::Root);
    let config = world.write("daemon.yaml", "events: true\nevents_dir: /tmp/drop\n");
    let serving = Serving::begin(&world, &config, &[]);
    world.create(&["--name", "bad"]);
    let dropping = Dropping {
        world: &world,
        name: "bad",
    };
    dropping.shell(
        "cd /tmp/drop && mkfifo pipe && ln -s /etc/passwd link && mkdir dir && \
         head -c 100000 /dev/zero | tr '\\0' x >huge.json && ln -s /dev/zero zero.json && \
         printf 'name\n' >\"$(printf 'a\\033[31m\nb')\" && \
         head -c 150000 /dev/zero | tr '\\0' y >long && echo done >zz",
    );
    // A long line is three events, of a bounded size each.
    let files = by_file(&dropping.events(&serving, 5));
    let sizes: Vec<usize> = files["long"].iter().map(String::len).collect();
    assert_eq!(sizes, [65_536, 65_536, 150_000 - 2 * 65_536]);
    assert_eq!(files["zz"], ["done"]);
    assert_eq!(files["a\u{1b}[31m\nb"], ["name"]);
    assert_eq!(files.len(), 3, "{:?}", files.keys());
    // More files than are looked at do not keep those from being read that are.
    dropping.shell("cd /tmp/drop && rm -rf * && for i in $(seq 400); do echo $i >n$i; done");
    dropping.events(&serving, 5 + 256);
    // The directory can go and come back.
    dropping.shell("rm -rf /tmp/drop");
    dropping.shell("mkdir -p /tmp/drop; echo again >/tmp/drop/x");
    let events = dropping.events(&serving, 5 + 256 + 1);
    assert_eq!(events.last().unwrap()["data"], "again");
    serving.end();
}

#[test]
fn a_killed_daemon_loses_no_event_and_has_none_twice() {
    let world = World::new(Person::Root);
    let config = world.write("daemon.yaml", "events: true\n");
    let mut serving = Serving::begin(&world, &config, &[]);
    world.create(&["--name", "two"]);
    let dropping = Dropping {
        world: &world,
        name: "two",
    };
    world
        .run([
            "exec",
            "--detach",
            "two",
            "--",
            "sh",
            "-c",
            "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i >>/sbx-events/log; done; \
             echo end >/sbx-events/zz",
        ])
        .ok();
    for round in 0..4 {
        // In the middle of the flood, as often as not between two writes to the disk.
        let path = "/v1/sandboxes/two/stream?exec_id=events&follow=false";
        eventually("some events", || serving.events(path).len() > round * 100);
        serving.kill();
        serving = Serving::begin(&world, &config, &[]);
    }
    let files = by_file(&dropping.events(&serving, 3001));
    let expected: Vec<String> = (1..=3000).map(|number| number.to_string()).collect();
    assert_eq!(files["log"], expected);
    // Also over a stop and a start, when nobody collected in between.
    dropping.shell("echo last >>/sbx-events/zz");
    world.run(["stop", "two"]).ok();
    world.run(["start", "two"]).ok();
    dropping.shell("echo more >>/sbx-events/zz");
    let files = by_file(&dropping.events(&serving, 3003));
    assert_eq!(files["zz"], ["end", "last", "more"]);
    world.run(["rm", "two"]).ok();
    serving.end();
}
