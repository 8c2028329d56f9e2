//! What happened, as triggers of the database write it in the transaction in which it happens.
//!
//! Reading has a connection of its own, so that readers do not stand in the writer's way.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use pinfold_types::api::{DaemonEvent, DaemonEventKind, DaemonEventList, format_time_ms};
use pinfold_types::{Principal, SandboxId};
use rusqlite::{Connection, Row, params};
use tokio::sync::watch;

use super::rows::{json, parsed, unreadable};
use super::{BUSY_TIME_MAX, Durability, Store, StoreError, classify};

/// Where readers of events read, and hear of new ones.
#[derive(Debug)]
pub(super) struct Events {
    connection: Arc<Mutex<Connection>>,
    /// Number of the last event.
    last: watch::Sender<u64>,
}

/// Which events are read.
#[derive(Debug, Clone, Default)]
pub(crate) struct EventFilter {
    pub(crate) after: u64,
    /// Only this principal's.
    pub(crate) owner: Option<Principal>,
    /// Only those of a sandbox of this id or name.
    pub(crate) sandbox: Option<String>,
    /// Only these; empty is every one.
    pub(crate) kinds: Vec<DaemonEventKind>,
    pub(crate) limit: usize,
}

impl Events {
    /// Opens the second connection. Blocks.
    pub(super) fn open(path: &Path, writer: &Connection) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_TIME_MAX)?;
        connection.pragma_update(None, "query_only", true)?;
        Ok(Self {
            connection: Arc::new(Mutex::new(connection)),
            last: watch::Sender::new(last(writer)?),
        })
    }

    /// Returns what hears of new events from the writer.
    pub(super) fn bell(&self) -> Bell {
        Bell {
            last: self.last.clone(),
            changes: 0,
        }
    }
}

/// Rings when the writer has written an event.
#[derive(Debug)]
pub(super) struct Bell {
    last: watch::Sender<u64>,
    changes: u64,
}

impl Bell {
    /// Looks whether there is a new event; call it after a transaction.
    pub(super) fn look(&mut self, writer: &Connection) {
        let changes = writer.total_changes();
        if changes == self.changes {
            return;
        }
        self.changes = changes;
        let last = match last(writer) {
            Ok(last) => last,
            Err(error) => {
                tracing::warn!(chain = %crate::error::chain(&error), "events not heard of");
                return;
            }
        };
        self.last.send_if_modified(|known| {
            let newer = *known != last;
            *known = last;
            newer
        });
    }
}

fn last(connection: &Connection) -> rusqlite::Result<u64> {
    let mut statement = connection.prepare_cached(
        "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'events'",
    )?;
    let last: i64 = statement.query_row([], |row| row.get(0))?;
    Ok(u64::try_from(last).unwrap_or(0))
}

impl Store {
    /// Returns what changes with every new event: the last one's number.
    pub(crate) fn last_event(&self) -> watch::Receiver<u64> {
        self.events.last.subscribe()
    }

    /// Reads a page of events, oldest first.
    pub(crate) async fn events(&self, filter: EventFilter) -> Result<DaemonEventList, StoreError> {
        let connection = Arc::clone(&self.events.connection);
        let read = crate::blocking::run(move || {
            let connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            page(&connection, &filter)
        });
        read.await.map_err(|error| classify("read events", error))
    }

    /// Writes an event that is no change of a row.
    pub(crate) async fn note_event(&self, event: Noted) -> Result<(), StoreError> {
        self.run(Durability::Daemon, "write an event", move |transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO events (at_ms, kind, owner, sandbox, name, reason) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute(params![
                    event.at_ms,
                    event.kind.as_str(),
                    event.owner.to_string(),
                    event.sandbox.as_str(),
                    event.name,
                    event.reason,
                ])
                .map(drop)
        })
        .await
    }
}

/// An event of a sandbox that is no change of its row.
#[derive(Debug)]
pub(crate) struct Noted {
    pub(crate) at_ms: i64,
    pub(crate) kind: DaemonEventKind,
    pub(crate) owner: Principal,
    pub(crate) sandbox: SandboxId,
    pub(crate) name: String,
    pub(crate) reason: String,
}

fn page(connection: &Connection, filter: &EventFilter) -> rusqlite::Result<DaemonEventList> {
    let first: Option<i64> = connection
        .prepare_cached("SELECT min(seq) FROM events")?
        .query_row([], |row| row.get(0))?;
    let kinds: Vec<&str> = filter.kinds.iter().map(|kind| kind.as_str()).collect();
    let kinds = (!kinds.is_empty()).then(|| serde_json::to_string(&kinds).unwrap_or_default());
    // One more than is wanted says whether there is a further page.
    let most = i64::try_from(filter.limit.saturating_add(1)).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached(
        "SELECT * FROM events WHERE seq > ?1 AND (?2 IS NULL OR owner = ?2) \
         AND (?3 IS NULL OR sandbox = ?3 OR (name = ?3 AND sandbox IS NOT NULL)) \
         AND (?4 IS NULL OR kind IN (SELECT value FROM json_each(?4))) ORDER BY seq LIMIT ?5",
    )?;
    let after = i64::try_from(filter.after).unwrap_or(i64::MAX);
    let owner = filter.owner.as_ref().map(ToString::to_string);
    let rows = statement.query_map(params![after, owner, filter.sandbox, kinds, most], read)?;
    let mut events: Vec<DaemonEvent> = rows.collect::<rusqlite::Result<_>>()?;
    let mut next = None;
    if events.len() > filter.limit {
        events.truncate(filter.limit);
        next = events.last().map(|event| event.id);
    }
    Ok(DaemonEventList {
        events,
        next,
        first_kept: first
            .and_then(|first| u64::try_from(first).ok())
            .unwrap_or(0),
    })
}

fn read(row: &Row<'_>) -> rusqlite::Result<DaemonEvent> {
    let id: i64 = row.get("seq")?;
    Ok(DaemonEvent {
        id: u64::try_from(id).unwrap_or(0),
        time: format_time_ms(row.get("at_ms")?),
        kind: parsed(row, "kind")?,
        owner: parsed(row, "owner")?,
        sandbox_id: optional(row, "sandbox")?,
        name: row.get("name")?,
        exec_id: optional(row, "exec")?,
        key_id: optional(row, "key")?,
        pool: row.get("pool")?,
        reason: row.get("reason")?,
        exit: row
            .get::<_, Option<String>>("ending")?
            .map(|text| json(&text))
            .transpose()?,
    })
}

fn optional<T>(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<T>>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text: Option<String> = row.get(column)?;
    text.map(|text| text.parse().map_err(unreadable))
        .transpose()
}
