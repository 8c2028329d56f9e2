//! Ends the daemon, the launcher or the agent at every crash point, in every operation that comes
//! by it, and checks after the next start that everything acknowledged is still there and that
//! nothing is there that nobody owns.

#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Mutex;

use pinfold_types::crash::{CRASH_AT, POINTS};

#[path = "world/world.rs"]
mod world;

#[path = "world/owned.rs"]
mod owned;

use world::{Person, World, eventually};

/// How many worlds there are at once: an operation mostly waits for the disk or a process.
const WORLDS: usize = 4;

/// Prints enough for the daemon to acknowledge a part before the end.
const SCRIPT: &str = "echo a; head -c 3000000 /dev/zero; echo b >&2";

/// How a program ends that the crash point killed.
const ABORT: i32 = 6;

/// What is being done when the point is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Create,
    /// A warm sandbox comes to a caller, with a limit of its own.
    Claim,
    Exec,
    Copy,
    Pause,
    Resume,
    Stop,
    Start,
    Remove,
    /// The start of a daemon after one was killed.
    Recover,
    /// The same, with a sandbox that was half made.
    Sweep,
}

/// Every operation that comes by a point.
fn steps(point: &str) -> &'static [Step] {
    match point {
        "agent.serving"
        | "engine.row_inserted"
        | "engine.image_prepared"
        | "engine.persist_made"
        | "engine.running_written"
        | "launcher.asked"
        | "launcher.born"
        | "launcher.first_process"
        | "launcher.forked"
        | "launcher.ready" => &[Step::Create],
        "driver.cgroup_made"
        | "driver.claims_partial"
        | "driver.disk_made"
        | "driver.launched"
        | "driver.listening"
        | "driver.range_taken"
        | "driver.recorded"
        | "driver.stored"
        | "engine.instance_started"
        | "launcher.prepared" => &[Step::Create, Step::Start],
        "engine.starting_written" => &[Step::Start],
        "engine.claim_bound" | "engine.claim_intended" | "engine.claim_written" => &[Step::Claim],
        "agent.file_written" => &[Step::Copy],
        "engine.instance_paused" => &[Step::Pause],
        "engine.instance_resumed" => &[Step::Resume],
        "agent.ending"
        | "driver.directory_kept"
        | "engine.stopping_written"
        | "engine.instance_stopped" => &[Step::Stop],
        "driver.processes_ended" | "driver.cgroup_removed" | "driver.range_given_back" => {
            &[Step::Stop, Step::Remove, Step::Sweep]
        }
        "driver.directory_removed" => &[Step::Remove, Step::Sweep],
        "engine.removing_written"
        | "engine.instance_removed"
        | "engine.files_removed"
        | "engine.row_deleted" => &[Step::Remove],
        "driver.adopted" => &[Step::Recover],
        "driver.swept_one" => &[Step::Sweep],
        "engine.adopted" | "engine.swept" => &[Step::Recover, Step::Sweep],
        // All that are left are of an exec; one that is not reached by it fails the test.
        _ => &[Step::Exec],
    }
}

/// A world with a sandbox that has to survive everything.
struct Yard {
    world: World,
    kept_exec: String,
    kept: String,
}

/// What was acknowledged of the sandbox that the step is about.
#[derive(Debug, Default)]
struct Promised {
    created: bool,
    removed: bool,
    exec: Option<String>,
    file: bool,
}

impl Yard {
    fn new() -> Self {
        let world = World::new(Person::Root);
        let kept = world.create(&["--name", "kept", "--persist"]);
        let script = "echo disk > /root/file; echo persist > /persist/file; echo up > /dev/shm/up";
        world.run(["exec", "kept", "--", "sh", "-c", script]).ok();
        let kept_exec = detached(&world, "kept");
        Self {
            world,
            kept_exec,
            kept,
        }
    }

    fn arm(&self, point: &str) -> (Child, std::path::PathBuf) {
        if self.world.daemon().is_some() {
            self.world.kill_daemon();
        }
        let log = self.world.state().join("armed.log");
        // The last thread of one that was killed may hold its socket and lock a moment longer.
        eventually("the former daemon to be gone", || {
            UnixStream::connect(self.world.socket()).is_err()
        });
        let file = fs::File::create(&log).unwrap();
        let mut daemon = self
            .world
            .pinfold(["serve"])
            .env(CRASH_AT, point)
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        eventually("the armed daemon to serve or to end", || {
            UnixStream::connect(self.world.socket()).is_ok() || daemon.try_wait().unwrap().is_some()
        });
        (daemon, log)
    }

