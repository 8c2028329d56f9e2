//! The journal of one exec: files on disk, a bounded tail in memory, and who reads it.
//!
//! A journal is a row of files, each named after its first event. When the whole is larger than its
//! limit the oldest file goes and who still wanted it is told so by a `dropped` event.
//!
//! A *lossless* journal (an exec with back-pressure) drops nothing that a reader has yet to read:
//! - with readers attached, the slowest one may be [`Limits::window`] bytes behind, then the journal
//!   takes nothing more until it has caught up;
//! - with nobody attached, it takes events until it is full of what nobody has read yet, then it
//!   waits for a reader.
//!
//! "Taking nothing more" means that the agent is neither read nor acknowledged, so its own buffer
//! fills and the process blocks. A journal that is not lossless never waits for a reader.
//!
//! Nothing here is synced: a journal outlives the daemon, and a power cut ends the exec anyway.

mod record;
mod writer;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pinfold_types::weaken::{Defence, is_off};
use pinfold_types::{EventKind, ExecEvent, ExecExit};
use tokio::sync::{Notify, watch};

pub(crate) use record::{CONTENT_BYTES_MAX, after, weight};
#[cfg(feature = "fuzzing")]
pub(crate) use record::{HEADER, encode};
pub(crate) use writer::JournalWriter;

use record::Decoded;
#[cfg(not(feature = "fuzzing"))]
use record::HEADER;

/// Most bytes of events that a journal keeps in memory: readers that keep up never touch the disk,
/// and a thousand busy execs take a quarter of a gibibyte.
pub(crate) const TAIL_BYTES_MAX: usize = 256 << 10;

/// Most bytes that a reader takes from a file at once; larger than the largest record.
pub(crate) const CHUNK_BYTES: usize = 2 << 20;

/// Parts that a journal's limit is divided into, so that dropping one loses little.
const SEGMENTS: u64 = 16;

/// Largest file of a journal: finding an event reads half of one.
const SEGMENT_BYTES_MAX: u64 = 4 << 20;

/// Smallest file of a journal, so that a tiny limit does not make a file for each event.
const SEGMENT_BYTES_MIN: u64 = 4 << 10;

/// Largest distance between a lossless journal and its slowest reader.
const WINDOW_BYTES_MAX: u64 = 4 << 20;

/// What a test that leaves the bounds of a flood out has instead: it must not take all memory.
const BYTES_WEAKENED: usize = 512 << 20;

/// Sizes of a journal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Most bytes on disk, as far as nothing that must be kept is larger.
    pub(crate) total: u64,
    /// Bytes after which a new file begins.
    pub(crate) segment: u64,
    /// Farthest that the slowest reader of a lossless journal may be behind.
    pub(crate) window: u64,
}

impl Limits {
    /// Divides a limit.
    pub(crate) fn new(total: u64) -> Self {
        let window = if is_off(Defence::FloodBounds) {
            BYTES_WEAKENED as u64
        } else {
            (total / 2).clamp(SEGMENT_BYTES_MIN, WINDOW_BYTES_MAX)
        };
        Self {
            total,
            segment: (total / SEGMENTS).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX),
            window,
        }
    }
}

/// One file.
#[derive(Debug, Clone)]
struct Segment {
    first_seq: u64,
    /// Bytes of all files before this one, counted from the journal's opening.
    start: u64,
    /// Bytes that hold whole records, the header included.
    bytes: u64,
}

/// An event and the place where its record ends, counted as [`Segment::start`] is.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) event: Arc<ExecEvent>,
    pub(crate) end: u64,
}

/// Why a journal cannot be written at the moment.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    /// Tells one fault from the next.
    pub(crate) number: u64,
    pub(crate) kind: std::io::ErrorKind,
    pub(crate) text: String,
}

#[derive(Debug)]
struct State {
    segments: VecDeque<Segment>,
    tail: VecDeque<Kept>,
    tail_bytes: usize,
    next_seq: u64,
    end: u64,
    /// How the exec ended and when.
    exit: Option<(ExecExit, i64)>,
    removed: bool,
    fault: Option<Fault>,
    faults: u64,
    /// Where each attached reader of a lossless journal is.
    readers: HashMap<u64, u64>,
    readers_made: u64,
    /// Farthest place that any reader reached.
    furthest: u64,
}

/// The journal of one exec, shared between its writer and its readers.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    limits: Limits,
    lossless: bool,
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    room: Notify,
}

