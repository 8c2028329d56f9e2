//! Many sandboxes at once, and a daemon that is killed.

#![cfg(test)]

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use sha2::Digest as _;

#[path = "world/world.rs"]
mod world;

use world::{Person, World, eventually, signal};

#[test]
fn twenty_at_once_have_distinct_names() {
    let world = World::new(Person::Root);
    let children: Vec<_> = (0..20).map(|_| world.spawn(["create", "--json"])).collect();
    let mut names = BTreeSet::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let one = made.get(0).unwrap_or(&made);
        names.insert(one["name"].as_str().unwrap().to_owned());
    }
    assert_eq!(names.len(), 20);
    let listed = world.json(["list"]);
    assert_eq!(listed.as_array().unwrap().len(), 20);
    let made = world.json(["create", "--count", "3", "--name", "trio"]);
    assert_eq!(made.as_array().unwrap().len(), 3);
    world.run(["rm", "--all"]).ok();
    assert_eq!(world.json(["list", "--all"]), serde_json::json!([]));
}

#[test]
fn of_two_creations_with_one_name_one_wins() {
    let world = World::new(Person::Root);
    let outputs: Vec<_> = (0..2)
        .map(|_| world.spawn(["create", "--name", "contested"]))
        .collect::<Vec<_>>()
        .into_iter()
        .map(|child| child.wait_with_output().unwrap())
        .collect();
    let (won, lost): (Vec<_>, Vec<_>) = outputs.iter().partition(|o| o.status.success());
    assert_eq!((won.len(), lost.len()), (1, 1));
    let error = String::from_utf8_lossy(&lost[0].stderr);
    assert!(
        error.contains("contested") && error.contains("hint:"),
        "{error}"
    );
    assert_eq!(world.json(["list", "--all"]).as_array().unwrap().len(), 1);
}

#[test]
fn a_killed_daemon_loses_nothing_of_a_running_exec() {
    let world = World::new(Person::Root);
    world.create(&["--name", "printer"]);
    let program = "i=0; while [ $i -lt 600 ]; do echo $i; i=$((i+1)); sleep 0.01; done";
    let exec = world.json(["exec", "--detach", "printer", "--", "sh", "-c", program]);
    let exec_id = exec["exec_id"]
        .as_str()
        .unwrap_or_else(|| panic!("{exec}"))
        .to_owned();
    eventually("the first lines", || {
        world.run(["logs", "printer"]).stdout.lines().count() > 20
    });
    world.kill_daemon();
    // The next command starts a daemon, which takes the sandbox over.
    let status = world.json(["status", "printer"]);
    assert_eq!(status["state"], "running", "{status}");
    eventually("the exec to end", || {
        let printed = world.run(["logs", "printer"]).stdout;
        printed.lines().last() == Some("599")
    });
    let printed = world.run(["logs", "printer", "--exec", &exec_id]).ok();
    let numbers: Vec<u32> = printed.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(numbers, (0..600).collect::<Vec<_>>());
}

#[test]
fn an_attached_run_goes_on_over_a_killed_daemon() {
    let world = World::new(Person::Root);
    let program = "i=0; while [ $i -lt 400 ]; do echo $i; i=$((i+1)); sleep 0.01; done";
    let child = world.spawn(["run", "--name", "steady", "--", "sh", "-c", program]);
    eventually("the program to print", || {
        world.run(["logs", "steady"]).stdout.lines().count() > 20
    });
    world.kill_daemon();
    let output = child.wait_with_output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let numbers: Vec<u32> = printed.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(numbers, (0..400).collect::<Vec<_>>());
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The figure goes to the output (`--nocapture`); what is asserted is that a dead agent costs its
/// time-out and no more, and is shown as such.
#[test]
fn a_report_over_fifty_with_a_dead_agent() {
    let world = World::new(Person::Root);
    world
        .run(["create", "--count", "50", "--name", "fleet"])
        .ok();
    let before = Instant::now();
    let report = world.json(["report"]);
    println!(
        "report over 50 sandboxes: {:?} as a whole process",
        before.elapsed()
    );
    let lines = report["sandboxes"].as_array().unwrap();
    assert_eq!(lines.len(), 50);
    assert!(
        lines.iter().all(|line| line["metrics"].is_object()),
        "{report}"
    );
    let table = world.run(["report"]).ok();
    assert!(
        table.lines().all(|line| line.chars().count() <= 80),
        "{table}"
    );
    for word in ["NAME", "CPU", "MEMORY", "DISK", "UPTIME"] {
        assert!(table.lines().next().unwrap().contains(word), "{table}");
    }

    let id = lines[0]["id"].as_str().unwrap();
    let agent = agent_of(id);
    signal(agent, 19);
    let before = Instant::now();
    let report = world.json(["report"]);
    let took = before.elapsed();
    signal(agent, 18);
    println!("with one agent that does not answer: {took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    let (dead, living): (Vec<_>, Vec<_>) = report["sandboxes"]
        .as_array()
        .unwrap()
        .iter()
        .partition(|line| line["error"].is_string());
    assert_eq!((dead.len(), living.len()), (1, 49), "{report}");
    assert_eq!(dead[0]["id"], id);
}

/// The host's process id of a sandbox's process 1.
fn agent_of(id: &str) -> i32 {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .find_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let words: Vec<_> = line.split(|byte| *byte == 0).collect();
            (words.contains(&b"init".as_slice()) && words.contains(&id.as_bytes())).then_some(pid)
        })
        .expect("no agent of that id")
}

