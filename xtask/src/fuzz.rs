//! Runs the fuzz targets on the stable toolchain, which has the coverage passes but no sanitizer.
//!
//! Each target runs in a directory of its own in the system's temporary one, and as nobody when we
//! are root: what breaks out of a target must not meet the rights of whoever fuzzes.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};
use clap::Args;

/// Instruments every crate so that the engine sees which edges run and what is compared.
const RUSTFLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0";

/// Named so that the flags do not reach build scripts and macros.
const TARGET: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-unknown-linux-gnu"
} else {
    "x86_64-unknown-linux-gnu"
};

/// Most memory of a target's process; what the product may allocate is bounded far below.
const RESIDENT_MIB_MAX: &str = "-rss_limit_mb=1024";

/// Longest time for one input in seconds: a thousand times what the slowest takes.
const INPUT_TIME_MAX: &str = "-timeout=25";

/// Longest input: an archive of a few files. Larger ones only make each run slower.
const INPUT_BYTES_MAX: &str = "-max_len=16384";

/// Who a target runs as when we are root.
const NOBODY: &str = "65534";

/// What to fuzz, and for how long.
#[derive(Debug, Clone, Args)]
pub(crate) struct FuzzArguments {
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only this target; may be given more than once
    #[arg(long = "target")]
    targets: Vec<String>,
    /// Targets at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    jobs: u8,
    /// Give one input to the target named, and nothing else
    #[arg(long, requires = "targets")]
    replay: Option<PathBuf>,
    /// Add to fuzz/corpus what earlier runs found that reaches further, in place of running
    #[arg(long, conflicts_with_all = ["replay", "seconds"])]
    keep: bool,
}

/// Where everything of a run is.
struct Fuzz<'a> {
    root: &'a Path,
    /// What is built, and what runs leave: corpora, findings and logs.
    made: PathBuf,
    arguments: &'a FuzzArguments,
}

/// What a run of a target has shown.
struct Outcome {
    target: String,
    executions: String,
    per_second: String,
    /// Edges that the checked-in corpus reaches, and that the run reached in the end.
    covered: (String, String),
    corpus: usize,
    findings: Vec<PathBuf>,
    failed: bool,
}

/// Builds the targets, runs them and prints what each has shown.
pub(crate) fn run(root: &Path, arguments: &FuzzArguments) -> Result<()> {
    let fuzz = Fuzz {
        root,
        made: crate::target_directory(root).join("fuzz"),
        arguments,
    };
    let targets = fuzz.chosen()?;
    if !Path::new("/usr/bin/c++").exists() {
        crate::setup::install(&["g++"])?;
    }
    fuzz.build(&targets)?;
    if let (Some(input), [target]) = (&arguments.replay, targets.as_slice()) {
        let mut program = Command::new(fuzz.program(target));
        return crate::run(program.arg(input).env("RUST_BACKTRACE", "0"));
    }
    if arguments.keep {
        return targets.iter().try_for_each(|target| fuzz.keep(target));
    }
    let outcomes = fuzz.run_all(targets)?;
    report(&outcomes);
    if outcomes.iter().any(|outcome| outcome.failed) {
        bail!("there are findings; add each to fuzz/corpus/TARGET when it is mended");
    }
    Ok(())
}

