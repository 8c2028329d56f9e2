//! The audit log: who changed what, and whom the gate refused, one JSON object per line, each with the
//! hash of the one before.
//!
//! Every call that changes something and every refusal of authority is written before its answer
//! leaves, so it outlives the daemon; what a power cut may take is the last [`SYNC_EVERY`]. A call
//! that a `kill -9` of the daemon cuts off may have no line. There are no queries, bodies, commands or
//! variables in it, so no secrets.
//!
//! When a line cannot be written, as on a full disk, it waits in memory; until it is written nothing
//! is begun that could not be told of, but what makes room still is.

mod line;
mod note;
mod verify;
mod writer;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

pub use line::{Entry, Line};
pub(crate) use note::{Asking, Note};
pub use verify::{Problem, Verified, lines, verify};

/// Longest time that a written line waits until it is safe from a power cut.
pub(crate) const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Lines that wait for the writer; whoever brings one more waits with it.
const QUEUE_MAX: usize = 1024;

/// Refusals that are written at once; a flood of them must not push everything else out.
const REFUSALS_BURST: f64 = 100.0;

/// Refusals that are written in a second when they go on and on.
const REFUSALS_PER_SECOND: f64 = 10.0;

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("failed to {what} the audit log in {}", directory.display())]
pub struct AuditError {
    /// What was tried.
    pub what: &'static str,
    /// Where it is.
    pub directory: std::path::PathBuf,
    /// Why it failed.
    #[source]
    pub source: std::io::Error,
}

enum Job {
    Write(Box<Entry>, oneshot::Sender<()>),
    Close(oneshot::Sender<()>),
}

/// Writes the audit log. Clones write the same.
#[derive(Debug, Clone)]
pub struct AuditLog {
    jobs: mpsc::Sender<Job>,
    behind: Arc<AtomicBool>,
    refusals: Arc<Mutex<Bucket>>,
}

/// Bounds how many refusals are written.
#[derive(Debug)]
struct Bucket {
    left: f64,
    looked: Instant,
    kept_out: u64,
}

impl Bucket {
    /// Takes a place for one; answers how many had none since the last that had one.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.looked).as_secs_f64();
        self.looked = now;
        self.left = (self.left + passed * REFUSALS_PER_SECOND).min(REFUSALS_BURST);
        if self.left < 1.0 {
            self.kept_out += 1;
            return None;
        }
        self.left -= 1.0;
        Some(std::mem::take(&mut self.kept_out))
    }
}

impl AuditLog {
    /// Opens the log in a directory, makes it when there is none, and goes on with its chain. Blocks.
    ///
    /// What an earlier daemon had written of its last line, if not all, is taken out and told of in a
    /// line of its own.
    ///
    /// # Errors
    ///
    /// Returns [`AuditError`] when the directory or its last file cannot be used.
    pub fn open(directory: &Path) -> Result<Self, AuditError> {
        let failed = |what| {
            let directory = directory.to_owned();
            move |source| AuditError {
                what,
                directory,
                source,
            }
        };
        let mut writer = writer::Writer::open(directory).map_err(failed("open"))?;
        let (jobs, mut queue) = mpsc::channel(QUEUE_MAX);
        let behind = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&behind);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(failed("start the writer of"))?;
        let run = move || {
            runtime.block_on(async move {
                loop {
                    let job = tokio::time::timeout(SYNC_EVERY, queue.recv()).await;
                    match job {
                        Ok(Some(Job::Write(entry, written))) => {
                            writer.write(*entry);
                            told.store(writer.is_behind(), Ordering::Relaxed);
                            let _gone = written.send(());
                        }
                        Ok(Some(Job::Close(closed))) => {
                            writer.tend();
                            let _gone = closed.send(());
                            return;
                        }
                        Ok(None) => return,
                        Err(_) => {}
                    }
                    writer.tend_now_and_then();
                    told.store(writer.is_behind(), Ordering::Relaxed);
                }
            });
        };
        std::thread::Builder::new()
            .name("pinfold-audit".to_owned())
            .spawn(run)
            .map_err(failed("start the writer of"))?;
        Ok(Self {
            jobs,
            behind,
            refusals: Arc::new(Mutex::new(Bucket {
                left: REFUSALS_BURST,
                looked: Instant::now(),
                kept_out: 0,
            })),
        })
    }

    /// Writes a line; returns when it is written, or waits in memory because it cannot be.
    pub async fn record(&self, entry: Entry) {
        let (written, done) = oneshot::channel();
        let job = Job::Write(Box::new(entry), written);
        if self.jobs.send(job).await.is_ok() {
            // The writer goes only after it was closed.
            drop(done.await);
        }
    }

    /// Writes a refusal, unless there are too many of them; then a later one says how many.
    pub(crate) async fn record_refusal(&self, mut entry: Entry) {
        let taken = {
            let mut bucket = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
            bucket.take(Instant::now())
        };
        let Some(kept_out) = taken else { return };
        if kept_out > 0 {
            entry.detail = Some(format!(
                "{kept_out} refusals before this one are not written"
            ));
        }
        self.record(entry).await;
    }

    /// Returns whether lines wait that cannot be written.
    pub(crate) fn is_behind(&self) -> bool {
        self.behind.load(Ordering::Relaxed)
    }

    /// Writes what waits, to the disk, and ends.
    pub async fn close(&self) {
        let (closed, done) = oneshot::channel();
        if self.jobs.send(Job::Close(closed)).await.is_ok() {
            drop(done.await);
        }
    }
}

#[cfg(test)]
mod tests;
