//! The rows of API keys.

use pinfold_types::api::format_time_ms;
use pinfold_types::api::keys::{Key, Quotas};
use pinfold_types::{KeyId, Principal, PrincipalName, Role};
use rusqlite::{Row, named_params, params};

use super::rows::{json, parsed};
use super::{Durability, Store, StoreError};

/// Length of a SHA-256 in bytes.
pub(crate) const HASH_LENGTH: usize = 32;

/// One key as the database keeps it: a hash, and never the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyRow {
    pub(crate) id: KeyId,
    pub(crate) name: PrincipalName,
    pub(crate) principal: Principal,
    pub(crate) role: Role,
    pub(crate) hash: [u8; HASH_LENGTH],
    pub(crate) quotas: Quotas,
    pub(crate) made_with: Option<KeyId>,
    pub(crate) created_ms: i64,
    pub(crate) expires_ms: Option<i64>,
    pub(crate) used_ms: Option<i64>,
}

impl KeyRow {
    /// Returns the key as the API shows it.
    pub(crate) fn shown(&self, used_ms: Option<i64>) -> Key {
        Key {
            id: self.id.clone(),
            name: self.name.clone(),
            principal: self.principal.clone(),
            role: self.role,
            quotas: self.quotas,
            made_with: self.made_with.clone(),
            created_at: format_time_ms(self.created_ms),
            expires_at: self.expires_ms.map(format_time_ms),
            last_used_at: used_ms.map(format_time_ms),
        }
    }
}

impl Store {
    /// Reads every key. One that cannot be read opens nothing, and is told of.
    pub(crate) async fn keys(&self) -> Result<Vec<KeyRow>, StoreError> {
        self.run(Durability::Daemon, "read keys", |transaction| {
            let mut keys = Vec::new();
            let mut statement = transaction.prepare("SELECT * FROM keys ORDER BY id")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                match read_key(row) {
                    Ok(key) => keys.push(key),
                    Err(error) => {
                        let chain = crate::error::chain(&error);
                        tracing::error!(%chain, "unreadable row of a key; the key is not valid");
                    }
                }
            }
            Ok(keys)
        })
        .await
    }

    /// Writes the row of a new key.
    pub(crate) async fn insert_key(&self, key: &KeyRow) -> Result<(), StoreError> {
        let quotas = serde_json::to_string(&key.quotas)?;
        let key = key.clone();
        self.run(Durability::PowerCut, "write a key", move |transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO keys VALUES (:id, :name, :principal, :role, :hash, :quotas, \
                     :made_with, :created_ms, :expires_ms, NULL)",
                )?
                .execute(named_params! {
                    ":id": key.id.as_str(),
                    ":name": key.name.as_str(),
                    ":principal": key.principal.to_string(),
                    ":role": key.role.as_str(),
                    ":hash": key.hash.as_slice(),
                    ":quotas": quotas,
                    ":made_with": key.made_with.as_ref().map(KeyId::as_str),
                    ":created_ms": key.created_ms,
                    ":expires_ms": key.expires_ms,
                })
                .map(drop)
        })
        .await
    }

    /// Forgets keys, all or none.
    pub(crate) async fn delete_keys(&self, ids: Vec<KeyId>) -> Result<(), StoreError> {
        self.run(Durability::PowerCut, "revoke keys", move |transaction| {
            let mut statement = transaction.prepare_cached("DELETE FROM keys WHERE id = ?1")?;
            for id in &ids {
                statement.execute([id.as_str()])?;
            }
            Ok(())
        })
        .await
    }

    /// Writes when a key was last used.
    pub(crate) async fn use_key(&self, id: KeyId, used_ms: i64) -> Result<(), StoreError> {
        self.run(
            Durability::Daemon,
            "write a key's use",
            move |transaction| {
                transaction
                    .prepare_cached("UPDATE keys SET used_ms = ?2 WHERE id = ?1")?
                    .execute(params![id.as_str(), used_ms])
                    .map(drop)
            },
        )
        .await
    }
}

fn read_key(row: &Row<'_>) -> rusqlite::Result<KeyRow> {
    let made_with: Option<String> = row.get("made_with")?;
    Ok(KeyRow {
        id: parsed(row, "id")?,
        name: parsed(row, "name")?,
        principal: parsed(row, "principal")?,
        role: parsed(row, "role")?,
        hash: row.get("hash")?,
        quotas: json(&row.get::<_, String>("quotas")?)?,
        made_with: made_with
            .map(|text| text.parse())
            .transpose()
            .map_err(super::rows::unreadable)?,
        created_ms: row.get("created_ms")?,
        expires_ms: row.get("expires_ms")?,
        used_ms: row.get("used_ms")?,
    })
}
