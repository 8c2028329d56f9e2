//! The one task that owns a sandbox's state. Its steps are serial, so no two of them overlap.

mod claim;
mod deadline;
mod make;
mod update;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt as _;
use pinfold_driver::{Disk, Instance};
use pinfold_types::api::Sandbox;
use pinfold_types::{ErrorCode, SandboxState, crash_point};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::activity::Lease;
use crate::core::Core;
use crate::entry::{Entry, Letter, Live, Message, Reply, View};
use crate::error::{EngineError, chain};
use crate::events::Collector;
use crate::exec::remove_tree;
use crate::meters::Step;
use crate::store::SandboxRow;

pub(crate) use claim::{Binding, Taken};

/// Polite time of a stop that a deadline made.
pub(crate) const GRACE_DEFAULT: Duration = Duration::from_secs(10);

/// Longest time that what finished execs had written may take to reach the disk before a stop.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);

/// The task's own state.
#[derive(Debug)]
pub(crate) struct Keeper {
    core: Arc<Core>,
    entry: Arc<Entry>,
    row: SandboxRow,
    live: Option<Live>,
    /// The instance that ended last: it knows how to remove its disk.
    ended: Option<Arc<dyn Instance>>,
    /// The driver may have something that no record names.
    unrecorded: bool,
    /// A deadline's action failed; it is not tried again before this.
    retry_at: Option<Instant>,
    /// Nothing of the sandbox is left.
    gone: bool,
    /// Why it goes, when nobody asked for that.
    goes_because: Option<String>,
}

/// Starts a sandbox's task and keeps it: a panic in it fails that sandbox and nothing else.
pub(crate) fn spawn(core: &Arc<Core>, entry: &Arc<Entry>, messages: mpsc::Receiver<Letter>) {
    let (core, entry) = (Arc::clone(core), Arc::clone(entry));
    let tasks = core.tasks.clone();
    tasks.spawn(supervise(core, entry, messages));
}

async fn supervise(core: Arc<Core>, entry: Arc<Entry>, mut messages: mpsc::Receiver<Letter>) {
    let mut keeper = Keeper::new(&core, &entry);
    loop {
        let run = AssertUnwindSafe(keeper.run(&mut messages)).catch_unwind();
        if run.await.is_ok() {
            return;
        }
        tracing::error!(sandbox = %entry.id, "the sandbox's task panicked");
        keeper = Keeper::new(&core, &entry);
        keeper.after_panic().await;
    }
}

impl Keeper {
    fn new(core: &Arc<Core>, entry: &Arc<Entry>) -> Self {
        let View { row, live } = entry.view.borrow().clone();
        Self {
            core: Arc::clone(core),
            entry: Arc::clone(entry),
            unrecorded: row.state == SandboxState::Removing,
            row: (*row).clone(),
            live,
            ended: None,
            retry_at: None,
            gone: false,
            goes_because: None,
        }
    }

    async fn run(&mut self, messages: &mut mpsc::Receiver<Letter>) {
        self.collect_events();
        if self.row.state == SandboxState::Starting {
            self.finish_start().await;
        }
        while !self.gone {
            let (core, live) = (Arc::clone(&self.core), self.live.clone());
            let due = self.next_due();
            tokio::select! {
                biased;
                () = core.closing.cancelled() => return,
                reason = ended(live.as_ref()) => self.on_end(reason).await,
                letter = messages.recv() => match letter {
                    Some(Letter { message, span }) => {
                        let step = message.trace(&self.row, &span);
                        self.on_message(message).instrument(step).instrument(span).await;
                    }
                    None => return,
                },
                () = deadline::reached(due) => self.on_due(due).await,
            }
        }
    }

