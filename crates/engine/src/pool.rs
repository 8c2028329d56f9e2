//! Pools: sandboxes that run before anybody asks for them.
//!
//! Each pool has one task ([`keeper`]) that makes what is missing, replaces what has ended or is of
//! a former version of the template, and removes what is too much. A claim takes a sandbox from the
//! pool's shelf and sends that sandbox's own task one message. How many there should be is decided
//! in [`sizing`]. A warm sandbox holds no mount, no environment and no secret, was never executed
//! in, and never comes back.

mod keeper;
mod provenance;
mod sizing;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pinfold_types::api::{Pool as Shown, PoolMetrics, PoolSize, format_time_ms};
use pinfold_types::{Principal, SandboxName};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::caller::Caller;
use crate::core::Core;
use crate::entry::Entry;
use crate::error::EngineError;
use crate::store::{PoolRow, StoredPools, TemplateRow};
use sizing::Demand;

pub(crate) use keeper::start;
pub(crate) use provenance::Provenance;

/// An owner and a name: what templates and pools are known by.
pub(crate) type Key = (Principal, SandboxName);

/// Sandboxes that all pools together make at once: enough to keep the launcher busy, and few enough
/// that a caller's own start is not long behind them.
const REFILLS_AT_ONCE: usize = 4;

/// Share that the last refill has in the time of late.
const REFILL_SHARE: f64 = 0.2;

/// Every template and pool.
#[derive(Debug)]
pub(crate) struct Pools {
    templates: Mutex<BTreeMap<Key, Arc<TemplateRow>>>,
    all: Mutex<BTreeMap<Key, Arc<Pool>>>,
    /// Held while a template or pool is made, changed or removed: one of them at a time.
    pub(crate) changing: tokio::sync::Mutex<()>,
    refills: Semaphore,
}

impl Default for Pools {
    fn default() -> Self {
        Self {
            templates: Mutex::default(),
            all: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            refills: Semaphore::new(REFILLS_AT_ONCE),
        }
    }
}

/// One pool.
#[derive(Debug)]
pub(crate) struct Pool {
    row: Mutex<PoolRow>,
    stock: Mutex<Shelf>,
    wake: Notify,
    /// Cancelled when nothing of it is left.
    pub(crate) gone: CancellationToken,
}

/// What a pool has.
#[derive(Debug, Default)]
struct Shelf {
    /// Oldest first.
    ready: VecDeque<Arc<Entry>>,
    /// Taken out, and to be removed.
    unfit: Vec<Arc<Entry>>,
    starting: usize,
    /// Being removed.
    leaving: usize,
    target: u32,
    demand: Demand,
    metrics: PoolMetrics,
    error: Option<String>,
}

/// Takes over what an earlier daemon left, and starts the pools' tasks. What waits without a pool
/// goes.
pub(crate) async fn recover(core: &Arc<Core>) -> Result<(), EngineError> {
    core.pools.load(core.store.load_pools().await?);
    for entry in core.everyone() {
        let row = entry.row();
        if !row.provenance.is_waiting() {
            continue;
        }
        match row.provenance.pool().and_then(|key| core.pools.pool(&key)) {
            Some(pool) => pool.adopt(entry),
            None => drop(core.tasks.spawn(keeper::remove(entry))),
        }
    }
    for pool in core.pools.all() {
        start(core, &pool);
    }
    Ok(())
}

