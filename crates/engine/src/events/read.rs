//! One look at a directory of events: what is new in its files.
//!
//! Whatever the agent answers may be a lie: what is read is bounded by what is asked for here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt as _;
use pinfold_driver::agent::{AgentClient, AgentError, WatchEvent};
use pinfold_types::api::{FileInfo, now_ms};
use tokio::time::Instant;

use super::places::{FilePlace, Places};

/// Most files that are looked at, the first by name.
pub(super) const FILES_MAX: usize = 256;
/// Largest event; a longer line is several, and a larger `.json` file is none.
pub(super) const EVENT_BYTES_MAX: usize = 64 << 10;
/// Most bytes of one look.
const LOOK_BYTES_MAX: usize = 1 << 20;
/// Most events of one look.
const LOOK_EVENTS_MAX: usize = 1024;
/// Most bytes that are read of one file in one look.
const FILE_BYTES_MAX: u64 = 256 << 10;
/// After this long without a change a last line is one although it has no end, and a `.json` file is
/// whole although nobody was seen to close it.
const SETTLED_AFTER_MS: i64 = 1_000;

/// In inotify(7): who had it open for writing has closed it.
const CLOSED: u32 = 0x8;
/// A file was renamed to here.
const MOVED_HERE: u32 = 0x80;

/// One event that was found.
#[derive(Debug)]
pub(super) struct Dropped {
    /// The file's name.
    pub(super) name: String,
    pub(super) data: Vec<u8>,
    /// How far the file is read with this event.
    pub(super) place: FilePlace,
}

/// Everything that one look found.
#[derive(Debug, Default)]
struct Found {
    events: Vec<Dropped>,
    bytes: usize,
    /// There is more than one look takes.
    more: bool,
}

impl Found {
    const fn is_full(&self) -> bool {
        self.events.len() >= LOOK_EVENTS_MAX || self.bytes >= LOOK_BYTES_MAX
    }

    fn add(&mut self, dropped: Dropped) {
        self.bytes += dropped.data.len() + dropped.name.len();
        self.events.push(dropped);
    }
}

/// What the looks of one connection know.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// Files whose writer has closed them since they were read.
    closed: BTreeSet<String>,
    /// Size and time of what was looked at to its end.
    seen: BTreeMap<String, (u64, i64)>,
    refused: BTreeSet<String>,
    beyond: bool,
    refused_told: usize,
    /// Something is not whole yet; look again then.
    due: Option<Instant>,
}

impl Look {
    /// Notes a change that the agent saw.
    pub(super) fn heard(&mut self, change: &WatchEvent) {
        let finished = change.mask & (CLOSED | MOVED_HERE) != 0;
        if finished && self.closed.len() < FILES_MAX {
            self.closed.insert(change.name.clone());
        }
    }

    /// Returns when to look again although nothing changes.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Returns how many files are passed over, when they are more than before.
    pub(super) fn newly_refused(&mut self) -> Option<usize> {
        let refused = self.refused.len() + usize::from(self.beyond);
        let more = refused > self.refused_told;
        self.refused_told = refused;
        more.then_some(refused)
    }

    /// Looks at every file; answers what is new, and whether there is more at once. On the `last`
    /// look whatever is there counts as whole.
    pub(super) async fn once(
        &mut self,
        agent: &AgentClient,
        dir: &str,
        (places, last): (&mut Places, bool),
    ) -> Result<(Vec<Dropped>, bool), AgentError> {
        self.due = None;
        let files = self.files(agent, dir, places).await?;
        let mut found = Found::default();
        let now_ms = now_ms();
        for file in files {
            let stamp = (file.size, file.modified_ms);
            let closed = self.closed.contains(&file.name);
            if self.seen.get(&file.name) == Some(&stamp) && !closed {
                continue;
            }
            if found.is_full() {
                found.more = true;
                break;
            }
            let age_ms = now_ms.saturating_sub(file.modified_ms);
            // A clock that was set back makes nothing wait for ever.
            let settled = last || closed || !(0..SETTLED_AFTER_MS).contains(&age_ms);
            let path = format!("{}/{}", dir.trim_end_matches('/'), file.name);
            let source = Source {
                agent,
                path: &path,
                file: &file,
                place: places.of(&file.name),
                settled,
            };
            let before = found.events.len();
            let done = if is_whole(&file.name) {
                self.whole(&source, &mut found).await?
            } else {
                lines(&source, &mut found).await?
            };
            if done {
                self.closed.remove(&file.name);
                self.seen.insert(file.name.clone(), stamp);
            } else if found.events.len() == before && !settled {
                let wait = Duration::from_millis(SETTLED_AFTER_MS.unsigned_abs());
                self.due = Some(Instant::now() + wait);
            } else {
                found.more = true;
            }
        }
        Ok((found.events, found.more))
    }

