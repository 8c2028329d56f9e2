//! What the rows hold and every statement that touches them.

use pinfold_driver::{InstanceRecord, PreparedImage};
use pinfold_types::api::{Exec, Granted, Sandbox, format_time_ms};
use pinfold_types::{
    ExecExit, ExecId, ExecSpec, Principal, SandboxId, SandboxName, SandboxSpec, SandboxState,
};
use rusqlite::{OptionalExtension as _, Row, Transaction, named_params, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Durability, Once, Store, StoreError};
use crate::pool::Provenance;

/// One sandbox as the database keeps it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SandboxRow {
    pub(crate) id: SandboxId,
    pub(crate) name: SandboxName,
    pub(crate) owner: Principal,
    pub(crate) state: SandboxState,
    pub(crate) reason: Option<String>,
    pub(crate) spec: SandboxSpec,
    pub(crate) record: Option<InstanceRecord>,
    pub(crate) granted: Option<Granted>,
    pub(crate) image: Option<PreparedImage>,
    pub(crate) created_ms: i64,
    pub(crate) changed_ms: i64,
    /// The lifetime's action was taken; it is taken once.
    pub(crate) lifetime_done: bool,
    /// The removal that was begun leaves the persist directory.
    pub(crate) keep_persist: bool,
    /// Where it comes from.
    pub(crate) provenance: Provenance,
}

impl SandboxRow {
    /// Returns the sandbox as the API shows it.
    pub(crate) fn shown(&self) -> Sandbox {
        Sandbox {
            id: self.id.clone(),
            name: self.name.clone(),
            owner: self.owner.clone(),
            state: self.state,
            reason: self.reason.clone(),
            spec: self.spec.clone(),
            granted: self.granted.clone(),
            created_at: format_time_ms(self.created_ms),
            changed_at: format_time_ms(self.changed_ms),
            origin: self.provenance.origin,
            template: self.provenance.template.clone(),
            cold_reason: self.provenance.cold_reason.clone(),
        }
    }

    fn durability(&self) -> Durability {
        // A warm sandbox is worth nothing after a power cut.
        if self.spec.volatile || self.provenance.is_waiting() {
            Durability::Daemon
        } else {
            Durability::PowerCut
        }
    }
}

/// One exec as the database keeps it. Its environment is not kept: it may hold secrets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ExecRow {
    pub(crate) sandbox: SandboxId,
    pub(crate) id: ExecId,
    pub(crate) spec: ExecSpec,
    pub(crate) started_ms: i64,
    pub(crate) ended_ms: Option<i64>,
    pub(crate) exit: Option<ExecExit>,
    pub(crate) last_seq: u64,
}

impl ExecRow {
    /// Returns the exec as the API shows it.
    pub(crate) fn shown(&self) -> Exec {
        Exec {
            exec_id: self.id.clone(),
            sandbox_id: self.sandbox.clone(),
            command: self.spec.command.clone(),
            started_at: format_time_ms(self.started_ms),
            ended_at: self.ended_ms.map(format_time_ms),
            exit: self.exit.clone(),
            last_seq: self.last_seq,
        }
    }
}

/// Everything that a database holds.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    pub(crate) sandboxes: Vec<SandboxRow>,
    /// Execs that have not ended.
    pub(crate) execs: Vec<ExecRow>,
    /// Sandboxes whose rows cannot be read; they are left alone.
    pub(crate) unreadable: Vec<SandboxId>,
}

/// How an exec's row went in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Inserted {
    /// There was room.
    Room,
    /// The oldest ended exec has to make room: remove its journal, then its row.
    InPlaceOf(ExecId),
    /// Too many execs run.
    Refused,
}

