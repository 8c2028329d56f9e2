//! The task that writes one exec's journal.
//!
//! It follows the agent's own journal from the first event that the disk does not hold, appends what
//! comes, and only then acknowledges it, so a crash between the two repeats the reading and loses
//! nothing. While the disk is full it waits; the agent then blocks the process.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _, OptionFuture};
use futures::stream::StreamExt as _;
use pinfold_driver::agent::{AgentError, EventStream};
use pinfold_types::{ErrorCode, EventKind, ExecEvent, ExecExit, crash_point};
use tokio::time::Instant;

use super::ExecCell;
use crate::core::Core;
use crate::entry::{Entry, Live};
use crate::error::chain;
use crate::journal::{CONTENT_BYTES_MAX, JournalWriter, after, is_exit, weight};
use crate::store::StoreError;

/// Most bytes of events that go to the disk at once.
pub(crate) const BATCH_BYTES: usize = 1 << 20;
/// Most events that go to the disk at once.
const BATCH_EVENTS_MAX: usize = 1024;
/// Bytes after which the agent is told what it may drop: an eighth of what it keeps.
const ACKNOWLEDGE_BYTES: usize = 512 << 10;
/// Time after which the agent is told so, however little it is.
const ACKNOWLEDGE_TIME: Duration = Duration::from_secs(1);
/// First wait before a broken stream or a full disk is tried again.
const RETRY_TIME_MIN: Duration = Duration::from_millis(20);
/// Longest such wait.
const RETRY_TIME_MAX: Duration = Duration::from_secs(2);
/// How often in a row an agent may send what cannot be believed before nobody asks it again: an
/// honest one never does, and a journal that was cut in the middle is whole the next time.
const UNBELIEVED_MAX: u32 = 5;
/// Longest time that what an ended instance had already sent may take to arrive.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(1);

/// Writes one exec's journal.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) core: Arc<Core>,
    pub(crate) entry: Arc<Entry>,
    pub(crate) live: Live,
    pub(crate) cell: Arc<ExecCell>,
}

/// How following a stream came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The journal holds the exit, or will as soon as the batch is appended.
    Exit,
    /// Nobody will ever say how the exec ended.
    Lost,
    /// The stream broke; a new one may go on.
    Broken,
    /// The agent sent what no honest agent sends.
    Unbelieved,
    /// This task must end where it stands.
    Halted,
}

/// What arrived in one go.
struct Batch {
    events: Vec<Arc<ExecEvent>>,
    bytes: usize,
    next_seq: u64,
    /// What ended the stream behind them.
    ended: Option<Ended>,
}

/// What the agent has not been told yet.
#[derive(Default)]
struct Unacknowledged {
    bytes: usize,
    due: Option<Instant>,
    call: Option<BoxFuture<'static, Result<(), AgentError>>>,
}

impl Follower {
    /// Follows the exec until it has ended.
    pub(crate) fn spawn(self, writer: JournalWriter) {
        let followers = self.entry.followers.clone();
        followers.spawn(self.run(writer));
    }

    async fn run(self, mut writer: JournalWriter) {
        let mut ended = self.until_end(&mut writer).await;
        if ended == Ended::Lost && !self.append(&mut writer, vec![self.lost()]).await {
            ended = Ended::Halted;
        }
        if ended != Ended::Halted {
            self.finish().await;
        }
    }

