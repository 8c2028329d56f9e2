//! How a command ends: exit codes, signals, time-outs, and what is said about each.

#![cfg(test)]

use std::process::Stdio;

#[path = "world/world.rs"]
mod world;

use world::{Person, World, alive, eventually, holders_of, signal};

#[test]
fn exit_codes_and_signals_are_those_of_a_shell() {
    let world = World::new(Person::Root);
    let sh = |script: &str| world.run(["run", "--", "sh", "-c", script]);
    assert_eq!(sh("exit 7").code, 7);
    assert_eq!(sh("kill -TERM $$").code, 128 + 15);
    assert_eq!(sh("kill -KILL $$").code, 128 + 9);
    let said = sh("echo out; echo err >&2");
    assert_eq!(
        (said.stdout.as_str(), said.stderr.as_str()),
        ("out\n", "err\n")
    );
}

#[test]
fn a_time_out_kills_the_whole_tree() {
    let world = World::new(Person::Root);
    let id = world.create(&["--name", "tree"]);
    let script = "readlink /proc/self/ns/pid; setsid sh -c 'sleep 1000 & sleep 1000' & \
                  (sleep 1000; true) & sleep 1000";
    let said = world.run(["exec", "--timeout", "1s", "tree", "--", "sh", "-c", script]);
    assert_eq!(said.code, 124, "{said:?}");
    assert!(said.stderr.contains("time"), "{}", said.stderr);
    assert!(said.stderr.contains("--timeout"), "{}", said.stderr);
    let left = world.run(["exec", "tree", "--", "sh", "-c", "pgrep -c sleep"]);
    assert_eq!(left.stdout.trim(), "0", "{id}");
}

#[test]
fn what_cannot_be_run_is_told_apart() {
    let world = World::new(Person::Root);
    world.create(&["--name", "plain"]);
    let exec = |arguments: &[&str]| {
        world.run(
            ["exec"]
                .iter()
                .chain(arguments)
                .copied()
                .collect::<Vec<_>>(),
        )
    };
    let error = exec(&["plain", "--", "no-such-program"]).fails(127);
    assert!(
        error.contains("no-such-program") && error.contains("hint:"),
        "{error}"
    );
    let error = exec(&["plain", "--", "/etc/passwd"]).fails(126);
    assert!(
        error.contains("/etc/passwd") && error.contains("hint:"),
        "{error}"
    );
    let error = exec(&["--workdir", "/no/such", "plain", "--", "true"]).fails(125);
    assert!(
        error.contains("/no/such") && error.contains("hint:"),
        "{error}"
    );
    let error = exec(&["--user", "stranger", "plain", "--", "true"]).fails(125);
    assert!(
        error.contains("stranger") && error.contains("hint:"),
        "{error}"
    );
    let error = exec(&["nobody-here", "--", "true"]).fails(125);
    assert!(
        error.contains("nobody-here") && error.contains("hint:"),
        "{error}"
    );
}

#[test]
fn ten_megabytes_of_environment_or_arguments_are_a_clear_error() {
    let world = World::new(Person::Root);
    world.create(&["--name", "large"]);
    let line = format!("{}\n", "x".repeat(1000));
    let lines: Vec<String> = (0..10_000)
        .map(|number| format!("V{number}={line}"))
        .collect();
    let body = lines.concat();
    let file = world.write("large.env", body);
    let file = file.to_str().unwrap();
    let error = world
        .run(["exec", "--env-file", file, "large", "--", "true"])
        .fails(125);
    assert!(
        error.contains("environment") && error.contains("limit"),
        "{error}"
    );
    // One argument of the host's own kernel is at most 128 KiB, so many make ten megabytes where
    // the host allows it; the host refuses more than 2 MiB in all before we see it.
    let many = vec!["y".repeat(100_000); 15];
    let mut command = world.pinfold(["exec", "large", "--", "true"]);
    let output = command.args(&many).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{error}");
    assert!(
        error.contains("command") && error.contains("limit"),
        "{error}"
    );
}

#[test]
fn an_interrupted_run_removes_its_sandbox() {
    for (number, code) in [(2, 130), (15, 143)] {
        let world = World::new(Person::Root);
        let child = world
            .pinfold(["run", "--name", "cut", "--", "sleep", "1000"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        eventually("the program to run", || {
            let said = world.run(["exec", "cut", "--", "pgrep", "sleep"]);
            said.code == 0
        });
        signal(pid, number);
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(code),
            "signal {number}: {output:?}"
        );
        eventually("its sandbox to be gone", || {
            world.json(["list", "--all"]) == serde_json::json!([])
        });
        assert!(!alive(pid));
    }
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let world = World::new(Person::Root);
    let script = format!(
        "{} run -- sh -c 'yes | head -n 100000' | head -n 1",
        world.pinfold(["x"]).get_program().to_str().unwrap()
    );
    let output = world
        .command(std::path::Path::new("/bin/bash"))
        .args(["-c", &script])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "y\n");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        !errors.contains("panic") && !errors.contains("error"),
        "{errors}"
    );
}

#[test]
fn a_background_child_does_not_hold_the_end() {
    let world = World::new(Person::Root);
    world.create(&["--name", "behind"]);
    let said = world.run(["exec", "behind", "--", "sh", "-c", "sleep 1000 & echo done"]);
    assert_eq!((said.code, said.stdout.as_str()), (0, "done\n"));
    world.run(["exec", "behind", "--", "pgrep", "sleep"]).ok();
    let namespaces = world
        .run(["exec", "behind", "--", "readlink", "/proc/self/ns/pid"])
        .ok();
    world.run(["rm", "behind"]).ok();
    eventually("the child to be gone", || {
        holders_of(&[namespaces.trim().to_owned()].into()).is_empty()
    });
}
