//! The engine as the layers above see it.

mod changes;
mod events;
mod execs;
mod once;

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use pinfold_driver::Driver;
use pinfold_types::api::{
    CreateSandboxRequest, DoctorReport, Metrics, PAGE_ENTRIES_MAX, Report, ReportLine, Sandbox,
    SandboxList, StopRequest,
};
use pinfold_types::spec::{DeadlineAction, Deadlines, IsolationTier};
use pinfold_types::{ErrorCode, SandboxId, SandboxSpec, SandboxState};
use serde_json::json;
use tokio::sync::mpsc;

pub use self::events::{EventFollower, Followed};
pub(crate) use self::once::InFlight;
pub use self::once::{OnceKey, OnceKeyError, Outcome};
use crate::activity::Activity;
use crate::agent;
use crate::caller::{Caller, ListFilter};
use crate::claim::{DEFAULT_TEMPLATE, Wanted};
use crate::clock::Clock;
use crate::config::EngineConfig;
use crate::core::{Core, Held, JOURNALS, PERSIST, Parts, Seams};
use crate::entry::{Entry, Message};
use crate::error::{EngineError, OpenError, chain};
use crate::exec::name_prefix;
use crate::lock::StateLock;
use crate::pool::Provenance;
use crate::recovery;
use crate::sandbox::{self, GRACE_DEFAULT};
use crate::store::{DATABASE_FILE, Once, SandboxRow, Store};

type Result<T, E = EngineError> = std::result::Result<T, E>;

/// Agents that a report asks at once; each takes one connection.
const REPORT_CONCURRENCY: usize = 512;

/// Longest time that the engine waits for its tasks when it ends.
const SHUT_DOWN_TIME_MAX: Duration = Duration::from_secs(10);

/// Longest polite time of a stop.
const GRACE_MAX: Duration = Duration::from_hours(1);

/// Times that a made-up name may turn out to be taken.
const NAME_TRIES_MAX: u32 = 64;

/// Shortest idle time: a shorter one would freeze a sandbox between two requests of one command.
const IDLE_MS_MIN: u64 = 100;

/// Owns every sandbox of a state directory. Clones are handles to the same engine.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(crate) core: Arc<Core>,
}

impl Engine {
    /// Opens the state directory, recovers what an earlier daemon left and removes what nobody
    /// owns.
    ///
    /// # Errors
    ///
    /// Returns [`OpenError`] when the state is unusable or used by another daemon.
    pub async fn open(config: EngineConfig, driver: Arc<dyn Driver>) -> Result<Self, OpenError> {
        let seams = Seams {
            connect: agent::real(),
            clock: Clock::default(),
        };
        Self::open_with(config, driver, seams).await
    }

    pub(crate) async fn open_with(
        config: EngineConfig,
        driver: Arc<dyn Driver>,
        seams: Seams,
    ) -> Result<Self, OpenError> {
        let dir = config.state_dir.clone();
        let (lock, store) = crate::blocking::run(move || {
            for dir in [&dir, &dir.join(JOURNALS), &dir.join(PERSIST)] {
                make_private(dir)?;
            }
            let lock = StateLock::take(&dir)?;
            Ok::<_, OpenError>((lock, Store::open(&dir)?))
        })
        .await?;
        let path = config.state_dir.join(DATABASE_FILE);
        let failed =
            |what| move |source: crate::error::Cause| OpenError::Database { what, path, source };
        let mut stored = match store.load().await {
            Ok(stored) => stored,
            Err(error) => return Err(failed("read")(error.into())),
        };
        let keys = match store.keys().await {
            Ok(keys) => keys,
            Err(error) => return Err(failed("read")(error.into())),
        };
        let core = Core::new(Parts {
            keys,
            config,
            driver,
            seams,
            store,
            lock,
            unreadable: std::mem::take(&mut stored.unreadable),
        });
        if let Err(error) = recovery::recover(&core, stored).await {
            core.closing.cancel();
            return Err(failed("recover from")(error.into()));
        }
        Ok(Self { core })
    }

    /// Makes a sandbox; returns when its agent has answered.
    ///
    /// It is made to the end even when the caller stops waiting. `progress` hears what is being
    /// done, and misses what it is too slow for.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why; then nothing is left of it.
    pub async fn create(
        &self,
        caller: &Caller,
        request: CreateSandboxRequest,
        progress: Option<mpsc::Sender<String>>,
    ) -> Result<Sandbox> {
        self.make(caller, request, None, progress).await
    }

