//! Sandboxes used at random against a model.
//!
//! The model holds what the product acknowledged. With kills, each comes during an operation, whose
//! outcome is then open until the next daemon tells it; without, operations follow each other and
//! the daemon's memory is what is looked at.

use std::collections::BTreeMap;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;

use crate::held::{Held, Memory};
use crate::random::Random;
use crate::trend::Trend;
use crate::yard::{States, Yard, send, until, until_within, wait};
use crate::{Soak, say};

/// Most sandboxes at once: enough for them to differ, and few enough for a small host.
const SANDBOXES_MAX: usize = 6;

/// Longest time between the beginning of an operation and the kill: about what the longest takes.
const KILL_AFTER_MAX_MS: usize = 250;

/// Longest time that a killed process takes to go, unless it is frozen.
const DIE_MAX: Duration = Duration::from_secs(3);

/// Least time between two looks at the daemon's memory.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// The first part of a run, which fills caches and pools, does not count for the slope.
const WARM_UP: f64 = 0.2;

/// Most growth of what the daemon has in use on its heap that counts as flat, in a minute: of the
/// thousand operations of a minute one in sixty may leave a KiB.
const HEAP_SLOPE_KIB_MAX: f64 = 16.0;

/// Most growth of its resident memory, which also has what the allocator keeps and pages of the
/// program that were never needed before.
const RESIDENT_SLOPE_KIB_MAX: f64 = 64.0;

/// Shortest run whose slopes are judged: in a shorter one they are those of chance.
const MINUTES_JUDGED_MIN: u64 = 5;

/// What was acknowledged of one sandbox.
#[derive(Debug, Clone, Default)]
struct Known {
    /// What its file holds, and what it may hold if an unanswered write came through.
    token: Option<u64>,
    perhaps: Option<u64>,
    /// An exec that ended, and what it printed.
    exec: Option<(String, u64)>,
}

/// What is done to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Create,
    Write,
    Stop,
    Start,
    Pause,
    Resume,
    Remove,
}

/// Everything of a run.
struct Run {
    yard: Yard,
    random: Random,
    known: BTreeMap<String, Known>,
    serial: u64,
    counts: BTreeMap<&'static str, u64>,
}

