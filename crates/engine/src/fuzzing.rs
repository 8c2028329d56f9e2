//! What the fuzz targets reach of journals on disk. No product has it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use pinfold_types::ExecEvent;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::journal::{self, Journal, JournalWriter, Limits};
use crate::reader::{EventReader, Reading};

/// Bytes of a journal that the fuzz targets open.
const JOURNAL_BYTES: u64 = 1 << 20;

/// A journal in a directory.
#[derive(Debug)]
pub struct StoredJournal {
    journal: Arc<Journal>,
    writer: JournalWriter,
}

impl StoredJournal {
    /// Opens it as a daemon does that starts: what is torn is cut off.
    ///
    /// # Errors
    ///
    /// Fails when the directory cannot be read or written.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let (journal, writer) = Journal::open(dir, Limits::new(JOURNAL_BYTES), false)?;
        Ok(Self { journal, writer })
    }

    /// Returns the number of the next event.
    pub fn next_seq(&self) -> u64 {
        self.journal.next_seq()
    }

    /// Returns whether the last event is there.
    pub fn has_ended(&self) -> bool {
        self.journal.exit().is_some()
    }

    /// Appends an event, which has the next number.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be written.
    pub fn append(&mut self, event: ExecEvent) -> io::Result<()> {
        self.writer.append(&[Arc::new(event)])
    }

    /// Reads the events that there are now, from a number on.
    pub fn reader(&self, from_seq: u64) -> EventReader {
        let reading = Reading {
            from_seq,
            follow: false,
            lease: None,
        };
        let closing = CancellationToken::new();
        EventReader::new(
            Arc::clone(&self.journal),
            reading,
            closing,
            Clock::default(),
        )
    }
}

/// Returns what begins every file of a journal.
pub fn journal_header() -> &'static [u8] {
    journal::HEADER
}

/// Returns an event as a journal's file holds it.
pub fn journal_record(event: &ExecEvent) -> Vec<u8> {
    let mut bytes = Vec::new();
    journal::encode(event, &mut bytes);
    bytes
}
