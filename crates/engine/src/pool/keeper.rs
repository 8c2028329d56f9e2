//! The task of one pool.

use std::sync::Arc;
use std::time::Duration;

use pinfold_types::api::TemplateUse;
use pinfold_types::api::keys::Quotas;
use pinfold_types::{ErrorCode, SandboxId, SandboxState};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Pool, Provenance, REFILLS_AT_ONCE, is_fit};
use crate::activity::Activity;
use crate::core::Core;
use crate::entry::{Entry, Message};
use crate::error::{EngineError, chain};
use crate::exec::name_prefix;
use crate::sandbox;
use crate::store::{SandboxRow, TemplateRow};

/// Longest time between two looks at a pool: an autosized one shrinks with time alone.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// First wait after a sandbox that could not be made; it doubles with each further one.
const RETRY_MIN: Duration = Duration::from_millis(500);
/// Longest such wait: what is missing on the host is soon used once it is there.
const RETRY_MAX: Duration = Duration::from_mins(1);

/// Wait before a warm sandbox that could not be removed is removed again.
const REMOVE_AGAIN: Duration = Duration::from_secs(5);

/// Sandboxes of one pool that are removed at once.
const REMOVED_AT_ONCE: usize = 16;

/// Times that a made-up name may turn out to be taken.
const NAME_TRIES_MAX: u32 = 64;

type Made = Result<(Arc<Entry>, Duration), EngineError>;

/// Starts a pool's task.
pub(crate) fn start(core: &Arc<Core>, pool: &Arc<Pool>) {
    let keeper = Keeper {
        core: Arc::clone(core),
        pool: Arc::clone(pool),
        making: JoinSet::new(),
        removing: JoinSet::new(),
        failures: 0,
        retry_at: None,
    };
    core.tasks.spawn(keeper.run());
}

struct Keeper {
    core: Arc<Core>,
    pool: Arc<Pool>,
    making: JoinSet<Made>,
    removing: JoinSet<()>,
    failures: u32,
    retry_at: Option<Instant>,
}

impl Keeper {
    async fn run(mut self) {
        let core = Arc::clone(&self.core);
        let pool = Arc::clone(&self.pool);
        loop {
            self.look();
            if self.is_gone().await {
                return;
            }
            let refused = self.retry_at.map_or(LOOK_EVERY, |at| {
                at.saturating_duration_since(Instant::now())
            });
            tokio::select! {
                biased;
                () = core.closing.cancelled() => return,
                Some(made) = self.making.join_next(), if !self.making.is_empty() => {
                    self.made(made.unwrap_or_else(|_| {
                        Err(EngineError::new(ErrorCode::Internal, "a refill's task died"))
                    }));
                }
                Some(_) = self.removing.join_next(), if !self.removing.is_empty() => {}
                () = pool.wake.notified() => {}
                () = tokio::time::sleep(refused.clamp(RETRY_MIN, LOOK_EVERY)) => {}
            }
        }
    }

    /// Takes out what does not fit, and begins to make or remove what the target asks for.
    fn look(&mut self) {
        let row = self.pool.row();
        let template = self.core.pools.template(&row.template);
        let version = template.as_ref().map_or(0, |template| template.version);
        let now_ms = self.core.clock.now_ms();
        let mut guard = self.pool.stock();
        let stock = &mut *guard;
        let refill_ms = stock.metrics.refill_ms;
        stock.target = match &template {
            Some(_) if !row.draining => stock.demand.target(row.size, refill_ms, now_ms),
            _ => 0,
        };
        let target = usize::try_from(stock.target).unwrap_or(usize::MAX);
        let (fit, unfit): (Vec<_>, Vec<_>) = stock
            .ready
            .drain(..)
            .partition(|entry| is_fit(entry, version));
        stock.metrics.replaced += unfit.len() as u64;
        stock.ready.extend(fit);
        stock.unfit.extend(unfit);
        while stock.ready.len() > target {
            stock.unfit.extend(stock.ready.pop_front());
        }
        while self.removing.len() < REMOVED_AT_ONCE
            && let Some(entry) = stock.unfit.pop()
        {
            self.removing.spawn(remove(entry));
        }
        let may = self.retry_at.is_none_or(|at| at <= Instant::now());
        if let Some(template) = template.filter(|_| may) {
            while stock.ready.len() + self.making.len() < target
                && self.making.len() < REFILLS_AT_ONCE
            {
                let (core, pool) = (Arc::clone(&self.core), Arc::clone(&self.pool));
                self.making.spawn(make(core, pool, Arc::clone(&template)));
            }
        }
        stock.starting = self.making.len();
        stock.leaving = self.removing.len();
    }

