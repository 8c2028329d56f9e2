//! API keys: made, shown once, proved, revoked.
//!
//! A key's text is `pf_`, its public id, `_` and 256 bits of secret. The database and the memory hold
//! the SHA-256 of the secret only, which is enough for a secret that nobody can guess. All keys are
//! in memory, so proving one costs a hash and no look into the database.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use pinfold_types::api::keys::{
    CreateKeyRequest, CreatedKey, KEY_PREFIX, Key, KeyList, KeyToken, Quotas, RevokedKeys,
};
use pinfold_types::{ErrorCode, KeyId, Principal, Role};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio_util::sync::CancellationToken;

use crate::caller::Caller;
use crate::engine::Engine;
use crate::error::{EngineError, chain};
use crate::store::{HASH_LENGTH, KeyRow};

type Result<T, E = EngineError> = std::result::Result<T, E>;

/// Most keys of a daemon: all are held in memory, some hundred bytes each.
const KEYS_MAX: usize = 10_000;

/// Most keys that one principal may make for itself: one for each machine, and not a flood.
const KEYS_PER_PRINCIPAL_MAX: usize = 100;

/// Characters of a secret: 43 of 62 kinds hold 256 bits.
const SECRET_LENGTH: usize = 43;

/// Longest life of a key that ends at all: beyond that a time could overflow.
const EXPIRES_MS_MAX: u64 = 100 * 365 * 24 * 3600 * 1000;

/// Time between two writes of a key's last use: people look for unused keys by the day.
const USED_EVERY_MS: i64 = 60_000;

/// What a key that does not expire was last used at, before it was ever.
const NEVER: i64 = i64::MIN;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// One key that is valid until it expires.
struct Held {
    row: KeyRow,
    used_ms: AtomicI64,
    written_ms: AtomicI64,
    revoked: CancellationToken,
}

/// Every key.
#[derive(Default)]
pub(crate) struct Keys {
    by_id: RwLock<HashMap<KeyId, Arc<Held>>>,
    /// Held while keys are made or revoked, so that limits are kept and a key that is being revoked
    /// makes no other.
    changing: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

impl Keys {
    pub(crate) fn of(rows: Vec<KeyRow>) -> Self {
        let by_id = rows
            .into_iter()
            .map(|row| (row.id.clone(), Held::new(row)))
            .collect();
        Self {
            by_id: RwLock::new(by_id),
            changing: tokio::sync::Mutex::new(()),
        }
    }

    fn get(&self, id: &KeyId) -> Option<Arc<Held>> {
        let keys = self.by_id.read().unwrap_or_else(PoisonError::into_inner);
        keys.get(id).cloned()
    }

    fn all(&self) -> Vec<Arc<Held>> {
        let keys = self.by_id.read().unwrap_or_else(PoisonError::into_inner);
        keys.values().cloned().collect()
    }

    /// Returns what takes the place of the daemon's quotas.
    pub(crate) fn quotas(&self, id: &KeyId) -> Quotas {
        self.get(id).map_or(Quotas::NONE, |held| held.row.quotas)
    }
}

impl Held {
    fn new(row: KeyRow) -> Arc<Self> {
        let used_ms = row.used_ms.unwrap_or(NEVER);
        Arc::new(Self {
            row,
            used_ms: AtomicI64::new(used_ms),
            written_ms: AtomicI64::new(used_ms),
            revoked: CancellationToken::new(),
        })
    }

    fn is_expired(&self, now_ms: i64) -> bool {
        self.row.expires_ms.is_some_and(|expires| expires <= now_ms)
    }

    fn shown(&self) -> Key {
        let used_ms = self.used_ms.load(Ordering::Relaxed);
        self.row.shown((used_ms != NEVER).then_some(used_ms))
    }
}

/// What a valid key gives.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Who shows it, and what it may do.
    pub caller: Caller,
    /// Cancelled when the key is revoked.
    pub revoked: CancellationToken,
    /// When it expires, in milliseconds since the Unix epoch.
    pub expires_ms: Option<i64>,
}