    async fn until_end(&self, writer: &mut JournalWriter) -> Ended {
        let mut wait = RETRY_TIME_MIN;
        let mut unbelieved = 0;
        loop {
            if self.cell.journal.exit().is_some() {
                return Ended::Exit;
            }
            let before = self.cell.journal.next_seq();
            let ended = self.one_stream(writer).await;
            match ended {
                Ended::Broken => unbelieved = 0,
                Ended::Unbelieved if unbelieved < UNBELIEVED_MAX => unbelieved += 1,
                Ended::Unbelieved => return Ended::Lost,
                Ended::Exit | Ended::Lost | Ended::Halted => return ended,
            }
            if self.cell.journal.next_seq() != before {
                wait = RETRY_TIME_MIN;
            }
            if self.live.gone.is_cancelled() {
                return Ended::Lost;
            }
            tokio::select! {
                biased;
                () = self.entry.halt.cancelled() => return Ended::Halted,
                () = self.live.gone.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(RETRY_TIME_MAX);
        }
    }

    /// Follows the agent's journal as long as one connection lasts.
    async fn one_stream(&self, writer: &mut JournalWriter) -> Ended {
        let journal = &self.cell.journal;
        let mut stream = self.live.agent.read(&self.cell.row.id, journal.next_seq());
        let mut open = Unacknowledged::default();
        loop {
            let first = match self.first_item(&mut stream, &mut open).await {
                Ok(item) => item,
                Err(ended) => return ended,
            };
            let batch = self.rest_of_batch(&mut stream, first);
            if !batch.events.is_empty() {
                if !self.append(writer, batch.events).await {
                    return Ended::Halted;
                }
                crash_point!("engine.journal_appended");
                self.entry.activity.touch();
                open.bytes += batch.bytes;
                open.due
                    .get_or_insert_with(|| Instant::now() + ACKNOWLEDGE_TIME);
                if open.bytes >= ACKNOWLEDGE_BYTES && open.call.is_none() {
                    self.acknowledge(&mut open);
                }
            }
            if let Some(ended) = batch.ended {
                return ended;
            }
        }
    }

    /// Waits for one item of the stream, and meanwhile tells the agent what it may drop.
    async fn first_item(
        &self,
        stream: &mut EventStream,
        open: &mut Unacknowledged,
    ) -> Result<Option<Result<ExecEvent, AgentError>>, Ended> {
        let mut drained = None;
        loop {
            let read = async {
                self.cell.journal.room().await;
                stream.next().await
            };
            tokio::select! {
                // The acknowledgement comes before the stream: under load the stream is always ready.
                biased;
                () = self.entry.halt.cancelled() => return Err(Ended::Halted),
                Some(answer) = OptionFuture::from(open.call.as_mut()) => {
                    open.call = None;
                    if let Err(error) = answer {
                        tracing::debug!(error = %chain(&error), "acknowledgement not taken");
                    }
                }
                item = read => return Ok(item),
                () = self.live.gone.cancelled(), if drained.is_none() => {
                    drained = Some(Instant::now() + DRAIN_TIME_MAX);
                }
                () = until(drained), if drained.is_some() => return Err(Ended::Lost),
                () = until(open.due), if open.due.is_some() && open.call.is_none() => {
                    self.acknowledge(open);
                }
            }
        }
    }

    /// Takes what else is there already.
    fn rest_of_batch(
        &self,
        stream: &mut EventStream,
        first: Option<Result<ExecEvent, AgentError>>,
    ) -> Batch {
        let mut batch = Batch {
            events: Vec::new(),
            bytes: 0,
            next_seq: self.cell.journal.next_seq(),
            ended: None,
        };
        let mut item = Some(first);
        while let Some(arrived) = item {
            batch.ended = self.take(&mut batch, arrived);
            let full = batch.bytes >= BATCH_BYTES || batch.events.len() >= BATCH_EVENTS_MAX;
            if full || batch.ended.is_some() {
                break;
            }
            item = stream.next().now_or_never();
        }
        batch
    }

    /// Adds one item of the stream to a batch; answers what ends the stream.
    fn take(
        &self,
        batch: &mut Batch,
        item: Option<Result<ExecEvent, AgentError>>,
    ) -> Option<Ended> {
        let mut event = match item {
            None => return Some(Ended::Broken),
            Some(Err(error)) => {
                tracing::debug!(exec = %self.cell.row.id, error = %chain(&error), "stream ended");
                // An agent that does not know the exec never started it, or was told to forget it.
                return Some(match error.code {
                    ErrorCode::NotFound => Ended::Lost,
                    ErrorCode::Internal => Ended::Unbelieved,
                    _ => Ended::Broken,
                });
            }
            Some(Ok(event)) => event,
        };
        let next = batch.next_seq;
        let size = weight(&event);
        if size > CONTENT_BYTES_MAX || after(&event) >= u64::MAX >> 1 {
            tracing::error!(exec = %self.cell.row.id, "agent sent an event that is not possible");
            return Some(Ended::Lost);
        }
        if after(&event) <= next {
            return None;
        }
        if event.seq > next {
            batch.events.push(Arc::new(ExecEvent {
                seq: next,
                time_ms: event.time_ms,
                kind: EventKind::Dropped {
                    first_kept: event.seq,
                },
            }));
        }
        event.seq = event.seq.max(next);
        batch.next_seq = after(&event);
        batch.bytes += size;
        let exit = is_exit(&event);
        batch.events.push(Arc::new(event));
        exit.then_some(Ended::Exit)
    }

    /// Appends events; waits as long as the disk does not take them. Answers `false` when it has
    /// to give up because the task must end.
    async fn append(&self, writer: &mut JournalWriter, events: Vec<Arc<ExecEvent>>) -> bool {
        let mut wait = RETRY_TIME_MIN;
        let mut events = events;
        let journal = &self.cell.journal;
        loop {
            let mut moved = writer.take();
            let (back, kept, result) = crate::blocking::run(move || {
                let result = moved.append(&events);
                (moved, events, result)
            })
            .await;
            *writer = back;
            events = kept;
            let Err(error) = result else {
                journal.set_fault(None);
                let row = &self.cell.row;
                self.core.to_push(&row.sandbox, &row.id);
                return true;
            };
            if wait == RETRY_TIME_MIN {
                tracing::error!(
                    exec = %self.cell.row.id,
                    error = %chain(&error),
                    "journal not written; the process waits"
                );
            }
            journal.set_fault(Some(&error));
            tokio::select! {
                biased;
                () = self.entry.halt.cancelled() => return false,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(RETRY_TIME_MAX);
        }
    }

    fn acknowledge(&self, open: &mut Unacknowledged) {
        let seq = self.cell.journal.next_seq().saturating_sub(1);
        open.bytes = 0;
        open.due = None;
        let (agent, id) = (Arc::clone(&self.live.agent), self.cell.row.id.clone());
        open.call = Some(Box::pin(async move { agent.acknowledge(&id, seq).await }));
    }

    fn lost(&self) -> Arc<ExecEvent> {
        Arc::new(ExecEvent {
            seq: self.cell.journal.next_seq(),
            time_ms: self.core.clock.now_ms(),
            kind: EventKind::Exit(ExecExit {
                lost: true,
                ..ExecExit::default()
            }),
        })
    }

    /// Writes the end down and lets the agent forget the exec.
    async fn finish(&self) {
        let row = self.cell.row_now();
        let ended_ms = row.ended_ms.unwrap_or(row.started_ms);
        let meters = &self.core.meters;
        meters.exec_ended(row.exit.as_ref(), ended_ms - row.started_ms);
        let mut wait = RETRY_TIME_MIN;
        // Until it is written the exec stays known here, where its exit is.
        while let Err(error) = self.core.store.end_exec(&row).await {
            // The journal holds the exit, so the next start of the daemon writes it again.
            if wait == RETRY_TIME_MIN {
                tracing::error!(exec = %row.id, error = %chain(&error), "end of an exec not written");
            }
            if !matches!(error, StoreError::Full { .. }) {
                break;
            }
            tokio::select! {
                biased;
                () = self.entry.halt.cancelled() => break,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(RETRY_TIME_MAX);
        }
        crash_point!("engine.exec_exit_written");
        self.entry.drop_exec(&row.id);
        if self.live.gone.is_cancelled() {
            return;
        }
        let forgotten = self.live.agent.forget(&row.id);
        tokio::select! {
            biased;
            () = self.entry.halt.cancelled() => {}
            () = self.live.gone.cancelled() => {}
            answer = forgotten => if let Err(error) = answer {
                tracing::debug!(exec = %row.id, error = %chain(&error), "exec not forgotten");
            }
        }
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}
