//! CPU percentages: of a busy loop and of nothing.

#![cfg(test)]

use std::process::Stdio;

#[path = "world/world.rs"]
mod world;

use world::{Person, World, eventually};

fn percentage(world: &World, name: &str) -> f64 {
    world.json(["metrics", name])["cpu_percent"]
        .as_f64()
        .unwrap()
}

/// Other processes of the machine may take the core away for a moment, so a reading is taken until
/// it is in the range; a product that reads wrong never gets there.
fn busy_and_idle(person: Person) {
    let world = World::new(person);
    world.create(&["--name", "busy", "--cpus", "1"]);
    world.create(&["--name", "idle", "--cpus", "1"]);
    let mut child = world
        .pinfold(["exec", "busy", "--", "sh", "-c", "while :; do :; done"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut seen = Vec::new();
    eventually("a busy sandbox to read 90 to 110 %", || {
        let percent = percentage(&world, "busy");
        seen.push(percent);
        (90.0..=110.0).contains(&percent)
    });
    assert!(seen.iter().all(|percent| *percent <= 115.0), "{seen:?}");
    eventually("an idle sandbox to read under 2 %", || {
        percentage(&world, "idle") < 2.0
    });
    world.run(["rm", "--force", "busy"]).ok();
    child.wait().unwrap();
}

/// One after the other, because two busy loops want both cores of a small machine.
#[test]
fn a_busy_loop_reads_its_limit_and_an_idle_sandbox_nothing() {
    busy_and_idle(Person::Root);
    busy_and_idle(Person::Delegated);
}