    async fn on_message(&mut self, message: Message) {
        let began = Instant::now();
        match message {
            Message::Create {
                progress,
                once,
                reply,
            } => {
                let made = self.create(progress, once).await;
                self.timed(Step::Create, began, &made);
                answer(reply, made);
            }
            Message::Start { reply } => {
                let done = self.start().await;
                self.timed(Step::Start, began, &done);
                self.answer_shown(reply, done);
            }
            Message::Stop { grace, reply } => {
                let done = self.stop(grace).await;
                self.timed(Step::Stop, began, &done);
                self.answer_shown(reply, done);
            }
            Message::Pause { reply } => {
                let done = self.pause().await;
                self.timed(Step::Pause, began, &done);
                self.answer_shown(reply, done);
            }
            Message::Resume { reply } => {
                let done = self.resume().await;
                self.timed(Step::Resume, began, &done);
                self.answer_shown(reply, done);
            }
            Message::Remove {
                keep_persist,
                reply,
            } => {
                let removed = self.remove(keep_persist).await;
                self.timed(Step::Remove, began, &removed);
                answer(reply, removed);
            }
            Message::Update { request, reply } => {
                let done = self.update(&request).await;
                self.timed(Step::Update, began, &done);
                self.answer_shown(reply, done);
            }
            Message::Claim { binding, reply } => {
                let taken = self.claim(*binding).await;
                self.timed(Step::Claim, began, &taken);
                answer(reply, taken);
            }
            Message::Use { reply } => {
                let live = self.hand_out().await;
                answer(reply, live);
            }
        }
    }

    /// Notes how long a step took.
    fn timed<T>(&self, step: Step, began: Instant, done: &Result<T, EngineError>) {
        self.core.meters.step(step, began.elapsed(), done.is_ok());
    }

    fn answer_shown(&self, reply: Reply<Sandbox>, done: Result<(), EngineError>) {
        answer(reply, done.map(|()| self.row.shown()));
    }

    /// Writes the next state down and shows it; refuses an illegal step.
    async fn enter(
        &mut self,
        state: SandboxState,
        reason: Option<String>,
    ) -> Result<(), EngineError> {
        if !self.row.state.may_become(state) {
            return Err(EngineError::illegal_state(
                self.row.name.as_str(),
                self.row.state,
                state,
            ));
        }
        let row = SandboxRow {
            state,
            reason,
            changed_ms: self.core.clock.now_ms(),
            ..self.row.clone()
        };
        self.core.store.save(&row).await?;
        self.row = row;
        self.publish();
        Ok(())
    }

    /// Enters a state that is a fact already, whether or not it can be written down.
    async fn enter_anyway(&mut self, state: SandboxState, reason: Option<String>) {
        let written = if self.row.state == state {
            self.core.store.save(&self.row).await.map_err(Into::into)
        } else {
            self.enter(state, reason.clone()).await
        };
        if let Err(error) = written {
            tracing::error!(
                sandbox = %self.row.id, %state, error = %chain(&error), "state not written"
            );
            self.row.state = state;
            self.row.reason = reason;
            self.row.changed_ms = self.core.clock.now_ms();
            self.publish();
        }
    }

    fn publish(&self) {
        self.entry.view.send_replace(View {
            row: Arc::new(self.row.clone()),
            live: self.live.clone(),
        });
        self.collect_events();
    }

    /// Has the events collected that programs of a running sandbox drop, if it has any.
    fn collect_events(&self) {
        let (Some(live), Some(dir)) = (&self.live, &self.row.spec.events_dir) else {
            return;
        };
        let runs = self.row.state == SandboxState::Running;
        if runs
            && !self.row.provenance.is_waiting()
            && !live.collected.swap(true, Ordering::Relaxed)
        {
            Collector {
                core: Arc::clone(&self.core),
                entry: Arc::clone(&self.entry),
                live: live.clone(),
                dir: dir.clone(),
            }
            .spawn();
        }
    }

    async fn hand_out(&mut self) -> Result<(Live, Lease), EngineError> {
        if self.row.state == SandboxState::Paused {
            let began = Instant::now();
            let done = self.resume().await;
            self.timed(Step::Resume, began, &done);
            done?;
        }
        match (&self.live, self.row.state) {
            (Some(live), SandboxState::Running) => Ok((live.clone(), self.entry.activity.lease())),
            (_, SandboxState::Failed) => Err(EngineError::new(
                ErrorCode::InstanceGone,
                format!(
                    "sandbox `{}` failed: {}",
                    self.row.name,
                    self.row.reason.as_deref().unwrap_or("for no known reason")
                ),
            )
            .hint(format!(
                "start it again with `pinfold start {}`",
                self.row.name
            ))),
            (_, state) => Err(EngineError::illegal_state(
                self.row.name.as_str(),
                state,
                SandboxState::Running,
            )),
        }
    }

