//! Making an instance: of a new sandbox, or of one that was stopped.

use std::sync::Arc;
use std::time::Duration;

use pinfold_driver::{
    ImageRequest, Instance, InstanceRecord, InstanceSpec, PreparedImage, Progress,
    RECORD_BYTES_MAX, StartSource,
};
use pinfold_types::api::Sandbox;
use pinfold_types::{ErrorCode, MountSpec, Principal, SandboxState, TRACE_SPANS, crash_point};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::Keeper;
use crate::entry::Live;
use crate::error::{EngineError, chain};
use crate::meters::Phase;
use crate::mounts::{Asker, Rules};
use crate::store::Once;

/// First wait before a new agent is asked again.
const ASK_AGAIN_MIN: Duration = Duration::from_millis(2);
/// Longest such wait.
const ASK_AGAIN_MAX: Duration = Duration::from_millis(100);

/// Returns the span that a part of a start is in a trace.
fn phase(name: &'static str) -> tracing::Span {
    tracing::info_span!(target: TRACE_SPANS, "phase", otel.name = name)
}

/// Hands progress on and drops what the caller is too slow to hear.
struct Told(Option<mpsc::Sender<String>>);

impl Progress for Told {
    fn report(&self, what: &str, done: u64, total: Option<u64>) {
        let Some(sender) = &self.0 else { return };
        let text = total.map_or_else(
            || format!("{what} ({done})"),
            |total| format!("{what} ({done}/{total})"),
        );
        drop(sender.try_send(text));
    }
}

impl Keeper {
    /// Makes a new sandbox; on failure nothing of it is left, not even its row.
    pub(super) async fn create(
        &mut self,
        progress: Option<mpsc::Sender<String>>,
        once: Option<Once>,
    ) -> Result<Sandbox, EngineError> {
        if let Err(error) = self.core.store.insert_once(&self.row, once).await {
            // Nothing was made, so nothing has to be written down to remove it.
            self.row.state = SandboxState::Removing;
            self.publish();
            self.core.unregister(&self.entry);
            self.gone = true;
            return Err(error.into());
        }
        crash_point!("engine.row_inserted");
        let made = match self.make_new(&Told(progress)).await {
            Ok(()) => self.enter(SandboxState::Running, None).await,
            Err(error) => Err(error),
        };
        match made {
            Ok(()) => {
                crash_point!("engine.running_written");
                self.entry.activity.touch();
                Ok(self.row.shown())
            }
            Err(error) => Err(self.undo(error).await),
        }
    }

    /// Removes what a failed creation left, and answers why it failed.
    async fn undo(&mut self, error: EngineError) -> EngineError {
        tracing::warn!(sandbox = %self.row.id, error = %chain(&error), "not created");
        self.goes_because = Some(format!("not created: {error}"));
        if let Err(left) = self.remove(false).await {
            tracing::error!(
                sandbox = %self.row.id, error = %chain(&left), "half-made sandbox not removed"
            );
            // It stays visible as what it is, and `rm` or the next daemon tries again.
            let reason = format!("{error}; and it was not removed: {left}");
            if self.row.state != SandboxState::Removing {
                self.enter_anyway(SandboxState::Failed, Some(reason)).await;
            }
        }
        error
    }

    async fn make_new(&mut self, progress: &Told) -> Result<(), EngineError> {
        let unwanted = self.entry.unwanted.clone();
        let request = ImageRequest {
            reference: self.row.spec.image.clone(),
            reach: self
                .host_paths()
                .image(self.asker(), &self.row.spec.image)?,
        };
        let driver = Arc::clone(&self.core.driver);
        let began = Instant::now();
        let image = tokio::select! {
            biased;
            () = unwanted.cancelled() => return Err(self.was_unwanted()),
            image = driver.prepare(&request, progress).instrument(phase("image")) => image?,
        };
        self.core.meters.phase(Phase::Image, began.elapsed());
        crash_point!("engine.image_prepared");
        if !self.row.provenance.is_waiting() {
            self.make_persist().await?;
        }
        crash_point!("engine.persist_made");
        self.row.image = Some(image.clone());
        let (instance, agent) = tokio::select! {
            biased;
            () = unwanted.cancelled() => return Err(self.was_unwanted()),
            started = self.begin(&image, true) => started?,
        };
        crash_point!("engine.instance_started");
        self.note(&instance)?;
        self.live = Some(Live::new(instance, agent, image));
        tokio::select! {
            biased;
            () = unwanted.cancelled() => Err(self.was_unwanted()),
            ready = self.ready() => ready,
        }
    }

