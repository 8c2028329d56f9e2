//! The attacks: none works, and each that is said to be shown works without its defence.

#![cfg(test)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pinfold_attack::{ATTACKS, BRING_DOWN, OUTSIDE, needs_of, needs_root};
use serde_json::Value;

#[path = "world/world.rs"]
mod world;

use world::{Person, World};

/// A file that `cargo xtask test` has built and named.
fn built(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable).map(PathBuf::from);
    path.unwrap_or_else(|| panic!("{variable} is not set: run `cargo xtask test`"))
}

/// Copies what was built to where the person can read it, once.
fn given(world: &World, variable: &str) -> PathBuf {
    let name = variable.to_lowercase();
    let before = world.files().join(&name);
    if before.exists() {
        return before;
    }
    let copy = world.write(&name, std::fs::read(built(variable)).unwrap());
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&copy, executable).unwrap();
    copy
}

/// Runs attacks and answers the report.
fn attack(world: &World, only: &[&str]) -> (i32, Value) {
    let output = command(world, only).output().unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stderr));
    });
    (output.status.code().unwrap(), report)
}

fn command(world: &World, only: &[&str]) -> Command {
    let program = given(world, "PINFOLD_ATTACK_BIN");
    let mut command = world.pinfold(["--json", "doctor", "--attack", "--attack-program"]);
    command.arg(program);
    for name in only {
        command.args(["--only", name]);
    }
    command
}

