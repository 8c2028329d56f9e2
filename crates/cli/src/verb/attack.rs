//! `doctor --attack`: runs attacks inside sandboxes of this host and says which held.
//!
//! The attacks are a program of their own that no product carries; this only makes what it reaches
//! for, runs it, and judges.

mod bait;
mod exposure;
mod outside;
mod report;
mod stand;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
#[cfg(feature = "test-weaken")]
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pinfold_attack::{
    ATTACKS, Attack, FACTS_VARIABLE, Facts, HARMLESS, NEIGHBOUR_READY, OUTSIDE, Outcome, Said,
};
use pinfold_client::WriteOptions;
use pinfold_types::SandboxState;
use pinfold_types::api::{CreateSandboxRequest, ExecRequest, Sandbox};
use pinfold_types::spec::{IsolationTier, MountSpec, Resources, SandboxSpec};
use pinfold_types::units::ByteSize;

use self::bait::Bait;
use self::outside::Outsider;
use self::report::{Judged, Report};
use self::stand::Stand;
use crate::arguments::DoctorArguments;
use crate::context::{Context, api_error};
use crate::error::{CliError, exit_code};

/// Where the program is put inside.
const PROGRAM: &str = "/pinfold-attack";
/// Drivers whose sandboxes can be attacked.
const DRIVERS: &[&str] = if cfg!(feature = "test-weaken") {
    &["native", "fake"]
} else {
    &["native"]
};
/// Memory of each sandbox: small, so that attacks on it are quick.
const MEMORY_MIB: u64 = 96;
/// Processes of each sandbox: the fewest that every way of limiting them can hold.
const PROCESSES: u32 = 320;
/// Disk of each sandbox, and the files on it: less than its memory, where it may be kept.
const DISK_MIB: u64 = 64;
const FILES: u64 = 4000;
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
    check_driver(arguments)?;
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
    let stand = stand_for(arguments, &bait).await?;
    let other = match &stand {
        Some(stand) => Some(context.of(&stand.socket()).await?),
        None => None,
    };
    let mut made = Vec::new();
    let attacker = Attacker {
        context: other.as_ref().unwrap_or(context),
        path,
        program,
        missing,
        bait: &bait,
        only: &arguments.only,
        harmless: stand.is_some(),
    };
    let judged = attacker.run(&mut made).await;
    for sandbox in &made {
        // What failed is told by the attacks; what is left is the next sweep's.
        let client = &attacker.context.client;
        let _gone = client.remove(sandbox.id.as_str(), false).await;
    }
    if let Some(stand) = stand {
        stand.close().await;
    }
    let report = judged?;
    report.print(context.printer)?;
    Ok(if report.is_broken() { exit_code::NO } else { 0 })
}

/// Returns what is attacked instead of the daemon, for a driver that the daemon does not have.
#[cfg(feature = "test-weaken")]
async fn stand_for(arguments: &DoctorArguments, bait: &Bait) -> Result<Option<Stand>, CliError> {
    if check_driver(arguments)? != "fake" {
        return Ok(None);
    }
    let failed = || CliError::new("failed to make the driver `fake`");
    let directory = bait.directory().join("fake");
    let (state, agent) = (directory.join("instances"), directory.join("agent"));
    let prepared = std::fs::create_dir_all(&state)
        .and_then(|()| std::fs::write(&agent, crate::agent_binary::bytes()))
        .and_then(|()| {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(&agent, std::fs::Permissions::from_mode(0o755))
        });
    prepared.map_err(|error| failed().caused_by(&error))?;
    let driver = Arc::new(pinfold_driver::fake::FakeDriver::new(state, agent));
    Stand::open(&directory.join("state"), driver)
        .await
        .map(Some)
}

/// Returns what is attacked instead of the daemon: nothing, which has every driver there is.
#[cfg(not(feature = "test-weaken"))]
#[expect(clippy::unused_async, reason = "it waits in builds for tests")]
async fn stand_for(arguments: &DoctorArguments, _bait: &Bait) -> Result<Option<Stand>, CliError> {
    check_driver(arguments).map(|_| None)
}

fn check_driver(arguments: &DoctorArguments) -> Result<&str, CliError> {
    let driver = arguments.driver.as_str();
    if DRIVERS.contains(&driver) {
        return Ok(driver);
    }
    Err(CliError::new(format!("there is no driver `{driver}`"))
        .hint(format!("there is: {}", DRIVERS.join(", ")))
        .exit(2))
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
    path: &'a Path,
    program: Bytes,
    /// What this host's kernel lacks, by attack.
    missing: BTreeMap<String, String>,
    bait: &'a Bait,
    only: &'a [String],
    /// Nothing is separated, so only what does no harm is tried.
    harmless: bool,
}