impl Engine {
    /// Proves the text of a key.
    ///
    /// # Errors
    ///
    /// Returns `unauthenticated` without saying what is wrong with it.
    pub fn authenticate(&self, token: &str) -> Result<Grant> {
        let refused = || {
            EngineError::new(ErrorCode::Unauthenticated, "the API key is not valid")
                .hint("it may be revoked or expired; make one with `pinfold key create NAME`")
        };
        let (id, secret) = split(token).ok_or_else(refused)?;
        let held = self.core.keys.get(&id);
        let hash = hash(secret);
        // A key that is not there costs as much as one that is.
        let expected = held.as_ref().map_or([0; HASH_LENGTH], |held| held.row.hash);
        let equal: bool = hash.ct_eq(&expected).into();
        let now_ms = self.core.clock.now_ms();
        let held = held
            .filter(|held| equal && !held.is_expired(now_ms) && !held.revoked.is_cancelled())
            .ok_or_else(refused)?;
        self.note_use(&held, now_ms);
        let row = &held.row;
        Ok(Grant {
            caller: Caller::of_key(row.id.clone(), row.principal.clone(), row.role),
            revoked: held.revoked.clone(),
            expires_ms: row.expires_ms,
        })
    }

    /// Remembers a key's use; writes it now and then, since it is for people.
    fn note_use(&self, held: &Arc<Held>, now_ms: i64) {
        held.used_ms.store(now_ms, Ordering::Relaxed);
        let written = held.written_ms.load(Ordering::Relaxed);
        let is_new = now_ms.saturating_sub(written) < USED_EVERY_MS;
        if is_new
            || held
                .written_ms
                .compare_exchange(written, now_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_err()
        {
            return;
        }
        let (core, id) = (Arc::clone(&self.core), held.row.id.clone());
        self.core.tasks.spawn(async move {
            if let Err(error) = core.store.use_key(id, now_ms).await {
                tracing::warn!(chain = %chain(&error), "use of a key not written");
            }
        });
    }

    /// Makes a key and shows its text, once.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn key_create(
        &self,
        caller: &Caller,
        request: CreateKeyRequest,
    ) -> Result<CreatedKey> {
        self.core.check_open()?;
        let _alone = self.core.keys.changing.lock().await;
        let (row, token) = self.new_key(caller, request)?;
        self.check_room(caller, &row)?;
        self.core.store.insert_key(&row).await?;
        let held = Held::new(row);
        let key = held.shown();
        let keys = &self.core.keys;
        keys.by_id
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key.id.clone(), held);
        tracing::info!(key = %key.id, principal = %key.principal, role = %key.role, by = %caller.principal, "key made");
        Ok(CreatedKey { key, token })
    }

    fn new_key(&self, caller: &Caller, request: CreateKeyRequest) -> Result<(KeyRow, KeyToken)> {
        let principal = request.principal.unwrap_or_else(|| {
            if caller.is_admin() {
                Principal::Named(request.name.clone())
            } else {
                caller.principal.clone()
            }
        });
        check_rights(caller, &principal, request.role, &request.quotas)?;
        let now_ms = self.core.clock.now_ms();
        let asked = request.expires_ms.map(|time| {
            let time = i64::try_from(time.min(EXPIRES_MS_MAX)).unwrap_or(i64::MAX);
            now_ms.saturating_add(time)
        });
        // A key never gives more, or for longer, than the one that it was made with.
        let maker = match &caller.key {
            None => None,
            Some(id) => Some(self.core.keys.get(id).ok_or_else(|| {
                EngineError::new(ErrorCode::Unauthenticated, "the API key is not valid")
            })?),
        };
        let maker = maker.as_ref().map(|held| &held.row);
        let limit = maker.and_then(|row| row.expires_ms);
        let inherited = match maker {
            Some(row) if !caller.is_admin() => row.quotas,
            _ => request.quotas,
        };
        let id = KeyId::new();
        let secret = new_secret();
        let token = KeyToken::new(format!("{KEY_PREFIX}{id}_{secret}"));
        let row = KeyRow {
            id,
            name: request.name,
            principal,
            role: request.role,
            hash: hash(&secret),
            quotas: inherited,
            made_with: caller.key.clone(),
            created_ms: now_ms,
            expires_ms: asked.into_iter().chain(limit).min(),
            used_ms: None,
        };
        Ok((row, token))
    }

    fn check_room(&self, caller: &Caller, new: &KeyRow) -> Result<()> {
        let keys = self.core.keys.all();
        let own = keys
            .iter()
            .filter(|held| held.row.principal == new.principal);
        let most = if caller.is_admin() {
            KEYS_MAX
        } else {
            KEYS_PER_PRINCIPAL_MAX
        };
        if keys.len() >= KEYS_MAX || own.clone().count() >= most {
            return Err(EngineError::new(
                ErrorCode::LimitExceeded,
                format!(
                    "there are {} keys already, which is the limit",
                    most.min(keys.len())
                ),
            )
            .details(json!({ "limit": most }))
            .hint("revoke some with `pinfold key revoke ID`"));
        }
        if own.clone().any(|held| held.row.name == new.name) {
            return Err(EngineError::new(
                ErrorCode::AlreadyExists,
                format!("{} has a key `{}` already", new.principal, new.name),
            )
            .hint("choose another name, or revoke that one with `pinfold key revoke`"));
        }
        Ok(())
    }

    /// Lists keys, by principal and name: every one for an admin, else those of the caller.
    pub fn key_list(&self, caller: &Caller) -> KeyList {
        let mut keys: Vec<Key> = self
            .core
            .keys
            .all()
            .iter()
            .filter(|held| caller.may_see(&held.row.principal))
            .map(|held| held.shown())
            .collect();
        keys.sort_by(|a, b| (&a.principal, &a.name).cmp(&(&b.principal, &b.name)));
        KeyList { keys }
    }

    /// Revokes a key, named by its id, and those that were made with it. It is refused from now on
    /// and its connections are cut.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why; then the key is still valid.
    pub async fn key_revoke(&self, caller: &Caller, id: &KeyId) -> Result<RevokedKeys> {
        self.core.check_open()?;
        let keys = &self.core.keys;
        let _alone = keys.changing.lock().await;
        let seen = keys.get(id).filter(|held| {
            // An own key of a higher role is not the caller's to revoke: it could be the owner's.
            caller.may_see(&held.row.principal) && held.row.role <= caller.role
        });
        if seen.is_none() {
            return Err(EngineError::new(
                ErrorCode::NotFound,
                format!("there is no key `{id}` that you may revoke"),
            )
            .hint("see yours with `pinfold key list`"));
        }
        let revoked = descendants(&keys.all(), id);
        self.core.store.delete_keys(revoked.clone()).await?;
        let mut by_id = keys.by_id.write().unwrap_or_else(PoisonError::into_inner);
        for id in &revoked {
            if let Some(held) = by_id.remove(id) {
                held.revoked.cancel();
            }
        }
        drop(by_id);
        tracing::info!(?revoked, by = %caller.principal, "keys revoked");
        Ok(RevokedKeys { revoked })
    }
}

