//! What comes out of a sandbox and a program of the host might run by itself.

#![cfg(test)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

#[path = "world/world.rs"]
mod world;

use world::{Person, World};

/// Makes a repository inside that runs something on whoever uses it outside.
const TRAP: &str = "mkdir -p repo/.git/hooks repo/.github/workflows repo/src; cd repo; \
    printf '[core]\\n\\tbare = false\\n\\tfsmonitor = touch /tmp/x\\n' >.git/config; \
    echo 'ref: refs/heads/main' >.git/HEAD; \
    echo '#!/bin/sh' >.git/hooks/post-checkout; chmod 755 .git/hooks/post-checkout; \
    echo 'echo x' >.envrc; echo on: push >.github/workflows/x.yml; ln -s /etc/passwd link; \
    echo fine >src/main; echo '#!/bin/sh' >build; chmod 755 build; chmod u+s build; \
    mkfifo pipe";

#[test]
fn what_could_run_by_itself_is_told_and_held() {
    for person in [Person::Root, Person::Single] {
        let world = World::new(person);
        world.create(&["--name", "box"]);
        world.run(["exec", "box", "--", "sh", "-c", TRAP]).ok();
        let told = world.run(["cp", "box:repo", "loose"]);
        assert_eq!((told.code, told.stdout.as_str()), (0, ""), "{told:?}");
        for path in [
            ".git/config",
            ".git/hooks/post-checkout",
            ".envrc",
            ".github/workflows/x.yml",
            "link",
            "build",
        ] {
            assert!(
                told.stderr.contains(&format!("loose/{path} ")),
                "{path}: {told:?}"
            );
            assert!(fs::symlink_metadata(world.files().join("loose").join(path)).is_ok());
        }
        assert!(!told.stderr.contains("loose/src/main"), "{told:?}");
        let mode = fs::metadata(world.files().join("loose/build"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o755);

        let held = world.run(["--json", "cp", "--strict", "box:repo", "strict"]);
        assert_eq!(held.code, 1, "{held:?}");
        let found: serde_json::Value = serde_json::from_str(&held.stdout).unwrap();
        let kinds: Vec<&str> = found["handoff"]
            .as_array()
            .unwrap()
            .iter()
            .map(|finding| finding["kind"].as_str().unwrap())
            .collect();
        for kind in [
            "git config",
            "git hook",
            "environment",
            "CI",
            "link out",
            "setuid",
            "executable",
        ] {
            assert!(kinds.contains(&kind), "{kind}: {kinds:?}");
        }
        let strict = world.files().join("strict");
        for path in [
            ".git/config",
            ".git/hooks/post-checkout",
            ".envrc",
            ".github/workflows/x.yml",
            "link",
        ] {
            assert!(fs::symlink_metadata(strict.join(path)).is_err(), "{path}");
        }
        assert_eq!(
            fs::read_to_string(strict.join("src/main")).unwrap(),
            "fine\n"
        );
        let mode = fs::metadata(strict.join("build"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o644);
    }
}

#[test]
fn a_copy_right_into_a_repository_is_seen_for_what_it_is() {
    let world = World::new(Person::Root);
    world.create(&["--name", "box"]);
    world
        .run([
            "exec",
            "box",
            "--",
            "sh",
            "-c",
            "echo x >hook; echo x >plain",
        ])
        .ok();
    let hooks = world.files().join("own/.git/hooks");
    fs::create_dir_all(&hooks).unwrap();
    std::os::unix::fs::symlink(&hooks, world.files().join("way")).unwrap();
    for to in ["own/.git/hooks/pre-push", "way/pre-push"] {
        let held = world.run(["cp", "--strict", "box:hook", to]);
        assert!(
            held.code == 1 && held.stderr.contains("git hook"),
            "{held:?}"
        );
        assert!(!hooks.join("pre-push").exists());
    }
    let plain = world.run(["cp", "--strict", "box:plain", "own/"]);
    assert_eq!((plain.code, plain.stderr.as_str()), (0, ""), "{plain:?}");
    assert!(
        Command::new("test")
            .arg("-f")
            .arg(world.files().join("own/plain"))
            .status()
            .unwrap()
            .success()
    );
    let wrong = world.run(["cp", "--strict", "way", "box:/tmp/"]).fails(2);
    assert!(wrong.contains("--strict"), "{wrong}");
}