    fn was_unwanted(&self) -> EngineError {
        EngineError::new(
            ErrorCode::IllegalState,
            format!("sandbox `{}` was removed while it was made", self.row.name),
        )
    }

    async fn make_persist(&self) -> Result<(), EngineError> {
        if !self.row.spec.persist {
            return Ok(());
        }
        let persist = self.core.persist(&self.row.id);
        crate::blocking::run(move || std::fs::create_dir_all(persist))
            .await
            .map_err(|error| EngineError::host_io("make the persist directory", error))
    }

    /// Starts a stopped or failed sandbox from its disk.
    pub(super) async fn start(&mut self) -> Result<(), EngineError> {
        self.check_step(SandboxState::Starting)?;
        let Some(image) = self.row.image.clone() else {
            return Err(EngineError::new(
                ErrorCode::InstanceGone,
                format!("sandbox `{}` has no disk to start from", self.row.name),
            )
            .hint(format!("remove it with `pinfold rm {}`", self.row.name)));
        };
        // A failed one may still have something that lives.
        self.end_instance(Duration::ZERO, self.disk_kept()).await?;
        self.enter(SandboxState::Starting, None).await?;
        crash_point!("engine.starting_written");
        let started = self.start_from(image).await;
        self.end_start(started).await
    }

    async fn start_from(&mut self, image: PreparedImage) -> Result<(), EngineError> {
        self.make_persist().await?;
        let fresh = self.row.spec.volatile;
        let unwanted = self.entry.unwanted.clone();
        let (instance, agent) = tokio::select! {
            biased;
            () = unwanted.cancelled() => return Err(self.was_unwanted()),
            started = self.begin(&image, fresh) => started?,
        };
        crash_point!("engine.instance_started");
        self.note(&instance)?;
        self.live = Some(Live::new(instance, agent, image));
        // The former record may not lead to this instance.
        self.core.store.save(&self.row).await?;
        tokio::select! {
            biased;
            () = unwanted.cancelled() => Err(self.was_unwanted()),
            ready = self.ready() => ready,
        }
    }