#[test]
fn a_corrupt_database_is_named_and_backed_up() {
    let world = World::new(Person::Root);
    world.create(&["--name", "before"]);
    world.run(["rm", "before"]).ok();
    world.kill_daemon();
    let database = world.state().join("pinfold.db");
    let garbage = vec![0x5a; 8192];
    fs::write(&database, &garbage).unwrap();
    for suffix in ["-wal", "-shm"] {
        let _may_be_absent = fs::remove_file(world.state().join(format!("pinfold.db{suffix}")));
    }
    let error = world.run(["list"]).fails(125);
    assert!(
        error.contains("pinfold.db") && error.contains("hint:"),
        "{error}"
    );
    assert_eq!(
        fs::read(&database).unwrap(),
        garbage,
        "the corrupt file is still there"
    );
    let backups = fs::read_dir(world.state())
        .unwrap()
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with("pinfold.db.corrupt")
        })
        .count();
    assert!(backups >= 1);
}

#[test]
fn stop_start_and_persist_keep_what_they_promise() {
    for person in [Person::Root, Person::Delegated] {
        let world = World::new(person);
        let id = world.create(&["--name", "keeper", "--persist"]);
        let sh = |script: &str| world.run(["exec", "keeper", "--", "sh", "-c", script]);
        sh("echo disk > /root/file; echo persist > /persist/file").ok();
        world.run(["stop", "keeper"]).ok();
        assert_eq!(world.json(["status", "keeper"])["state"], "stopped");
        let error = sh("true").fails(125);
        assert!(
            error.contains("stopped") && error.contains("pinfold start"),
            "{error}"
        );
        world.run(["start", "keeper"]).ok();
        assert_eq!(sh("cat /root/file /persist/file").ok(), "disk\npersist\n");
        world.run(["rm", "--keep-persist", "keeper"]).ok();
        let kept = world.state().join("persist").join(&id).join("file");
        assert_eq!(fs::read_to_string(kept).unwrap(), "persist\n");
    }
}

#[test]
fn several_targets_are_told_apart() {
    let world = World::new(Person::Root);
    world
        .run([
            "create",
            "--count",
            "2",
            "--name",
            "pair",
            "--language",
            "python",
        ])
        .ok();
    let printed = world.run(["exec", "--all", "--hello"]).ok();
    assert_eq!(printed.lines().count(), 2, "{printed}");
    for line in printed.lines() {
        assert!(
            line.starts_with("pair-") && line.ends_with("hello world"),
            "{printed}"
        );
    }
    assert_eq!(world.json(["list"]).as_array().unwrap().len(), 2);
    world.run(["stop", "--all"]).ok();
    assert_eq!(world.json(["list"]), serde_json::json!([]));
    assert_eq!(
        world
            .json(["list", "--state", "stopped"])
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn files_go_both_ways() {
    for person in [Person::Root, Person::Plain] {
        let world = World::new(person);
        world.create(&["--name", "porter"]);
        world.write("tree/a", "first");
        world.write("tree/deep/b", vec![0xff; 3_000_000]);
        let tree = world.files().join("tree");
        world
            .run(["cp", tree.to_str().unwrap(), "porter:/workspace/"])
            .ok();
        let sum = world
            .run([
                "exec",
                "porter",
                "--",
                "sha256sum",
                "/workspace/tree/deep/b",
            ])
            .ok();
        let back = world.files().join("back");
        world
            .run(["cp", "porter:/workspace/tree", back.to_str().unwrap()])
            .ok();
        assert_eq!(fs::read_to_string(back.join("a")).unwrap(), "first");
        let bytes = fs::read(back.join("deep/b")).unwrap();
        let digest = sha2::Sha256::digest(&bytes);
        let digest = digest
            .iter()
            .fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        assert!(sum.starts_with(&digest), "{sum}");
        // A link that leads out brings nothing of the host's.
        world
            .run([
                "exec",
                "porter",
                "--",
                "ln",
                "-s",
                "/etc/hostname",
                "/workspace/tree/out",
            ])
            .ok();
        let link = world.files().join("link");
        world
            .run(["cp", "porter:/workspace/tree", link.to_str().unwrap()])
            .ok();
        assert!(fs::symlink_metadata(link.join("out")).unwrap().is_symlink());
        let error = world
            .run(["cp", "porter:/no/such", back.to_str().unwrap()])
            .fails(125);
        assert!(error.contains("/no/such"), "{error}");
    }
}