impl Store {
    /// Reads what an earlier daemon left.
    pub(crate) async fn load(&self) -> Result<Stored, StoreError> {
        self.run(Durability::Daemon, "read the database", |transaction| {
            let mut stored = Stored::default();
            let mut statement = transaction.prepare("SELECT * FROM sandboxes ORDER BY id")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let id = parsed::<SandboxId>(row, "id")?;
                match read_sandbox(row) {
                    Ok(sandbox) => stored.sandboxes.push(sandbox),
                    Err(error) => {
                        tracing::error!(
                            sandbox = %id,
                            error = %crate::error::chain(&error),
                            "unreadable row; the sandbox is left alone"
                        );
                        stored.unreadable.push(id);
                    }
                }
            }
            stored.execs = read_execs(
                transaction,
                "SELECT * FROM execs WHERE ending IS NULL ORDER BY sandbox, id",
                params![],
            )?;
            Ok(stored)
        })
        .await
    }

    /// Writes the row of a new sandbox.
    #[cfg(test)]
    pub(crate) async fn insert(&self, row: &SandboxRow) -> Result<(), StoreError> {
        self.insert_once(row, None).await
    }

    /// Writes the row of a new sandbox; with an idempotency key both are written or neither.
    pub(crate) async fn insert_once(
        &self,
        row: &SandboxRow,
        once: Option<Once>,
    ) -> Result<(), StoreError> {
        self.write_sandbox(
            row,
            once,
            "write the row of a sandbox",
            "INSERT INTO sandboxes VALUES (:id, :name, :owner, :state, :reason, :spec, :record, \
             :granted, :image, :created_ms, :changed_ms, :lifetime_done, :keep_persist, \
             :provenance)",
        )
        .await
    }

    /// Writes everything that changes in a sandbox's life.
    pub(crate) async fn save(&self, row: &SandboxRow) -> Result<(), StoreError> {
        self.save_once(row, None).await
    }

    /// The same; with an idempotency key both are written or neither.
    pub(crate) async fn save_once(
        &self,
        row: &SandboxRow,
        once: Option<Once>,
    ) -> Result<(), StoreError> {
        self.write_sandbox(
            row,
            once,
            "change the row of a sandbox",
            "UPDATE sandboxes SET name = :name, owner = :owner, state = :state, reason = :reason, \
             spec = :spec, record = :record, granted = :granted, image = :image, \
             created_ms = :created_ms, changed_ms = :changed_ms, lifetime_done = :lifetime_done, \
             keep_persist = :keep_persist, provenance = :provenance WHERE id = :id",
        )
        .await
    }

    async fn write_sandbox(
        &self,
        row: &SandboxRow,
        once: Option<Once>,
        what: &'static str,
        statement: &'static str,
    ) -> Result<(), StoreError> {
        let spec = serde_json::to_string(&row.spec)?;
        let record = optional_json(row.record.as_ref())?;
        let granted = optional_json(row.granted.as_ref())?;
        let image = optional_json(row.image.as_ref())?;
        let provenance = serde_json::to_string(&row.provenance)?;
        let durability = row.durability();
        let row = (
            row.id.to_string(),
            row.name.to_string(),
            row.owner.to_string(),
            row.state.as_str(),
            row.reason.clone(),
            row.created_ms,
            row.changed_ms,
            row.lifetime_done,
            row.keep_persist,
        );
        self.run(durability, what, move |transaction| {
            transaction
                .prepare_cached(statement)?
                .execute(named_params! {
                    ":id": row.0,
                    ":name": row.1,
                    ":owner": row.2,
                    ":state": row.3,
                    ":reason": row.4,
                    ":spec": spec,
                    ":record": record,
                    ":granted": granted,
                    ":image": image,
                    ":created_ms": row.5,
                    ":changed_ms": row.6,
                    ":lifetime_done": row.7,
                    ":keep_persist": row.8,
                    ":provenance": provenance,
                })?;
            once.map_or(Ok(()), |once| once.insert(transaction, &row.0, row.3))
        })
        .await
    }

    /// Forgets a sandbox and its execs.
    pub(crate) async fn delete(&self, row: &SandboxRow) -> Result<(), StoreError> {
        let id = row.id.to_string();
        self.run(
            row.durability(),
            "remove the row of a sandbox",
            move |transaction| {
                transaction
                    .prepare_cached("DELETE FROM sandboxes WHERE id = ?1")?
                    .execute([id])
                    .map(drop)
            },
        )
        .await
    }

    /// Writes the row of a new exec, unless `most` run already.
    pub(crate) async fn insert_exec(
        &self,
        row: &ExecRow,
        most: usize,
    ) -> Result<Inserted, StoreError> {
        let spec = serde_json::to_string(&ExecSpec {
            env: std::collections::BTreeMap::new(),
            ..row.spec.clone()
        })?;
        let (sandbox, id) = (row.sandbox.to_string(), row.id.to_string());
        let started_ms = row.started_ms;
        self.run(
            Durability::Daemon,
            "write the row of an exec",
            move |transaction| {
                let inserted = make_room(transaction, &sandbox, most)?;
                if inserted != Inserted::Refused {
                    transaction
                        .prepare_cached("INSERT INTO execs VALUES (?1, ?2, ?3, ?4, NULL, NULL, 0)")?
                        .execute(params![sandbox, id, spec, started_ms])?;
                }
                Ok(inserted)
            },
        )
        .await
    }

    /// Writes how an exec ended.
    pub(crate) async fn end_exec(&self, row: &ExecRow) -> Result<(), StoreError> {
        let exit = optional_json(row.exit.as_ref())?;
        let (sandbox, id) = (row.sandbox.to_string(), row.id.to_string());
        let (ended_ms, last_seq) = (
            row.ended_ms,
            i64::try_from(row.last_seq).unwrap_or(i64::MAX),
        );
        self.run(
            Durability::Daemon,
            "write the end of an exec",
            move |transaction| {
                transaction
                    .prepare_cached(
                        "UPDATE execs SET ending = ?3, ended_ms = ?4, last_seq = ?5 \
                         WHERE sandbox = ?1 AND id = ?2",
                    )?
                    .execute(params![sandbox, id, exit, ended_ms, last_seq])
                    .map(drop)
            },
        )
        .await
    }

    /// Forgets an exec.
    pub(crate) async fn delete_exec(
        &self,
        sandbox: &SandboxId,
        id: &ExecId,
    ) -> Result<(), StoreError> {
        let (sandbox, id) = (sandbox.to_string(), id.to_string());
        self.run(
            Durability::Daemon,
            "remove the row of an exec",
            move |transaction| {
                transaction
                    .prepare_cached("DELETE FROM execs WHERE sandbox = ?1 AND id = ?2")?
                    .execute([sandbox, id])
                    .map(drop)
            },
        )
        .await
    }

    /// Lists the execs of a sandbox, oldest first.
    pub(crate) async fn execs(&self, sandbox: &SandboxId) -> Result<Vec<ExecRow>, StoreError> {
        let sandbox = sandbox.to_string();
        self.run(Durability::Daemon, "list execs", move |transaction| {
            read_execs(
                transaction,
                "SELECT * FROM execs WHERE sandbox = ?1 ORDER BY id",
                params![sandbox],
            )
        })
        .await
    }

    /// Reads one exec.
    pub(crate) async fn exec(
        &self,
        sandbox: &SandboxId,
        id: &ExecId,
    ) -> Result<Option<ExecRow>, StoreError> {
        let (sandbox, id) = (sandbox.to_string(), id.to_string());
        self.run(Durability::Daemon, "read an exec", move |transaction| {
            transaction
                .prepare_cached("SELECT * FROM execs WHERE sandbox = ?1 AND id = ?2")?
                .query_row([sandbox, id], read_exec)
                .optional()
        })
        .await
    }
}