    pub(super) fn host_paths(&self) -> Rules<'_> {
        self.core.config.host_paths()
    }

    /// Whose right to host paths the sandbox has: its owner's, whoever starts it.
    pub(super) fn asker(&self) -> Asker {
        match self.row.owner {
            Principal::User(uid) => Asker::User(uid),
            // An admin it was, or nothing of the host would be there to show.
            Principal::Named(_) => Asker::Remote { admin: true },
        }
    }

    async fn begin(
        &mut self,
        image: &PreparedImage,
        fresh: bool,
    ) -> Result<(Arc<dyn Instance>, Arc<dyn crate::agent::Agent>), EngineError> {
        let row = &self.row;
        // Again at each start: what its owner may use is what the settings say now.
        let (paths, asker) = (self.host_paths(), self.asker());
        // Whoever claims a warm sandbox brings what it may see of the host.
        let own = !row.provenance.is_waiting();
        let shown: &[MountSpec] = if own { &row.spec.mounts } else { &[] };
        let spec = InstanceSpec {
            hostname: row.name.to_string(),
            resources: row.spec.resources,
            mounts: paths.mounts(asker, shown)?,
            image_reach: paths.image(asker, &row.spec.image)?,
            volatile: row.spec.volatile,
            agent_tcp: row.spec.agent_tcp,
            persist: (own && row.spec.persist).then(|| self.core.persist(&row.id)),
        };
        let source = if fresh {
            StartSource::Image(image)
        } else {
            StartSource::Disk(image)
        };
        self.unrecorded = true;
        let _effect = self.core.effects.read().await;
        let began = Instant::now();
        let started = self.core.driver.start(&row.id, source, &spec);
        let started = started.instrument(phase("instance")).await;
        let instance = match started {
            Ok(instance) => instance,
            Err(error) => {
                self.unrecorded = !error.leftovers.is_empty();
                return Err(error.into());
            }
        };
        self.core.meters.phase(Phase::Instance, began.elapsed());
        let agent = (self.core.connect)(Arc::clone(&instance));
        Ok((instance, agent))
    }

    /// Takes what the driver says of an instance into the row.
    pub(super) fn note(&mut self, instance: &Arc<dyn Instance>) -> Result<(), EngineError> {
        let record: InstanceRecord = instance.record();
        self.ended = Some(Arc::clone(instance));
        let size = serde_json::to_vec(&record).map_or(usize::MAX, |text| text.len());
        if size > RECORD_BYTES_MAX {
            return Err(EngineError::new(
                ErrorCode::Internal,
                format!("the driver's record has {size} bytes, more than {RECORD_BYTES_MAX}"),
            ));
        }
        self.row.granted = Some(record.granted.clone());
        self.row.record = Some(record);
        Ok(())
    }

    /// Waits until the new instance's agent answers.
    async fn ready(&self) -> Result<(), EngineError> {
        let Some(live) = self.live.clone() else {
            return Err(EngineError::new(ErrorCode::Internal, "nothing was started"));
        };
        let most = self.core.config.agent_answer_max;
        let began = Instant::now();
        let deadline = began + most;
        let asked = async {
            let mut wait = ASK_AGAIN_MIN;
            loop {
                let Err(error) = live.agent.ready().await else {
                    return;
                };
                tracing::debug!(sandbox = %self.row.id, error = %chain(&error), "not ready");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(ASK_AGAIN_MAX);
            }
        };
        tokio::select! {
            biased;
            () = asked.instrument(phase("agent")) => {
                self.core.meters.phase(Phase::Agent, began.elapsed());
                Ok(())
            }
            exit = live.instance.wait() => Err(EngineError::new(
                ErrorCode::InstanceGone,
                format!("the sandbox ended while it started: {}", exit.reason),
            )),
            () = tokio::time::sleep_until(deadline) => Err(EngineError::new(
                ErrorCode::AgentSilent,
                format!("the guest agent did not answer within {} s", most.as_secs_f32()),
            )
            .hint("the host may be overloaded; try again, or see `pinfold doctor`")),
        }
    }

    /// Finishes a start that an earlier daemon began: a second start of a live instance answers it.
    pub(super) async fn finish_start(&mut self) {
        let Some(image) = self.row.image.clone() else {
            let reason = "it has no disk to start from".to_owned();
            self.enter_anyway(SandboxState::Failed, Some(reason)).await;
            return;
        };
        let started = self.start_from(image).await;
        if let Err(error) = self.end_start(started).await {
            tracing::error!(sandbox = %self.row.id, error = %chain(&error), "start not finished");
        }
    }

    async fn end_start(&mut self, started: Result<(), EngineError>) -> Result<(), EngineError> {
        let error = match started {
            Ok(()) => {
                self.entry.activity.touch();
                return self.enter(SandboxState::Running, None).await;
            }
            Err(error) => error,
        };
        let disk = self.disk_kept();
        if let Err(left) = self.end_instance(Duration::ZERO, disk).await {
            tracing::error!(sandbox = %self.row.id, error = %chain(&left), "not ended");
        }
        let reason = format!("failed to start: {}", chain(&error));
        self.enter_anyway(SandboxState::Failed, Some(reason)).await;
        Err(error)
    }
}
