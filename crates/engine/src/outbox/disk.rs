//! What of each stream was sent, on disk beside its journal, and the journals that are kept aside
//! until they are sent.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use pinfold_types::{ExecId, SandboxId};
use serde::{Deserialize, Serialize};

use super::Key;
use crate::core::{Core, JOURNALS};
use crate::error::chain;
use crate::exec::remove_tree;

/// Directory in the state directory for journals of what was removed.
const ASIDE: &str = "outbox";

/// Name of the file beside a journal.
const FILE: &str = "pushed.json";

/// Largest such file that is read.
const FILE_BYTES_MAX: u64 = 4096;

/// Most removed sandboxes whose journals are kept: with a collector that is gone for good each costs
/// the disk a journal or more. Beyond it a removal loses what was not sent, and says so in the log.
const ASIDE_MAX: usize = 1024;

/// How far a stream was sent.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    /// Where the journal is.
    pub(super) dir: PathBuf,
    /// Number of the next event.
    pub(super) next: u64,
    /// Nothing will follow.
    pub(super) done: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Stored {
    next: u64,
    done: bool,
}

impl Sent {
    /// Reads how far a stream was sent; a file that is missing or damaged says: not at all. Blocks.
    pub(super) fn load(dir: &Path) -> std::io::Result<Self> {
        let mut text = Vec::new();
        match std::fs::File::open(dir.join(FILE)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(file) => {
                file.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
            }
        }
        let stored: Stored = serde_json::from_slice(&text).unwrap_or_default();
        Ok(Self {
            dir: dir.to_owned(),
            next: stored.next,
            done: stored.done,
        })
    }

    /// Writes it, whole or not at all. Blocks.
    fn store(&self) -> std::io::Result<()> {
        let stored = Stored {
            next: self.next,
            done: self.done,
        };
        let partial = self.dir.join("pushed.partial");
        std::fs::write(&partial, serde_json::to_vec(&stored)?)?;
        std::fs::rename(&partial, self.dir.join(FILE))
    }
}

/// Returns where the journals of a removed sandbox are kept.
pub(super) fn aside(core: &Core, sandbox: &SandboxId) -> PathBuf {
    core.config.state_dir.join(ASIDE).join(sandbox.as_str())
}

/// Writes down how far a stream was sent, and removes what was kept aside for that.
pub(super) async fn settle(core: &Core, key: &Key, sent: Sent) {
    let aside = aside(core, &key.0);
    let settled = crate::blocking::run(move || {
        // Nothing is added to what was kept aside, so once it was read to its end it is done.
        let (kept, journal_end) = (sent.dir.starts_with(&aside), sent.done);
        if kept && (journal_end || is_read(&sent)?) {
            remove_tree(&sent.dir)?;
            // Others of the same sandbox may still be there.
            let _others = std::fs::remove_dir(&aside);
            return Ok(());
        }
        match sent.store() {
            // It was moved aside meanwhile; what was sent is sent once more.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    });
    if let Err(error) = settled.await {
        let (sandbox, exec) = key;
        tracing::warn!(%sandbox, %exec, error = %chain(&error), "not written what was sent");
    }
}

/// Returns whether everything of a journal that does not grow was sent. Blocks.
fn is_read(sent: &Sent) -> std::io::Result<bool> {
    let (journal, _writer) =
        crate::journal::Journal::open(&sent.dir, crate::journal::Limits::new(u64::MAX), false)?;
    Ok(sent.next >= journal.next_seq())
}

/// Moves what was not sent of some journals aside, and answers which streams that are. Blocks.
///
/// `from` is the directory of a sandbox's journals, `to` where they are kept.
pub(super) fn keep_unsent(
    sandbox: &SandboxId,
    from: &Path,
    to: &Path,
    only: Option<&ExecId>,
) -> std::io::Result<Vec<ExecId>> {
    let mut moved = Vec::new();
    for exec in streams(from)? {
        if only.is_some_and(|only| *only != exec) {
            continue;
        }
        let dir = from.join(exec.as_str());
        if Sent::load(&dir)?.done {
            continue;
        }
        if !to.is_dir() {
            let others = to.parent().map(std::fs::read_dir);
            if others.and_then(Result::ok).map_or(0, Iterator::count) >= ASIDE_MAX {
                tracing::error!(%sandbox, "removed although the collector has not got all of it");
                return Ok(moved);
            }
            std::fs::create_dir_all(to)?;
        }
        std::fs::rename(&dir, to.join(exec.as_str()))?;
        moved.push(exec);
    }
    Ok(moved)
}

/// Finds every stream that may have something to send. Without a collector nothing is kept aside any
/// more. Blocks.
pub(super) fn scan(state_dir: &Path, push: bool) -> std::io::Result<Vec<Key>> {
    let aside = state_dir.join(ASIDE);
    if !push {
        remove_tree(&aside)?;
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for top in [state_dir.join(JOURNALS), aside] {
        for sandbox in names::<SandboxId>(&top)? {
            for exec in streams(&top.join(sandbox.as_str()))? {
                let dir = top.join(sandbox.as_str()).join(exec.as_str());
                if !Sent::load(&dir)?.done {
                    found.push((sandbox.clone(), exec));
                }
            }
        }
    }
    Ok(found)
}

fn streams(dir: &Path) -> std::io::Result<Vec<ExecId>> {
    names(dir)
}

fn names<T: std::str::FromStr>(dir: &Path) -> std::io::Result<Vec<T>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        names.extend(name.to_str().and_then(|name| name.parse().ok()));
    }
    Ok(names)
}