/// Runs attacks without some defences, on a host that is played for it, and answers the report.
fn weakened(world: &World, only: &[&str], switches: &[&str]) -> Value {
    let agent = given(world, "PINFOLD_WEAK_AGENT");
    let inner = command(world, only);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attack/host.sh");
    let mut outer = Command::new("unshare");
    outer
        .args(["--mount", "--pid", "--net", "--ipc", "--uts", "--fork"])
        // With the first process of its own namespace everything that it started is gone.
        .args(["--kill-child", "--", "sh"])
        .arg(script)
        .arg(inner.get_program())
        .args(inner.get_args())
        .env_clear()
        .envs(
            inner
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .env("TMPDIR", "/srv/tmp")
        .env("PINFOLD_WEAK_AGENT", agent)
        .env("PINFOLD_WEAKEN", switches.join(","))
        .current_dir(inner.get_current_dir().unwrap())
        .stdin(Stdio::null());
    let output = outer.output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "without {switches:?}: {error}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    })
}

/// Attacks from outside that take long, and meet the same whoever runs the daemon.
const LONG: &[&str] = &["image-many", "liar-silent", "liar-archive-many"];

/// Sees that no attack works. What is made from outside is the same for every person but for who
/// the daemon is: it is made as root and as one ordinary user.
fn nothing_is_broken(person: Person) {
    let world = World::new(person);
    let only: Vec<&str> = pinfold_attack::all()
        .map(|attack| attack.name)
        .filter(|name| match person {
            Person::Root => true,
            Person::Plain => !LONG.contains(name),
            Person::Delegated | Person::Single => ATTACKS.iter().any(|attack| attack.name == *name),
        })
        .collect();
    let expected = only.len();
    // As everybody asks for it: without naming them.
    let only = if person == Person::Root {
        &[][..]
    } else {
        &only
    };
    let (code, report) = attack(&world, only);
    let attacks = report["attacks"].as_array().unwrap();
    let broken: Vec<_> = attacks
        .iter()
        .filter(|attack| attack["result"] == "broken")
        .collect();
    assert!(broken.is_empty(), "{person:?}: {broken:#?}");
    assert_eq!(attacks.len(), expected);
    let not_made: Vec<_> = attacks
        .iter()
        .filter(|attack| {
            let detail = attack["detail"].as_str().unwrap();
            detail.starts_with(pinfold_attack::NOT_MADE)
        })
        .collect();
    assert!(not_made.is_empty(), "{person:?}: {not_made:#?}");
    assert_eq!(code, 0);
    says_what_is_not_stopped(&world, &report);
}

/// Sees that a report says what it is not about: for this person's ids, and in a table too.
fn says_what_is_not_stopped(world: &World, report: &Value) {
    let lines = report["exposure"].as_array().unwrap().iter();
    let lines: Vec<&str> = lines.map(|line| line.as_str().unwrap()).collect();
    let of_ids = match world.person {
        Person::Root => "owns nothing",
        Person::Delegated | Person::Plain => "share host ids",
        Person::Single => "the caller's own id",
    };
    for expected in ["the kernel itself is shared", of_ids] {
        assert!(
            lines.iter().any(|line| line.contains(expected)),
            "{lines:#?}"
        );
    }
    let program = given(world, "PINFOLD_ATTACK_BIN");
    let mut table = world.pinfold(["doctor", "--attack", "--only", "host-file"]);
    let output = table.arg("--attack-program").arg(program).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let (_, exposure) = table.split_once("not stopped by this tier:").unwrap();
    for line in lines.iter().filter(|line| !line.contains("`untested`")) {
        assert!(
            exposure.contains(&format!("- {line}\n")),
            "{line}: {exposure}"
        );
    }
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

/// Sees each attack that a person's sandboxes can express succeed without its defences.
fn each_works_without_its_defence(person: Person) {
    let mut by_switches: BTreeMap<&[&str], Vec<&str>> = BTreeMap::new();
    // From outside it is the product that is weak, whoever runs it.
    let outside = OUTSIDE.iter().filter(|_| person == Person::Root);
    let chosen = ATTACKS.iter().chain(outside).filter(|attack| {
        !attack.succeeds_without.is_empty() && (person == Person::Root || !needs_root(attack))
    });
    for attack in chosen {
        let names = by_switches.entry(attack.succeeds_without).or_default();
        names.push(attack.name);
    }
    // Those that wait for most of their time do so beside the others.
    let (waiting, busy): (Vec<_>, Vec<_>) = by_switches
        .into_iter()
        .partition(|(_, names)| names.iter().any(|name| LONG.contains(name)));
    let wrong = std::thread::scope(|scope| {
        let alone = |one| scope.spawn(move || fail_anyway(person, vec![one]));
        let waiting: Vec<_> = waiting.into_iter().map(alone).collect();
        let mut wrong = fail_anyway(person, busy);
        wrong.extend(waiting.into_iter().flat_map(|one| one.join().unwrap()));
        wrong
    });
    assert!(wrong.is_empty(), "fail anyway:\n{}", wrong.join("\n"));
}

/// Returns the attacks that do not succeed without their defences.
fn fail_anyway(person: Person, by_switches: Vec<(&[&str], Vec<&str>)>) -> Vec<String> {
    let mut wrong = Vec::new();
    // One for all: each daemon in it ends with the host that was played for it, by signal 9, and the
    // next one takes away what is left.
    let world = World::new(person);
    for (switches, names) in by_switches {
        let report = weakened(&world, &names, switches);
        let attacks = report["attacks"].as_array().unwrap();
        assert_eq!(attacks.len(), names.len());
        for attack in attacks {
            let name = attack["name"].as_str().unwrap();
            let detail = attack["detail"].as_str().unwrap();
            let down = detail == "the sandbox did not survive it";
            let shown = match attack["result"].as_str().unwrap() {
                // One that only brings the sandbox down shows nothing, unless it wants to.
                "broken" => !down || BRING_DOWN.contains(&name),
                "not_expressible" => {
                    println!("{person:?}: {name} is not expressible here: {detail}");
                    let unlimited = matches!(person, Person::Plain | Person::Single);
                    needs_of(name).is_some() || (unlimited && attack["group"] == "limits")
                }
                _ => false,
            };
            if !shown {
                let off = switches.join(",");
                wrong.push(format!("{name} without {off}: {detail}"));
            }
        }
    }
    wrong
}

#[test]
fn each_attack_works_without_its_defence_as_root() {
    each_works_without_its_defence(Person::Root);
}

#[test]
fn each_attack_works_without_its_defence_as_a_user_with_delegated_cgroups() {
    each_works_without_its_defence(Person::Delegated);
}

#[test]
fn each_attack_works_without_its_defence_as_a_user_with_a_single_id() {
    each_works_without_its_defence(Person::Single);
}

#[test]
fn what_endangers_the_machine_is_refused_outside_a_process_namespace() {
    for switch in ["user_namespace", "pid_namespace"] {
        let world = World::new(Person::Root);
        let agent = given(&world, "PINFOLD_WEAK_AGENT");
        let output = command(&world, &["host-file"])
            .env("PINFOLD_WEAK_AGENT", agent)
            .env("PINFOLD_WEAKEN", switch)
            .output()
            .unwrap();
        assert!(!output.status.success());
        let log = std::fs::read_to_string(world.state().join("daemon.log")).unwrap();
        assert!(log.contains("guard the machine itself"), "{log}");
    }
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