/// Runs a soak and tells its figures; fails when something was lost or leaked.
pub(crate) fn run(soak: &Soak) -> Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = soak.seed.unwrap_or(now.as_secs());
    let user = soak.as_user.as_deref();
    say(&format!("seed {seed}, as {}", user.unwrap_or("root")));
    let mut run = Run {
        yard: Yard::new(&soak.product, user)?,
        random: Random::new(seed),
        known: BTreeMap::new(),
        serial: 0,
        counts: BTreeMap::new(),
    };
    let began = Instant::now();
    let result = run.whole(soak, began);
    say(&format!("{:?} in {:.1} min", run.counts, minutes(began)));
    if result.is_err() {
        let log = std::fs::read_to_string(run.yard.state().join("daemon.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        say(&lines[lines.len().saturating_sub(30)..].join("\n"));
    }
    result
}

fn minutes(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() / 60.0
}

impl Run {
    fn whole(&mut self, soak: &Soak, began: Instant) -> Result<()> {
        // Caches of the image and the tables are made by the first sandbox.
        self.yard.run(&["create", "--name", "first"])?;
        self.yard.run(&["rm", "--force", "first"])?;
        let before = self.held_at_rest()?;
        let length = Duration::from_secs(soak.minutes.saturating_mul(60));
        let rest = self.yard.memory()?;
        let mut figures = Figures::default();
        let mut looked = Instant::now();
        let mut kills = 0;
        while began.elapsed() < length && (soak.kills == 0 || kills < soak.kills) {
            let (step, target) = self.choose();
            if soak.kills > 0 {
                self.with_kill(step, &target)
                    .with_context(|| format!("kill {kills} during {step:?} of {target}"))?;
                kills += 1;
            } else {
                self.plainly(step, &target)?;
            }
            if looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                if soak.kills == 0 {
                    figures.add(minutes(began), self.yard.memory()?);
                }
            }
        }
        self.finish(&before)?;
        if soak.kills > 0 {
            ensure!(kills == soak.kills, "only {kills} kills in the time");
            say(&format!("{kills} kills: nothing lost, nothing left"));
            return Ok(());
        }
        let later = self.yard.memory()?;
        say(&format!(
            "daemon without sandboxes: heap in use {:.0} KiB before, {:.0} after; resident {:.0} KiB \
             before, {:.0} after",
            rest.heap, later.heap, rest.resident, later.resident
        ));
        figures.tell(minutes(began) * WARM_UP, soak.minutes >= MINUTES_JUDGED_MIN)
    }

    fn choose(&mut self) -> (Step, String) {
        let names: Vec<String> = self.known.keys().cloned().collect();
        if names.is_empty() || (names.len() < SANDBOXES_MAX && self.random.below(4) == 0) {
            self.serial += 1;
            return (Step::Create, format!("s{}", self.serial));
        }
        let target = names[self.random.below(names.len())].clone();
        let step = match self.random.below(10) {
            0..4 => Step::Write,
            4 => Step::Stop,
            5 => Step::Pause,
            6 => Step::Resume,
            7 | 8 => Step::Start,
            _ => Step::Remove,
        };
        (step, target)
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Starts an operation whose outcome may never be heard.
    fn begin(&mut self, step: Step, target: &str) -> Result<Child> {
        let token = self.serial;
        let script = format!("echo {token} > /root/token && echo {token}");
        let words: Vec<&str> = match step {
            Step::Create => vec!["create", "--name", target],
            Step::Write => vec!["exec", target, "--", "sh", "-c", &script],
            Step::Stop => vec!["stop", target],
            Step::Start => vec!["start", target],
            Step::Pause => vec!["pause", target],
            Step::Resume => vec!["resume", target],
            Step::Remove => vec!["rm", "--force", target],
        };
        let mut command = self.yard.command(&words);
        Ok(command.env("PINFOLD_AUTOSTART", "false").spawn()?)
    }

    /// Takes the outcome of an operation into the model; answers whether it was acknowledged.
    fn end(&mut self, step: Step, target: &str, child: Child) -> Result<bool> {
        let token = self.serial;
        let output = child.wait_with_output()?;
        let done = output.status.success();
        match step {
            Step::Create if done => drop(self.known.insert(target.to_owned(), Known::default())),
            Step::Remove if done => drop(self.known.remove(target)),
            Step::Write => {
                let known = self.known.entry(target.to_owned()).or_default();
                if done {
                    let said = String::from_utf8_lossy(&output.stdout);
                    ensure!(said.trim() == token.to_string(), "an exec printed {said}");
                    (known.token, known.perhaps) = (Some(token), None);
                } else {
                    known.perhaps = Some(token);
                }
            }
            _ => {}
        }
        Ok(done)
    }

    fn plainly(&mut self, step: Step, target: &str) -> Result<()> {
        self.serial += 1;
        let child = self.begin(step, target)?;
        let done = self.end(step, target, child)?;
        self.count(if done { "done" } else { "refused" });
        // A step that the state does not allow is refused; all else has to succeed.
        if !done && matches!(step, Step::Create | Step::Remove) {
            bail!("{step:?} of {target} failed");
        }
        if done && step == Step::Write {
            self.leave_exec(target)?;
        }
        Ok(())
    }

    /// Lets an exec end, and notes what has to be found of it later.
    fn leave_exec(&mut self, target: &str) -> Result<()> {
        let token = self.serial;
        let words = [
            "--json",
            "exec",
            "--detach",
            target,
            "--",
            "echo",
            &token.to_string(),
        ];
        let value: serde_json::Value = serde_json::from_str(&self.yard.run(&words)?)?;
        let exec = value["exec_id"].as_str().context("no exec id")?.to_owned();
        let whole = until(|| {
            let said = self.yard.run(&["logs", target, "--exec", &exec])?;
            Ok(said.trim() == token.to_string())
        })?;
        ensure!(whole, "the output of exec {exec} never came");
        if let Some(known) = self.known.get_mut(target) {
            known.exec = Some((exec, token));
        }
        Ok(())
    }

    fn with_kill(&mut self, step: Step, target: &str) -> Result<()> {
        self.serial += 1;
        let agents = self.agents();
        let child = self.begin(step, target)?;
        let after = self.random.below(KILL_AFTER_MAX_MS);
        wait(Duration::from_millis(u64::try_from(after)?));
        let what = self.random.below(10);
        match what {
            0..2 if !agents.is_empty() => {
                self.count("agents killed");
                let agent = agents[self.random.below(agents.len())];
                self.kill_agent(agent)?;
            }
            2..4 => {
                self.count("launchers killed");
                let named = |words: &[String]| words.get(1).is_some_and(|word| word == "launcher");
                for (pid, words) in self.yard.processes() {
                    if named(&words) {
                        send(pid, Signal::KILL);
                    }
                }
            }
            _ => {
                self.count("daemons killed");
                if let Some(pid) = self.yard.daemon() {
                    send(pid, Signal::KILL);
                    until(|| Ok(!self.yard.is_served()))?;
                }
            }
        }
        let done = self.end(step, target, child)?;
        self.count(if done { "done" } else { "not acknowledged" });
        self.check(step, target)
    }

    /// Kills an agent and sees it go. A frozen one of control groups of version 1 hears it when it
    /// thaws.
    fn kill_agent(&self, agent: i32) -> Result<()> {
        let processes = self.yard.processes();
        let words = processes.iter().find(|(pid, _)| *pid == agent);
        let id = words.and_then(|(_, words)| words.get(2)).cloned();
        send(agent, Signal::KILL);
        let gone = || Ok(!self.agents().contains(&agent));
        if !until_within(DIE_MAX, gone)? {
            let words = ["resume", &id.unwrap_or_default()];
            // What was frozen fails on its way, which is what the next look finds.
            let _answer = self.yard.command(&words).output()?;
            ensure!(until(gone)?, "agent {agent} does not die");
        }
        Ok(())
    }

    fn agents(&self) -> Vec<i32> {
        let processes = self.yard.processes().into_iter();
        let agents = processes.filter(|(_, words)| words.get(1).is_some_and(|word| word == "init"));
        agents.map(|(pid, _)| pid).collect()
    }

    /// Checks both invariants.
    fn check(&mut self, step: Step, target: &str) -> Result<()> {
        let states = self.yard.states()?;
        let listed = |name: &str| states.values().find(|(listed, _)| listed == name);
        if step == Step::Create && listed(target).is_some() {
            self.known.entry(target.to_owned()).or_default();
        }
        if step == Step::Remove && listed(target).is_none() {
            self.known.remove(target);
        }
        for name in self.known.keys() {
            ensure!(listed(name).is_some(), "{name} is lost: {states:?}");
        }
        for (name, _) in states.values() {
            ensure!(
                self.known.contains_key(name),
                "{name} was removed: {states:?}"
            );
        }
        self.yard.check_owned(&states)?;
        self.check_content(&states, target)
    }

    /// Checks the sandbox that was in use, and one more.
    fn check_content(&mut self, states: &States, target: &str) -> Result<()> {
        let names: Vec<String> = self.known.keys().cloned().collect();
        let mut looked_at = vec![target.to_owned()];
        if !names.is_empty() {
            looked_at.push(names[self.random.below(names.len())].clone());
        }
        looked_at.dedup();
        for name in looked_at {
            let Some(known) = self.known.get(&name).cloned() else {
                continue;
            };
            if let Some((exec, token)) = &known.exec {
                let said = self.yard.run(&["logs", &name, "--exec", exec])?;
                ensure!(
                    said.trim() == token.to_string(),
                    "exec {exec} of {name} printed {said}"
                );
            }
            let state = states.values().find(|(listed, _)| *listed == name);
            match state.map(|(_, state)| state.as_str()) {
                Some("running" | "paused") | None => {}
                Some(_) => drop(self.yard.run(&["start", &name])?),
            }
            let script = "cat /root/token 2>/dev/null || true";
            let said = self.yard.run(&["exec", &name, "--", "sh", "-c", script])?;
            let found = said.trim().parse().ok();
            ensure!(
                found == known.token || (found.is_some() && found == known.perhaps),
                "{name} holds {said:?} and not {:?} or {:?}",
                known.token,
                known.perhaps
            );
            if let Some(known) = self.known.get_mut(&name) {
                (known.token, known.perhaps) = (found, None);
            }
            if self.random.below(3) == 0 {
                self.leave_exec(&name)?;
            }
        }
        Ok(())
    }

    /// Looks at what is held once the pools that are filled ahead are full.
    fn held_at_rest(&self) -> Result<Held> {
        let mut held = self.yard.held()?;
        until(|| {
            let later = self.yard.held()?;
            let same = later == held;
            held = later;
            Ok(same)
        })?;
        Ok(held)
    }

    /// Removes everything and compares what is left with what there was.
    fn finish(&mut self, before: &Held) -> Result<()> {
        self.yard.run(&["rm", "--all", "--force"])?;
        self.known.clear();
        let states = self.yard.states()?;
        ensure!(states.is_empty(), "left: {states:?}");
        self.yard.check_owned(&states)?;
        let mut after = self.yard.held()?;
        // Connections of the last command end a moment after it, and pools are filled again.
        let back = until(|| {
            after = self.yard.held()?;
            Ok(after.leaks(before).is_empty())
        })?;
        say(&format!("held before: {before}"));
        say(&format!("held after:  {after}"));
        ensure!(back, "leaks: {}", after.leaks(before).join("; "));
        say("0 leaks of processes, descriptors, mounts, namespaces, control groups, ids and files");
        Ok(())
    }
}

/// The daemon's memory in the course of a run.
#[derive(Debug, Default)]
struct Figures {
    resident: Trend,
    anonymous: Trend,
    heap: Trend,
}

impl Figures {
    fn add(&mut self, minute: f64, memory: Memory) {
        self.resident.add(minute, memory.resident);
        self.anonymous.add(minute, memory.anonymous);
        self.heap.add(minute, memory.heap);
    }

    /// Tells the slopes after the warm-up; fails when one that is judged is not flat.
    fn tell(&self, warm: f64, judged: bool) -> Result<()> {
        let resident = tell("resident", &self.resident.since(warm))?;
        tell("anonymous", &self.anonymous.since(warm))?;
        let heap = tell("heap in use", &self.heap.since(warm))?;
        if !judged {
            say("too short a run to judge slopes by");
            return Ok(());
        }
        ensure!(
            heap < HEAP_SLOPE_KIB_MAX,
            "the heap grows by {heap:.1} KiB/min"
        );
        ensure!(
            resident < RESIDENT_SLOPE_KIB_MAX,
            "memory grows by {resident:.1} KiB/min"
        );
        Ok(())
    }
}

fn tell(what: &str, figures: &Trend) -> Result<f64> {
    let (first, last) = figures.first_and_last().context("no figures of memory")?;
    let slope = figures.slope();
    say(&format!(
        "daemon {what}: {first:.0} KiB after the warm-up, {last:.0} last, {:.0} most of {}; \
         slope {slope:.1} KiB/min",
        figures.most(),
        figures.len()
    ));
    Ok(slope)
}
