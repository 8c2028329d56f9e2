//! The ordered journal of one exec, which can be read from any point by many readers.
//!
//! Sequence numbers start at 1 and have no gaps. What is not acknowledged is kept, up to a limit at
//! which the exec's output is no longer read: the process then waits, and nothing is lost.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use pinfold_types::exec::{ExecExit, OutputStream};
use tokio::sync::{Notify, watch};

/// Most bytes that one exec may have unacknowledged while nobody takes them.
pub const JOURNAL_BYTES_MAX: usize = 4 << 20;
/// Most bytes that all execs together may have unacknowledged, since they are charged to the
/// sandbox's own memory; beyond it each exec still gets [`JOURNAL_BYTES_ALWAYS`].
pub const JOURNALS_BYTES_MAX: usize = 64 << 20;
/// What an exec may keep however much the others keep, so that none is ever stuck for good.
pub const JOURNAL_BYTES_ALWAYS: usize = 64 << 10;
/// Most bytes of one output event.
pub const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// What an event costs beside its bytes, so that one-byte events count for what they take.
const EVENT_COST: usize = 128;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Position.
    pub sequence: u64,
    /// Milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// What happened.
    pub kind: EventKind,
}

/// What an event says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// The process runs.
    Started(i32),
    /// It wrote something.
    Output(OutputStream, Bytes),
    /// It ended; nothing follows.
    Exited(ExecExit),
}

impl EventKind {
    fn cost(&self) -> usize {
        match self {
            Self::Output(_, data) => EVENT_COST + data.len(),
            Self::Started(_) | Self::Exited(_) => EVENT_COST,
        }
    }
}

/// What a reader finds at a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The event.
    Event(Event),
    /// It was acknowledged and dropped; this is the first that is kept.
    Dropped(u64),
    /// It has not happened yet.
    Nothing,
    /// Nothing will follow.
    End,
}

/// What all journals together hold.
#[derive(Debug, Default)]
pub struct Budget {
    used: AtomicUsize,
    freed: Notify,
}

/// The journal of one exec.
#[derive(Debug)]
pub struct Journal {
    kept: Mutex<Kept>,
    grown: watch::Sender<()>,
    freed: Notify,
    budget: Arc<Budget>,
}

#[derive(Debug)]
struct Kept {
    events: VecDeque<Event>,
    next: u64,
    cost: usize,
    total: u64,
    closed: bool,
}

impl Kept {
    fn first(&self) -> u64 {
        self.events
            .front()
            .map_or(self.next, |event| event.sequence)
    }
}