    async fn pause(&mut self) -> Result<(), EngineError> {
        self.check_step(SandboxState::Paused)?;
        if let Some(live) = &self.live {
            live.instance.pause().await?;
        }
        crash_point!("engine.instance_paused");
        // What ran until now used it until now.
        self.entry.activity.touch();
        self.enter(SandboxState::Paused, None).await
    }

    async fn resume(&mut self) -> Result<(), EngineError> {
        self.check_step(SandboxState::Running)?;
        if self.row.state != SandboxState::Paused {
            return Err(EngineError::illegal_state(
                self.row.name.as_str(),
                self.row.state,
                SandboxState::Running,
            ));
        }
        if let Some(live) = &self.live {
            live.instance.resume().await?;
        }
        crash_point!("engine.instance_resumed");
        self.entry.activity.touch();
        self.enter(SandboxState::Running, None).await
    }

    fn check_step(&self, next: SandboxState) -> Result<(), EngineError> {
        if self.row.state.may_become(next) {
            Ok(())
        } else {
            Err(EngineError::illegal_state(
                self.row.name.as_str(),
                self.row.state,
                next,
            ))
        }
    }

    async fn stop(&mut self, grace: Duration) -> Result<(), EngineError> {
        let frozen = self.row.state == SandboxState::Paused;
        self.enter(SandboxState::Stopping, None).await?;
        crash_point!("engine.stopping_written");
        if let Some(live) = self.live.clone() {
            if frozen && let Err(error) = live.instance.resume().await {
                tracing::warn!(sandbox = %self.row.id, error = %chain(&error), "not resumed");
            }
            self.drain(&live).await;
        }
        match self.end_instance(grace, self.disk_kept()).await {
            Ok(()) => {
                crash_point!("engine.instance_stopped");
                self.enter(SandboxState::Stopped, None).await
            }
            Err(error) => {
                let reason = format!("failed to stop: {}", chain(&error));
                self.enter_anyway(SandboxState::Failed, Some(reason)).await;
                Err(error)
            }
        }
    }

    /// Returns what happens to the disk when the instance ends.
    const fn disk_kept(&self) -> Disk {
        if self.row.spec.volatile {
            Disk::Remove
        } else {
            Disk::Keep
        }
    }

    /// Waits a bounded time until what finished execs wrote is on the disk.
    async fn drain(&self, live: &Live) {
        self.entry.collect_last_events().await;
        let drained = async {
            let Ok(execs) = live.agent.list().await else {
                return;
            };
            for exec in execs.iter().filter(|exec| !exec.running) {
                let Some(cell) = self.entry.exec(&exec.exec_id) else {
                    continue;
                };
                let mut changes = cell.journal.changes();
                let done = |cell: &crate::exec::ExecCell| cell.journal.next_seq() > exec.last_seq;
                while !done(&cell) && changes.changed().await.is_ok() {}
            }
        };
        if tokio::time::timeout(DRAIN_TIME_MAX, drained).await.is_err() {
            tracing::warn!(sandbox = %self.row.id, "finished output may be missing");
        }
    }

    /// Ends the instance, if there is one, and waits until the followers have noted it.
    async fn end_instance(&mut self, grace: Duration, disk: Disk) -> Result<(), EngineError> {
        let live = self.live.as_ref().map(|live| Arc::clone(&live.instance));
        let mut instance = live.or_else(|| self.ended.clone());
        if instance.is_none()
            && let Some(record) = &self.row.record
        {
            instance = self.core.driver.adopt(record).await?;
        }
        match (&instance, disk) {
            (Some(instance), _) => instance.shut_down(grace, disk).await?,
            (None, Disk::Remove) if self.row.record.is_some() || self.unrecorded => {
                self.core.sweep_only(&self.row.id).await?;
            }
            (None, _) => {}
        }
        self.unrecorded = false;
        if let Some(live) = self.live.take() {
            live.gone.cancel();
        }
        self.ended = instance;
        if disk == Disk::Remove {
            self.ended = None;
            self.row.record = None;
        }
        self.publish();
        Ok(())
    }

