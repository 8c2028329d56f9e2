//! `doctor --attack`: runs attacks inside sandboxes of this host and says which held.
//!
//! The attacks are a program of their own that no product carries; this only makes what it reaches
//! for, runs it, and judges.

mod bait;
mod exposure;
mod report;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use pinfold_attack::{ATTACKS, FACTS_VARIABLE, Facts, NEIGHBOUR_READY, Outcome, Said};
use pinfold_client::WriteOptions;
use pinfold_types::SandboxState;
use pinfold_types::api::{CreateSandboxRequest, ExecRequest, Sandbox};
use pinfold_types::spec::{MountSpec, Resources, SandboxSpec};
use pinfold_types::units::ByteSize;

use self::bait::Bait;
use self::report::{Judged, Report};
use crate::arguments::DoctorArguments;
use crate::context::{Context, api_error};
use crate::error::{CliError, exit_code};

/// Where the program is put inside.
const PROGRAM: &str = "/pinfold-attack";
/// Memory of each sandbox: small, so that attacks on it are quick.
const MEMORY_MIB: u64 = 96;
/// Processes of each sandbox: the fewest that every way of limiting them can hold.
const PROCESSES: u32 = 320;
/// Longest that all attacks together may take, and any alone.
const ALL_MS_MAX: u64 = 120_000;
const ONE_MS_MAX: u64 = 20_000;
/// Looks at whether the neighbour is ready, and the time between two.
const LOOKS_MAX: u32 = 500;
const LOOK: Duration = Duration::from_millis(20);
/// Looks at a sandbox that may be ending.
const ENDING_LOOKS: u32 = 10;

/// `doctor --attack`. Ends with 1 when an attack worked.
pub(super) async fn attack(context: &Context, arguments: &DoctorArguments) -> Result<u8, CliError> {
    for name in &arguments.only {
        if pinfold_attack::attack(name).is_none() {
            return Err(CliError::new(format!("there is no attack `{name}`"))
                .hint("docs/reference/attacks.md lists them all")
                .exit(2));
        }
    }
    let path = arguments.attack_program.as_deref().ok_or_else(|| {
        CliError::new("the program that attacks is not part of pinfold")
            .hint(
                "build it with `cargo xtask attack`, and name it with --attack-program or \
                 PINFOLD_ATTACK_BIN",
            )
            .exit(2)
    })?;
    let program = read_program(path)?;
    let missing = missing(path)?;
    let bait = Bait::lay().map_err(|error| {
        CliError::new("failed to make what the attacks reach for").caused_by(&error)
    })?;
    let mut made = Vec::new();
    let judged = Attacker {
        context,
        program,
        missing,
        bait: &bait,
        only: &arguments.only,
    }
    .run(&mut made)
    .await;
    for sandbox in &made {
        // What failed is told by the attacks; what is left is the next sweep's.
        let _gone = context.client.remove(sandbox.id.as_str(), false).await;
    }
    let report = judged?;
    report.print(context.printer)?;
    Ok(if report.is_broken() { exit_code::NO } else { 0 })
}

fn read_program(path: &Path) -> Result<Bytes, CliError> {
    std::fs::read(path).map(Bytes::from).map_err(|error| {
        CliError::new(format!(
            "failed to read the attack program {}",
            path.display()
        ))
        .caused_by(&error)
    })
}

/// Asks the program, here where nothing is refused to it, what this host's kernel does not have.
fn missing(path: &Path) -> Result<BTreeMap<String, String>, CliError> {
    let failed = |error: &dyn std::error::Error| {
        CliError::new("failed to ask the attack program what this kernel lacks").caused_by(error)
    };
    // With a directory in it no other program of that name is found.
    let path = path.canonicalize().map_err(|error| failed(&error))?;
    let output = Command::new(path)
        .arg("missing")
        .stderr(Stdio::null())
        .output()
        .map_err(|error| failed(&error))?;
    serde_json::from_slice(&output.stdout).map_err(|error| failed(&error))
}

/// What is needed to attack.
struct Attacker<'a> {
    context: &'a Context,
    program: Bytes,
    /// What this host's kernel lacks, by attack.
    missing: BTreeMap<String, String>,
    bait: &'a Bait,
    only: &'a [String],
}

