//! Events that programs of a sandbox drop as files in a directory: read through the agent, which
//! watches the directory, and written to a journal of their own.
//!
//! A name that ends in `.json` is one event, its whole content, each time that it is written. Of any
//! other file each line is one, also those that are appended later. Names that begin with a dot are
//! not looked at, so a program can write there and rename.
//!
//! What was read of each file is written down before the events are, together with the numbers that
//! they will have ([`places`]). So a daemon that is killed in between knows which of them the journal
//! holds, and neither loses one nor has it twice. The files stay in the sandbox and are its own to
//! remove.

mod places;
mod read;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use pinfold_driver::agent::{AgentClient, AgentError, WatchStream};
use pinfold_types::exec::join_event;
use pinfold_types::{ErrorCode, EventKind, ExecEvent, ExecId, OutputStream, SandboxState};
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use crate::core::Core;
use crate::entry::{Entry, Live};
use crate::error::{EngineError, chain};
use crate::journal::{Journal, JournalWriter};
use places::Places;
use read::Look;

/// Mode of the directory: every user of the sandbox may drop events, and remove only its own.
const DIRECTORY_MODE: u32 = 0o1777;
/// Time between two looks at the directory, whatever happens there. A look takes a mebibyte at most,
/// so a program that floods is read at 20 MiB/s and no faster.
const PACE: Duration = Duration::from_millis(50);
/// Most changes that are taken before the next look, which sees what the rest are about.
const CHANGES_MAX: usize = 1024;
/// First wait before a broken connection is tried again.
const RETRY_TIME_MIN: Duration = Duration::from_millis(50);
/// Longest such wait.
const RETRY_TIME_MAX: Duration = Duration::from_secs(5);
/// Longest time that a sandbox which is about to end is given for the last look.
const LAST_LOOK_MAX: Duration = Duration::from_secs(2);

/// A sandbox's journal of events, as long as the daemon knows the sandbox.
#[derive(Debug)]
pub(crate) struct Events {
    pub(crate) journal: Arc<Journal>,
    /// Held by whoever collects: the next one waits until the last has ended.
    kept: Mutex<Kept>,
    /// Looks that somebody waits for, and looks that were made.
    wanted: watch::Sender<u64>,
    made: watch::Sender<u64>,
}

/// What only the one that collects touches.
#[derive(Debug)]
struct Kept {
    writer: JournalWriter,
    places: Places,
}

impl Events {
    /// Opens what an earlier daemon left of a sandbox, or begins. Blocks.
    fn open(core: &Core, entry: &Entry) -> std::io::Result<Arc<Self>> {
        let dir = core.journal(&entry.id, &ExecId::events());
        let (journal, writer) = Journal::open(&dir, core.journal_limits(), false)?;
        let places = Places::load(&dir, journal.next_seq())?;
        Ok(Arc::new(Self {
            journal,
            kept: Mutex::new(Kept { writer, places }),
            wanted: watch::Sender::new(0),
            made: watch::Sender::new(0),
        }))
    }

    /// Waits a bounded time until everything is read that was dropped before.
    async fn last_look(&self) {
        let mut made = self.made.subscribe();
        let mut number = 0;
        self.wanted.send_modify(|wanted| {
            *wanted += 1;
            number = *wanted;
        });
        let looked = made.wait_for(|made| *made >= number);
        if tokio::time::timeout(LAST_LOOK_MAX, looked).await.is_err() {
            tracing::warn!("the last events of a sandbox may be missing");
        }
    }
}

impl Entry {
    /// Returns the journal of the events that programs of this sandbox drop.
    pub(crate) async fn events(
        self: &Arc<Self>,
        core: &Arc<Core>,
    ) -> Result<Arc<Events>, EngineError> {
        let opened = self.events.get_or_try_init(async || {
            let (core, entry) = (Arc::clone(core), Arc::clone(self));
            crate::blocking::run(move || Events::open(&core, &entry))
                .await
                .map_err(|error| EngineError::host_io("open the journal of events", error))
        });
        opened.await.map(Arc::clone)
    }

