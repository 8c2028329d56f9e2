//! How far each file of events was read, so that a daemon after this one goes on there.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Name of the file beside the journal.
const FILE: &str = "places.json";

/// Largest file that is read back: as many names and steps as there can be, each of the longest.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// How far one file was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FilePlace {
    /// Bytes that are events already; of a file that is one event, its size then.
    pub(super) bytes: u64,
    /// Milliseconds since the Unix epoch, of the change that was last seen of a file that is one
    /// event.
    pub(super) changed_ms: i64,
}

/// What was read before a batch, and what each event of the batch has read.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Stored {
    version: u32,
    before: BTreeMap<String, FilePlace>,
    steps: Vec<(u64, String, FilePlace)>,
}

/// How far every file was read.
#[derive(Debug, Default)]
pub(super) struct Places {
    dir: PathBuf,
    places: BTreeMap<String, FilePlace>,
}

/// What has to be written down before a batch of events is.
pub(super) struct Plan {
    dir: PathBuf,
    text: Vec<u8>,
}

impl Places {
    /// Reads what an earlier daemon wrote down; of its last batch that part counts which the journal
    /// holds. Blocks.
    pub(super) fn load(dir: &Path, next_seq: u64) -> std::io::Result<Self> {
        let mut text = Vec::new();
        let stored = match std::fs::File::open(dir.join(FILE)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Stored::default(),
            Err(error) => return Err(error),
            Ok(file) => {
                file.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
                serde_json::from_slice(&text).unwrap_or_else(|error| {
                    tracing::error!(%error, "what was read of events is not known any more");
                    Stored::default()
                })
            }
        };
        let mut places = stored.before;
        for (seq, name, place) in stored.steps {
            if seq < next_seq {
                places.insert(name, place);
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            places,
        })
    }

    /// Returns how far a file was read.
    pub(super) fn of(&self, name: &str) -> FilePlace {
        self.places.get(name).copied().unwrap_or_default()
    }

    /// Returns what to write down before these events are.
    pub(super) fn plan(&self, steps: &[(u64, String, FilePlace)]) -> Plan {
        let stored = Stored {
            version: 1,
            before: self.places.clone(),
            steps: steps.to_vec(),
        };
        Plan {
            dir: self.dir.clone(),
            text: serde_json::to_vec(&stored).unwrap_or_default(),
        }
    }

    /// Takes the events as read.
    pub(super) fn advance(&mut self, steps: Vec<(u64, String, FilePlace)>) {
        for (_, name, place) in steps {
            self.places.insert(name, place);
        }
    }

    /// Forgets files that are gone: one that comes under such a name is another.
    pub(super) fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.places.retain(|name, _| is_there(name));
    }
}

impl Plan {
    /// Writes it, whole or not at all. Blocks.
    pub(super) fn write(&self) -> std::io::Result<()> {
        let partial = self.dir.join("places.partial");
        std::fs::write(&partial, &self.text)?;
        std::fs::rename(&partial, self.dir.join(FILE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(bytes: u64) -> FilePlace {
        FilePlace {
            bytes,
            changed_ms: 0,
        }
    }

    #[test]
    fn what_the_journal_holds_of_the_last_batch_counts() {
        let dir = tempfile::tempdir().unwrap();
        let mut places = Places::load(dir.path(), 1).unwrap();
        assert_eq!(places.of("a"), place(0));
        let step = |seq, name: &str, bytes| (seq, name.to_owned(), place(bytes));
        let first = vec![step(1, "a", 5), step(2, "b", 7)];
        places.plan(&first).write().unwrap();
        places.advance(first);
        let second = vec![step(3, "a", 10), step(4, "a", 15)];
        places.plan(&second).write().unwrap();
        // The journal took none, one or both of them before the daemon was killed.
        for (next_seq, expected) in [(3, 5), (4, 10), (5, 15)] {
            let found = Places::load(dir.path(), next_seq).unwrap();
            assert_eq!(found.of("a"), place(expected), "{next_seq}");
            assert_eq!(found.of("b"), place(7));
        }
        places.retain(|name| name == "b");
        assert_eq!(places.of("a"), place(0));
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        let places = Places::load(dir.path(), 9).unwrap();
        assert_eq!(places.of("a"), place(0));
    }
}