    /// Makes a sandbox; with an idempotency key both are written down or neither.
    async fn make(
        &self,
        caller: &Caller,
        request: CreateSandboxRequest,
        once: Option<Once>,
        progress: Option<mpsc::Sender<String>>,
    ) -> Result<Sandbox> {
        self.core.check_open()?;
        let mut wanted = match &request.template {
            None => self.plainly(caller, request)?,
            Some(name) => {
                let template = self.find_template(caller, name.as_str())?;
                let base = self.core.config.defaults.beneath(&template.spec);
                let spec = request.given.over(&base).map_err(|error| {
                    EngineError::new(ErrorCode::InvalidArgument, error.to_string())
                })?;
                Wanted {
                    name: request.name,
                    spec,
                    pools: self.core.pools.of_template(&template.key()),
                    template: Some(template),
                    said: true,
                    once: None,
                }
            }
        };
        wanted.once = once;
        self.provide(caller, wanted, progress).await
    }

    /// Returns what a creation without a template wants: the default pool serves it when it can.
    fn plainly(&self, caller: &Caller, request: CreateSandboxRequest) -> Result<Wanted> {
        let spec = self.core.config.defaults.plain(&request)?;
        let template = self.find_template(caller, DEFAULT_TEMPLATE).ok();
        let pools = template.as_ref().map_or_else(Vec::new, |template| {
            let pools = self.core.pools.of_template(&template.key());
            let configured = pools.into_iter().filter(|pool| pool.row().configured);
            configured.collect()
        });
        Ok(Wanted {
            name: request.name,
            spec,
            template: template.filter(|_| !pools.is_empty()),
            pools,
            said: false,
            once: None,
        })
    }

    /// Checks what does not depend on where the sandbox comes from.
    ///
    /// Host paths are the caller's right, whoever wrote the template.
    pub(crate) async fn check_wanted(&self, caller: &Caller, spec: &SandboxSpec) -> Result<()> {
        spec.check()?;
        check_deadlines(spec, &self.core)?;
        check_tier(spec.isolation, &self.core)?;
        let rules = self.core.config.host_paths();
        rules.check(caller.asker(), spec).await
    }

    /// Gives a new sandbox its name and its task.
    pub(crate) fn admit(
        &self,
        caller: &Caller,
        wanted: &Wanted,
        id: Option<&SandboxId>,
        provenance: &Provenance,
    ) -> Result<Arc<Entry>> {
        let core = &self.core;
        let now_ms = core.clock.now_ms();
        let mut tries = 0;
        loop {
            let name = wanted.name.clone();
            let row = SandboxRow {
                id: id.cloned().unwrap_or_else(SandboxId::new),
                name: name.unwrap_or_else(|| {
                    core.free_name(&caller.principal, name_prefix(&wanted.spec))
                }),
                owner: caller.principal.clone(),
                state: SandboxState::Creating,
                reason: None,
                spec: wanted.spec.clone(),
                record: None,
                granted: None,
                image: None,
                created_ms: now_ms,
                changed_ms: now_ms,
                lifetime_done: false,
                keep_persist: false,
                provenance: provenance.clone(),
            };
            let activity = Activity::new(core.clock);
            let (entry, messages) = Entry::new(row, None, activity, &core.closing);
            match core.register(&entry, &core.quotas(caller)) {
                Ok(()) => {
                    sandbox::spawn(core, &entry, messages);
                    return Ok(entry);
                }
                // Somebody else was given the same made-up name at the same moment.
                Err(error)
                    if wanted.name.is_none()
                        && error.code == ErrorCode::AlreadyExists
                        && tries < NAME_TRIES_MAX =>
                {
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns a sandbox. It does not count as use.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    #[expect(clippy::unused_async, reason = "every call of the facade is one")]
    pub async fn get(&self, caller: &Caller, target: &str) -> Result<Sandbox> {
        Ok(self.core.find(caller, target)?.row().shown())
    }

    /// Lists sandboxes, oldest first. It does not count as use.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    #[expect(clippy::unused_async, reason = "every call of the facade is one")]
    pub async fn list(&self, caller: &Caller, filter: &ListFilter) -> Result<SandboxList> {
        let most = match filter.limit {
            0 => PAGE_ENTRIES_MAX,
            limit => limit.min(PAGE_ENTRIES_MAX),
        };
        let mut sandboxes = Vec::new();
        let mut next = None;
        let listed = if filter.warm {
            self.waiting(caller)?
        } else {
            self.core.visible(caller)
        };
        for entry in listed {
            let row = entry.row();
            if filter.after.as_ref().is_some_and(|after| row.id <= *after) || !wanted(filter, &row)
            {
                continue;
            }
            if sandboxes.len() == most {
                next = sandboxes.last().map(|last: &Sandbox| last.id.clone());
                break;
            }
            sandboxes.push(row.shown());
        }
        Ok(SandboxList { sandboxes, next })
    }

    /// Returns the sandboxes that wait in pools, for an admin.
    fn waiting(&self, caller: &Caller) -> Result<Vec<Arc<Entry>>> {
        if !caller.is_admin() {
            return Err(EngineError::new(
                ErrorCode::PermissionDenied,
                "only an admin may see what waits in pools",
            ));
        }
        let mut waiting = self.core.everyone();
        waiting.retain(|entry| entry.is_waiting());
        Ok(waiting)
    }

    /// Starts a stopped or failed sandbox from its disk.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn start(&self, caller: &Caller, target: &str) -> Result<Sandbox> {
        self.step(caller, target, |reply| Message::Start { reply })
            .await
    }

    /// Stops a sandbox and keeps its disk, unless it is volatile.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn stop(
        &self,
        caller: &Caller,
        target: &str,
        request: StopRequest,
    ) -> Result<Sandbox> {
        let grace = request
            .grace_ms
            .map_or(GRACE_DEFAULT, Duration::from_millis)
            .min(GRACE_MAX);
        self.step(caller, target, |reply| Message::Stop { grace, reply })
            .await
    }

    /// Freezes a sandbox in memory.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn pause(&self, caller: &Caller, target: &str) -> Result<Sandbox> {
        self.step(caller, target, |reply| Message::Pause { reply })
            .await
    }

    /// Lets a frozen sandbox go on.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn resume(&self, caller: &Caller, target: &str) -> Result<Sandbox> {
        self.step(caller, target, |reply| Message::Resume { reply })
            .await
    }