impl Pools {
    fn templates(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<TemplateRow>>> {
        self.templates
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn pools(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Pool>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what an earlier daemon left.
    pub(crate) fn load(&self, stored: StoredPools) {
        let mut templates = self.templates();
        for row in stored.templates {
            templates.insert(row.key(), Arc::new(row));
        }
        let mut pools = self.pools();
        for row in stored.pools {
            pools.insert(row.key(), Arc::new(Pool::new(row)));
        }
    }

    /// Returns a template.
    pub(crate) fn template(&self, key: &Key) -> Option<Arc<TemplateRow>> {
        self.templates().get(key).cloned()
    }

    /// Returns every template, by owner and name.
    pub(crate) fn all_templates(&self) -> Vec<Arc<TemplateRow>> {
        self.templates().values().cloned().collect()
    }

    /// Puts a template in the place of its former version and has its pools replace theirs.
    pub(crate) fn put_template(&self, row: TemplateRow) -> Arc<TemplateRow> {
        let row = Arc::new(row);
        self.templates().insert(row.key(), Arc::clone(&row));
        for pool in self.of_template(&row.key()) {
            pool.wake.notify_one();
        }
        row
    }

    /// Forgets a template.
    pub(crate) fn drop_template(&self, key: &Key) {
        self.templates().remove(key);
    }

    /// Returns a pool.
    pub(crate) fn pool(&self, key: &Key) -> Option<Arc<Pool>> {
        self.pools().get(key).cloned()
    }

    /// Returns every pool, by owner and name.
    pub(crate) fn all(&self) -> Vec<Arc<Pool>> {
        self.pools().values().cloned().collect()
    }

    /// Returns the pools of a template.
    pub(crate) fn of_template(&self, template: &Key) -> Vec<Arc<Pool>> {
        let pools = self.pools();
        let of_it = pools
            .values()
            .filter(|pool| pool.row().template == *template);
        of_it.cloned().collect()
    }

    pub(crate) fn add(&self, row: PoolRow) -> Arc<Pool> {
        let key = row.key();
        let pool = Arc::new(Pool::new(row));
        self.pools().insert(key, Arc::clone(&pool));
        pool
    }

    fn drop_pool(&self, key: &Key) {
        self.pools().remove(key);
    }

    /// Has a pool look at its sandboxes.
    pub(crate) fn wake(&self, key: &Key) {
        if let Some(pool) = self.pool(key) {
            pool.wake.notify_one();
        }
    }

    /// Returns whether a caller may use what is made from a template.
    pub(crate) fn may_use(caller: &Caller, template: &TemplateRow) -> bool {
        template.shared || caller.may_see(&template.owner)
    }
}

impl Pool {
    fn new(row: PoolRow) -> Self {
        let stock = Shelf {
            target: row.size.bounds().0,
            ..Shelf::default()
        };
        Self {
            row: Mutex::new(row),
            stock: Mutex::new(stock),
            wake: Notify::new(),
            gone: CancellationToken::new(),
        }
    }

    fn stock(&self) -> MutexGuard<'_, Shelf> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn row(&self) -> PoolRow {
        self.row
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Changes what the pool should be; it is written down already.
    pub(crate) fn change(&self, row: PoolRow) {
        let (least, most) = row.size.bounds();
        {
            let mut stock = self.stock();
            stock.target = stock.target.clamp(least, most);
        }
        *self.row.lock().unwrap_or_else(PoisonError::into_inner) = row;
        self.wake.notify_one();
    }

    /// Puts a sandbox on the shelf that an earlier daemon made.
    pub(crate) fn adopt(&self, entry: Arc<Entry>) {
        self.stock().ready.push_back(entry);
    }

    /// Notes that somebody wants a sandbox.
    pub(crate) fn wanted(&self, now_ms: i64) {
        self.stock().demand.note(now_ms);
    }

    /// Takes a sandbox of this version from the stock, for the one who asks and nobody else.
    pub(crate) fn take(&self, version: u32) -> Option<Arc<Entry>> {
        if self.row().draining {
            return None;
        }
        let mut stock = self.stock();
        while let Some(entry) = stock.ready.pop_front() {
            if is_fit(&entry, version) {
                return Some(entry);
            }
            if entry.row().provenance.version() > version {
                // The template has changed since the claim began.
                stock.ready.push_front(entry);
                return None;
            }
            stock.metrics.replaced += 1;
            stock.unfit.push(entry);
        }
        None
    }

    /// Puts a sandbox back that was taken and is as it was.
    pub(crate) fn put_back(&self, entry: Arc<Entry>) {
        self.stock().ready.push_front(entry);
        self.wake.notify_one();
    }

    /// Has a sandbox removed that was taken and not given away.
    pub(crate) fn discard(&self, entry: Arc<Entry>) {
        self.stock().unfit.push(entry);
        self.wake.notify_one();
    }

    /// Counts a claim that was served, warm or not, and has the shelf filled again.
    pub(crate) fn served(&self, warm: bool) {
        let metrics = &mut self.stock().metrics;
        if warm {
            metrics.claims_warm += 1;
        } else {
            metrics.claims_cold += 1;
        }
        self.wake.notify_one();
    }

    /// Counts a sandbox that was made, or was not.
    fn refilled(&self, made: Result<(Arc<Entry>, Duration), String>) {
        let mut stock = self.stock();
        match made {
            Ok((entry, took)) => {
                let ms = took.as_secs_f64() * 1000.0;
                let metrics = &mut stock.metrics;
                metrics.refills += 1;
                let whole = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                metrics.refill_ms_total = metrics.refill_ms_total.saturating_add(whole);
                let late = metrics.refill_ms.unwrap_or(ms);
                metrics.refill_ms = Some(late + REFILL_SHARE * (ms - late));
                stock.error = None;
                stock.ready.push_back(entry);
            }
            Err(error) => {
                stock.metrics.refills_failed += 1;
                stock.error = Some(error);
            }
        }
    }

    /// Returns the pool as the API shows it, with the version of its template.
    pub(crate) fn shown(&self, version: u32) -> Shown {
        let row = self.row();
        let stock = self.stock();
        let mut metrics = stock.metrics;
        metrics.depth = u32::try_from(stock.ready.len()).unwrap_or(u32::MAX);
        let claims = metrics.claims_warm + metrics.claims_cold;
        #[expect(clippy::cast_precision_loss, reason = "it is a share, for people")]
        let rate = |warm: u64, all: u64| warm as f64 / all as f64;
        metrics.hit_rate = (claims > 0).then(|| rate(metrics.claims_warm, claims));
        let (size, min, max) = match row.size {
            PoolSize::Fixed(size) => (Some(size), None, None),
            PoolSize::Auto { min, max } => (None, Some(min), Some(max)),
        };
        Shown {
            name: row.name,
            owner: row.owner,
            template: row.template.1,
            template_version: version,
            size,
            min,
            max,
            target: stock.target,
            starting: u32::try_from(stock.starting).unwrap_or(u32::MAX),
            draining: row.draining,
            error: stock.error.clone(),
            metrics,
            created_at: format_time_ms(row.created_ms),
        }
    }
}

/// Returns whether a warm sandbox can be claimed.
fn is_fit(entry: &Entry, version: u32) -> bool {
    let view = entry.view.borrow();
    let row = &view.row;
    row.state == pinfold_types::SandboxState::Running
        && row.provenance.is_waiting()
        && row.provenance.version() == version
}