    fn made(&mut self, made: Made) {
        let took = made.as_ref().ok().map(|(_, took)| *took);
        self.core.meters.refilled(took);
        match made {
            Ok(made) => {
                self.failures = 0;
                self.retry_at = None;
                self.pool.refilled(Ok(made));
            }
            Err(error) => {
                let wait = (RETRY_MIN * 2u32.saturating_pow(self.failures)).min(RETRY_MAX);
                self.failures = self.failures.saturating_add(1).min(10);
                self.retry_at = Some(Instant::now() + wait);
                tracing::warn!(
                    pool = %self.pool.row().name, error = %chain(&error), "not refilled"
                );
                self.pool.refilled(Err(chain(&error)));
            }
        }
    }

    /// Forgets a pool that is drained.
    async fn is_gone(&self) -> bool {
        let row = self.pool.row();
        let empty = {
            let stock = self.pool.stock();
            stock.ready.is_empty() && stock.unfit.is_empty()
        };
        if !(row.draining && empty && self.making.is_empty() && self.removing.is_empty()) {
            return false;
        }
        if let Err(error) = self.core.store.delete_pool(&row.key()).await {
            tracing::error!(pool = %row.name, error = %chain(&error), "pool not forgotten");
            return false;
        }
        self.core.pools.drop_pool(&row.key());
        self.pool.gone.cancel();
        true
    }
}

/// Makes one warm sandbox.
async fn make(core: Arc<Core>, pool: Arc<Pool>, template: Arc<TemplateRow>) -> Made {
    let Ok(_permit) = core.pools.refills.acquire().await else {
        return Err(EngineError::closing());
    };
    let began = Instant::now();
    let entry = admit(&core, &pool, &template)?;
    let made = entry.ask(|reply| Message::Create {
        progress: None,
        once: None,
        reply,
    });
    made.await?;
    Ok((entry, began.elapsed()))
}

fn admit(core: &Arc<Core>, pool: &Pool, template: &TemplateRow) -> Result<Arc<Entry>, EngineError> {
    let row = pool.row();
    let now_ms = core.clock.now_ms();
    let mut tries = 0;
    loop {
        let made_from = TemplateUse {
            name: template.name.clone(),
            version: template.version,
            pool: Some(row.name.clone()),
        };
        let sandbox = SandboxRow {
            id: SandboxId::new(),
            name: core.free_name(&row.owner, name_prefix(&template.spec)),
            owner: row.owner.clone(),
            state: SandboxState::Creating,
            reason: None,
            spec: template.spec.clone(),
            record: None,
            granted: None,
            image: None,
            created_ms: now_ms,
            changed_ms: now_ms,
            lifetime_done: false,
            keep_persist: false,
            provenance: Provenance::warm(made_from, row.owner.clone()),
        };
        let activity = Activity::new(core.clock);
        let (entry, messages) = Entry::new(sandbox, None, activity, &core.closing);
        match core.register(&entry, &Quotas::NONE) {
            Ok(()) => {
                sandbox::spawn(core, &entry, messages);
                return Ok(entry);
            }
            Err(error) if error.code == ErrorCode::AlreadyExists && tries < NAME_TRIES_MAX => {
                tries += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Removes a warm sandbox, again and again until it is gone.
pub(super) async fn remove(entry: Arc<Entry>) {
    loop {
        let removed = entry.ask(|reply| Message::Remove {
            keep_persist: false,
            reply,
        });
        match removed.await {
            Ok(_) => return,
            Err(error) if error.code == ErrorCode::NotFound || entry.halt.is_cancelled() => return,
            Err(error) => {
                tracing::warn!(sandbox = %entry.id, error = %chain(&error), "warm one not removed");
            }
        }
        tokio::time::sleep(REMOVE_AGAIN).await;
    }
}