    /// Notes that the instance ended by itself.
    async fn on_end(&mut self, reason: String) {
        tracing::warn!(sandbox = %self.row.id, reason, "the instance ended by itself");
        let disk = self.disk_kept();
        if let Err(error) = self.end_instance(Duration::ZERO, disk).await {
            tracing::error!(sandbox = %self.row.id, error = %chain(&error), "not cleaned up");
            if let Some(live) = self.live.take() {
                live.gone.cancel();
                self.ended = Some(live.instance);
            }
        }
        self.enter_anyway(SandboxState::Failed, Some(reason)).await;
        self.tell_pool();
    }

    async fn after_panic(&mut self) {
        if self.row.state == SandboxState::Removing {
            return;
        }
        let disk = self.disk_kept();
        let end = AssertUnwindSafe(self.end_instance(Duration::ZERO, disk)).catch_unwind();
        if !matches!(end.await, Ok(Ok(()))) {
            tracing::error!(sandbox = %self.row.id, "instance not ended after a panic");
            if let Some(live) = self.live.take() {
                live.gone.cancel();
                self.ended = Some(live.instance);
            }
        }
        self.unrecorded = true;
        let reason = "a fault of ours; the daemon's log has the details".to_owned();
        self.enter_anyway(SandboxState::Failed, Some(reason)).await;
    }

    /// Removes everything of the sandbox, and its row last.
    async fn remove(&mut self, keep_persist: bool) -> Result<Option<PathBuf>, EngineError> {
        self.row.keep_persist |= keep_persist;
        if self.row.state == SandboxState::Running {
            self.entry.collect_last_events().await;
        }
        // A full disk must not keep anybody from making room.
        let reason = self.goes_because.take();
        self.enter_anyway(SandboxState::Removing, reason).await;
        crash_point!("engine.removing_written");
        self.purge().await
    }

    /// Finishes a removal whose row is written. Can be tried again.
    async fn purge(&mut self) -> Result<Option<PathBuf>, EngineError> {
        self.end_instance(Duration::ZERO, Disk::Remove).await?;
        crash_point!("engine.instance_removed");
        self.end_followers().await;
        let kept = remove_files(&self.core, &self.row).await?;
        crash_point!("engine.files_removed");
        self.core.store.delete(&self.row).await?;
        crash_point!("engine.row_deleted");
        self.core.unregister(&self.entry);
        self.gone = true;
        Ok(kept)
    }

    async fn end_followers(&self) {
        self.entry.followers.close();
        let noted = tokio::time::timeout(DRAIN_TIME_MAX, self.entry.followers.wait()).await;
        self.entry.halt.cancel();
        if noted.is_err() {
            self.entry.followers.wait().await;
        }
        for cell in self.entry.live_execs() {
            cell.journal.mark_removed();
        }
        self.entry.end_events();
    }
}

/// Removes the journals and, unless it is kept, the persist directory; answers a kept one.
pub(crate) async fn remove_files(
    core: &Core,
    row: &SandboxRow,
) -> Result<Option<PathBuf>, EngineError> {
    crate::outbox::set_aside(core, &row.id, None).await;
    let (journals, persist) = (core.journals(&row.id), core.persist(&row.id));
    let keep = row.keep_persist && row.spec.persist;
    let id = row.id.clone();
    let removed = crate::blocking::run(move || {
        remove_tree(&journals)?;
        if keep {
            tracing::info!(sandbox = %id, path = %persist.display(), "persist directory kept");
            return Ok(Some(persist));
        }
        remove_tree(&persist)?;
        Ok(None)
    })
    .await;
    removed.map_err(|error| EngineError::host_io("remove the sandbox's files", error))
}

/// Waits until the live instance has ended and says why.
async fn ended(live: Option<&Live>) -> String {
    match live {
        Some(live) => live.instance.wait().await.reason,
        None => std::future::pending().await,
    }
}

fn answer<T>(reply: Reply<T>, result: Result<T, EngineError>) {
    // Who asked may have gone; the step is done all the same.
    drop(reply.send(result));
}