    /// Returns that journal for a reader, if the sandbox has a directory of events.
    pub(crate) async fn events_to_read(
        self: &Arc<Self>,
        core: &Arc<Core>,
    ) -> Result<Arc<Journal>, EngineError> {
        if self.row().spec.events_dir.is_none() {
            return Err(EngineError::new(
                ErrorCode::NotFound,
                format!("sandbox `{}` has no directory of events", self.name()),
            )
            .hint("make it with `events_dir`, or name an exec with `exec_id`"));
        }
        Ok(Arc::clone(&self.events(core).await?.journal))
    }

    /// Reads what was dropped until now, before a sandbox that runs ends.
    pub(crate) async fn collect_last_events(&self) {
        if let Some(events) = self.events.get() {
            events.last_look().await;
        }
    }

    /// Tells readers that the journal of events is gone.
    pub(crate) fn end_events(&self) {
        if let Some(events) = self.events.get() {
            events.journal.mark_removed();
        }
    }
}

/// Collects the events of one life of a sandbox.
#[derive(Debug)]
pub(crate) struct Collector {
    pub(crate) core: Arc<Core>,
    pub(crate) entry: Arc<Entry>,
    pub(crate) live: Live,
    pub(crate) dir: String,
}

/// Why collecting over one connection ended; the next may do.
#[derive(Debug, thiserror::Error)]
enum Broken {
    /// The agent does not answer, or not so.
    #[error("the agent failed")]
    Agent(#[from] AgentError),
    /// The sandbox has ended, or the daemon does.
    #[error("the sandbox has ended")]
    Ended,
    /// The watch has ended.
    #[error("the watch has ended")]
    Watch,
}

impl Collector {
    /// Collects until the sandbox ends.
    pub(crate) fn spawn(self) {
        let followers = self.entry.followers.clone();
        followers.spawn(async move { self.run().await });
    }

    /// Does something unless the sandbox or the daemon ends first. Nothing that writes to the disk
    /// may be broken off so: who collects next would write beside it.
    async fn unless_ended<T>(&self, work: impl Future<Output = T>) -> Result<T, Broken> {
        tokio::select! {
            biased;
            () = self.entry.halt.cancelled() => Err(Broken::Ended),
            () = self.live.gone.cancelled() => Err(Broken::Ended),
            done = work => Ok(done),
        }
    }

    async fn run(&self) {
        let events = match self.entry.events(&self.core).await {
            Ok(events) => events,
            Err(error) => {
                let sandbox = &self.entry.id;
                tracing::error!(%sandbox, error = %chain(&error), "no events are collected");
                return;
            }
        };
        let mut kept = events.kept.lock().await;
        let mut wait = RETRY_TIME_MIN;
        loop {
            let began = Instant::now();
            match self.one_connection(&events, &mut kept).await {
                Broken::Ended => return,
                broken => {
                    let sandbox = &self.entry.id;
                    tracing::debug!(%sandbox, error = %chain(&broken), "events not read");
                }
            }
            if began.elapsed() > RETRY_TIME_MAX {
                wait = RETRY_TIME_MIN;
            }
            if self.unless_ended(tokio::time::sleep(wait)).await.is_err() {
                return;
            }
            wait = (wait * 2).min(RETRY_TIME_MAX);
        }
    }

    /// A frozen agent answers nobody, and is not woken for this.
    async fn until_running(&self) {
        let mut view = self.entry.view.subscribe();
        let running = view.wait_for(|view| view.row.state == SandboxState::Running);
        // The entry that sends lives as long as this.
        drop(running.await);
    }

    async fn one_connection(&self, events: &Events, kept: &mut Kept) -> Broken {
        match self.try_connection(events, kept).await {
            Ok(never) => match never {},
            Err(broken) => broken,
        }
    }

