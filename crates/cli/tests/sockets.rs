//! The daemon's socket: who may use it, and who starts the daemon.

#![cfg(test)]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::process::Command;

#[path = "world/world.rs"]
mod world;

use world::{Person, World, eventually};

#[test]
fn ten_callers_start_one_daemon() {
    let world = World::new(Person::Root);
    let children: Vec<_> = (0..10).map(|_| world.spawn(["list", "--json"])).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let mark = format!("PINFOLD_STATE_DIR={}", world.state().display());
    let daemons = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| {
            let has = |name: &str, word: &str| {
                fs::read(entry.path().join(name))
                    .unwrap_or_default()
                    .split(|byte| *byte == 0)
                    .any(|part| part == word.as_bytes())
            };
            has("cmdline", "serve") && has("environ", &mark)
        })
        .count();
    assert_eq!(daemons, 1);
    let mode = fs::metadata(world.socket()).unwrap().permissions().mode() & 0o777;
    assert!(mode == 0o600 || mode == 0o660, "{mode:o}");
}

#[test]
fn a_socket_of_somebody_else_is_not_spoken_to() {
    let world = World::new(Person::Plain);
    let listener = UnixListener::bind(world.socket()).unwrap();
    fs::set_permissions(world.socket(), fs::Permissions::from_mode(0o777)).unwrap();
    // It belongs to another ordinary user, neither the caller nor root.
    let stranger = World::new(Person::Single);
    std::os::unix::fs::chown(world.socket(), Some(stranger.uid()), None).unwrap();
    let error = world.run(["list"]).fails(125);
    let uid = stranger.uid().to_string();
    assert!(error.contains(&uid) && error.contains("hint:"), "{error}");
    drop(listener);
    assert_eq!(
        fs::metadata(world.socket()).unwrap().uid(),
        stranger.uid(),
        "it is not removed"
    );
}

#[test]
fn a_socket_that_nobody_serves_is_replaced() {
    let world = World::new(Person::Root);
    drop(UnixListener::bind(world.socket()).unwrap());
    assert_eq!(world.json(["list"]), serde_json::json!([]));
}

#[test]
fn another_user_cannot_use_a_users_daemon() {
    let world = World::new(Person::Plain);
    assert_eq!(world.json(["list"]), serde_json::json!([]));
    let other = World::new(Person::Single);
    // Even when the way to the socket is open.
    for path in [
        world.socket(),
        world.socket().parent().unwrap().to_owned(),
        world.files(),
    ] {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let directory = world.files();
    let directory = directory.parent().unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = other.pinfold(["list"]);
    command.env("PINFOLD_SOCKET", world.socket());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
}

#[test]
fn the_daemon_ends_politely_and_sandboxes_live_on() {
    let world = World::new(Person::Root);
    world.create(&["--name", "lives"]);
    let pid = world.daemon().unwrap();
    Command::new("kill")
        .args(["-15", &pid.to_string()])
        .status()
        .unwrap();
    eventually("the daemon to end", || !world::alive(pid));
    assert_eq!(
        world.run(["exec", "lives", "--", "echo", "still"]).ok(),
        "still\n"
    );
    assert_ne!(world.daemon().unwrap(), pid);
}

#[test]
fn a_daemon_that_ends_as_it_is_spoken_to_is_replaced() {
    let world = World::new(Person::Root);
    let listener = UnixListener::bind(world.socket()).unwrap();
    let dying = std::thread::spawn(move || {
        // One look whether it lives, and one connection that is cut.
        for _ in 0..2 {
            drop(listener.accept().unwrap());
        }
    });
    assert_eq!(world.json(["list"]), serde_json::json!([]));
    dying.join().unwrap();
    assert!(world.daemon().is_some());
}

#[test]
fn following_begins_before_the_first_program() {
    let world = World::new(Person::Root);
    world.create(&["--name", "early"]);
    let mut following = world.spawn(["logs", "--follow", "early"]);
    // It waits: a sandbox without programs is no end.
    world.run(["status", "early"]).ok();
    assert!(following.try_wait().unwrap().is_none());
    world
        .run(["exec", "early", "--", "sh", "-c", "echo first"])
        .ok();
    let output = following.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), output.stdout.as_slice()),
        (Some(0), &b"first\n"[..])
    );
    let empty = world.create(&["--name", "empty"]);
    let following = world.spawn(["logs", "--follow", "empty"]);
    world.run(["stop", &empty]).ok();
    let output = following.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn a_piped_table_is_as_wide_as_was_wished() {
    let world = World::new(Person::Root);
    world.create(&["--name", "a-name-of-some-length", "--label", "a=b"]);
    let list = |columns: Option<&str>| {
        let mut command = world.pinfold(["list"]);
        if let Some(columns) = columns {
            command.env("COLUMNS", columns);
        }
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let widest = |text: &str| text.lines().map(str::len).max().unwrap();
    let free = list(None);
    assert!(free.contains("a-name-of-some-length"));
    let narrow = list(Some("60"));
    assert!(widest(&narrow) < widest(&free), "{narrow}");
    assert_eq!(list(Some("wide")), free);
}