impl Attacker<'_> {
    /// Makes sandboxes, notes them in `made`, and runs every attack that was asked for.
    async fn run(&self, made: &mut Vec<Sandbox>) -> Result<Report, CliError> {
        let (neighbour, _) = self.make(made).await?;
        self.seat(&neighbour).await?;
        let (sandbox, resources) = self.make(made).await?;
        let facts = self.facts(&sandbox, &neighbour, &resources);
        let mut judged: Vec<Judged> = Vec::new();
        let said = self.attempt(&sandbox, &facts, None).await;
        for said in said.unwrap_or_default() {
            judged.extend(Judged::of(&said));
        }
        // What brought the sandbox down took its answer along: each of the rest goes alone.
        let mut current = sandbox.clone();
        for attack in ATTACKS {
            let wanted = self.only.is_empty() || self.only.iter().any(|only| only == attack.name);
            if !wanted || judged.iter().any(|known| known.name == attack.name) {
                continue;
            }
            if !self.is_running(&current).await {
                current = self.make(made).await?.0;
            }
            let said = self.attempt(&current, &facts, Some(attack.name)).await;
            let said = said.unwrap_or_default();
            let answer = said.iter().find_map(Judged::of);
            judged.push(match answer {
                Some(answer) => answer,
                None if self.stays_up(&current).await => {
                    Judged::new(attack, Outcome::Failed, "the attacker was ended")
                }
                None => Judged::new(attack, Outcome::Worked, "the sandbox did not survive it"),
            });
        }
        Ok(Report::new(&sandbox, judged))
    }

    /// Makes a sandbox with the most limits that this host can hold.
    async fn make(&self, made: &mut Vec<Sandbox>) -> Result<(Sandbox, Resources), CliError> {
        let memory = Some(ByteSize::from_mib(MEMORY_MIB));
        let pids = Some(PROCESSES);
        let none = Resources::default();
        let mut last = None;
        for resources in [
            Resources {
                memory,
                pids,
                ..none
            },
            Resources { pids, ..none },
            none,
        ] {
            let spec = SandboxSpec {
                resources,
                volatile: true,
                mounts: vec![MountSpec {
                    source: self.bait.share().display().to_string(),
                    target: pinfold_attack::SHARE.to_owned(),
                    writable: false,
                }],
                ..SandboxSpec::default()
            };
            let request = CreateSandboxRequest {
                spec,
                ..CreateSandboxRequest::default()
            };
            match self.context.client.create(&request).await {
                Ok(sandbox) => {
                    made.push(sandbox.clone());
                    self.give_program(&sandbox).await?;
                    return Ok((sandbox, resources));
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or_else(|| CliError::new("failed to make a sandbox"), api_error))
    }

    async fn give_program(&self, sandbox: &Sandbox) -> Result<(), CliError> {
        let options = WriteOptions {
            mode: Some(0o755),
            ..WriteOptions::default()
        };
        let content = futures::stream::iter([Ok(self.program.clone())]);
        self.context
            .client
            .write_file(sandbox.id.as_str(), PROGRAM, &options, content)
            .await
            .map(drop)
            .map_err(api_error)
    }

    /// Has the neighbour lay out what is attacked, and waits until it has.
    async fn seat(&self, neighbour: &Sandbox) -> Result<(), CliError> {
        let client = &self.context.client;
        let id = neighbour.id.as_str();
        let request = ExecRequest {
            command: vec![PROGRAM.to_owned(), "sit".to_owned()],
            ..ExecRequest::default()
        };
        client.exec_start(id, &request).await.map_err(api_error)?;
        for _ in 0..LOOKS_MAX {
            if client.stat(id, NEIGHBOUR_READY, false).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(CliError::new(
            "the sandbox to be attacked does not get ready",
        ))
    }

    fn facts(&self, own: &Sandbox, neighbour: &Sandbox, resources: &Resources) -> Facts {
        Facts {
            memory_bytes: resources.memory.map(|bytes| bytes.0),
            processes: resources.pids.map(u64::from),
            share: true,
            missing: self.missing.clone(),
            ids_first: first_id(own),
            neighbour_ids_first: first_id(neighbour),
            ..self.bait.facts()
        }
    }

    async fn is_running(&self, sandbox: &Sandbox) -> bool {
        let found = self.context.client.get(sandbox.id.as_str()).await;
        // What the attack before has just brought down may still be called running.
        found.is_ok_and(|found| found.state == SandboxState::Running)
            && self.stays_up(sandbox).await
    }

    /// Returns whether programs can still be run in a sandbox, also some moments from now: one that
    /// is ending still runs them for a while.
    async fn stays_up(&self, sandbox: &Sandbox) -> bool {
        for _ in 0..ENDING_LOOKS {
            if !self.answers(sandbox).await {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
        true
    }

    /// Returns whether programs can still be run in a sandbox.
    async fn answers(&self, sandbox: &Sandbox) -> bool {
        let request = ExecRequest {
            command: vec![PROGRAM.to_owned(), "--version".to_owned()],
            timeout_ms: Some(ONE_MS_MAX),
            ..ExecRequest::default()
        };
        let result = self
            .context
            .client
            .exec(sandbox.id.as_str(), &request)
            .await;
        result.is_ok_and(|result| result.exit_code == 0)
    }

    /// Runs one attack, or all that were asked for; nothing when the sandbox went down.
    async fn attempt(
        &self,
        sandbox: &Sandbox,
        facts: &Facts,
        one: Option<&str>,
    ) -> Option<Vec<Said>> {
        let mut command = vec![PROGRAM.to_owned(), "run".to_owned()];
        let chosen = self.only.iter().map(String::as_str);
        let chosen: Vec<&str> = one.map_or_else(|| chosen.collect(), |name| vec![name]);
        for name in chosen {
            command.extend(["--only".to_owned(), name.to_owned()]);
        }
        let facts = serde_json::to_string(facts).ok()?;
        let request = ExecRequest {
            command,
            env: [(FACTS_VARIABLE.to_owned(), facts)].into(),
            timeout_ms: Some(one.map_or(ALL_MS_MAX, |_| ONE_MS_MAX)),
            ..ExecRequest::default()
        };
        let most = Duration::from_millis(2 * ALL_MS_MAX);
        let exec = self.context.client.exec(sandbox.id.as_str(), &request);
        let result = tokio::time::timeout(most, exec).await.ok()?.ok()?;
        // A guest says this: what is no answer is none.
        let lines = result.stdout.lines();
        Some(
            lines
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect(),
        )
    }
}

/// Reads the first host id out of `range BASE+COUNT`.
fn first_id(sandbox: &Sandbox) -> Option<u32> {
    let ids = &sandbox.granted.as_ref()?.ids;
    ids.strip_prefix("range ")?.split('+').next()?.parse().ok()
}