    /// Lists the files that are looked at.
    async fn files(
        &mut self,
        agent: &AgentClient,
        dir: &str,
        places: &mut Places,
    ) -> Result<Vec<FileInfo>, AgentError> {
        let mut files = Vec::new();
        let mut after = String::new();
        loop {
            let (page, more) = agent.list_directory(dir, &after, 0).await?;
            if let Some(last) = page.last() {
                after.clone_from(&last.name);
            }
            // Links, pipes, sockets, devices and directories are no events.
            let plain = |file: &FileInfo| file.kind == "file" && !file.name.starts_with('.');
            files.extend(page.into_iter().filter(plain));
            self.beyond = files.len() > FILES_MAX;
            files.truncate(FILES_MAX);
            if !more || files.len() == FILES_MAX {
                break;
            }
        }
        // The agent's pages are in the order of names.
        let is_there = |name: &str| {
            let found = files.binary_search_by(|file| file.name.as_str().cmp(name));
            found.is_ok()
        };
        self.seen.retain(|name, _| is_there(name));
        self.closed.retain(|name| is_there(name));
        self.refused.retain(|name| is_there(name));
        places.retain(is_there);
        Ok(files)
    }

    /// Takes a file that is one event. Answers whether it needs no other look until it changes.
    async fn whole(&mut self, source: &Source<'_>, found: &mut Found) -> Result<bool, AgentError> {
        let file = source.file;
        let now = FilePlace {
            bytes: file.size,
            changed_ms: file.modified_ms,
        };
        if file.size == 0 || now == source.place {
            return Ok(true);
        }
        if file.size > u64::try_from(EVENT_BYTES_MAX).unwrap_or(u64::MAX) {
            self.refused.insert(file.name.clone());
            return Ok(true);
        }
        if !source.settled {
            return Ok(false);
        }
        let data = source.read(0, file.size).await?;
        found.add(Dropped {
            name: file.name.clone(),
            data,
            place: now,
        });
        Ok(true)
    }
}

/// Returns whether a file is one event.
fn is_whole(name: &str) -> bool {
    // A name that is nothing but the ending has none.
    let ending = std::path::Path::new(name).extension();
    ending.is_some_and(|ending| ending == "json")
}

/// A file and where it was read to.
struct Source<'a> {
    agent: &'a AgentClient,
    path: &'a str,
    file: &'a FileInfo,
    place: FilePlace,
    /// Nobody writes to it at the moment.
    settled: bool,
}

impl Source<'_> {
    async fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, AgentError> {
        let most = usize::try_from(length).unwrap_or(usize::MAX);
        let mut data = Vec::new();
        let mut chunks = self.agent.read_file(self.path, offset, length);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            let room = most - data.len();
            data.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
            if data.len() >= most {
                break;
            }
        }
        Ok(data)
    }
}

/// Takes the lines that are new. Answers whether the file was read to its end.
async fn lines(source: &Source<'_>, found: &mut Found) -> Result<bool, AgentError> {
    let file = source.file;
    // One that is shorter than it was begins anew.
    let start = Some(source.place.bytes)
        .filter(|bytes| *bytes <= file.size)
        .unwrap_or(0);
    let left = file.size - start;
    if left == 0 {
        return Ok(true);
    }
    let data = source.read(start, left.min(FILE_BYTES_MAX)).await?;
    let at_end = u64::try_from(data.len()).unwrap_or(u64::MAX) >= left;
    let mut at = start;
    let mut rest = data.as_slice();
    while !rest.is_empty() && !found.is_full() {
        let Some((line, taken)) = first_line(rest, at_end && source.settled) else {
            // A line without an end: more of it may come.
            return Ok(false);
        };
        rest = rest.get(taken..).unwrap_or_default();
        at += u64::try_from(taken).unwrap_or(0);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if !line.is_empty() {
            found.add(Dropped {
                name: file.name.clone(),
                data: line.to_vec(),
                place: FilePlace {
                    bytes: at,
                    changed_ms: 0,
                },
            });
        }
    }
    Ok(rest.is_empty() && at_end)
}

/// Returns the first line and how many bytes it takes; one that has no end only when it is the last,
/// or too long.
fn first_line(bytes: &[u8], complete: bool) -> Option<(&[u8], usize)> {
    let window = bytes.get(..EVENT_BYTES_MAX).unwrap_or(bytes);
    match window.iter().position(|byte| *byte == b'\n') {
        Some(end) => Some((window.get(..end).unwrap_or_default(), end + 1)),
        None if window.len() == EVENT_BYTES_MAX || complete => Some((window, window.len())),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_with_a_break_at_the_end_or_when_they_are_too_long() {
        assert_eq!(first_line(b"a\nb", false), Some((&b"a"[..], 2)));
        assert_eq!(first_line(b"b", false), None);
        assert_eq!(first_line(b"b", true), Some((&b"b"[..], 1)));
        let long = vec![b'x'; EVENT_BYTES_MAX + 9];
        let (line, taken) = first_line(&long, false).unwrap();
        assert_eq!((line.len(), taken), (EVENT_BYTES_MAX, EVENT_BYTES_MAX));
        assert_eq!(first_line(b"\n", false), Some((&b""[..], 1)));
    }

    #[test]
    fn only_names_with_something_before_the_ending_are_whole() {
        assert!(is_whole("a.json"));
        for other in ["json", ".json", "a.jsonl", "a.log", "json.txt"] {
            assert!(!is_whole(other), "{other}");
        }
    }
}
