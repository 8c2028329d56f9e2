//! What the real binary says once a daemon answers: errors and tables, pinned by snapshots.

#![cfg(test)]

#[path = "world/world.rs"]
mod world;

use world::{Person, World};

fn check(name: &str, world: &World, arguments: &[&str]) {
    let said = world.run(arguments);
    let text = format!(
        "exit: {}\n--- stdout\n{}--- stderr\n{}",
        said.code, said.stdout, said.stderr
    );
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("golden");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.set_description(format!("pinfold {}", arguments.join(" ")));
    settings.add_filter(r"\bs1[0-9a-z]{18}\b", "SANDBOX-ID-OF-20-CHR");
    settings.add_filter(r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME");
    settings.add_filter(r"/var/tmp/pf-[A-Za-z0-9]+", "HERE");
    settings.add_filter(r"range \d+\+\d+", "range BASE+COUNT");
    settings.add_filter(r"(running  host   )\d+s", "${1}AGE");
    settings.bind(|| insta::assert_snapshot!(name, text));
}

#[test]
fn errors_of_the_daemon() {
    let world = World::new(Person::Root);
    world.create(&["--name", "taken"]);
    world.create(&["--name", "asleep"]);
    world.run(["stop", "asleep"]).ok();
    for (name, arguments) in [
        (
            "daemon-unknown-sandbox",
            &["exec", "nobody", "--", "true"][..],
        ),
        ("daemon-name-taken", &["create", "--name", "taken"]),
        (
            "daemon-error-json",
            &["--json", "exec", "nobody", "--", "true"],
        ),
        ("daemon-language-alone", &["run", "--language", "python"]),
        (
            "daemon-bad-image",
            &["run", "--image", "/no/such", "--", "true"],
        ),
        (
            "daemon-image-is-no-tarball",
            &["run", "--image", "/etc/passwd", "--", "true"],
        ),
        ("daemon-stopped", &["exec", "asleep", "--", "true"]),
        (
            "daemon-not-found",
            &["exec", "taken", "--", "no-such-program"],
        ),
        (
            "daemon-not-executable",
            &["exec", "taken", "--", "/etc/passwd"],
        ),
        (
            "daemon-no-workdir",
            &["exec", "-w", "/no/such", "taken", "--", "true"],
        ),
        (
            "daemon-no-user",
            &["exec", "-u", "stranger", "taken", "--", "true"],
        ),
        (
            "daemon-timeout",
            &["exec", "--timeout", "100ms", "taken", "--", "sleep", "9"],
        ),
        ("daemon-nothing-to-run", &["exec", "taken"]),
        ("daemon-no-tty", &["exec", "-it", "taken", "--", "sh"]),
        (
            "daemon-no-such-mount",
            &["run", "--mount", "/no/such:/in", "--", "true"],
        ),
        ("daemon-no-such-file", &["run", "--file", "none.py"]),
        ("daemon-cp-nowhere", &["cp", "taken:/no/such", "."]),
        ("daemon-cp-both-inside", &["cp", "taken:/a", "asleep:/b"]),
    ] {
        check(name, &world, arguments);
    }
}

#[test]
fn tables_of_the_daemon() {
    let world = World::new(Person::Root);
    check("daemon-list-nothing", &world, &["list"]);
    world.create(&["--name", "first", "--memory", "64m", "--label", "team=red"]);
    check("daemon-list", &world, &["list"]);
    check("daemon-rm", &world, &["rm", "first", "second"]);
}
