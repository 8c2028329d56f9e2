//! Creations that are made once however often they are asked for.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use pinfold_types::api::{CreateSandboxRequest, Sandbox};
use pinfold_types::{ErrorCode, SandboxId, SandboxState};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::{Engine, Result};
use crate::caller::Caller;
use crate::error::EngineError;
use crate::store::{Kept, Once};

/// Longest key: room for two UUIDs and a prefix, many times over.
const KEY_LENGTH_MAX: usize = 255;

/// Most keys that one owner has within their time: a creation every five seconds, day and night.
/// They are counted at every creation with a key, which this keeps within a few milliseconds.
const KEYS_MAX: usize = 20_000;

/// Times that a creation with the same key may fail under our eyes before we give up too.
const TRIES_MAX: u32 = 8;

/// Longest wait until a creation that failed is undone.
const UNDO_TIME_MAX: Duration = Duration::from_secs(15);

/// Names one creation: the same key with the same request makes one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnceKey(String);

/// Why a text is not an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an idempotency key is 1 to {KEY_LENGTH_MAX} printable ASCII characters")]
pub struct OnceKeyError;

impl FromStr for OnceKey {
    type Err = OnceKeyError;

    fn from_str(text: &str) -> Result<Self, OnceKeyError> {
        let good = (1..=KEY_LENGTH_MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        good.then(|| Self(text.to_owned())).ok_or(OnceKeyError)
    }
}

/// What a creation with a key came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The sandbox as it is now.
    pub sandbox: Sandbox,
    /// An earlier request made it.
    pub replayed: bool,
}

type Turn = tokio::sync::Mutex<()>;

/// Creations with keys that go on: those with the same key wait for each other.
#[derive(Debug, Default)]
pub(crate) struct InFlight(Mutex<HashMap<(String, String), Weak<Turn>>>);

impl InFlight {
    fn turn(&self, once: &Once) -> Arc<Turn> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One for each request that waits, so looking at all is cheap.
        turns.retain(|_, turn| turn.strong_count() > 0);
        let key = (once.owner.clone(), once.key.clone());
        if let Some(turn) = turns.get(&key).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::new(Turn::default());
        turns.insert(key, Arc::downgrade(&turn));
        turn
    }
}

impl Engine {
    /// Makes a sandbox, or answers the one that an earlier request with the same key made.
    ///
    /// Keys are kept for a day, also when the sandbox is removed and when the daemon ends. A
    /// creation that failed leaves its key free.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why: `idempotency_mismatch` when the key was
    /// used for another request, `instance_gone` when what it made was removed.
    pub async fn create_once(
        &self,
        caller: &Caller,
        key: &OnceKey,
        request: CreateSandboxRequest,
        progress: Option<mpsc::Sender<String>>,
    ) -> Result<Outcome> {
        let once = Once {
            owner: caller.principal.to_string(),
            key: key.0.clone(),
            request: digest(&request)?,
            now_ms: self.core.clock.now_ms(),
        };
        let turn = self.core.in_flight.turn(&once);
        let _turn = turn.lock().await;
        for _ in 0..TRIES_MAX {
            let (kept, count) = self.core.store.once(&once).await?;
            if let Some(kept) = kept {
                match self.made_before(&once, kept).await? {
                    Some(sandbox) => {
                        return Ok(Outcome {
                            sandbox,
                            replayed: true,
                        });
                    }
                    None => continue,
                }
            }
            if count >= KEYS_MAX {
                return Err(too_many_keys());
            }
            let sandbox = self.make(caller, request, Some(once), progress).await?;
            return Ok(Outcome {
                sandbox,
                replayed: false,
            });
        }
        Err(EngineError::new(
            ErrorCode::Unavailable,
            "creations with this idempotency key fail again and again",
        ))
    }

    /// Returns what a key made; `None` when that has just failed.
    async fn made_before(&self, once: &Once, kept: Kept) -> Result<Option<Sandbox>> {
        if kept.request != once.request {
            return Err(EngineError::new(
                ErrorCode::IdempotencyMismatch,
                "this idempotency key was used for another request",
            )
            .details(json!({ "sandbox_id": kept.sandbox }))
            .hint("send a new key with a new request"));
        }
        let Some(entry) = self.core.by_id(&kept.sandbox) else {
            return if kept.done {
                Err(removed(&kept.sandbox))
            } else {
                Ok(None)
            };
        };
        let mut view = entry.view.subscribe();
        let made = |state| !matches!(state, SandboxState::Creating);
        // Its maker stopped waiting, and the sandbox is made all the same.
        let seen = view.wait_for(|view| made(view.row.state)).await;
        let row = seen.map(|view| view.row.clone()).ok();
        match row {
            Some(row) if row.state != SandboxState::Removing => Ok(Some(row.shown())),
            _ if kept.done => Err(removed(&kept.sandbox)),
            _ => {
                // Its removal ends with its task.
                let gone = tokio::time::timeout(UNDO_TIME_MAX, entry.gone()).await;
                gone.map(|()| None).map_err(|_| {
                    EngineError::new(
                        ErrorCode::Unavailable,
                        "the creation with this idempotency key failed and is not undone yet",
                    )
                    .hint("try again later")
                })
            }
        }
    }
}

fn digest(request: &CreateSandboxRequest) -> Result<String> {
    let text = serde_json::to_vec(request).map_err(|error| {
        EngineError::new(ErrorCode::Internal, "a request cannot be written").caused_by(error)
    })?;
    let mut hex = String::new();
    for byte in Sha256::digest(&text) {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    Ok(hex)
}

fn removed(sandbox: &SandboxId) -> EngineError {
    EngineError::new(
        ErrorCode::InstanceGone,
        format!("sandbox `{sandbox}`, which this idempotency key made, was removed"),
    )
    .details(json!({ "sandbox_id": sandbox }))
    .hint("send a new key to make another one")
}

fn too_many_keys() -> EngineError {
    EngineError::new(
        ErrorCode::LimitExceeded,
        format!("you have used {KEYS_MAX} idempotency keys within a day, which is the limit"),
    )
    .details(json!({ "limit": KEYS_MAX }))
    .hint("create without a key, or later")
}
