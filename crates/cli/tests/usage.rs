//! What the daemon keeps of freed memory, and that it tells what it holds.

#![cfg(test)]

use std::fs;

#[path = "world/world.rs"]
mod world;

use world::{Person, World, eventually, signal};

/// `SIGUSR1`: say what you hold.
const TELL: i32 = 10;
/// `SIGTERM`: end.
const END: i32 = 15;

/// Returns whether a process was begun with settings for its allocator.
fn has_settings(pid: i32) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let mut entries = environment.split(|byte| *byte == 0);
    entries.any(|entry| entry.starts_with(b"GLIBC_TUNABLES=glibc.malloc.tcache_count=0"))
}

/// Returns process 1 of a sandbox.
fn agent_of(id: &str) -> i32 {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|pid: &i32| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.contains(&format!("\0init\0{id}"))
    })
    .unwrap()
}

#[test]
fn a_daemon_tells_what_it_holds_and_its_settings_are_its_own() {
    let world = World::new(Person::Root);
    let id = world.json(["create", "--name", "one"])["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let daemon = world.daemon().unwrap();
    assert!(has_settings(daemon));
    assert!(!has_settings(agent_of(&id)));
    let variables = world.run(["exec", "one", "--", "env"]).ok();
    assert!(!variables.contains("GLIBC_TUNABLES"), "{variables}");
    signal(daemon, TELL);
    eventually("the daemon to tell what it holds", || {
        let log = fs::read_to_string(world.state().join("daemon.log")).unwrap();
        let told = log.lines().find(|line| line.contains("heap_used_bytes="));
        told.is_some_and(|line| line.contains("sandboxes=1 names=1"))
    });
    assert_eq!(world.daemon(), Some(daemon));
}

#[test]
fn a_daemon_in_the_foreground_has_the_settings_too() {
    let world = World::new(Person::Root);
    let mut served = world.spawn(["serve"]);
    let pid = i32::try_from(served.id()).unwrap();
    eventually("the daemon to answer", || {
        world.run(["--no-start", "list"]).code == 0
    });
    // It began itself anew as the same process.
    assert_eq!(world.daemon(), Some(pid));
    assert!(has_settings(pid));
    signal(pid, END);
    assert!(served.wait().unwrap().success());
}
