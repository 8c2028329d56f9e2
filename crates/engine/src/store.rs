//! The database: one thread writes it, and everybody else sends that thread work.
//!
//! What the rows mean is in [`rows`]; the tables are in [`schema`].

mod events;
mod keys;
mod once;
mod pools;
mod rows;
mod schema;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::Duration;

use pinfold_types::ErrorCode;
use rusqlite::{Connection, Transaction};
use tokio::sync::{mpsc, oneshot};

use self::events::{Bell, Events};
use crate::error::{EngineError, OpenError, chain};
use crate::meters::StoreMeters;

pub(crate) use events::{EventFilter, Noted};
pub(crate) use keys::{HASH_LENGTH, KeyRow};
pub(crate) use once::{Kept, Once};
pub(crate) use pools::{PoolRow, StoredPools, TemplateRow};
pub(crate) use rows::{ExecRow, Inserted, SandboxRow, Stored};

/// Name of the database in the state directory.
pub(crate) const DATABASE_FILE: &str = "pinfold.db";

/// Most transactions that wait for the writer; each waiting caller holds one, so a full queue only
/// makes callers wait.
const QUEUE_MAX: usize = 256;

/// Longest wait for somebody else's look into the database, such as a backup tool's.
const BUSY_TIME_MAX: Duration = Duration::from_secs(5);

/// Pages after which the log of changes goes into the database and begins anew: a megabyte. Each
/// time costs two more syncs.
const LOG_PAGES_MAX: u32 = 256;

/// Bytes that the log keeps on the disk when somebody's long look made it larger than that.
const LOG_BYTES_KEPT_MAX: u32 = 2 << 20;

type Job = Box<dyn FnOnce(&mut Writer) + Send>;

/// What must outlive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// The transaction is on the disk before it is answered.
    PowerCut,
    /// It outlives the daemon, which is enough for what a power cut ends anyway.
    Daemon,
}

/// Why a transaction failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The engine is shutting down.
    #[error("the database is closed")]
    Closed,
    /// Two rows would have the same key.
    #[error("failed to {what}: there is one already")]
    Conflict {
        /// What was tried.
        what: &'static str,
        #[source]
        source: rusqlite::Error,
    },
    /// The disk is full.
    #[error("failed to {what}: the host's disk is full")]
    Full {
        /// What was tried.
        what: &'static str,
        #[source]
        source: rusqlite::Error,
    },
    /// Anything else.
    #[error("failed to {what}")]
    Failed {
        /// What was tried.
        what: &'static str,
        #[source]
        source: rusqlite::Error,
    },
    /// A value cannot be written as JSON.
    #[error("failed to write a value of a row")]
    Value(#[from] serde_json::Error),
}

impl From<StoreError> for EngineError {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::Closed => Self::closing(),
            StoreError::Full { .. } => Self::new(ErrorCode::ResourceExhausted, message)
                .hint("free space on the file system of the state directory; nothing was lost")
                .caused_by(error),
            StoreError::Conflict { .. } => {
                Self::new(ErrorCode::AlreadyExists, message).caused_by(error)
            }
            StoreError::Failed { .. } | StoreError::Value(_) => {
                Self::new(ErrorCode::Internal, message).caused_by(error)
            }
        }
    }
}

/// The open database.
#[derive(Debug)]
pub(crate) struct Store {
    jobs: mpsc::Sender<Job>,
    meters: StoreMeters,
    events: Events,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The writer thread's own state.
struct Writer {
    connection: Connection,
    bell: Bell,
    meters: StoreMeters,
    durability: Durability,
    open: bool,
}

impl Store {
    /// Opens the database, makes it when there is none, and brings its tables up to date.
    ///
    /// Blocks; call it outside the async threads.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, OpenError> {
        let path = state_dir.join(DATABASE_FILE);
        let connection = open_checked(&path)?;
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE_MAX);
        let events = Events::open(&path, &connection).map_err(|source| OpenError::Database {
            what: "open",
            path: path.clone(),
            source: source.into(),
        })?;
        let meters = StoreMeters::default();
        let mut writer = Writer {
            connection,
            bell: events.bell(),
            meters: meters.clone(),
            durability: Durability::PowerCut,
            open: true,
        };
        let thread = std::thread::Builder::new()
            .name("pinfold-store".to_owned())
            .spawn(move || {
                while writer.open
                    && let Some(job) = queue.blocking_recv()
                {
                    job(&mut writer);
                }
            })
            .map_err(|source| OpenError::State {
                what: "start the writer of",
                path,
                source,
            })?;
        Ok(Self {
            jobs,
            meters,
            events,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Runs work in one transaction. It is done even when the caller no longer waits.
    async fn run<T: Send + 'static>(
        &self,
        durability: Durability,
        what: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |writer| {
            let result = writer.timed(durability, work);
            // The caller may have gone; the work is done all the same.
            drop(reply.send(result));
        });
        self.jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        let result = answered(answer).await.map_err(|_| StoreError::Closed)?;
        result.map_err(|source| classify(what, source))
    }

    /// Returns what the writer counts and times.
    pub(crate) const fn meters(&self) -> &StoreMeters {
        &self.meters
    }