    /// Runs a command against the armed daemon only; whether it succeeded is not known before.
    fn attempt(&self, words: &[&str]) -> (bool, String) {
        let mut command = self.world.pinfold(words);
        let output = command.env("PINFOLD_AUTOSTART", "false").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    }

    /// Sends a file as the API does; `pinfold cp` sends archives.
    fn send_file(&self) -> (bool, String) {
        let request = "PUT /v1/sandboxes/new/files?path=/root/sent HTTP/1.1\r\n\
            Host: pinfold\r\nConnection: close\r\nContent-Length: 4\r\n\r\nsent";
        let mut socket = UnixStream::connect(self.world.socket()).unwrap();
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        (answer.starts_with("HTTP/1.1 2"), answer)
    }

    /// Makes what the step needs, with a daemon that does not crash.
    fn prepare(&self, point: &str, step: Step) -> Promised {
        let mut promised = Promised::default();
        if step == Step::Sweep {
            let (mut daemon, _) = self.arm("driver.stored");
            let (made, _) = self.attempt(&["create", "--name", "new"]);
            assert!(!made);
            daemon.wait().unwrap();
            return promised;
        }
        if step == Step::Claim {
            self.world.run(["template", "create", "t"]).ok();
            let pool = ["pool", "create", "p", "--template", "t", "--size", "1"];
            self.world.run(pool).ok();
            eventually("the pool to be full", || {
                self.world.json(["pool", "list"])[0]["metrics"]["depth"] == 1
            });
            return promised;
        }
        // An agent learns at its birth where it is to end.
        if step == Step::Create || point.starts_with("agent.") {
            return promised;
        }
        self.world.create(&["--name", "new", "--persist"]);
        promised.created = true;
        let script = "echo disk > /root/file; echo persist > /persist/file";
        let written = self.world.run(["exec", "new", "--", "sh", "-c", script]);
        written.ok();
        promised.file = true;
        promised.exec = Some(detached(&self.world, "new"));
        match step {
            Step::Resume => drop(self.world.run(["pause", "new"]).ok()),
            Step::Start => drop(self.world.run(["stop", "new"]).ok()),
            _ => {}
        }
        promised
    }

    fn perform(&self, step: Step, promised: &mut Promised) -> String {
        let makes = matches!(
            step,
            Step::Create | Step::Claim | Step::Recover | Step::Sweep
        );
        if !promised.created && !makes {
            let (made, said) = self.attempt(&["create", "--name", "new", "--persist"]);
            assert!(made, "{said}");
            promised.created = true;
        }
        let (done, said) = match step {
            Step::Create => self.attempt(&["create", "--name", "new", "--persist"]),
            Step::Claim => self.attempt(&[
                "create",
                "--template",
                "t",
                "--name",
                "new",
                "--memory",
                "64m",
            ]),
            Step::Exec => self.attempt(&["exec", "new", "--", "sh", "-c", SCRIPT]),
            Step::Copy => self.send_file(),
            Step::Pause => self.attempt(&["pause", "new"]),
            Step::Resume => self.attempt(&["resume", "new"]),
            Step::Stop => self.attempt(&["stop", "new"]),
            Step::Start => self.attempt(&["start", "new"]),
            Step::Remove => self.attempt(&["rm", "--force", "new"]),
            Step::Recover | Step::Sweep => return String::new(),
        };
        promised.created |= done && matches!(step, Step::Create | Step::Claim);
        promised.removed |= done && step == Step::Remove;
        said
    }

