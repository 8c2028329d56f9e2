//! Rows of templates and pools.

use pinfold_types::api::{PoolSize, Template, format_time_ms};
use pinfold_types::{Principal, SandboxName, SandboxSpec};
use rusqlite::{Row, params};

use super::rows::{json, parsed};
use super::{Durability, Store, StoreError};
use crate::pool::Key;

/// One template as the database keeps it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TemplateRow {
    pub(crate) owner: Principal,
    pub(crate) name: SandboxName,
    pub(crate) shared: bool,
    pub(crate) version: u32,
    pub(crate) spec: SandboxSpec,
    pub(crate) created_ms: i64,
    pub(crate) changed_ms: i64,
}

impl TemplateRow {
    pub(crate) fn key(&self) -> Key {
        (self.owner.clone(), self.name.clone())
    }

    /// Returns the template as the API shows it.
    pub(crate) fn shown(&self) -> Template {
        Template {
            name: self.name.clone(),
            owner: self.owner.clone(),
            shared: self.shared,
            version: self.version,
            spec: self.spec.clone(),
            created_at: format_time_ms(self.created_ms),
            changed_at: format_time_ms(self.changed_ms),
        }
    }
}

/// One pool as the database keeps it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PoolRow {
    pub(crate) owner: Principal,
    pub(crate) name: SandboxName,
    pub(crate) template: Key,
    pub(crate) size: PoolSize,
    /// Its removal was begun.
    pub(crate) draining: bool,
    /// The configuration names it; it goes when it does no longer.
    pub(crate) configured: bool,
    pub(crate) created_ms: i64,
}

impl PoolRow {
    pub(crate) fn key(&self) -> Key {
        (self.owner.clone(), self.name.clone())
    }
}

/// Every template and pool of a database.
#[derive(Debug, Default)]
pub(crate) struct StoredPools {
    pub(crate) templates: Vec<TemplateRow>,
    pub(crate) pools: Vec<PoolRow>,
}

impl Store {
    /// Reads every template and pool. One that cannot be read is left alone and not served.
    pub(crate) async fn load_pools(&self) -> Result<StoredPools, StoreError> {
        self.run(Durability::Daemon, "read the pools", |transaction| {
            let mut stored = StoredPools::default();
            let mut templates = transaction.prepare("SELECT * FROM templates")?;
            let mut rows = templates.query([])?;
            while let Some(row) = rows.next()? {
                stored.templates.extend(readable(read_template(row)));
            }
            let mut pools = transaction.prepare("SELECT * FROM pools")?;
            let mut rows = pools.query([])?;
            while let Some(row) = rows.next()? {
                stored.pools.extend(readable(read_pool(row)));
            }
            Ok(stored)
        })
        .await
    }

    /// Writes a template, new or changed.
    pub(crate) async fn save_template(&self, row: &TemplateRow) -> Result<(), StoreError> {
        let spec = serde_json::to_string(&row.spec)?;
        let row = row.clone();
        self.run(
            Durability::PowerCut,
            "write a template",
            move |transaction| {
                transaction
                    .prepare_cached(
                        "INSERT INTO templates VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) \
                         ON CONFLICT (owner, name) DO UPDATE SET shared = ?3, version = ?4, \
                         spec = ?5, changed_ms = ?7",
                    )?
                    .execute(params![
                        row.owner.to_string(),
                        row.name.to_string(),
                        row.shared,
                        row.version,
                        spec,
                        row.created_ms,
                        row.changed_ms,
                    ])
                    .map(drop)
            },
        )
        .await
    }

    /// Forgets a template.
    pub(crate) async fn delete_template(&self, key: &Key) -> Result<(), StoreError> {
        self.delete_named("remove a template", "DELETE FROM templates", key)
            .await
    }

    /// Writes a pool, new or changed.
    pub(crate) async fn save_pool(&self, row: &PoolRow) -> Result<(), StoreError> {
        let row = row.clone();
        let ((min, max), fixed) = (row.size.bounds(), matches!(row.size, PoolSize::Fixed(_)));
        self.run(Durability::PowerCut, "write a pool", move |transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO pools VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) \
                     ON CONFLICT (owner, name) DO UPDATE SET template_owner = ?3, \
                     template_name = ?4, fixed = ?5, min = ?6, max = ?7, draining = ?8, \
                     configured = ?9",
                )?
                .execute(params![
                    row.owner.to_string(),
                    row.name.to_string(),
                    row.template.0.to_string(),
                    row.template.1.to_string(),
                    fixed,
                    min,
                    max,
                    row.draining,
                    row.configured,
                    row.created_ms,
                ])
                .map(drop)
        })
        .await
    }

    /// Forgets a pool.
    pub(crate) async fn delete_pool(&self, key: &Key) -> Result<(), StoreError> {
        self.delete_named("remove a pool", "DELETE FROM pools", key)
            .await
    }

    async fn delete_named(
        &self,
        what: &'static str,
        statement: &'static str,
        key: &Key,
    ) -> Result<(), StoreError> {
        let (owner, name) = (key.0.to_string(), key.1.to_string());
        self.run(Durability::PowerCut, what, move |transaction| {
            transaction
                .prepare_cached(&format!("{statement} WHERE owner = ?1 AND name = ?2"))?
                .execute([owner, name])
                .map(drop)
        })
        .await
    }
}

fn readable<T>(row: rusqlite::Result<T>) -> Option<T> {
    row.inspect_err(|error| {
        tracing::error!(error = %crate::error::chain(error), "unreadable row of a pool");
    })
    .ok()
}

fn read_template(row: &Row<'_>) -> rusqlite::Result<TemplateRow> {
    Ok(TemplateRow {
        owner: parsed(row, "owner")?,
        name: parsed(row, "name")?,
        shared: row.get("shared")?,
        version: row.get("version")?,
        spec: json(&row.get::<_, String>("spec")?)?,
        created_ms: row.get("created_ms")?,
        changed_ms: row.get("changed_ms")?,
    })
}

fn read_pool(row: &Row<'_>) -> rusqlite::Result<PoolRow> {
    let (min, max) = (row.get("min")?, row.get("max")?);
    Ok(PoolRow {
        owner: parsed(row, "owner")?,
        name: parsed(row, "name")?,
        template: (
            parsed(row, "template_owner")?,
            parsed(row, "template_name")?,
        ),
        size: if row.get("fixed")? {
            PoolSize::Fixed(max)
        } else {
            PoolSize::Auto { min, max }
        },
        draining: row.get("draining")?,
        configured: row.get("configured")?,
        created_ms: row.get("created_ms")?,
    })
}