impl Fuzz<'_> {
    fn chosen(&self) -> Result<Vec<String>> {
        let mut known = Vec::new();
        for entry in fs::read_dir(self.root.join("fuzz/targets")).context("no targets")? {
            let name = entry?.file_name();
            known.extend(
                name.to_str()
                    .and_then(|name| name.strip_suffix(".rs"))
                    .map(str::to_owned),
            );
        }
        known.sort();
        let wanted = &self.arguments.targets;
        if let Some(unknown) = wanted.iter().find(|name| !known.contains(name)) {
            bail!("there is no target {unknown}: {}", known.join(", "));
        }
        Ok(if wanted.is_empty() {
            known
        } else {
            wanted.clone()
        })
    }

    fn build(&self, targets: &[String]) -> Result<()> {
        // The command line embeds an agent, which nothing here starts.
        let agent = match std::env::var_os("PINFOLD_AGENT_BIN") {
            Some(agent) => PathBuf::from(agent),
            None => crate::agent::build(self.root, crate::agent::FOR_TESTS)?,
        };
        let mut cargo = Command::new("cargo");
        cargo
            .args(["build", "--quiet", "--locked", "--package", "pinfold-fuzz"])
            .args(["--profile", "fuzz", "--target", TARGET])
            .env("RUSTFLAGS", RUSTFLAGS)
            .env("CARGO_TARGET_DIR", &self.made)
            .env("PINFOLD_AGENT_BIN", agent)
            .current_dir(self.root);
        for target in targets {
            cargo.args(["--bin", target]);
        }
        crate::run(&mut cargo)
    }

    fn program(&self, target: &str) -> PathBuf {
        self.made.join(TARGET).join("fuzz").join(target)
    }

    fn run_all(&self, targets: Vec<String>) -> Result<Vec<Outcome>> {
        let waiting = Mutex::new(VecDeque::from(targets));
        let outcomes = Mutex::new(Vec::new());
        let next = || {
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.pop_front()
        };
        std::thread::scope(|scope| {
            for _ in 0..self.arguments.jobs {
                scope.spawn(|| {
                    while let Some(target) = next() {
                        let outcome = self.run_one(&target);
                        let mut done = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
                        done.push(outcome.with_context(|| format!("failed to fuzz {target}")));
                    }
                });
            }
        });
        let outcomes = outcomes.into_inner();
        let mut outcomes: Vec<Outcome> = outcomes
            .unwrap_or_else(PoisonError::into_inner)
            .into_iter()
            .collect::<Result<_>>()?;
        outcomes.sort_by(|a, b| a.target.cmp(&b.target));
        Ok(outcomes)
    }

    fn run_one(&self, target: &str) -> Result<Outcome> {
        let room = Room::make(target)?;
        let grown = self.made.join("corpus").join(target);
        fs::create_dir_all(&grown)?;
        fs::copy(self.program(target), room.path("program"))?;
        copy_files(
            &self.root.join("fuzz/corpus").join(target),
            &room.path("seeds"),
        )?;
        copy_files(&grown, &room.path("grown"))?;
        let words = self.root.join("fuzz/dictionaries").join(target);
        let mut program = room.command()?;
        program
            .arg(format!("-max_total_time={}", self.arguments.seconds))
            .args([INPUT_TIME_MAX, RESIDENT_MIB_MAX, INPUT_BYTES_MAX])
            .args(["-print_final_stats=1", "-artifact_prefix=findings/"]);
        if words.exists() {
            fs::copy(&words, room.path("words"))?;
            program.arg("-dict=words");
        }
        let log_file = self.made.join(format!("{target}.log"));
        let log = File::create(&log_file)?;
        let status = program
            .args(["grown", "seeds"])
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()
            .with_context(|| format!("failed to start {program:?}"))?;
        copy_files(&room.path("grown"), &grown)?;
        let findings = self.made.join("findings").join(target);
        let names = copy_files(&room.path("findings"), &findings)?;
        let log = fs::read(&log_file)?;
        let log = String::from_utf8_lossy(&log);
        Ok(Outcome {
            target: target.to_owned(),
            executions: statistic(&log, "stat::number_of_executed_units:"),
            per_second: statistic(&log, "stat::average_exec_per_sec:"),
            covered: covered(&log),
            corpus: fs::read_dir(&grown)?.count(),
            findings: names.iter().map(|name| findings.join(name)).collect(),
            failed: !status.success(),
        })
    }

    /// Adds what reaches further than the checked-in corpus to it.
    fn keep(&self, target: &str) -> Result<()> {
        let corpus = self.root.join("fuzz/corpus").join(target);
        let grown = self.made.join("corpus").join(target);
        fs::create_dir_all(&grown)?;
        crate::run(
            Command::new(self.program(target))
                .args(["-merge=1", INPUT_BYTES_MAX])
                .args([corpus, grown]),
        )
    }
}