/// What a reader finds at its place.
#[derive(Debug)]
pub(crate) enum Found {
    /// Events, taken from memory.
    Tail(VecDeque<Kept>),
    /// They are in a file.
    Disk(Place),
    /// Events before this one are no longer kept.
    Dropped(u64),
    /// Nothing yet.
    CaughtUp(Option<Fault>),
    /// Nothing any more.
    Ended,
    /// The journal was removed.
    Removed,
}

/// A file and the part of it that is written.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    path: PathBuf,
    segment: Segment,
    /// First event of the next file, or the next event of all.
    next_first: u64,
}

/// An open file of a journal.
#[derive(Debug)]
pub(crate) struct Cursor {
    file: File,
    first_seq: u64,
    at: u64,
    next_seq: u64,
}

impl Journal {
    /// Makes or opens the journal in a directory and cuts off what a crash left half written.
    ///
    /// Blocks. Nobody else may have it open for writing.
    pub(crate) fn open(
        dir: &Path,
        limits: Limits,
        lossless: bool,
    ) -> std::io::Result<(Arc<Self>, JournalWriter)> {
        std::fs::create_dir_all(dir)?;
        let recovered = writer::recover(dir)?;
        let end = recovered.segments.back().map_or(0, |s| s.start + s.bytes);
        let journal = Arc::new(Self {
            dir: dir.to_owned(),
            limits,
            lossless,
            state: Mutex::new(State {
                segments: recovered.segments,
                tail: VecDeque::new(),
                tail_bytes: 0,
                next_seq: recovered.next_seq,
                end,
                exit: recovered.exit,
                removed: false,
                fault: None,
                faults: 0,
                readers: HashMap::new(),
                readers_made: 0,
                furthest: 0,
            }),
            changes: watch::Sender::new(0),
            room: Notify::new(),
        });
        let writer = JournalWriter::new(Arc::clone(&journal));
        Ok((journal, writer))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the sequence number of the next event.
    pub(crate) fn next_seq(&self) -> u64 {
        self.lock().next_seq
    }

    /// Returns how the exec ended, when the journal holds that.
    pub(crate) fn exit(&self) -> Option<ExecExit> {
        self.lock().exit.as_ref().map(|(exit, _)| exit.clone())
    }

    /// Returns when the exec ended, in milliseconds since the Unix epoch.
    pub(crate) fn ended_ms(&self) -> Option<i64> {
        self.lock().exit.as_ref().map(|(_, time_ms)| *time_ms)
    }

    /// Returns whether the journal was removed.
    pub(crate) fn is_removed(&self) -> bool {
        self.lock().removed
    }

    /// Hears of every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Waits until the journal may take more.
    pub(crate) async fn room(&self) {
        if !self.lossless {
            return;
        }
        loop {
            let notified = self.room.notified();
            if self.lock().has_room(self.limits) {
                return;
            }
            notified.await;
        }
    }

    /// Tells readers that the journal is gone. Its files are the caller's to remove.
    pub(crate) fn mark_removed(&self) {
        self.lock().removed = true;
        self.changed();
    }

    /// Notes that the disk does not take events, until [`Self::set_fault`] with `None`.
    pub(crate) fn set_fault(&self, error: Option<&std::io::Error>) {
        let mut state = self.lock();
        if error.is_none() && state.fault.is_none() {
            return;
        }
        state.faults += u64::from(error.is_some() && state.fault.is_none());
        state.fault = error.map(|error| Fault {
            number: state.faults,
            kind: error.kind(),
            text: error.to_string(),
        });
        drop(state);
        self.changed();
    }

    fn changed(&self) {
        self.changes
            .send_modify(|version| *version = version.wrapping_add(1));
    }

    /// Attaches a reader that the journal waits for; `None` when it waits for nobody.
    pub(crate) fn attach(&self, from_seq: u64) -> Option<u64> {
        if !self.lossless {
            return None;
        }
        let mut state = self.lock();
        let at = state.offset_of(from_seq);
        state.readers_made += 1;
        let number = state.readers_made;
        state.readers.insert(number, at);
        drop(state);
        self.room.notify_one();
        Some(number)
    }

    /// Notes how far a reader has read.
    pub(crate) fn reached(&self, reader: u64, end: u64) {
        let mut state = self.lock();
        state.furthest = state.furthest.max(end);
        if let Some(at) = state.readers.get_mut(&reader) {
            *at = (*at).max(end);
        }
        drop(state);
        self.room.notify_one();
    }

    /// Lets a reader go.
    pub(crate) fn detach(&self, reader: u64) {
        self.lock().readers.remove(&reader);
        self.room.notify_one();
    }

    /// Looks what there is from a sequence number on.
    pub(crate) fn look(&self, next: u64) -> Found {
        let state = self.lock();
        if state.removed {
            return Found::Removed;
        }
        if next >= state.next_seq {
            return if state.exit.is_some() {
                Found::Ended
            } else {
                Found::CaughtUp(state.fault.clone())
            };
        }
        if state.tail.front().is_some_and(|k| k.event.seq <= next) {
            let from = state.tail.partition_point(|kept| kept.event.seq < next);
            return Found::Tail(state.tail.iter().skip(from).cloned().collect());
        }
        let index = state.segments.partition_point(|s| s.first_seq <= next);
        let Some(segment) = index.checked_sub(1).and_then(|i| state.segments.get(i)) else {
            let first = state
                .segments
                .front()
                .map_or(state.next_seq, |s| s.first_seq);
            return Found::Dropped(first);
        };
        Found::Disk(Place {
            path: writer::segment_path(&self.dir, segment.first_seq),
            segment: segment.clone(),
            next_first: state
                .segments
                .get(index)
                .map_or(state.next_seq, |s| s.first_seq),
        })
    }
}

impl State {
    /// Returns a place at or before an event.
    fn offset_of(&self, seq: u64) -> u64 {
        if seq >= self.next_seq {
            return self.end;
        }
        let index = self.segments.partition_point(|s| s.first_seq <= seq);
        self.segments
            .get(index.saturating_sub(1))
            .map_or(self.end, |segment| segment.start)
    }

