//! Reading the journal of an exec.

use std::collections::VecDeque;
use std::sync::Arc;

use pinfold_types::{ErrorCode, EventKind, ExecEvent};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::activity::Lease;
use crate::clock::Clock;
use crate::error::EngineError;
use crate::journal::{Cursor, Fault, Found, Journal, Kept, after, is_exit, read_place};

/// Tries to read a file that went away while it was looked up; the next look finds another.
const READ_TRIES_MAX: u32 = 8;

/// Reads an exec's events in order: first those kept on disk, then live ones.
///
/// A reader that follows an exec with back-pressure slows it from its first to its last breath, so
/// drop it when nobody reads any more.
#[derive(Debug)]
pub struct EventReader {
    journal: Arc<Journal>,
    changes: watch::Receiver<u64>,
    closing: CancellationToken,
    clock: Clock,
    attached: Option<u64>,
    next: u64,
    follow: bool,
    finished: bool,
    fault_told: u64,
    ready: VecDeque<Kept>,
    cursor: Option<Cursor>,
    _lease: Option<Lease>,
}

/// How a reader reads.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) from_seq: u64,
    pub(crate) follow: bool,
    pub(crate) lease: Option<Lease>,
}

enum Step {
    Again,
    Answer(Result<ExecEvent, EngineError>),
    End,
    Wait,
}

impl EventReader {
    pub(crate) fn new(
        journal: Arc<Journal>,
        reading: Reading,
        closing: CancellationToken,
        clock: Clock,
    ) -> Self {
        let next = reading.from_seq.max(1);
        Self {
            changes: journal.changes(),
            attached: reading.follow.then(|| journal.attach(next)).flatten(),
            journal,
            closing,
            clock,
            next,
            follow: reading.follow,
            finished: false,
            fault_told: 0,
            ready: VecDeque::new(),
            cursor: None,
            _lease: reading.lease,
        }
    }

    /// Returns the next event, or `None` after the last.
    ///
    /// Waits for it when the reader follows the exec. Safe to cancel: no event is lost. After an
    /// error with the code `resource_exhausted` (the journal cannot be written at the moment) it may
    /// be called again and goes on where it was.
    pub async fn next(&mut self) -> Option<Result<ExecEvent, EngineError>> {
        let mut tries = 0;
        loop {
            if self.finished {
                return None;
            }
            self.changes.mark_unchanged();
            match self.step(&mut tries).await {
                Step::Again => {}
                Step::Answer(answer) => return Some(answer),
                Step::End => {
                    self.finished = true;
                    return None;
                }
                Step::Wait => {
                    let closing = self.closing.clone();
                    tokio::select! {
                        biased;
                        changed = self.changes.changed() => if changed.is_err() {
                            self.finished = true;
                        },
                        () = closing.cancelled() => {
                            self.finished = true;
                            return Some(Err(EngineError::closing()));
                        }
                    }
                }
            }
        }
    }

    async fn step(&mut self, tries: &mut u32) -> Step {
        if let Some(kept) = self.ready.front()
            && kept.event.seq > self.next
        {
            let first_kept = kept.event.seq;
            return self.dropped(first_kept);
        }
        if let Some(kept) = self.ready.pop_front() {
            return self.take(kept);
        }
        match self.journal.look(self.next) {
            Found::Tail(events) => {
                self.ready = events;
                Step::Again
            }
            Found::Dropped(first_kept) => self.dropped(first_kept),
            Found::Disk(place) => self.read(place, tries).await,
            Found::CaughtUp(_) if !self.follow => Step::End,
            Found::CaughtUp(fault) => self.caught_up(fault),
            Found::Ended => Step::End,
            Found::Removed => {
                self.finished = true;
                Step::Answer(Err(removed()))
            }
        }
    }

    fn take(&mut self, kept: Kept) -> Step {
        if kept.event.seq < self.next {
            return Step::Again;
        }
        self.next = after(&kept.event);
        self.finished = is_exit(&kept.event);
        if let Some(reader) = self.attached {
            self.journal.reached(reader, kept.end);
        }
        let event = Arc::try_unwrap(kept.event).unwrap_or_else(|event| (*event).clone());
        Step::Answer(Ok(event))
    }

    fn dropped(&mut self, first_kept: u64) -> Step {
        let seq = std::mem::replace(&mut self.next, first_kept);
        Step::Answer(Ok(ExecEvent {
            seq,
            time_ms: self.clock.now_ms(),
            kind: EventKind::Dropped { first_kept },
        }))
    }

    async fn read(&mut self, place: crate::journal::Place, tries: &mut u32) -> Step {
        let (cursor, next) = (self.cursor.take(), self.next);
        let next_first = place.next_first();
        match crate::blocking::run(move || read_place(cursor, &place, next)).await {
            Ok((cursor, found)) if !found.is_empty() => {
                self.cursor = cursor;
                self.ready = found;
                Step::Again
            }
            // The rest of that file is damaged.
            Ok(_) => self.dropped(next_first),
            Err(error) => {
                *tries += 1;
                if *tries < READ_TRIES_MAX && error.kind() == std::io::ErrorKind::NotFound {
                    return Step::Again;
                }
                self.finished = true;
                Step::Answer(Err(if error.kind() == std::io::ErrorKind::NotFound {
                    removed()
                } else {
                    EngineError::host_io("read the journal", error)
                }))
            }
        }
    }

    fn caught_up(&mut self, fault: Option<Fault>) -> Step {
        let Some(fault) = fault.filter(|fault| fault.number != self.fault_told) else {
            return Step::Wait;
        };
        self.fault_told = fault.number;
        let source = std::io::Error::new(fault.kind, fault.text);
        Step::Answer(Err(EngineError::host_io(
            "write the journal; the process waits",
            source,
        )))
    }
}

impl Drop for EventReader {
    fn drop(&mut self) {
        if let Some(reader) = self.attached {
            self.journal.detach(reader);
        }
    }
}

fn removed() -> EngineError {
    EngineError::new(ErrorCode::NotFound, "the exec's journal was removed")
        .hint("its sandbox was removed, or newer execs took its place")
}
