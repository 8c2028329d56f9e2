//! Starting execs and writing down what they do.

mod follow;

use std::sync::{Arc, PoisonError};

use pinfold_driver::agent::AgentStart;
use pinfold_types::api::Exec;
use pinfold_types::{ErrorCode, ExecId, ExecSpec, SandboxId, SandboxSpec, crash_point};
use serde_json::json;

use crate::activity::Lease;
use crate::core::Core;
use crate::entry::{Entry, Live};
use crate::error::{EngineError, chain};
use crate::journal::{Journal, JournalWriter};
use crate::outbox;
use crate::quota::Place;
use crate::store::{ExecRow, Inserted};

pub(crate) use follow::{BATCH_BYTES, Follower};

/// Begins the tag of every exec that the engine starts; agents may know others.
pub(crate) const TAG: &str = "pinfold";
/// The tag of an exec with back-pressure.
pub(crate) const TAG_BACK_PRESSURE: &str = "pinfold:back-pressure";

/// Search path when neither the image nor the caller gives one.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Wait before an agent that did not answer is asked again.
const ASK_AGAIN_TIME: std::time::Duration = std::time::Duration::from_secs(2);
/// Kind of terminal when the caller names none.
const TERM_DEFAULT: &str = "xterm-256color";
/// Directory that execs start in when it is there and nobody says otherwise.
const WORKSPACE: &str = "/workspace";

/// An exec that has not ended, as far as the engine knows.
#[derive(Debug)]
pub(crate) struct ExecCell {
    pub(crate) row: ExecRow,
    pub(crate) journal: Arc<Journal>,
    /// Held while standard input is written: inputs of one exec must not overlap.
    pub(crate) input: tokio::sync::Mutex<()>,
    /// Its place among the execs of its owner, until it has ended.
    place: std::sync::Mutex<Option<Place>>,
}

impl ExecCell {
    pub(crate) fn new(row: ExecRow, journal: Arc<Journal>, place: Place) -> Arc<Self> {
        Arc::new(Self {
            row,
            journal,
            input: tokio::sync::Mutex::new(()),
            place: std::sync::Mutex::new(Some(place)),
        })
    }

    /// Gives the place back: readers may hold the cell much longer.
    pub(crate) fn leave(&self) {
        let place = self
            .place
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(place);
    }

    /// Returns the exec's row as it should be now.
    pub(crate) fn row_now(&self) -> ExecRow {
        ExecRow {
            ended_ms: self.journal.ended_ms(),
            exit: self.journal.exit(),
            last_seq: self.journal.next_seq().saturating_sub(1),
            ..self.row.clone()
        }
    }
}

/// A request to start an exec in a live sandbox.
#[derive(Debug)]
pub(crate) struct Starting {
    pub(crate) core: Arc<Core>,
    pub(crate) entry: Arc<Entry>,
    pub(crate) live: Live,
    /// Keeps the sandbox awake until the exec runs.
    pub(crate) _lease: Lease,
    pub(crate) spec: ExecSpec,
    pub(crate) place: Place,
}

impl Starting {
    /// Starts the exec: its row first, then its journal, then the process.
    pub(crate) async fn run(self) -> Result<Exec, EngineError> {
        let row = ExecRow {
            sandbox: self.entry.id.clone(),
            id: ExecId::new(),
            spec: self.spec.clone(),
            started_ms: self.core.clock.now_ms(),
            ended_ms: None,
            exit: None,
            last_seq: 0,
        };
        self.insert(&row).await?;
        crash_point!("engine.exec_row_written");
        let started = self.start(&row).await;
        self.core.meters.exec_begun(started.is_ok());
        match started {
            Ok((journal, writer)) => {
                crash_point!("engine.exec_started");
                Ok(self.follow(row, journal, writer))
            }
            Err(error) => {
                forget(&self.core, &row).await;
                Err(error)
            }
        }
    }

    async fn insert(&self, row: &ExecRow) -> Result<(), EngineError> {
        let most = self.core.config.execs_per_sandbox_max;
        match self.core.store.insert_exec(row, most).await? {
            Inserted::Room => Ok(()),
            Inserted::InPlaceOf(oldest) => {
                let oldest = ExecRow {
                    id: oldest,
                    ..row.clone()
                };
                forget(&self.core, &oldest).await;
                Ok(())
            }
            Inserted::Refused => Err(EngineError::new(
                ErrorCode::LimitExceeded,
                format!("{most} execs run in this sandbox already, which is the limit"),
            )
            .details(json!({ "limit": most }))
            .hint("wait for one to end, or signal one")),
        }
    }

    async fn start(&self, row: &ExecRow) -> Result<(Arc<Journal>, JournalWriter), EngineError> {
        let dir = self.core.journal(&row.sandbox, &row.id);
        let (limits, lossless) = (self.core.journal_limits(), row.spec.back_pressure);
        let opened = crate::blocking::run(move || Journal::open(&dir, limits, lossless)).await;
        let opened = opened.map_err(|error| EngineError::host_io("make the journal", error))?;
        let start = self.agent_start(row).await?;
        let mut answer = self.live.agent.start(start.clone()).await;
        if answer
            .as_ref()
            .is_err_and(|error| error.code == ErrorCode::Unavailable)
        {
            // The connection was lost; a second start of the same id is the first one's answer.
            answer = self.live.agent.start(start).await;
        }
        if let Err(error) = answer {
            if matches!(error.code, ErrorCode::AgentSilent | ErrorCode::Unavailable) {
                self.end_unknown(row.id.clone());
            }
            return Err(error.into());
        }
        Ok(opened)
    }

