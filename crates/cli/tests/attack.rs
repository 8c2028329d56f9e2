//! The attacks: none works, and each that is said to be shown works without its defence.

#![cfg(test)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pinfold_attack::ATTACKS;
use serde_json::Value;

#[path = "world/world.rs"]
mod world;

use world::{Person, World};

/// A file that `cargo xtask test` has built and named.
fn built(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable).map(PathBuf::from);
    path.unwrap_or_else(|| panic!("{variable} is not set: run `cargo xtask test`"))
}

/// Copies what was built to where the person can read it.
fn given(world: &World, variable: &str) -> PathBuf {
    let name = variable.to_lowercase();
    let copy = world.write(&name, std::fs::read(built(variable)).unwrap());
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&copy, executable).unwrap();
    copy
}

/// Runs attacks and answers the report.
fn attack(world: &World, only: &[&str], environment: &[(&str, &str)]) -> (i32, Value) {
    let program = given(world, "PINFOLD_ATTACK_BIN");
    let mut command = world.pinfold(["--json", "doctor", "--attack", "--attack-program"]);
    command.arg(program);
    for name in only {
        command.args(["--only", name]);
    }
    command.envs(environment.iter().copied());
    let output = command.output().unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stderr));
    });
    (output.status.code().unwrap(), report)
}

fn nothing_is_broken(person: Person) {
    let world = World::new(person);
    let (code, report) = attack(&world, &[], &[]);
    let attacks = report["attacks"].as_array().unwrap();
    let broken: Vec<_> = attacks
        .iter()
        .filter(|attack| attack["result"] == "broken")
        .collect();
    assert!(broken.is_empty(), "{person:?}: {broken:#?}");
    assert_eq!(attacks.len(), ATTACKS.len());
    assert_eq!(code, 0);
}

#[test]
fn nothing_is_broken_as_root() {
    nothing_is_broken(Person::Root);
}

#[test]
fn nothing_is_broken_as_a_user_with_delegated_cgroups() {
    nothing_is_broken(Person::Delegated);
}

#[test]
fn nothing_is_broken_as_a_user_with_subordinate_ids() {
    nothing_is_broken(Person::Plain);
}

#[test]
fn nothing_is_broken_as_a_user_with_a_single_id() {
    nothing_is_broken(Person::Single);
}

#[test]
fn each_attack_works_without_its_defence() {
    let mut by_switches: BTreeMap<&[&str], Vec<&str>> = BTreeMap::new();
    for attack in ATTACKS.iter().filter(|a| !a.succeeds_without.is_empty()) {
        let names = by_switches.entry(attack.succeeds_without).or_default();
        names.push(attack.name);
    }
    let mut wrong = Vec::new();
    for (switches, names) in by_switches {
        let world = World::new(Person::Root);
        let agent = given(&world, "PINFOLD_WEAK_AGENT");
        let off = switches.join(",");
        let environment = [
            ("PINFOLD_WEAK_AGENT", agent.to_str().unwrap()),
            ("PINFOLD_WEAKEN", &off),
        ];
        let (_, report) = attack(&world, &names, &environment);
        for attack in report["attacks"].as_array().unwrap() {
            // One that only brings the sandbox down shows nothing.
            let down = attack["detail"] == "the sandbox did not survive it";
            if attack["result"] != "broken" || down {
                wrong.push(format!(
                    "{} without {off}: {}",
                    attack["name"], attack["detail"]
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "fail anyway:\n{}", wrong.join("\n"));
}

#[test]
fn the_reference_of_attacks_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/attacks.md");
    let page = pinfold_attack::reference();
    assert_eq!(
        std::fs::read_to_string(path).unwrap(),
        page,
        "run `pinfold-attack reference > docs/reference/attacks.md`"
    );
}
