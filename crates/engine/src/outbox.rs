//! What an outside collector has not been sent yet.
//!
//! The journals are the buffer: of each stream (an exec's, or a sandbox's own events) a file beside its
//! journal says which event comes next. It is written when the collector has taken those before, so a
//! daemon that is killed sends a batch again rather than never. In memory there is no more than the
//! names of the streams that have something to send, and the batches that are being sent.
//!
//! The journals of what is removed are moved aside until they are sent.

mod disk;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pinfold_types::api::{PushReport, format_time_ms};
use pinfold_types::exec::EventMessage;
use pinfold_types::{ExecId, SandboxId};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::core::Core;
use crate::engine::Engine;
use crate::error::{EngineError, chain};
use crate::journal::{Journal, after, weight};
use crate::reader::{EventReader, Reading};
use disk::Sent;

/// First wait before a batch that was refused for itself is sent again.
const REFUSED_TIME_MIN: Duration = Duration::from_secs(1);
/// Longest such wait.
const REFUSED_TIME_MAX: Duration = Duration::from_mins(5);
/// Most characters of an error that a report repeats.
const ERROR_CHARS_MAX: usize = 300;

/// A stream: an exec's, or a sandbox's own events.
pub(crate) type Key = (SandboxId, ExecId);

/// How large a batch may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Most events.
    pub events: usize,
    /// Bytes after which no other event is added.
    pub bytes: usize,
}

/// Events of one stream that are being sent.
#[derive(Debug)]
pub struct PushBatch {
    /// The events, in order.
    pub events: Vec<EventMessage>,
    key: Key,
    sent: Sent,
    more: bool,
}

/// What was wrong with a batch that the collector did not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushFault {
    /// The collector: any other batch would have failed too.
    Collector,
    /// The batch: others may be taken.
    Batch,
}

/// One stream that has something to send.
#[derive(Debug, Default)]
struct Waiting {
    /// Somebody sends it.
    busy: bool,
    /// Something came meanwhile.
    again: bool,
    failures: u32,
    /// Not before then.
    due: Option<Instant>,
}

#[derive(Debug, Default)]
struct State {
    streams: HashMap<Key, Waiting>,
    ready: VecDeque<Key>,
    report: PushReport,
}