    async fn try_connection(
        &self,
        events: &Events,
        kept: &mut Kept,
    ) -> Result<std::convert::Infallible, Broken> {
        self.unless_ended(self.until_running()).await?;
        let agent = AgentClient::new(Arc::clone(&self.live.instance));
        let opening = async {
            agent
                .make_directory(&self.dir, DIRECTORY_MODE, true)
                .await?;
            agent.open_watch(&self.dir, false).await
        };
        let mut changes = self.unless_ended(opening).await??;
        let mut wanted = events.wanted.subscribe();
        let mut look = Look::default();
        loop {
            let asked = *wanted.borrow_and_update();
            let last = *events.made.borrow() < asked;
            let looking = look.once(&agent, &self.dir, (&mut kept.places, last));
            let (batch, more) = self.unless_ended(looking).await??;
            if let Some(refused) = look.newly_refused() {
                let sandbox = &self.entry.id;
                tracing::warn!(%sandbox, refused, "files are too many or too large to be events");
            }
            if !batch.is_empty() {
                self.append(&events.journal, kept, batch).await?;
            }
            if !more {
                events.made.send_if_modified(|made| {
                    let newer = *made < asked;
                    *made = asked.max(*made);
                    newer
                });
            }
            let pause = async {
                tokio::select! {
                    biased;
                    _ = wanted.changed() => {}
                    () = tokio::time::sleep(PACE) => {}
                }
                if more {
                    return Ok(());
                }
                next_change(&mut changes, &mut look, &mut wanted).await
            };
            self.unless_ended(pause).await??;
        }
    }

    /// Writes events down; waits as long as the disk does not take them.
    async fn append(
        &self,
        journal: &Journal,
        kept: &mut Kept,
        batch: Vec<read::Dropped>,
    ) -> Result<(), Broken> {
        let now_ms = self.core.clock.now_ms();
        let mut events = Vec::with_capacity(batch.len());
        let mut steps = Vec::with_capacity(batch.len());
        for (seq, dropped) in (journal.next_seq()..).zip(batch) {
            events.push(Arc::new(ExecEvent {
                seq,
                time_ms: now_ms,
                kind: EventKind::Output {
                    stream: OutputStream::Stdout,
                    data: join_event(&dropped.name, &dropped.data),
                },
            }));
            steps.push((seq, dropped.name, dropped.place));
        }
        let mut wait = RETRY_TIME_MIN;
        loop {
            let mut writer = kept.writer.take();
            let plan = kept.places.plan(&steps);
            let (back, returned, result) = crate::blocking::run(move || {
                let result = plan.write().and_then(|()| writer.append(&events));
                (writer, events, result)
            })
            .await;
            kept.writer = back;
            events = returned;
            let Err(error) = result else {
                kept.places.advance(steps);
                journal.set_fault(None);
                self.core.to_push(&self.entry.id, &ExecId::events());
                self.entry.activity.touch();
                return Ok(());
            };
            journal.set_fault(Some(&error));
            tracing::warn!(sandbox = %self.entry.id, error = %chain(&error), "events not written");
            self.unless_ended(tokio::time::sleep(wait)).await?;
            wait = (wait * 2).min(RETRY_TIME_MAX);
        }
    }
}

/// Waits until there may be something to read.
async fn next_change(
    changes: &mut WatchStream,
    look: &mut Look,
    wanted: &mut watch::Receiver<u64>,
) -> Result<(), Broken> {
    let due = look.due();
    let first = tokio::select! {
        biased;
        _ = wanted.changed() => return Ok(()),
        change = changes.next() => change,
        () = until(due) => return Ok(()),
    };
    let mut next = Some(first);
    for _ in 0..CHANGES_MAX {
        match next {
            None => break,
            Some(None) => return Err(Broken::Watch),
            Some(Some(Err(error))) => return Err(Broken::Agent(error)),
            Some(Some(Ok(change))) => look.heard(&change),
        }
        next = changes.next().now_or_never();
    }
    Ok(())
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}
