//! The writing side of a journal.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pinfold_types::weaken::{Defence, is_off};
use pinfold_types::{EventKind, ExecEvent, ExecExit};

use super::record::{self, Decoded, HEADER};
use super::{BYTES_WEAKENED, Journal, Kept, Segment, State, TAIL_BYTES_MAX};

/// What ends the name of a journal's file.
const SUFFIX: &str = ".events";

/// Largest file that is read back when a journal is opened: a segment and one batch.
const RECOVERED_BYTES_MAX: u64 = 64 << 20;

/// What a directory holds after the torn end was cut off.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) segments: VecDeque<Segment>,
    pub(super) next_seq: u64,
    pub(super) exit: Option<(ExecExit, i64)>,
}

/// The one writer of a journal.
#[derive(Debug)]
pub(crate) struct JournalWriter {
    journal: Arc<Journal>,
    file: Option<File>,
    buffer: Vec<u8>,
}

pub(super) fn segment_path(dir: &Path, first_seq: u64) -> PathBuf {
    dir.join(format!("{first_seq:020}{SUFFIX}"))
}

/// Reads what there is and cuts off the torn end.
pub(super) fn recover(dir: &Path) -> std::io::Result<Recovered> {
    let mut firsts = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
        firsts.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    firsts.sort_unstable();
    let mut recovered = Recovered {
        segments: VecDeque::new(),
        next_seq: 1,
        exit: None,
    };
    // Only the last file can be torn; one that holds nothing whole leaves its place to the one before.
    while let Some(last) = firsts.pop() {
        let path = segment_path(dir, last);
        let (bytes, last_event) = scan(&path, last)?;
        let Some(event) = last_event else {
            std::fs::remove_file(&path)?;
            continue;
        };
        File::options().write(true).open(&path)?.set_len(bytes)?;
        recovered.next_seq = record::after(&event);
        if let EventKind::Exit(exit) = event.kind {
            recovered.exit = Some((exit, event.time_ms));
        }
        firsts.push(last);
        break;
    }
    let mut start = 0;
    for first_seq in firsts {
        let bytes = std::fs::metadata(segment_path(dir, first_seq))?.len();
        recovered.segments.push_back(Segment {
            first_seq,
            start,
            bytes,
        });
        start += bytes;
    }
    Ok(recovered)
}

/// Returns how many bytes of a file are whole, and the last event in them. The first must be the one
/// that the file is named after, or readers would look for what follows in vain.
fn scan(path: &Path, first_seq: u64) -> std::io::Result<(u64, Option<ExecEvent>)> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(RECOVERED_BYTES_MAX)
        .read_to_end(&mut bytes)?;
    let Some(mut rest) = bytes.strip_prefix(HEADER.as_slice()) else {
        return Ok((0, None));
    };
    let mut last: Option<ExecEvent> = None;
    while let Decoded::Event(event, size) = record::decode(rest) {
        if last.as_ref().map_or(first_seq, record::after) != event.seq {
            break;
        }
        rest = rest.get(size..).unwrap_or_default();
        last = Some(event);
    }
    let whole = u64::try_from(bytes.len() - rest.len()).unwrap_or(0);
    Ok((whole, last))
}

impl JournalWriter {
    pub(super) fn new(journal: Arc<Journal>) -> Self {
        Self {
            journal,
            file: None,
            buffer: Vec::new(),
        }
    }

    /// Moves the writer to another thread; what stays behind only waits to be replaced.
    pub(crate) fn take(&mut self) -> Self {
        Self {
            journal: Arc::clone(&self.journal),
            file: self.file.take(),
            buffer: std::mem::take(&mut self.buffer),
        }
    }