/// The streams that have something to send.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    grown: Notify,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a stream has something to send.
    fn tell(&self, key: Key) {
        let mut state = self.lock();
        if let Some(waiting) = state.streams.get_mut(&key) {
            waiting.again = true;
            return;
        }
        state.streams.insert(key.clone(), Waiting::default());
        state.ready.push_back(key);
        drop(state);
        self.grown.notify_one();
    }

    /// Waits for a stream and takes it.
    async fn take(&self) -> Key {
        loop {
            let grown = self.grown.notified();
            let due = {
                let mut state = self.lock();
                let now = Instant::now();
                let ripe: Vec<Key> = state
                    .streams
                    .iter_mut()
                    .filter(|(_, waiting)| waiting.due.is_some_and(|due| due <= now))
                    .map(|(key, waiting)| {
                        waiting.due = None;
                        key.clone()
                    })
                    .collect();
                state.ready.extend(ripe);
                if let Some(key) = state.ready.pop_front() {
                    let more = !state.ready.is_empty();
                    if let Some(waiting) = state.streams.get_mut(&key) {
                        waiting.busy = true;
                        waiting.again = false;
                    }
                    drop(state);
                    if more {
                        self.grown.notify_one();
                    }
                    return key;
                }
                state
                    .streams
                    .values()
                    .filter_map(|waiting| waiting.due)
                    .min()
            };
            tokio::select! {
                () = grown => {}
                () = until(due) => {}
            }
        }
    }

    /// Gives a stream back of which everything was sent, or not.
    fn give_back(&self, key: &Key, more: bool) {
        let mut state = self.lock();
        let Some(waiting) = state.streams.get_mut(key) else {
            return;
        };
        waiting.busy = false;
        waiting.failures = 0;
        if !more && !waiting.again {
            state.streams.remove(key);
            return;
        }
        state.ready.push_back(key.clone());
        drop(state);
        self.grown.notify_one();
    }

    /// Gives a stream back whose batch was refused.
    fn postpone(&self, key: &Key) {
        let mut state = self.lock();
        if let Some(waiting) = state.streams.get_mut(key) {
            waiting.busy = false;
            let factor = 2u32.saturating_pow(waiting.failures);
            waiting.failures = waiting.failures.saturating_add(1);
            let wait = REFUSED_TIME_MIN
                .saturating_mul(factor)
                .min(REFUSED_TIME_MAX);
            waiting.due = Some(Instant::now() + wait);
        }
        drop(state);
        self.grown.notify_one();
    }

    fn report(&self) -> PushReport {
        let state = self.lock();
        PushReport {
            waiting: u64::try_from(state.streams.len()).unwrap_or(u64::MAX),
            ..state.report.clone()
        }
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// Keeps what was not sent of a sandbox, or of one of its execs, that is about to be removed.
pub(crate) async fn set_aside(core: &Core, sandbox: &SandboxId, only: Option<&ExecId>) {
    if !core.config.push {
        return;
    }
    let (from, to) = (core.journals(sandbox), disk::aside(core, sandbox));
    let (owner, only) = (sandbox.clone(), only.cloned());
    let moved = crate::blocking::run(move || disk::keep_unsent(&owner, &from, &to, only.as_ref()));
    match moved.await {
        Ok(moved) => {
            for exec in moved {
                core.to_push(sandbox, &exec);
            }
        }
        Err(error) => {
            tracing::error!(%sandbox, error = %chain(&error), "events lost for the collector");
        }
    }
}

/// Finds what an earlier daemon did not send.
pub(crate) async fn find_unsent(core: &Core) {
    let (state_dir, push) = (core.config.state_dir.clone(), core.config.push);
    match crate::blocking::run(move || disk::scan(&state_dir, push)).await {
        Ok(found) => {
            for key in found {
                core.outbox.tell(key);
            }
        }
        Err(error) => tracing::error!(error = %chain(&error), "unsent events not found"),
    }
}

impl Core {
    /// Notes that something was added to a stream, when there is a collector.
    pub(crate) fn to_push(&self, sandbox: &SandboxId, exec: &ExecId) {
        if self.config.push {
            self.outbox.tell((sandbox.clone(), exec.clone()));
        }
    }

    /// Returns how pushing goes, when there is a collector.
    pub(crate) fn push_report(&self) -> Option<PushReport> {
        self.config.push.then(|| self.outbox.report())
    }

    /// Finds the journal of a stream, wherever it is by now, and its directory.
    async fn stream_of(
        self: &Arc<Self>,
        (sandbox, exec): &Key,
    ) -> Result<Option<(Arc<Journal>, std::path::PathBuf)>, EngineError> {
        let dir = self.journal(sandbox, exec);
        if let Some(entry) = self.by_id(sandbox) {
            if exec.is_events() && dir.exists() {
                return Ok(Some((Arc::clone(&entry.events(self).await?.journal), dir)));
            }
            if let Some(cell) = entry.exec(exec) {
                return Ok(Some((Arc::clone(&cell.journal), dir)));
            }
        }
        let aside = disk::aside(self, sandbox).join(exec.as_str());
        let limits = self.journal_limits();
        let opened = crate::blocking::run(move || {
            for dir in [dir, aside] {
                if dir.is_dir() {
                    let (journal, _writer) = Journal::open(&dir, limits, false)?;
                    return Ok(Some((journal, dir)));
                }
            }
            Ok::<_, std::io::Error>(None)
        });
        opened
            .await
            .map_err(|error| EngineError::host_io("open a journal to send it", error))
    }

    /// Reads the next batch of a stream; none when everything of it was sent.
    async fn next_batch(
        self: &Arc<Self>,
        key: &Key,
        limits: BatchLimits,
    ) -> Result<Option<PushBatch>, EngineError> {
        let Some((journal, dir)) = self.stream_of(key).await? else {
            return Ok(None);
        };
        let ended = journal.exit().is_some();
        let sent = crate::blocking::run({
            let dir = dir.clone();
            move || Sent::load(&dir)
        })
        .await
        .map_err(|error| EngineError::host_io("read what was sent", error))?;
        let mut next = sent.next.max(1);
        let reading = Reading {
            from_seq: next,
            follow: false,
            lease: None,
        };
        let mut reader = EventReader::new(
            Arc::clone(&journal),
            reading,
            self.closing.clone(),
            self.clock,
        );
        let (mut events, mut bytes, mut more) = (Vec::new(), 0, false);
        while let Some(event) = reader.next().await {
            let event = event?;
            next = after(&event);
            bytes += weight(&event);
            events.push(EventMessage::new(&key.0, &key.1, &event));
            if events.len() >= limits.events || bytes >= limits.bytes {
                more = true;
                break;
            }
        }
        let done = ended && next >= journal.next_seq();
        let sent = Sent { dir, next, done };
        if events.is_empty() {
            disk::settle(self, key, sent).await;
            return Ok(None);
        }
        Ok(Some(PushBatch {
            events,
            key: key.clone(),
            sent,
            more,
        }))
    }
}

impl Engine {
    /// Waits for events that the collector has not got, and takes them to send; none when the engine
    /// ends. Each batch is given back with [`Self::push_taken`] or [`Self::push_failed`].
    pub async fn push_next(&self, limits: BatchLimits) -> Option<PushBatch> {
        let core = &self.core;
        loop {
            let key = tokio::select! {
                biased;
                () = core.closing.cancelled() => return None,
                key = core.outbox.take() => key,
            };
            match core.next_batch(&key, limits).await {
                Ok(Some(batch)) => return Some(batch),
                Ok(None) => core.outbox.give_back(&key, false),
                Err(_) if core.closing.is_cancelled() => return None,
                Err(error) => {
                    tracing::warn!(
                        sandbox = %key.0, exec = %key.1, error = %chain(&error), "events not sent"
                    );
                    core.outbox.postpone(&key);
                }
            }
        }
    }

    /// Notes that the collector has taken a batch.
    pub async fn push_taken(&self, batch: PushBatch) {
        let core = &self.core;
        {
            let mut state = core.outbox.lock();
            state.report.events += u64::try_from(batch.events.len()).unwrap_or(0);
            state.report.batches += 1;
            state.report.last_success_at = Some(format_time_ms(core.clock.now_ms()));
        }
        disk::settle(core, &batch.key, batch.sent).await;
        // What came while it was sent is seen by another look.
        core.outbox.give_back(&batch.key, batch.more);
    }

    /// Gives back a batch that the collector has not taken; it is sent again.
    pub fn push_failed(&self, batch: &PushBatch, fault: PushFault, error: &str) {
        let outbox = &self.core.outbox;
        {
            let mut state = outbox.lock();
            state.report.failures += 1;
            state.report.last_error = Some(error.chars().take(ERROR_CHARS_MAX).collect());
        }
        match fault {
            PushFault::Collector => outbox.give_back(&batch.key, true),
            PushFault::Batch => outbox.postpone(&batch.key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        (SandboxId::new(), ExecId::new())
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_sent_by_one_at_a_time_and_nothing_that_comes_meanwhile_is_missed() {
        let outbox = Outbox::default();
        let first = key();
        outbox.tell(first.clone());
        outbox.tell(first.clone());
        assert_eq!(outbox.take().await, first);
        let nothing = tokio::time::timeout(Duration::from_secs(9), outbox.take());
        assert!(nothing.await.is_err());
        outbox.tell(first.clone());
        outbox.give_back(&first, false);
        assert_eq!(outbox.take().await, first);
        outbox.give_back(&first, false);
        assert_eq!(outbox.report().waiting, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_waits_longer_each_time_and_holds_nobody_up() {
        let outbox = Outbox::default();
        let (bad, good) = (key(), key());
        outbox.tell(bad.clone());
        for wait in [1, 2, 4] {
            assert_eq!(outbox.take().await, bad);
            outbox.postpone(&bad);
            outbox.tell(good.clone());
            assert_eq!(outbox.take().await, good);
            outbox.give_back(&good, false);
            let before = Instant::now();
            assert_eq!(outbox.take().await, bad);
            assert_eq!(before.elapsed().as_secs(), wait);
            // It is taken: give it back as it was.
            let failures = outbox.lock().streams[&bad].failures;
            outbox.postpone(&bad);
            outbox.lock().streams.get_mut(&bad).unwrap().failures = failures;
            outbox.lock().streams.get_mut(&bad).unwrap().due = Some(Instant::now());
        }
    }
}