fn make_room(
    transaction: &Transaction<'_>,
    sandbox: &str,
    most: usize,
) -> rusqlite::Result<Inserted> {
    let count: i64 = transaction
        .prepare_cached("SELECT count(*) FROM execs WHERE sandbox = ?1")?
        .query_row([sandbox], |row| row.get(0))?;
    if usize::try_from(count).unwrap_or(usize::MAX) < most {
        return Ok(Inserted::Room);
    }
    let oldest = transaction
        .prepare_cached(
            "SELECT id FROM execs WHERE sandbox = ?1 AND ending IS NOT NULL \
             ORDER BY ended_ms, id LIMIT 1",
        )?
        .query_row([sandbox], |row| parsed::<ExecId>(row, "id"))
        .optional()?;
    Ok(oldest.map_or(Inserted::Refused, Inserted::InPlaceOf))
}

fn read_sandbox(row: &Row<'_>) -> rusqlite::Result<SandboxRow> {
    Ok(SandboxRow {
        id: parsed(row, "id")?,
        name: parsed(row, "name")?,
        owner: parsed(row, "owner")?,
        state: parsed(row, "state")?,
        reason: row.get("reason")?,
        spec: json(&row.get::<_, String>("spec")?)?,
        record: json_or_null(row, "record")?,
        granted: json_or_null(row, "granted")?,
        image: json_or_null(row, "image")?,
        created_ms: row.get("created_ms")?,
        changed_ms: row.get("changed_ms")?,
        lifetime_done: row.get("lifetime_done")?,
        keep_persist: row.get("keep_persist")?,
        // Rows of before there were templates have none.
        provenance: json_or_null(row, "provenance")?.unwrap_or_default(),
    })
}

fn read_execs(
    transaction: &Transaction<'_>,
    statement: &str,
    parameters: &[&dyn rusqlite::ToSql],
) -> rusqlite::Result<Vec<ExecRow>> {
    transaction
        .prepare_cached(statement)?
        .query_map(parameters, read_exec)?
        .collect()
}

fn read_exec(row: &Row<'_>) -> rusqlite::Result<ExecRow> {
    Ok(ExecRow {
        sandbox: parsed(row, "sandbox")?,
        id: parsed(row, "id")?,
        spec: json(&row.get::<_, String>("spec")?)?,
        started_ms: row.get("started_ms")?,
        ended_ms: row.get("ended_ms")?,
        exit: json_or_null(row, "ending")?,
        last_seq: u64::try_from(row.get::<_, i64>("last_seq")?).unwrap_or(0),
    })
}

fn optional_json<T: Serialize>(value: Option<&T>) -> Result<Option<String>, serde_json::Error> {
    value.map(serde_json::to_string).transpose()
}

pub(super) fn unreadable(error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
}

pub(super) fn json<T: DeserializeOwned>(text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text).map_err(unreadable)
}

fn json_or_null<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<T>> {
    row.get::<_, Option<String>>(column)?
        .map(|text| json(&text))
        .transpose()
}

pub(super) fn parsed<T>(row: &Row<'_>, column: &str) -> rusqlite::Result<T>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    row.get::<_, String>(column)?.parse().map_err(unreadable)
}