    /// Removes a sandbox with everything of it; with `keep_persist` its persist directory stays
    /// and is answered.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why; the sandbox then stays, and the same
    /// call tries again.
    pub async fn remove(
        &self,
        caller: &Caller,
        target: &str,
        keep_persist: bool,
    ) -> Result<Option<PathBuf>> {
        self.core.check_open()?;
        let entry = self.core.find(caller, target)?;
        if matches!(
            entry.state(),
            SandboxState::Creating | SandboxState::Starting
        ) {
            entry.unwanted.cancel();
        }
        entry
            .ask(|reply| Message::Remove {
                keep_persist,
                reply,
            })
            .await
    }

    async fn step(
        &self,
        caller: &Caller,
        target: &str,
        message: impl FnOnce(crate::entry::Reply<Sandbox>) -> Message,
    ) -> Result<Sandbox> {
        self.core.check_open()?;
        self.core.find(caller, target)?.ask(message).await
    }

    /// Returns what the agent of a sandbox says of it. Wakes a frozen one.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn metrics(&self, caller: &Caller, target: &str) -> Result<Metrics> {
        self.core.check_open()?;
        let entry = self.core.find(caller, target)?;
        let (live, _lease) = entry.enter().await?;
        Ok(live.agent.metrics().await?)
    }

    /// Asks every agent at once and answers one line for each sandbox that is not stopped.
    ///
    /// A dead agent costs [`EngineConfig::report_answer_max`] and no more. A frozen sandbox is not
    /// woken, and nothing here counts as use.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] when the engine is shutting down.
    pub async fn report(&self, caller: &Caller) -> Result<Report> {
        self.core.check_open()?;
        let most = self.core.config.report_answer_max;
        let asked = self
            .core
            .visible(caller)
            .into_iter()
            .filter(|entry| entry.state() != SandboxState::Stopped)
            .map(|entry| report_line(entry, most));
        let sandboxes = stream::iter(asked)
            .buffered(REPORT_CONCURRENCY)
            .collect()
            .await;
        Ok(Report {
            sandboxes,
            push: caller.is_admin().then(|| self.core.push_report()).flatten(),
        })
    }

    /// Looks at every prerequisite of this host.
    pub async fn doctor(&self) -> DoctorReport {
        DoctorReport {
            findings: self.core.driver.probe().await,
            tiers: vec![self.core.driver.capabilities().tier],
        }
    }

    /// Counts what this engine has in memory: without sandboxes all of it is 0.
    pub fn held(&self) -> Held {
        self.core.held()
    }

    /// Ends the engine: refuses new work and writes every journal; sandboxes live on.
    ///
    /// Returns when the database is closed and the state directory is free for another daemon.
    pub async fn shut_down(&self) {
        let core = &self.core;
        core.closing.cancel();
        core.tasks.close();
        let entries = core.everyone();
        let ended = async {
            core.tasks.wait().await;
            for entry in &entries {
                entry.followers.close();
                entry.followers.wait().await;
            }
        };
        if tokio::time::timeout(SHUT_DOWN_TIME_MAX, ended)
            .await
            .is_err()
        {
            tracing::warn!("a task did not end in time; the next daemon recovers what it did");
        }
        core.store.close().await;
        let lock = core
            .lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(lock);
    }
}

