//! Limits: memory, processes, disk; what holds, what is said, and what a host cannot give.

#![cfg(test)]

use std::time::{Duration, Instant};

#[path = "world/world.rs"]
mod world;

use world::{Person, World};

const HOG: &str = "x = bytearray()\nwhile True: x += bytes(1 << 20)\n";

fn out_of_memory(person: Person) {
    let world = World::new(person);
    let said = world.run(["run", "--memory", "64m", "--", "python3", "-c", HOG]);
    let error = said.fails(137);
    assert!(
        error.contains("memory") && error.contains("--memory"),
        "{person:?}: {error}"
    );
    // A sandbox survives the end of one program.
    world.create(&["--name", "hog", "--memory", "64m"]);
    world
        .run(["exec", "hog", "--", "python3", "-c", HOG])
        .fails(137);
    assert_eq!(
        world.run(["exec", "hog", "--", "echo", "alive"]).ok(),
        "alive\n"
    );
}

#[test]
fn out_of_memory_is_said_as_root() {
    out_of_memory(Person::Root);
}

#[test]
fn out_of_memory_is_said_as_a_user_with_delegated_cgroups() {
    out_of_memory(Person::Delegated);
}

#[test]
fn a_memory_limit_without_a_cgroup_is_an_error_with_the_delegation_command() {
    for person in [Person::Plain, Person::Single] {
        let world = World::new(person);
        let said = world.run(["run", "--memory", "256m", "--", "true"]);
        let error = said.fails(125);
        assert!(error.contains("cgroup"), "{error}");
        assert!(
            error.contains("chown") || error.contains("Delegate=yes"),
            "{error}"
        );
        // Defaults still apply, and are shown.
        world.create(&["--name", "defaults"]);
        let status = world.json(["status", "defaults"]);
        let pids = status["granted"]["limits"]["pids"].as_str().unwrap();
        assert!(pids.contains("pid namespace"), "{status}");
    }
}

#[test]
fn a_named_memory_limit_holds_for_a_user_with_delegated_cgroups() {
    let world = World::new(Person::Delegated);
    world.create(&["--name", "held", "--memory", "256m"]);
    let status = world.json(["status", "held"]);
    let memory = status["granted"]["limits"]["memory"].as_str().unwrap();
    assert!(memory.contains("256"), "{status}");
    let take = |mib: u32| {
        let program = format!("x = bytearray({mib} << 20); print(len(x) >> 20)");
        world.run(["exec", "held", "--", "python3", "-c", &program])
    };
    assert_eq!(take(100).ok(), "100\n");
    take(400).fails(137);
}

fn fork_bomb(person: Person) {
    let world = World::new(person);
    // The smallest limit that a pid namespace itself can hold is 301.
    world.create(&["--name", "bomb", "--pids", "400"]);
    let bomb = "import os, time\nmade = 0\nwhile True:\n try:\n  if os.fork() == 0: time.sleep(600)\n  \
                made += 1\n except OSError: break\nprint(made)";
    let made: u32 = world
        .run(["exec", "bomb", "--", "python3", "-c", bomb])
        .ok()
        .trim()
        .parse()
        .unwrap();
    assert!((300..=400).contains(&made), "{person:?}: {made}");
    // The host is not held up: another sandbox starts and answers.
    let before = Instant::now();
    assert_eq!(world.run(["run", "--", "echo", "fine"]).ok(), "fine\n");
    assert!(before.elapsed() < Duration::from_secs(30));
    world.run(["rm", "--force", "bomb"]).ok();
}

#[test]
fn a_fork_bomb_is_held_as_root() {
    fork_bomb(Person::Root);
}

#[test]
fn a_fork_bomb_is_held_as_a_user_with_delegated_cgroups() {
    fork_bomb(Person::Delegated);
}

#[test]
fn a_fork_bomb_is_held_without_any_cgroup() {
    fork_bomb(Person::Single);
}

#[test]
fn a_shell_fork_bomb_ends_with_its_time_out() {
    let world = World::new(Person::Root);
    let said = world.run([
        "run",
        "--pids",
        "100",
        "--timeout",
        "3s",
        "--",
        "bash",
        "-c",
        "bomb() { bomb | bomb & }; bomb; sleep 100",
    ]);
    assert_eq!(said.code, 124, "{said:?}");
    assert_eq!(world.json(["list", "--all"]), serde_json::json!([]));
}

/// Writes until the disk is full and prints how many MiB that were.
const FILL: &str = "import os\nn = 0\nf = open('/root/full', 'wb')\ntry:\n while n < 400:\n  \
    f.write(bytes(1 << 20)); f.flush(); os.fsync(f.fileno()); n += 1\nexcept OSError as e:\n \
    print(e.errno)\nprint(n)";

fn full_disk(person: Person, limits: &[&str]) {
    let world = World::new(person);
    let mut arguments = vec!["--name", "full", "--disk", "48m"];
    arguments.extend(limits);
    world.create(&arguments);
    let printed = world
        .run(["exec", "full", "--", "python3", "-c", FILL])
        .ok();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.first(), Some(&"28"), "{person:?}: {printed}");
    let written: u32 = lines[1].parse().unwrap();
    assert!((16..=48).contains(&written), "{person:?}: {written}");
    // Others are not touched by it.
    assert_eq!(
        world
            .run(["run", "--", "sh", "-c", "echo x > /root/x && cat /root/x"])
            .ok(),
        "x\n"
    );
}

#[test]
fn a_full_disk_stays_inside_as_root() {
    full_disk(Person::Root, &[]);
}

#[test]
fn a_full_disk_stays_inside_as_a_user() {
    full_disk(Person::Delegated, &["--memory", "256m"]);
}

#[test]
fn too_many_files_stay_inside() {
    let world = World::new(Person::Root);
    world.create(&["--name", "many", "--inodes", "2000", "--disk", "64m"]);
    let program = "import os\nos.mkdir('/root/many')\nn = 0\ntry:\n while n < 5000:\n  \
        open(f'/root/many/{n}', 'w').close(); n += 1\nexcept OSError as e:\n print(e.errno)\nprint(n)";
    let printed = world
        .run(["exec", "many", "--", "python3", "-c", program])
        .ok();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.first(), Some(&"28"), "{printed}");
    assert!(lines[1].parse::<u32>().unwrap() <= 2000, "{printed}");
}