impl Journal {
    /// Makes an empty journal.
    pub fn new(budget: Arc<Budget>) -> Self {
        Self {
            kept: Mutex::new(Kept {
                events: VecDeque::new(),
                next: 1,
                cost: 0,
                total: 0,
                closed: false,
            }),
            grown: watch::Sender::new(()),
            freed: Notify::new(),
            budget,
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event; after an exit there is none.
    pub fn append(&self, kind: EventKind) {
        let mut kept = self.kept();
        if kept.closed {
            return;
        }
        let cost = kind.cost();
        kept.closed = matches!(kind, EventKind::Exited(_));
        let sequence = kept.next;
        kept.next += 1;
        kept.cost += cost;
        kept.total = kept.total.saturating_add(u64::try_from(cost).unwrap_or(0));
        self.budget.used.fetch_add(cost, Ordering::Relaxed);
        kept.events.push_back(Event {
            sequence,
            time_ms: now_ms(),
            kind,
        });
        drop(kept);
        self.grown.send_replace(());
    }

    /// Returns how many bytes of output may be added now.
    pub fn room(&self) -> usize {
        let cost = self.kept().cost + EVENT_COST;
        let own = JOURNAL_BYTES_MAX.saturating_sub(cost);
        let always = JOURNAL_BYTES_ALWAYS.saturating_sub(cost);
        let used = self.budget.used.load(Ordering::Relaxed) + EVENT_COST;
        own.min(always.max(JOURNALS_BYTES_MAX.saturating_sub(used)))
            .min(OUTPUT_BYTES_MAX)
    }

    /// Waits until there is room for output, and returns how much.
    pub async fn wait_for_room(&self) -> usize {
        loop {
            let (own, all) = (self.freed.notified(), self.budget.freed.notified());
            tokio::pin!(own, all);
            own.as_mut().enable();
            all.as_mut().enable();
            let room = self.room();
            if room > 0 {
                return room;
            }
            tokio::select! {
                () = own => {}
                () = all => {}
            }
        }
    }

    /// Drops the events up to and including a sequence number.
    pub fn acknowledge(&self, sequence: u64) {
        let mut kept = self.kept();
        let mut freed = 0;
        while let Some(event) = kept.events.front() {
            if event.sequence > sequence {
                break;
            }
            freed += event.kind.cost();
            kept.events.pop_front();
        }
        kept.cost = kept.cost.saturating_sub(freed);
        if kept.events.is_empty() {
            kept.events.shrink_to_fit();
        }
        drop(kept);
        self.release(freed);
    }

    fn release(&self, freed: usize) {
        if freed > 0 {
            self.budget.used.fetch_sub(freed, Ordering::Relaxed);
            self.freed.notify_waiters();
            self.budget.freed.notify_waiters();
        }
    }

    /// Returns what is at a position.
    pub fn find(&self, sequence: u64) -> Found {
        let kept = self.kept();
        let first = kept.first();
        if sequence < first {
            return Found::Dropped(first);
        }
        let index = usize::try_from(sequence - first).unwrap_or(usize::MAX);
        match kept.events.get(index) {
            Some(event) => Found::Event(event.clone()),
            None if kept.closed => Found::End,
            None => Found::Nothing,
        }
    }

    /// Returns the first and last sequence numbers that are kept; the first is one past the last
    /// when nothing is.
    pub fn range(&self) -> (u64, u64) {
        let kept = self.kept();
        (kept.first(), kept.next - 1)
    }

    /// Returns whether the exit was acknowledged.
    pub fn is_settled(&self) -> bool {
        let kept = self.kept();
        kept.closed && kept.events.is_empty()
    }

    /// Returns how many bytes were ever added, and what their events cost.
    pub fn total(&self) -> u64 {
        self.kept().total
    }

    /// Tells a reader of growth.
    pub fn grown(&self) -> watch::Receiver<()> {
        self.grown.subscribe()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        let cost = self.kept().cost;
        self.release(cost);
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal() -> Journal {
        Journal::new(Arc::new(Budget::default()))
    }

    fn output(bytes: usize) -> EventKind {
        EventKind::Output(OutputStream::Stdout, Bytes::from(vec![b'x'; bytes]))
    }

    #[test]
    fn numbers_have_no_gaps_and_any_point_can_be_read() {
        let journal = journal();
        journal.append(EventKind::Started(7));
        for _ in 0..9 {
            journal.append(output(10));
        }
        journal.append(EventKind::Exited(ExecExit::default()));
        journal.append(output(1));
        for sequence in 1..=11 {
            let Found::Event(event) = journal.find(sequence) else {
                panic!("{sequence} is missing");
            };
            assert_eq!(event.sequence, sequence);
        }
        assert_eq!(journal.find(12), Found::End);
        assert_eq!(journal.range(), (1, 11));
        journal.acknowledge(4);
        assert_eq!(journal.find(1), Found::Dropped(5));
        assert_eq!(journal.range(), (5, 11));
        assert!(!journal.is_settled());
        journal.acknowledge(u64::MAX);
        assert_eq!(journal.find(5), Found::Dropped(12));
        assert_eq!(journal.find(12), Found::End);
        assert_eq!(journal.range(), (12, 11));
        assert!(journal.is_settled());
    }

    fn fill(journal: &Journal) -> usize {
        let mut bytes = 0;
        loop {
            let room = journal.room();
            if room == 0 {
                return bytes;
            }
            assert!(room <= OUTPUT_BYTES_MAX);
            journal.append(output(room));
            bytes += room;
        }
    }

    #[test]
    fn it_is_full_at_its_limit_even_of_tiny_events() {
        let large = journal();
        let bytes = fill(&large);
        assert!(bytes <= JOURNAL_BYTES_MAX && bytes > JOURNAL_BYTES_MAX * 99 / 100);
        let tiny = journal();
        let mut events = 0;
        while tiny.room() > 0 {
            tiny.append(output(1));
            events += 1;
        }
        assert!(events <= JOURNAL_BYTES_MAX / EVENT_COST);
    }

    #[test]
    fn all_together_are_bounded_and_none_is_stuck() {
        let budget = Arc::new(Budget::default());
        let journals: Vec<_> = (0..40).map(|_| Journal::new(Arc::clone(&budget))).collect();
        let bytes: usize = journals.iter().map(fill).sum();
        assert!(bytes <= JOURNALS_BYTES_MAX + 40 * JOURNAL_BYTES_ALWAYS);
        drop(journals);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn an_acknowledgement_makes_room() {
        let journal = Arc::new(journal());
        fill(&journal);
        let waiting = tokio::spawn({
            let journal = Arc::clone(&journal);
            async move { journal.wait_for_room().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        journal.acknowledge(1);
        assert!(waiting.await.unwrap() > 0);
    }
}