fn make_private(dir: &Path) -> Result<(), OpenError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| OpenError::State {
            what: "make",
            path: dir.to_owned(),
            source,
        })
}

fn wanted(filter: &ListFilter, row: &SandboxRow) -> bool {
    let state = if filter.states.is_empty() {
        filter.all || row.state != SandboxState::Stopped
    } else {
        filter.states.contains(&row.state)
    };
    let labels = &row.spec.labels;
    state
        && filter
            .labels
            .iter()
            .all(|(name, value)| labels.get(name) == Some(value))
}

pub(crate) fn check_tier(asked: IsolationTier, core: &Core) -> Result<()> {
    let available = core.driver.capabilities().tier;
    if available >= asked {
        return Ok(());
    }
    let name = |tier: IsolationTier| match tier {
        IsolationTier::None => "none",
        IsolationTier::Namespace => "namespace",
        IsolationTier::Gvisor => "gvisor",
        IsolationTier::Vm => "vm",
    };
    let driver = core.driver.kind().as_str();
    Err(EngineError::new(
        ErrorCode::TierUnavailable,
        format!(
            "isolation `{}` is asked for, and driver `{driver}` gives `{}`",
            name(asked),
            name(available)
        ),
    )
    .details(json!({ "asked": asked, "available": available, "driver": driver }))
    .hint("ask for less with `--isolation`, or see with `pinfold doctor` what this host can give"))
}

/// Gives a sandbox whose maker named no idle time the daemon's; 0 is for ever.
///
/// Where the host cannot pause there is no default: to stop or remove what nobody said anything of
/// would be more than was asked for.
pub(crate) fn default_idle(deadlines: &mut Deadlines, core: &Core) {
    let can = deadlines.idle_action != DeadlineAction::Pause || core.driver.capabilities().pause;
    let default_ms = core
        .config
        .idle_default
        .filter(|_| can)
        .map(|length| u64::try_from(length.as_millis()).unwrap_or(u64::MAX));
    deadlines.idle_ms = deadlines
        .idle_ms
        .or(default_ms)
        .filter(|length_ms| *length_ms > 0);
}

pub(crate) fn check_deadlines(spec: &SandboxSpec, core: &Core) -> Result<()> {
    let deadlines = &spec.deadlines;
    if let Some(idle_ms) = deadlines.idle_ms.filter(|ms| *ms < IDLE_MS_MIN) {
        return Err(EngineError::new(
            ErrorCode::InvalidArgument,
            format!("the idle time is {idle_ms} ms, less than {IDLE_MS_MIN} ms"),
        ));
    }
    if deadlines.lifetime_ms == Some(0) {
        return Err(EngineError::new(
            ErrorCode::InvalidArgument,
            "the lifetime is 0, so the sandbox would be gone at once",
        )
        .hint("leave the lifetime out for a sandbox without an end"));
    }
    let actions = [
        deadlines.idle_ms.map(|_| deadlines.idle_action),
        deadlines.lifetime_ms.map(|_| deadlines.lifetime_action),
    ];
    let pauses = actions.contains(&Some(DeadlineAction::Pause));
    if pauses && !core.driver.capabilities().pause {
        return Err(EngineError::new(
            ErrorCode::Unsupported,
            format!(
                "driver `{}` cannot pause sandboxes on this host",
                core.driver.kind().as_str()
            ),
        )
        .hint("choose `stop` or `remove` as the deadline's action"));
    }
    Ok(())
}

async fn report_line(entry: Arc<Entry>, most: Duration) -> ReportLine {
    let view = entry.view.borrow().clone();
    let row = &view.row;
    let asked = match (&view.live, row.state) {
        (Some(live), SandboxState::Running) => {
            match tokio::time::timeout(most, live.agent.metrics()).await {
                Ok(Ok(metrics)) => Ok(metrics),
                Ok(Err(error)) => Err(chain(&error)),
                Err(_) => Err(format!(
                    "the guest agent did not answer within {} s",
                    most.as_secs_f32()
                )),
            }
        }
        (_, SandboxState::Failed) => Err(row.reason.clone().unwrap_or_default()),
        (_, state) => Err(state.to_string()),
    };
    let (metrics, error) = match asked {
        Ok(metrics) => (Some(metrics), None),
        Err(error) => (None, Some(error)),
    };
    ReportLine {
        id: row.id.clone(),
        name: row.name.clone(),
        state: row.state,
        metrics,
        error,
    }
}