/// A key for somebody else, or one that may more than its maker, is an admin's to make.
fn check_rights(caller: &Caller, principal: &Principal, role: Role, quotas: &Quotas) -> Result<()> {
    let refused = |what: &str| {
        Err(
            EngineError::new(ErrorCode::PermissionDenied, format!("only an admin {what}"))
                .hint("ask whoever runs the daemon for such a key"),
        )
    };
    if !caller.may_change() {
        return refused("or a user makes keys");
    }
    if caller.is_admin() {
        return Ok(());
    }
    if *principal != caller.principal {
        return refused("makes keys for others");
    }
    if role > caller.role {
        return refused("makes keys of admins");
    }
    if *quotas != Quotas::NONE {
        return refused("gives quotas");
    }
    Ok(())
}

/// Returns a key with all that were made with it, however far removed.
fn descendants(keys: &[Arc<Held>], id: &KeyId) -> Vec<KeyId> {
    let mut found = vec![id.clone()];
    let mut next = 0;
    while let Some(maker) = found.get(next).cloned() {
        let made = keys.iter().filter(|held| {
            held.row.made_with.as_ref() == Some(&maker) && !found.contains(&held.row.id)
        });
        let made: Vec<KeyId> = made.map(|held| held.row.id.clone()).collect();
        found.extend(made);
        next += 1;
    }
    found
}

/// Splits a token into its public and its secret part.
fn split(token: &str) -> Option<(KeyId, &str)> {
    let (id, secret) = token.strip_prefix(KEY_PREFIX)?.split_once('_')?;
    let good = secret.len() == SECRET_LENGTH && secret.bytes().all(|b| b.is_ascii_alphanumeric());
    good.then_some(())?;
    Some((id.parse().ok()?, secret))
}

fn hash(secret: &str) -> [u8; HASH_LENGTH] {
    Sha256::digest(secret.as_bytes()).into()
}

/// Makes a secret in which every text is as likely as any other.
fn new_secret() -> String {
    // The largest multiple of 62 that a byte holds: what is above would make some digits likelier.
    const FAIR: u8 = 248;
    let mut secret = String::with_capacity(SECRET_LENGTH);
    let mut random = [0u8; 64];
    while secret.len() < SECRET_LENGTH {
        getrandom::fill(&mut random)
            .expect("the kernel's random source is always there after boot");
        let fair = random.iter().filter(|byte| **byte < FAIR);
        let digits = fair.filter_map(|byte| DIGITS.get(usize::from(byte % 62)));
        let wanted = SECRET_LENGTH - secret.len();
        secret.extend(digits.take(wanted).copied().map(char::from));
    }
    secret
}

#[cfg(test)]
mod tests;