impl Attacker<'_> {
    /// Makes sandboxes, notes them in `made`, and runs every attack that was asked for.
    async fn run(&self, made: &mut Vec<Sandbox>) -> Result<Report, CliError> {
        let (sandbox, resources) = self.make(made).await?;
        let mut judged = Vec::new();
        let tried = |attack: &&Attack| !self.harmless || HARMLESS.contains(&attack.name);
        let (inside, not): (Vec<_>, Vec<_>) = self.wanted(ATTACKS).partition(tried);
        if !inside.is_empty() {
            let mut facts = self.facts(&sandbox, &resources);
            if !self.harmless {
                let (neighbour, _) = self.make(made).await?;
                self.seat(&neighbour).await?;
                facts.neighbour_ids_first = first_id(&neighbour);
            }
            judged = self.inside(&sandbox, &facts, &inside, made).await?;
        }
        let (outside, more): (Vec<_>, Vec<_>) = self.wanted(OUTSIDE).partition(|_| !self.harmless);
        let outsider = Outsider {
            context: self.context,
            program: self.path,
            bait: self.bait,
        };
        judged.extend(outsider.run(outside).await?);
        judged.extend(not.into_iter().chain(more).map(|attack| {
            let detail = "nothing is separated here: it would harm this host";
            Judged::new(attack, Outcome::NotExpressible, detail)
        }));
        Ok(Report::new(&sandbox, judged))
    }

    /// Returns those attacks of a list that were asked for.
    fn wanted(&self, attacks: &'static [Attack]) -> impl Iterator<Item = &'static Attack> {
        attacks.iter().filter(|attack| {
            self.only.is_empty() || self.only.iter().any(|only| only == attack.name)
        })
    }

    /// Runs attacks inside: all in one go, then each that gave no answer alone.
    async fn inside(
        &self,
        sandbox: &Sandbox,
        facts: &Facts,
        attacks: &[&'static Attack],
        made: &mut Vec<Sandbox>,
    ) -> Result<Vec<Judged>, CliError> {
        let mut judged: Vec<Judged> = Vec::new();
        let said = self.attempt(sandbox, facts, attacks).await;
        for said in said.unwrap_or_default() {
            judged.extend(Judged::of(&said));
        }
        // What brought the sandbox down took its answer along: each of the rest goes alone.
        let mut current = sandbox.clone();
        for attack in attacks {
            if judged.iter().any(|known| known.name == attack.name) {
                continue;
            }
            if !self.is_running(&current).await {
                current = self.make(made).await?.0;
            }
            let said = self.attempt(&current, facts, &[attack]).await;
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
        Ok(judged)
    }

    /// Makes a sandbox with the most limits that this host can hold.
    async fn make(&self, made: &mut Vec<Sandbox>) -> Result<(Sandbox, Resources), CliError> {
        let memory = Some(ByteSize::from_mib(MEMORY_MIB));
        let pids = Some(PROCESSES);
        let disk = Some(ByteSize::from_mib(DISK_MIB));
        let inodes = Some(FILES);
        let none = Resources::default();
        let mut last = None;
        for resources in [
            Resources {
                memory,
                pids,
                disk,
                inodes,
                ..none
            },
            Resources {
                memory,
                pids,
                ..none
            },
            Resources { pids, ..none },
            none,
        ] {
            let share = MountSpec {
                source: self.bait.share().display().to_string(),
                target: pinfold_attack::SHARE.to_owned(),
                writable: false,
            };
            let spec = SandboxSpec {
                resources,
                volatile: true,
                mounts: if self.harmless {
                    Vec::new()
                } else {
                    vec![share]
                },
                isolation: if self.harmless {
                    IsolationTier::None
                } else {
                    IsolationTier::Namespace
                },
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
        if sandbox_is_plain(sandbox) {
            return Ok(());
        }
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

    fn facts(&self, own: &Sandbox, resources: &Resources) -> Facts {
        Facts {
            memory_bytes: resources.memory.map(|bytes| bytes.0),
            processes: resources.pids.map(u64::from),
            missing: self.missing.clone(),
            disk_bytes: resources.disk.map(|bytes| bytes.0),
            disk_files: resources.inodes,
            share: !self.harmless,
            ids_first: first_id(own),
            ..self.bait.facts()
        }
    }

    /// Where the program is inside: where nothing is separated, where it is anyway.
    fn program_inside(&self, sandbox: &Sandbox) -> String {
        if sandbox_is_plain(sandbox) {
            self.path.display().to_string()
        } else {
            PROGRAM.to_owned()
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
            command: vec![self.program_inside(sandbox), "--version".to_owned()],
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

    /// Runs attacks; nothing when the sandbox went down.
    async fn attempt(
        &self,
        sandbox: &Sandbox,
        facts: &Facts,
        attacks: &[&Attack],
    ) -> Option<Vec<Said>> {
        let mut command = vec![self.program_inside(sandbox), "run".to_owned()];
        for attack in attacks {
            command.extend(["--only".to_owned(), attack.name.to_owned()]);
        }
        let alone = attacks.len() == 1;
        let facts = serde_json::to_string(facts).ok()?;
        let request = ExecRequest {
            command,
            env: [(FACTS_VARIABLE.to_owned(), facts)].into(),
            timeout_ms: Some(if alone { ONE_MS_MAX } else { ALL_MS_MAX }),
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

/// Returns whether nothing separates a sandbox from this host.
fn sandbox_is_plain(sandbox: &Sandbox) -> bool {
    let granted = sandbox.granted.as_ref();
    granted.is_some_and(|granted| granted.isolation == IsolationTier::None)
}

/// Reads the first host id out of `range BASE+COUNT`.
fn first_id(sandbox: &Sandbox) -> Option<u32> {
    let ids = &sandbox.granted.as_ref()?.ids;
    ids.strip_prefix("range ")?.split('+').next()?.parse().ok()
}