    /// Returns the place before which nothing is wanted any more.
    fn wanted_from(&self) -> u64 {
        self.readers
            .values()
            .min()
            .copied()
            .unwrap_or(self.furthest)
    }

    fn has_room(&self, limits: Limits) -> bool {
        let wanted = self.wanted_from();
        if self.readers.is_empty() {
            self.end.saturating_sub(wanted) < limits.total
        } else {
            self.end.saturating_sub(wanted) < limits.window
        }
    }
}

/// Reads events from a file, from a sequence number on. Blocks.
///
/// Answers fewer than there are, and none when the file holds nothing usable from there on; then
/// the reader goes on at [`Place::next_first`].
pub(crate) fn read_place(
    cursor: Option<Cursor>,
    place: &Place,
    next: u64,
) -> std::io::Result<(Option<Cursor>, VecDeque<Kept>)> {
    let fitting = cursor.filter(|c| c.first_seq == place.segment.first_seq && c.next_seq == next);
    let mut cursor = match fitting {
        Some(cursor) => cursor,
        None => Cursor {
            file: File::open(&place.path)?,
            first_seq: place.segment.first_seq,
            at: u64::try_from(HEADER.len()).unwrap_or(0),
            next_seq: place.segment.first_seq,
        },
    };
    loop {
        let found = read_chunk(&mut cursor, place)?;
        if found.is_empty() {
            return Ok((None, VecDeque::new()));
        }
        let wanted: VecDeque<Kept> = found
            .into_iter()
            .filter(|kept| kept.event.seq >= next)
            .collect();
        if !wanted.is_empty() {
            return Ok((Some(cursor), wanted));
        }
    }
}

fn read_chunk(cursor: &mut Cursor, place: &Place) -> std::io::Result<Vec<Kept>> {
    let left = place.segment.bytes.saturating_sub(cursor.at);
    let length = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
    let mut bytes = Vec::with_capacity(length);
    cursor.file.seek(SeekFrom::Start(cursor.at))?;
    let most = u64::try_from(length).unwrap_or(u64::MAX);
    (&mut cursor.file).take(most).read_to_end(&mut bytes)?;
    let mut rest = bytes.as_slice();
    let mut found = Vec::new();
    while let Decoded::Event(event, size) = record::decode(rest) {
        rest = rest.get(size..).unwrap_or_default();
        cursor.at += u64::try_from(size).unwrap_or(0);
        cursor.next_seq = after(&event);
        found.push(Kept {
            event: Arc::new(event),
            end: place.segment.start + cursor.at,
        });
    }
    Ok(found)
}

impl Place {
    /// Returns where a reader goes on that found nothing usable here.
    pub(crate) const fn next_first(&self) -> u64 {
        self.next_first
    }
}

/// Returns whether an event is the last of its exec.
pub(crate) const fn is_exit(event: &ExecEvent) -> bool {
    matches!(event.kind, EventKind::Exit(_))
}

#[cfg(test)]
mod tests;