    /// Ends a process of which nobody knows whether it was started, as soon as the agent answers.
    fn end_unknown(&self, id: ExecId) {
        const SIGKILL: i32 = 9;
        let live = self.live.clone();
        let halt = self.entry.halt.clone();
        let ended = async move {
            tracing::warn!(exec = %id, "the start was not answered");
            loop {
                match live.agent.signal(&id, SIGKILL, true).await {
                    Ok(()) => break,
                    Err(error) if error.code == ErrorCode::NotFound => break,
                    Err(_) => tokio::time::sleep(ASK_AGAIN_TIME).await,
                }
            }
            if let Err(error) = live.agent.forget(&id).await {
                // The next daemon compares what the agent knows with the rows.
                tracing::debug!(exec = %id, error = %chain(&error), "exec not forgotten");
            }
        };
        let gone = self.live.gone.clone();
        self.core.tasks.spawn(async move {
            tokio::select! {
                () = halt.cancelled() => {}
                () = gone.cancelled() => {}
                () = ended => {}
            }
        });
    }

    fn follow(self, row: ExecRow, journal: Arc<Journal>, writer: JournalWriter) -> Exec {
        let cell = ExecCell::new(row, journal, self.place);
        self.entry.add_exec(Arc::clone(&cell));
        self.entry.activity.touch();
        let shown = cell.row_now().shown();
        Follower {
            core: Arc::clone(&self.core),
            entry: Arc::clone(&self.entry),
            live: self.live.clone(),
            cell,
        }
        .spawn(writer);
        shown
    }

    async fn agent_start(&self, row: &ExecRow) -> Result<AgentStart, EngineError> {
        let sandbox = &self.entry.row().spec;
        let image = &self.live.image;
        let spec = &row.spec;
        let named = spec.user.as_ref().or(sandbox.user.as_ref());
        let user = named.or(image.user.as_ref()).cloned().unwrap_or_default();
        let named = spec.workdir.as_ref().or(sandbox.workdir.as_ref());
        let working_directory = match named.or(image.workdir.as_ref()) {
            Some(directory) => directory.clone(),
            None => self.default_workdir().await?,
        };
        let mut environment = default_environment(&user, spec.terminal.is_some());
        let everywhere = &self.core.config.defaults.env;
        for layer in [&image.env, everywhere, &sandbox.env, &spec.env] {
            environment.extend(
                layer
                    .iter()
                    .map(|(name, value)| (name.clone(), value.clone())),
            );
        }
        Ok(AgentStart {
            exec_id: row.id.clone(),
            arguments: spec.command.clone(),
            environment: environment.into_iter().collect(),
            working_directory,
            user,
            terminal: spec.terminal,
            standard_input: spec.stdin,
            timeout_ms: spec.timeout_ms,
            tag: if spec.back_pressure {
                TAG_BACK_PRESSURE.to_owned()
            } else {
                TAG.to_owned()
            },
        })
    }

    async fn default_workdir(&self) -> Result<String, EngineError> {
        let found = self
            .live
            .workdir
            .get_or_try_init(async || {
                let there = self.live.agent.is_directory(WORKSPACE).await?;
                Ok::<_, EngineError>(if there { WORKSPACE } else { "/" }.to_owned())
            })
            .await?;
        Ok(found.clone())
    }
}

/// Returns what every process finds in its environment unless somebody says otherwise.
fn default_environment(user: &str, terminal: bool) -> std::collections::BTreeMap<String, String> {
    let name = user.split(':').next().unwrap_or_default();
    let numeric = name.bytes().all(|byte| byte.is_ascii_digit());
    let mut environment =
        std::collections::BTreeMap::from([("PATH".to_owned(), PATH_DEFAULT.to_owned())]);
    let known = match name {
        "" | "0" | "root" => Some(("root", "/root".to_owned())),
        // What the home of a bare number is, only the guest knows.
        _ if numeric => None,
        _ => Some((name, format!("/home/{name}"))),
    };
    if let Some((user, home)) = known {
        environment.insert("USER".to_owned(), user.to_owned());
        environment.insert("HOME".to_owned(), home);
    }
    if terminal {
        environment.insert("TERM".to_owned(), TERM_DEFAULT.to_owned());
    }
    environment
}

/// Removes an exec's journal and then its row; the log has why not.
pub(crate) async fn forget(core: &Core, row: &ExecRow) {
    if let Err(error) = try_forget(core, &row.sandbox, &row.id).await {
        tracing::error!(exec = %row.id, error = %chain(&error), "exec not removed");
    }
}

/// Removes an exec's journal and then its row. Can be tried again.
pub(crate) async fn try_forget(
    core: &Core,
    sandbox: &SandboxId,
    id: &ExecId,
) -> Result<(), EngineError> {
    outbox::set_aside(core, sandbox, Some(id)).await;
    let dir = core.journal(sandbox, id);
    crate::blocking::run(move || remove_tree(&dir))
        .await
        .map_err(|error| EngineError::host_io("remove the journal", error))?;
    core.store.delete_exec(sandbox, id).await?;
    Ok(())
}

/// Removes a directory with what is in it; one that is not there is no error. Blocks.
pub(crate) fn remove_tree(dir: &std::path::Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Returns the spec of an exec that only the agent still knows.
pub(crate) fn spec_of_stray(arguments: Vec<String>, tag: &str) -> ExecSpec {
    ExecSpec {
        command: arguments,
        back_pressure: tag == TAG_BACK_PRESSURE,
        ..ExecSpec::default()
    }
}

/// Returns the words that a name for a sandbox begins with.
pub(crate) fn name_prefix(spec: &SandboxSpec) -> &'static str {
    spec.language
        .map_or("sandbox", |language| language.as_str())
}
