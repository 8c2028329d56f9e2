//! Journals of execs on disk, as a crash, a full disk or a bad one may have left them.

use std::fs;
use std::path::Path;

use pinfold_engine::fuzzing::{StoredJournal, journal_header, journal_record};
use pinfold_types::{EventKind, ExecEvent, OutputStream};
use tokio::runtime::{Builder, Runtime};

use crate::input::Input;
use crate::place::Place;

/// Most files of one input.
const FILES_MAX: usize = 4;

/// Opening never fails, cuts off what is torn once and for all, and a reader hears numbers that
/// rise; what is appended is read back after what was there.
pub fn run(data: &[u8]) {
    let place = Place::new();
    let dir = place.inside();
    let mut input = Input::new(data);
    let choice = input.byte();
    let from_seq = u64::from(input.byte());
    let mut first_seq = 1 + u64::from(choice >> 4);
    for _ in 0..FILES_MAX {
        if input.is_empty() {
            break;
        }
        let part = input.part();
        fs::write(
            dir.join(format!("{first_seq:020}.events")),
            file(choice, part),
        )
        .expect("the directory is writable");
        first_seq += 1 + u64::from(input.byte());
    }
    let runtime = Builder::new_current_thread().build();
    let runtime = runtime.expect("a runtime can be made");
    let found = look(&runtime, &dir, from_seq);
    assert_eq!(look(&runtime, &dir, from_seq), found);
    append(&runtime, &dir);
    place.check();
}

/// A file: the header and records whose checksums are right, or anything.
fn file(choice: u8, part: &[u8]) -> Vec<u8> {
    if choice & 1 == 0 {
        return part.to_vec();
    }
    let mut bytes = journal_header().to_vec();
    bytes.extend_from_slice(part);
    if choice & 2 != 0 {
        mend(&mut bytes);
    }
    bytes
}

/// Sets the checksum of every record that can be found by the lengths that records tell.
fn mend(bytes: &mut [u8]) {
    let mut at = journal_header().len();
    loop {
        let length = bytes
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok());
        let Some(length) = length.map(u32::from_le_bytes) else {
            return;
        };
        let end = (at + 8).saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
        let Some(sum) = bytes.get(at + 8..end).map(crc32fast::hash) else {
            return;
        };
        if let Some(place) = bytes.get_mut(at + 4..at + 8) {
            place.copy_from_slice(&sum.to_le_bytes());
        }
        at = end;
    }
}

/// Opens the journal and reads it: the next number, and the events.
fn look(runtime: &Runtime, dir: &Path, from_seq: u64) -> (u64, Vec<ExecEvent>) {
    let journal = StoredJournal::open(dir).expect("a journal can always be opened");
    (journal.next_seq(), read(runtime, &journal, from_seq))
}

fn read(runtime: &Runtime, journal: &StoredJournal, from_seq: u64) -> Vec<ExecEvent> {
    let mut reader = journal.reader(from_seq);
    let mut events = Vec::new();
    let mut next = from_seq.max(1);
    while let Some(event) = runtime.block_on(reader.next()) {
        let mut event = event.expect("what can be opened can be read");
        assert!(event.seq >= next, "{} after {next}", event.seq);
        next = match event.kind {
            EventKind::Dropped { first_kept } => {
                // The reader says when it told so.
                event.time_ms = 0;
                assert!(first_kept > event.seq, "nothing is left out");
                first_kept
            }
            EventKind::Start { .. } | EventKind::Output { .. } | EventKind::Exit(_) => {
                event.seq.saturating_add(1)
            }
        };
        events.push(event);
    }
    events
}

fn append(runtime: &Runtime, dir: &Path) {
    let mut journal = StoredJournal::open(dir).expect("a journal can always be opened");
    let next = journal.next_seq();
    if journal.has_ended() || next == u64::MAX {
        return;
    }
    let event = ExecEvent {
        seq: next,
        time_ms: -1,
        kind: EventKind::Output {
            stream: OutputStream::Stderr,
            data: b"more".to_vec(),
        },
    };
    assert!(journal_record(&event).len() > 4);
    journal.append(event.clone()).expect("the disk has room");
    drop(journal);
    let journal = StoredJournal::open(dir).expect("a journal can always be opened");
    assert_eq!(journal.next_seq(), next + 1, "what was appended is lost");
    assert_eq!(read(runtime, &journal, next), [event]);
}
