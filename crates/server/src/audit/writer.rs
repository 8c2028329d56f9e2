//! The one writer: it goes on with the chain, turns to new files, and waits out a full disk.

use std::collections::VecDeque;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::SYNC_EVERY;
use super::line::{BEGINNING, Entry, Line, claimed_hash};

/// Bytes after which a new file is begun: some fifty thousand lines, which an editor still opens.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Files that are kept, so a gigabyte and three million lines; then the oldest goes, and a line says
/// so. Whoever needs more copies them away.
pub(super) const FILES_MAX: usize = 64;

/// Lines that wait in memory while none can be written: half a mebibyte. Of further ones only the
/// number is kept.
const WAITING_MAX: usize = 1024;

/// Most bytes of a torn line that are told of.
const TORN_BYTES_MAX: usize = 512;

/// Largest file that is read: one that grew by its last line, several times over.
const READ_BYTES_MAX: u64 = 4 * FILE_BYTES_MAX;

/// Returns the files of a log, oldest first.
pub(super) fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if first_seq(&path).is_some() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Returns the number of the first line of a file, as its name says it.
pub(super) fn first_seq(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let digits = name.strip_prefix("audit-")?.strip_suffix(".jsonl")?;
    (digits.len() == 20).then(|| digits.parse().ok()).flatten()
}

/// Reads a file whole, within a bound.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    file.take(READ_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[derive(Debug)]
pub(super) struct Writer {
    directory: PathBuf,
    file: File,
    bytes: u64,
    /// Number of the last line.
    seq: u64,
    /// Hash of the last line.
    head: String,
    waiting: VecDeque<Entry>,
    lost: u64,
    /// Written since the last sync.
    dirty: bool,
    tended: Instant,
}

/// Where a chain stands.
#[derive(Debug)]
struct Place {
    seq: u64,
    head: String,
    /// Where the next line goes; a new file when there is none.
    file: Option<PathBuf>,
    /// What has to be told of what was found.
    told: Option<Entry>,
}

impl Writer {
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let place = find_place(directory)?;
        let path = match place.file {
            Some(path) => path,
            None => path_of(directory, place.seq + 1),
        };
        let file = open_file(&path)?;
        let mut writer = Self {
            directory: directory.to_owned(),
            bytes: file.metadata()?.len(),
            file,
            seq: place.seq,
            head: place.head,
            waiting: VecDeque::new(),
            lost: 0,
            dirty: false,
            tended: Instant::now(),
        };
        if let Some(entry) = place.told {
            let detail = entry.detail.as_deref().unwrap_or_default();
            tracing::warn!(action = entry.action, detail, "the audit log was mended");
            writer.write(entry);
        }
        Ok(writer)
    }

    /// Returns whether lines wait that cannot be written.
    pub(super) fn is_behind(&self) -> bool {
        !self.waiting.is_empty() || self.lost > 0
    }

    /// Writes a line, behind those that wait; keeps it when that fails.
    pub(super) fn write(&mut self, entry: Entry) {
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push_back(entry);
        } else {
            self.lost += 1;
        }
        self.write_waiting();
    }

    /// Tries again what waits, and makes safe what was written, when it is time.
    pub(super) fn tend_now_and_then(&mut self) {
        if self.tended.elapsed() >= SYNC_EVERY {
            self.tend();
        }
    }

    /// The same at once.
    pub(super) fn tend(&mut self) {
        self.tended = Instant::now();
        self.write_waiting();
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        if let Err(error) = self.file.sync_data() {
            tracing::error!(chain = %pinfold_types::ErrorChain(&error), "audit log not synced");
        }
    }

    fn write_waiting(&mut self) {
        let was_behind = self.waiting.len() > 1 || self.lost > 0;
        while let Some(entry) = self.waiting.pop_front() {
            if let Err(error) = self.append(&entry) {
                if !was_behind {
                    tracing::error!(
                        chain = %pinfold_types::ErrorChain(&error),
                        "a line of the audit log is not written; what changes anything is refused"
                    );
                }
                self.waiting.push_front(entry);
                return;
            }
        }
        if self.lost > 0 {
            let detail = format!("{} lines could not be written and are lost", self.lost);
            if self
                .append(&Entry::of_daemon("audit.lost", Some(detail)))
                .is_ok()
            {
                self.lost = 0;
            }
        }
    }

    fn append(&mut self, entry: &Entry) -> io::Result<()> {
        if self.bytes >= FILE_BYTES_MAX {
            self.turn()?;
        }
        let line = Line::new(entry.clone(), self.seq + 1, &self.head);
        let (text, hash) = line.encode();
        if let Err(error) = self.file.write_all(text.as_bytes()) {
            // A part of it may be there, which the next line must not follow.
            self.file.set_len(self.bytes)?;
            return Err(error);
        }
        self.bytes += text.len() as u64;
        self.seq += 1;
        self.head = hash;
        self.dirty = true;
        Ok(())
    }

    /// Begins a new file.
    fn turn(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        let file = open_file(&path_of(&self.directory, self.seq + 1))?;
        self.file = file;
        self.bytes = 0;
        let files = files(&self.directory)?;
        let too_many = files.len().saturating_sub(FILES_MAX);
        for old in files.iter().take(too_many) {
            std::fs::remove_file(old)?;
            let name = old.file_name().unwrap_or_default().to_string_lossy();
            self.append(&Entry::of_daemon("audit.removed", Some(name.into_owned())))?;
        }
        Ok(())
    }
}