    /// Returns how many transactions wait for the writer.
    pub(crate) fn waiting(&self) -> usize {
        self.jobs.max_capacity() - self.jobs.capacity()
    }

    /// Finishes what waits and closes the database.
    pub(crate) async fn close(&self) {
        let closed = self.jobs.send(Box::new(|writer| writer.open = false)).await;
        if closed.is_err() {
            return;
        }
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && crate::blocking::run(move || thread.join()).await.is_err()
        {
            tracing::error!("the database's writer panicked");
        }
    }
}

#[cfg(not(test))]
async fn answered<T>(answer: oneshot::Receiver<T>) -> Result<T, oneshot::error::RecvError> {
    answer.await
}

/// Waits on a thread that the runtime knows of: a test's turned clock must stand still meanwhile.
#[cfg(test)]
async fn answered<T: Send + 'static>(
    answer: oneshot::Receiver<T>,
) -> Result<T, oneshot::error::RecvError> {
    crate::blocking::run(move || answer.blocking_recv()).await
}

impl Writer {
    fn timed<T>(
        &mut self,
        durability: Durability,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let began = std::time::Instant::now();
        let result = self.transact(durability, work);
        self.meters.written.observe(began.elapsed().as_secs_f64());
        if result.is_err() {
            self.meters.failed.inc();
        }
        result
    }

    fn transact<T>(
        &mut self,
        durability: Durability,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        if durability != self.durability {
            let mode = match durability {
                Durability::PowerCut => "FULL",
                Durability::Daemon => "NORMAL",
            };
            self.connection.pragma_update(None, "synchronous", mode)?;
            self.durability = durability;
        }
        let transaction = self
            .connection
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let value = work(&transaction)?;
        transaction.commit()?;
        self.bell.look(&self.connection);
        Ok(value)
    }
}

fn classify(what: &'static str, source: rusqlite::Error) -> StoreError {
    match source.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => StoreError::Full { what, source },
        Some(rusqlite::ErrorCode::ConstraintViolation) => StoreError::Conflict { what, source },
        _ => StoreError::Failed { what, source },
    }
}

fn open_checked(path: &Path) -> Result<Connection, OpenError> {
    let failed = |what| {
        let path = path.to_owned();
        move |source: rusqlite::Error| {
            if is_damage(&source) {
                corrupt(&path, source.into())
            } else {
                OpenError::Database {
                    what,
                    path,
                    source: source.into(),
                }
            }
        }
    };
    let mut connection = Connection::open(path).map_err(failed("open"))?;
    connection
        .busy_timeout(BUSY_TIME_MAX)
        .map_err(failed("open"))?;
    check_integrity(&connection, path)?;
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;",
        )
        .map_err(failed("set up"))?;
    for (name, value) in [
        ("wal_autocheckpoint", LOG_PAGES_MAX),
        ("journal_size_limit", LOG_BYTES_KEPT_MAX),
    ] {
        connection
            .pragma_update(None, name, value)
            .map_err(failed("set up"))?;
    }
    schema::migrate(&mut connection, path, failed("bring up to date"))?;
    restrict(path)?;
    Ok(connection)
}

/// Only the owner may read commands and labels.
fn restrict(path: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(|source| {
        OpenError::State {
            what: "restrict",
            path: path.to_owned(),
            source,
        }
    })
}

fn check_integrity(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let answer: Result<String, _> =
        connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0));
    match answer {
        Ok(text) if text == "ok" => Ok(()),
        Ok(text) => Err(corrupt(path, text.into())),
        Err(error) if is_damage(&error) => Err(corrupt(path, error.into())),
        Err(error) => Err(OpenError::Database {
            what: "check",
            path: path.to_owned(),
            source: error.into(),
        }),
    }
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt)
    )
}

/// Copies a damaged database with its log, so that nothing that follows can make it worse.
fn corrupt(path: &Path, source: crate::error::Cause) -> OpenError {
    let modified_s = std::fs::metadata(path)
        .and_then(|data| data.modified())
        .ok()
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
        .map_or(0, |age| age.as_secs());
    // Named after the damaged file's own time, so that every further try finds the copy there.
    let backup = beside(path, &format!(".corrupt-{modified_s}"));
    for suffix in ["", "-wal"] {
        let (from, to) = (beside(path, suffix), beside(&backup, suffix));
        let length = |file: &Path| std::fs::metadata(file).map(|data| data.len()).ok();
        if length(&from).is_none_or(|length| length == 0) || length(&from) == length(&to) {
            continue;
        }
        if let Err(source) = std::fs::copy(&from, &to) {
            tracing::error!(error = %chain(&source), "damaged database not copied");
            return OpenError::State {
                what: "copy the damaged database to",
                path: to,
                source,
            };
        }
    }
    OpenError::Corrupt {
        path: path.to_owned(),
        backup,
        source,
    }
}

/// Returns the bytes of the database and its log. Blocks.
pub(crate) fn bytes_on_disk(state_dir: &Path) -> u64 {
    let path = state_dir.join(DATABASE_FILE);
    let length = |suffix| std::fs::metadata(beside(&path, suffix)).map_or(0, |data| data.len());
    ["", "-wal"].into_iter().map(length).sum()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests;