    /// Appends events, all or none, and shows them to readers. Blocks.
    ///
    /// The events must follow the journal's last without a gap. After an error the journal is as
    /// it was and the same events can be tried again.
    pub(crate) fn append(&mut self, events: &[Arc<ExecEvent>]) -> std::io::Result<()> {
        let Some(first) = events.first() else {
            return Ok(());
        };
        self.buffer.clear();
        let mut ends = Vec::with_capacity(events.len());
        for event in events {
            record::encode(event, &mut self.buffer);
            ends.push(u64::try_from(self.buffer.len()).unwrap_or(u64::MAX));
        }
        let last_segment = self.journal.lock().segments.back().cloned();
        let limit = self.journal.limits.segment;
        let segment = match last_segment.filter(|segment| segment.bytes < limit) {
            Some(segment) => segment,
            None => self.begin_segment(first.seq)?,
        };
        self.write(&segment)?;
        self.show(segment, events, &ends);
        self.journal.changed();
        self.drop_oldest();
        Ok(())
    }

    /// Makes the next file; one that an earlier try left behind is emptied.
    fn begin_segment(&mut self, first_seq: u64) -> std::io::Result<Segment> {
        self.file = None;
        let path = segment_path(&self.journal.dir, first_seq);
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)?;
        if let Err(error) = file.write_all(HEADER) {
            // An empty file is harmless, and the next try empties it anyway.
            drop(std::fs::remove_file(&path));
            return Err(error);
        }
        self.file = Some(file);
        Ok(Segment {
            first_seq,
            start: self.journal.lock().end,
            bytes: u64::try_from(HEADER.len()).unwrap_or(0),
        })
    }

    fn write(&mut self, segment: &Segment) -> std::io::Result<()> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => File::options()
                .write(true)
                .open(segment_path(&self.journal.dir, segment.first_seq))?,
        };
        file.seek(SeekFrom::Start(segment.bytes))?;
        if let Err(error) = file.write_all(&self.buffer) {
            // What is torn is cut now, or else when the journal is opened again.
            drop(file.set_len(segment.bytes));
            return Err(error);
        }
        self.file = Some(file);
        Ok(())
    }

    fn show(&self, mut segment: Segment, events: &[Arc<ExecEvent>], ends: &[u64]) {
        let mut state = self.journal.lock();
        let base = segment.start + segment.bytes;
        segment.bytes += ends.last().copied().unwrap_or(0);
        state.end = segment.start + segment.bytes;
        if state
            .segments
            .back()
            .is_some_and(|last| last.first_seq == segment.first_seq)
        {
            state.segments.pop_back();
        }
        state.segments.push_back(segment);
        for (event, end) in events.iter().zip(ends) {
            state.tail_bytes += record::weight(event);
            state.next_seq = record::after(event);
            if let EventKind::Exit(exit) = &event.kind {
                state.exit = Some((exit.clone(), event.time_ms));
            }
            state.tail.push_back(Kept {
                event: Arc::clone(event),
                end: base + end,
            });
        }
        trim_tail(&mut state);
    }

    /// Drops whole files while the journal is larger than its limit.
    fn drop_oldest(&self) {
        let journal = &self.journal;
        loop {
            let mut state = journal.lock();
            let Some(oldest) = state.segments.front() else {
                return;
            };
            let large = state.end - oldest.start > journal.limits.total;
            let wanted = journal.lossless && oldest.start + oldest.bytes > state.wanted_from();
            if !large || wanted || state.segments.len() < 2 {
                return;
            }
            let path = segment_path(&journal.dir, oldest.first_seq);
            state.segments.pop_front();
            drop(state);
            if let Err(error) = std::fs::remove_file(&path)
                && error.kind() != ErrorKind::NotFound
            {
                tracing::warn!(error = %crate::error::chain(&error), "journal file not removed");
            }
        }
    }
}

fn trim_tail(state: &mut State) {
    let most = if is_off(Defence::FloodBounds) {
        BYTES_WEAKENED
    } else {
        TAIL_BYTES_MAX
    };
    while state.tail.len() > 1 && state.tail_bytes > most {
        if let Some(kept) = state.tail.pop_front() {
            state.tail_bytes = state.tail_bytes.saturating_sub(record::weight(&kept.event));
        }
    }
}