/// A directory that a target runs in.
struct Room(PathBuf);

impl Room {
    fn make(target: &str) -> Result<Self> {
        let name = format!("pinfold-fuzz-{}-{target}", std::process::id());
        let room = Self(std::env::temp_dir().join(name));
        for part in ["", "seeds", "grown", "findings"] {
            fs::create_dir(room.path(part)).context("failed to make a directory to run in")?;
        }
        Ok(room)
    }

    fn path(&self, part: &str) -> PathBuf {
        self.0.join(part)
    }

    /// Prepares the program; as nobody when we are root.
    fn command(&self) -> Result<Command> {
        let program = self.path("program");
        let mut command = if crate::setup::is_root() {
            let owner = format!("{NOBODY}:{NOBODY}");
            crate::run(Command::new("chown").args(["-R", &owner]).arg(&self.0))?;
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
                .arg(program);
            command
        } else {
            Command::new(program)
        };
        // A trace is made within the allocator's limit and takes longer than an input may.
        command.current_dir(&self.0).env("RUST_BACKTRACE", "0");
        Ok(command)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // What is left is in the temporary directory, where it hurts nobody.
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Copies the files of one directory into another and returns their names.
fn copy_files(from: &Path, to: &Path) -> Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("no {}", from.display()))? {
        let entry = entry?;
        let name = PathBuf::from(entry.file_name());
        fs::copy(entry.path(), to.join(&name))?;
        names.push(name);
    }
    Ok(names)
}

/// Finds a number that the engine prints in the end.
fn statistic(log: &str, name: &str) -> String {
    log.lines()
        .find_map(|line| line.strip_prefix(name))
        .map_or("?", str::trim)
        .to_owned()
}

/// Finds how many edges were covered by the corpus and in the end.
fn covered(log: &str) -> (String, String) {
    let number = |line: &str| {
        let words = line.split_whitespace();
        words
            .skip_while(|word| *word != "cov:")
            .nth(1)
            .map(str::to_owned)
    };
    let first = log
        .lines()
        .find(|line| line.contains("INITED"))
        .and_then(number);
    let last = log.lines().rev().find_map(number);
    let or_unknown = |found: Option<String>| found.unwrap_or_else(|| "?".to_owned());
    (or_unknown(first), or_unknown(last))
}

#[expect(clippy::print_stdout, reason = "the table is what the task is for")]
fn report(outcomes: &[Outcome]) {
    println!("| target | executions | per second | edges covered | corpus | findings |");
    println!("|---|--:|--:|--:|--:|--:|");
    for outcome in outcomes {
        println!(
            "| `{}` | {} | {} | {} → {} | {} | {} |",
            outcome.target,
            outcome.executions,
            outcome.per_second,
            outcome.covered.0,
            outcome.covered.1,
            outcome.corpus,
            outcome.findings.len()
        );
    }
    for outcome in outcomes.iter().filter(|outcome| outcome.failed) {
        let target = &outcome.target;
        println!("\n{target} failed; its last words are in {target}.log");
        for finding in &outcome.findings {
            let finding = finding.display();
            println!("cargo xtask fuzz --target {target} --replay {finding}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_engine_prints_is_understood() {
        let log = "#1\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 30Mb\n\
                   #9\tNEW    cov: 20 ft: 33 corp: 2/9b lim: 4 exec/s: 0 rss: 30Mb\n\
                   stat::number_of_executed_units: 4711\n";
        assert_eq!(covered(log), ("12".to_owned(), "20".to_owned()));
        assert_eq!(statistic(log, "stat::number_of_executed_units:"), "4711");
        assert_eq!(statistic(log, "stat::average_exec_per_sec:"), "?");
    }
}