    fn case(&self, point: &str, step: Step) {
        let mut promised = self.prepare(point, step);
        let (mut daemon, log) = self.arm(point);
        let said = self.perform(step, &mut promised);
        if point.starts_with("engine.") || point.starts_with("driver.") {
            // What is done after the answer may be reached a moment after it.
            eventually("the daemon to reach the point", || {
                daemon.try_wait().unwrap().is_some()
            });
            let ended = daemon.wait().unwrap();
            let log = fs::read_to_string(&log).unwrap();
            assert_eq!(ended.signal(), Some(ABORT), "{point} {step:?}: {log}");
            assert!(log.contains(&format!("crash point {point}")), "{log}");
        } else {
            eventually(
                &format!("{point} in {step:?} to be reached: {said}"),
                || {
                    // A sandbox that was never there has no log to tell it; without the point, the
                    // agent would have served and the sandbox been made.
                    let never_served = point == "agent.serving" && !promised.created;
                    never_served || self.is_told(point)
                },
            );
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
        self.check(point, step, &promised);
    }

    /// Looks for a point in what launchers and agents said.
    fn is_told(&self, point: &str) -> bool {
        let native = self.world.state().join("native");
        let mark = format!("crash point {point}\n");
        let tells = |path: &Path| fs::read_to_string(path).is_ok_and(|text| text.contains(&mark));
        let homes = fs::read_dir(&native).unwrap().flatten();
        tells(&native.join("launcher.log"))
            || homes
                .map(|home| home.path().join("log"))
                .any(|log| tells(&log))
    }

    /// Checks both invariants with a new daemon, and takes the sandbox away.
    fn check(&self, point: &str, step: Step, promised: &Promised) {
        let context = format!("{point} in {step:?}, {promised:?}");
        let world = &self.world;
        if step == Step::Claim {
            // What is still warm goes with its pool; what was half given away is gone.
            world.run(["pool", "rm", "p"]).ok();
            world.run(["template", "rm", "t"]).ok();
        }
        let mut states = BTreeMap::new();
        eventually(&format!("sandboxes to rest after {context}"), || {
            states = owned::states(world);
            states.values().all(|(_, state)| owned::is_at_rest(state))
        });
        let new = states.iter().find(|(_, (name, _))| name == "new");
        assert_eq!(states[&self.kept].1, "running", "{context}");
        if promised.created && step != Step::Remove {
            assert!(new.is_some(), "{context}: {states:?}");
        }
        assert!(!(promised.removed && new.is_some()), "{context}");
        owned::check(world, &states, &context);

        let script = "cat /root/file /persist/file /dev/shm/up";
        let printed = world.run(["exec", "kept", "--", "sh", "-c", script]).ok();
        assert_eq!(printed, "disk\npersist\nup\n", "{context}");
        let printed = world.run(["logs", "kept", "--exec", &self.kept_exec]).ok();
        assert_eq!(printed, "before\n", "{context}");
        let Some((id, (_, state))) = new else { return };
        if let Some(exec) = &promised.exec
            && step != Step::Remove
        {
            let printed = world.run(["logs", "new", "--exec", exec]).ok();
            assert_eq!(printed, "before\n", "{context}");
        }
        if promised.file && step != Step::Remove {
            match state.as_str() {
                "running" => {}
                "paused" => drop(world.run(["resume", "new"]).ok()),
                _ => drop(world.run(["start", "new"]).ok()),
            }
            let script = "cat /root/file /persist/file";
            let printed = world.run(["exec", "new", "--", "sh", "-c", script]).ok();
            assert_eq!(printed, "disk\npersist\n", "{context}");
        }
        world.run(["rm", "--force", "new"]).ok();
        let mut left = states.clone();
        left.remove(id);
        owned::check(world, &left, &context);
        // The next point's marks are then its own.
        let _none = fs::remove_file(world.state().join("native/launcher.log"));
    }
}

fn detached(world: &World, name: &str) -> String {
    let exec = world.json(["exec", "--detach", name, "--", "echo", "before"]);
    let exec = exec["exec_id"].as_str().unwrap().to_owned();
    eventually("the output to be there", || {
        world.run(["logs", name, "--exec", &exec]).stdout == "before\n"
    });
    exec
}

#[test]
fn a_crash_at_every_point_loses_and_leaves_nothing() {
    let only = std::env::var("PINFOLD_CRASH_ONLY").unwrap_or_default();
    let cases: Vec<(&str, Step)> = POINTS
        .iter()
        .filter(|point| point.contains(&only))
        .flat_map(|point| steps(point).iter().map(|step| (*point, *step)))
        .collect();
    let covered: BTreeSet<_> = cases.iter().map(|(_, step)| *step).collect();
    println!(
        "{} crashes at {} points, in {covered:?}",
        cases.len(),
        POINTS.len()
    );
    let queue = Mutex::new(cases);
    std::thread::scope(|scope| {
        for _ in 0..WORLDS {
            scope.spawn(|| {
                let yard = Yard::new();
                loop {
                    let next = queue.lock().unwrap().pop();
                    let Some((point, step)) = next else { return };
                    let before = std::time::Instant::now();
                    yard.case(point, step);
                    println!("{point} in {step:?}: {:?}", before.elapsed());
                }
            });
        }
    });
}
