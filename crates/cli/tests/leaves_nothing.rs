//! The main job, and that nothing of it is left.

#![cfg(test)]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::Stdio;

#[path = "world/world.rs"]
mod world;

use world::{Person, World, cgroups_of, eventually, holders_of, mounts_naming};

/// Says which namespaces it is in, then waits for a line.
const PROGRAM: &str = "readlink /proc/self/ns/net /proc/self/ns/mnt /proc/self/ns/pid \
    /proc/self/ns/user /proc/self/ns/ipc /proc/self/ns/uts; echo ready; read line; \
    exec python3 -c 'print(6*7)'";

fn check(person: Person) {
    let world = World::new(person);
    assert_eq!(
        world.run(["run", "--", "python3", "-c", "print(6*7)"]).ok(),
        "42\n",
        "{person:?}"
    );

    let mut child = world
        .pinfold(["run", "-i", "--name", "watched", "--", "sh", "-c", PROGRAM])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut namespaces = BTreeSet::new();
    loop {
        let mut line = String::new();
        if output.read_line(&mut line).unwrap() == 0 {
            let mut stderr = String::new();
            child
                .stderr
                .take()
                .unwrap()
                .read_to_string(&mut stderr)
                .unwrap();
            panic!("{person:?} ended early: {stderr}");
        }
        if line.trim() == "ready" {
            break;
        }
        namespaces.insert(line.trim().to_owned());
    }
    assert_eq!(namespaces.len(), 6, "{namespaces:?}");
    assert!(!holders_of(&namespaces).is_empty());
    let status = world.json(["status", "watched"]);
    let id = status["id"].as_str().unwrap().to_owned();

    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "42\n");
    assert!(child.wait().unwrap().success());

    // The kernel takes namespaces apart after the last process is gone, so this waits.
    eventually("its processes and namespaces to be gone", || {
        holders_of(&namespaces).is_empty()
    });
    assert_eq!(mounts_naming(&id), BTreeSet::new(), "{person:?}");
    assert_eq!(cgroups_of(&id), BTreeSet::new(), "{person:?}");
    let left: Vec<_> = walk(&world, &id);
    assert!(left.is_empty(), "{person:?}: {left:?}");
    assert_eq!(world.json(["list", "--all"]), serde_json::json!([]));
}

/// Everything in the state directory whose name holds the id, and rows that do.
fn walk(world: &World, id: &str) -> Vec<String> {
    let find = std::process::Command::new("find")
        .arg(world.state())
        .args(["-name", &format!("*{id}*")])
        .output()
        .unwrap();
    let mut left: Vec<String> = String::from_utf8_lossy(&find.stdout)
        .lines()
        .map(str::to_owned)
        .collect();
    let database = world.state().join("pinfold.db");
    assert!(database.exists());
    let rows = rusqlite::Connection::open(database)
        .unwrap()
        .query_row("SELECT count(*) FROM sandboxes", [], |row| {
            row.get::<_, i64>(0)
        })
        .unwrap();
    if rows != 0 {
        left.push(format!("{rows} rows"));
    }
    left
}

#[test]
fn as_root() {
    check(Person::Root);
}

#[test]
fn as_a_user_with_delegated_cgroups() {
    check(Person::Delegated);
}

#[test]
fn as_a_user_with_subordinate_ids() {
    check(Person::Plain);
}

#[test]
fn as_a_user_with_a_single_id() {
    check(Person::Single);
}