fn path_of(directory: &Path, seq: u64) -> PathBuf {
    directory.join(format!("audit-{seq:020}.jsonl"))
}

fn open_file(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    // The name is to outlive a power cut too.
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    Ok(file)
}

/// Finds where an earlier daemon stopped.
fn find_place(directory: &Path) -> io::Result<Place> {
    let mut place = Place {
        seq: 0,
        head: BEGINNING.to_owned(),
        file: None,
        told: None,
    };
    for path in files(directory)?.into_iter().rev() {
        let bytes = read(&path)?;
        let whole = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        let (lines, torn) = bytes.split_at(whole);
        if place.file.is_none() {
            place.file = Some(path.clone());
            if !torn.is_empty() {
                place.told = Some(mend(&path, whole, torn)?);
            }
        }
        let Some(last) = lines.split(|byte| *byte == b'\n').rev().nth(1) else {
            continue;
        };
        if let Ok(written) = Line::decode(last) {
            place.seq = written.line.seq;
            place.head = written.hash;
        } else {
            // Its lines are evidence: they stay as they are, and a new file goes on behind them.
            let count = lines.split(|byte| *byte == b'\n').count() as u64 - 1;
            place.seq = first_seq(&path)
                .unwrap_or(1)
                .saturating_add(count)
                .saturating_sub(1);
            place.head = claimed_hash(last);
            place.file = None;
            let detail = format!("the last line of {} is damaged", path.display());
            place.told = Some(Entry::of_daemon("audit.damaged", Some(detail)));
        }
        return Ok(place);
    }
    Ok(place)
}

/// Takes a torn line out of a file, and says what it was.
fn mend(path: &Path, whole: usize, torn: &[u8]) -> io::Result<Entry> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(whole as u64)?;
    let shown = torn.get(..TORN_BYTES_MAX).unwrap_or(torn);
    let detail = format!(
        "the last line was torn after {} bytes: {}",
        torn.len(),
        String::from_utf8_lossy(shown)
    );
    Ok(Entry::of_daemon("audit.recovered", Some(detail)))
}

#[cfg(test)]
impl Writer {
    /// Makes every write fail as on a full disk.
    pub(super) fn fill_disk(&mut self) {
        self.file = OpenOptions::new().append(true).open("/dev/full").unwrap();
    }

    /// Lets the next write through.
    pub(super) fn free_disk(&mut self) -> io::Result<()> {
        let last = files(&self.directory)?.pop();
        self.file = open_file(&last.unwrap_or_else(|| path_of(&self.directory, 1)))?;
        Ok(())
    }
}
