//! Idempotency keys: what a creation that is asked for again finds.

use pinfold_types::{SandboxId, SandboxState};
use rusqlite::{OptionalExtension as _, Transaction, params};

use super::{Durability, Store, StoreError};

/// Longest time that a key is kept: a client that retries for longer has given up.
pub(crate) const KEPT_MS: i64 = 24 * 3_600_000;

/// A key with the request that it was sent with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Once {
    pub(crate) owner: String,
    pub(crate) key: String,
    /// Digest of the request.
    pub(crate) request: String,
    pub(crate) now_ms: i64,
}

/// What a key was used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) request: String,
    pub(crate) sandbox: SandboxId,
    /// The sandbox was made, so it is never made again.
    pub(crate) done: bool,
}

impl Once {
    /// Writes the key beside the row of its sandbox, and forgets keys that are too old.
    ///
    /// What is claimed warm is made already; what is new is done when its row says so.
    pub(super) fn insert(
        &self,
        transaction: &Transaction<'_>,
        sandbox: &str,
        state: &str,
    ) -> rusqlite::Result<()> {
        transaction
            .prepare_cached("DELETE FROM once WHERE made_ms <= ?1")?
            .execute([self.now_ms.saturating_sub(KEPT_MS)])?;
        transaction
            .prepare_cached("INSERT INTO once VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
            .execute(params![
                self.owner,
                self.key,
                self.request,
                sandbox,
                self.now_ms,
                state != SandboxState::Creating.as_str()
            ])
            .map(drop)
    }
}

impl Store {
    /// Returns what a key was used for, and how many keys its owner has.
    pub(crate) async fn once(&self, once: &Once) -> Result<(Option<Kept>, usize), StoreError> {
        let (owner, key) = (once.owner.clone(), once.key.clone());
        let since_ms = once.now_ms.saturating_sub(KEPT_MS);
        let what = "read an idempotency key";
        self.run(Durability::Daemon, what, move |transaction| {
            let kept = transaction
                .prepare_cached(
                    "SELECT request, sandbox, done FROM once \
                     WHERE owner = ?1 AND key = ?2 AND made_ms > ?3",
                )?
                .query_row(params![owner, key, since_ms], |row| {
                    Ok(Kept {
                        request: row.get("request")?,
                        sandbox: super::rows::parsed(row, "sandbox")?,
                        done: row.get("done")?,
                    })
                })
                .optional()?;
            let count: i64 = transaction
                .prepare_cached("SELECT count(*) FROM once WHERE owner = ?1 AND made_ms > ?2")?
                .query_row(params![owner, since_ms], |row| row.get(0))?;
            Ok((kept, usize::try_from(count).unwrap_or(usize::MAX)))
        })
        .await
    }

    /// Writes something, to see whether that is possible.
    pub(crate) async fn touch(&self, now_ms: i64) -> Result<(), StoreError> {
        self.run(
            Durability::Daemon,
            "write the database",
            move |transaction| {
                transaction
                    .prepare_cached("INSERT OR REPLACE INTO readiness VALUES (1, ?1)")?
                    .execute([now_ms])
                    .map(drop)
            },
        )
        .await
    }
}
