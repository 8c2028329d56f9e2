//! What all sandboxes of an engine share.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pinfold_driver::Driver;
use pinfold_types::api::keys::Quotas;
use pinfold_types::{ErrorCode, ExecId, Principal, Resources, SandboxId, SandboxName};
use serde_json::json;
use tokio::sync::RwLock;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::Admission;
use crate::agent::Connect;
use crate::caller::Caller;
use crate::clock::Clock;
use crate::config::EngineConfig;
use crate::engine::InFlight;
use crate::entry::Entry;
use crate::error::EngineError;
use crate::journal::Limits;
use crate::keys::Keys;
use crate::lock::StateLock;
use crate::meters::Meters;
use crate::outbox::Outbox;
use crate::pool::Pools;
use crate::quota::{Charge, Cost, Ledger, Running};
use crate::sandbox::Binding;
use crate::store::{KeyRow, Store};

/// Directory of the journals in the state directory.
pub(crate) const JOURNALS: &str = "journals";
/// Directory of the persist directories in the state directory.
pub(crate) const PERSIST: &str = "persist";

/// Names tried before one is made distinct by a number.
const NAME_TRIES_MAX: u32 = 32;

/// Numbers tried behind a claimed sandbox's name: more than there can be sandboxes of one name.
const NUMBERS_MAX: u32 = 10_000;

/// What all sandboxes share.
pub(crate) struct Core {
    pub(crate) config: EngineConfig,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) connect: Connect,
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) keys: Keys,
    pub(crate) running: Running,
    registry: Mutex<Registry>,
    pub(crate) in_flight: InFlight,
    pub(crate) outbox: Outbox,
    /// Starts hold it for reading and a sweep for writing, so that a sweep never takes what is just
    /// being made for something that nobody owns.
    pub(crate) effects: RwLock<()>,
    /// Cancelled when the engine ends.
    pub(crate) closing: CancellationToken,
    pub(crate) tasks: TaskTracker,
    pub(crate) lock: Mutex<Option<StateLock>>,
    /// Sandboxes whose rows cannot be read; never swept.
    pub(crate) unreadable: Vec<SandboxId>,
    pub(crate) pools: Pools,
    pub(crate) meters: Meters,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("config", &self.config)
            .field("driver", &self.driver)
            .finish_non_exhaustive()
    }
}

/// Returns whether a caller may see a sandbox. One that waits in a pool is nobody's.
fn is_visible(entry: &Entry, caller: &Caller) -> bool {
    let view = entry.view.borrow();
    !view.row.provenance.is_waiting() && caller.may_see(&view.row.owner)
}

#[derive(Debug, Default)]
struct Registry {
    by_id: BTreeMap<SandboxId, Arc<Entry>>,
    by_name: HashMap<(Principal, SandboxName), SandboxId>,
    ledger: Ledger,
    admission: Admission,
}

/// How much of each kind an engine has in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Sandboxes that it knows.
    pub sandboxes: usize,
    /// Names that are taken.
    pub names: usize,
    /// Execs that have not ended.
    pub execs: usize,
    /// Tasks of sandboxes, of execs and of requests that must be done to the end.
    pub tasks: usize,
}

/// The parts that a [`Core`] is made from.
pub(crate) struct Parts {
    pub(crate) config: EngineConfig,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) seams: Seams,
    pub(crate) store: Store,
    pub(crate) lock: StateLock,
    pub(crate) unreadable: Vec<SandboxId>,
    pub(crate) keys: Vec<KeyRow>,
}

/// What tests replace.
#[derive(Clone)]
pub(crate) struct Seams {
    pub(crate) connect: Connect,
    pub(crate) clock: Clock,
}

impl Core {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            config: parts.config,
            driver: parts.driver,
            connect: parts.seams.connect,
            store: parts.store,
            clock: parts.seams.clock,
            keys: Keys::of(parts.keys),
            running: Running::default(),
            registry: Mutex::default(),
            in_flight: InFlight::default(),
            outbox: Outbox::default(),
            effects: RwLock::new(()),
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
            lock: Mutex::new(Some(parts.lock)),
            unreadable: parts.unreadable,
            pools: Pools::default(),
            meters: Meters::default(),
        })
    }

    /// Refuses work once the engine is ending.
    pub(crate) fn check_open(&self) -> Result<(), EngineError> {
        if self.closing.is_cancelled() {
            Err(EngineError::closing())
        } else {
            Ok(())
        }
    }

    pub(crate) fn journals(&self, sandbox: &SandboxId) -> PathBuf {
        self.config.state_dir.join(JOURNALS).join(sandbox.as_str())
    }

    pub(crate) fn journal(&self, sandbox: &SandboxId, exec: &ExecId) -> PathBuf {
        self.journals(sandbox).join(exec.as_str())
    }

    pub(crate) fn journal_limits(&self) -> Limits {
        Limits::new(self.config.journal_bytes_max)
    }

    pub(crate) fn persist(&self, sandbox: &SandboxId) -> PathBuf {
        self.config.state_dir.join(PERSIST).join(sandbox.as_str())
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a name that its owner does not use yet.
    pub(crate) fn free_name(&self, owner: &Principal, prefix: &str) -> SandboxName {
        let registry = self.registry();
        let taken = |name: &SandboxName| {
            registry
                .by_name
                .contains_key(&(owner.clone(), name.clone()))
        };
        let mut name = SandboxName::generate(prefix);
        for _ in 0..NAME_TRIES_MAX {
            if !taken(&name) {
                return name;
            }
            name = SandboxName::generate(prefix);
        }
        (2..u32::MAX)
            .filter_map(|number| name.numbered(number).ok())
            .find(|numbered| !taken(numbered))
            .unwrap_or(name)
    }

    /// Returns what the principal of a caller may have.
    pub(crate) fn quotas(&self, caller: &Caller) -> Quotas {
        let defaults = match (&caller.key, self.config.quotas_of_users) {
            (None, false) => Quotas::NONE,
            _ if caller.is_admin() => Quotas::NONE,
            _ => self.config.quotas,
        };
        match &caller.key {
            Some(key) => self.keys.quotas(key).or(defaults),
            None => defaults,
        }
    }

    /// Adds a new sandbox, unless its name is taken or there are too many.
    pub(crate) fn register(&self, entry: &Arc<Entry>, quotas: &Quotas) -> Result<(), EngineError> {
        self.add(entry, self.config.sandboxes_max, quotas)
    }

    /// Adds a sandbox that an earlier daemon made, however many there are.
    pub(crate) fn register_again(&self, entry: &Arc<Entry>) -> Result<(), EngineError> {
        self.add(entry, usize::MAX, &Quotas::NONE)
    }

    fn add(&self, entry: &Arc<Entry>, most: usize, quotas: &Quotas) -> Result<(), EngineError> {
        let mut registry = self.registry();
        if registry.by_id.len() >= most {
            return Err(EngineError::new(
                ErrorCode::LimitExceeded,
                format!("there are {most} sandboxes already, which is the limit"),
            )
            .details(json!({ "limit": most }))
            .hint("remove some with `pinfold rm NAME`"));
        }
        let key = entry.key();
        // The name may have been kept for it.
        if registry.by_name.get(&key).is_some_and(|id| *id != entry.id) {
            return Err(EngineError::new(
                ErrorCode::AlreadyExists,
                format!("there is a sandbox `{}` already", key.1),
            )
            .details(json!({ "name": key.1 }))
            .hint(format!(
                "choose another name, or remove that one with `pinfold rm {}`",
                key.1
            )));
        }
        let resources = entry.row().spec.resources;
        let charge = Charge {
            sandbox: &entry.id,
            principal: &key.0,
            cost: Cost::of(&resources),
        };
        let now_ms = self.clock.now_ms();
        // What an earlier daemon promised is kept, whatever the host has by now.
        if most == usize::MAX {
            registry.admission.keep(&entry.id, &resources);
        } else {
            let capacity = &self.config.capacity;
            registry
                .admission
                .promise(&entry.id, &resources, capacity)?;
        }
        if let Err(error) = registry.ledger.charge(charge, quotas, now_ms) {
            registry.admission.release(&entry.id);
            return Err(error);
        }
        registry.by_name.insert(key, entry.id.clone());
        registry.by_id.insert(entry.id.clone(), Arc::clone(entry));
        Ok(())
    }

    /// Counts a sandbox as something else from now on, unless a quota is used up by that.
    pub(crate) fn recharge(
        &self,
        entry: &Entry,
        resources: &Resources,
        quotas: &Quotas,
    ) -> Result<(), EngineError> {
        let cost = Cost::of(resources);
        let capacity = &self.config.capacity;
        let before = entry.row().spec.resources;
        let mut registry = self.registry();
        registry.admission.promise(&entry.id, resources, capacity)?;
        let charged = registry.ledger.recharge(&entry.id, cost, quotas);
        if charged.is_err() {
            registry.admission.keep(&entry.id, &before);
        }
        charged
    }

    /// Counts a sandbox as what it is by now, whatever that leaves for others.
    pub(crate) fn recount(&self, entry: &Entry) -> Result<(), EngineError> {
        let resources = entry.row().spec.resources;
        let mut registry = self.registry();
        registry.admission.keep(&entry.id, &resources);
        let cost = Cost::of(&resources);
        registry.ledger.recharge(&entry.id, cost, &Quotas::NONE)
    }

    /// Forgets a sandbox.
    pub(crate) fn unregister(&self, entry: &Entry) {
        let mut registry = self.registry();
        registry.by_id.remove(&entry.id);
        registry.ledger.release(&entry.id);
        registry.admission.release(&entry.id);
        let key = entry.key();
        if registry.by_name.get(&key) == Some(&entry.id) {
            registry.by_name.remove(&key);
        }
    }

    /// Counts what is in memory.
    pub(crate) fn held(&self) -> Held {
        let registry = self.registry();
        let entries = registry.by_id.values();
        let (execs, followers) = entries.fold((0, 0), |(execs, followers), entry| {
            let more = entry.followers.len();
            (execs + entry.live_execs().len(), followers + more)
        });
        Held {
            sandboxes: registry.by_id.len(),
            names: registry.by_name.len(),
            execs,
            tasks: self.tasks.len() + followers,
        }
    }

    /// Returns the sandboxes that a caller may see, oldest first.
    pub(crate) fn visible(&self, caller: &Caller) -> Vec<Arc<Entry>> {
        self.registry()
            .by_id
            .values()
            .filter(|entry| is_visible(entry, caller))
            .cloned()
            .collect()
    }

    /// Returns every sandbox, those that wait in pools too.
    pub(crate) fn everyone(&self) -> Vec<Arc<Entry>> {
        self.registry().by_id.values().cloned().collect()
    }

    /// Finds a sandbox by id or name. What a caller may not see is not there.
    pub(crate) fn find(&self, caller: &Caller, target: &str) -> Result<Arc<Entry>, EngineError> {
        let registry = self.registry();
        let not_found = || EngineError::not_found("sandbox", target);
        if let Ok(id) = target.parse::<SandboxId>() {
            return registry
                .by_id
                .get(&id)
                .filter(|entry| is_visible(entry, caller))
                .cloned()
                .ok_or_else(not_found);
        }
        let name = target.parse::<SandboxName>().map_err(|_| not_found())?;
        let own = registry
            .by_name
            .get(&(caller.principal.clone(), name.clone()));
        let own = own.and_then(|id| registry.by_id.get(id));
        if let Some(entry) = own.filter(|entry| is_visible(entry, caller)) {
            return Ok(Arc::clone(entry));
        }
        let mut others = registry
            .by_id
            .values()
            .filter(|entry| entry.name() == name && is_visible(entry, caller));
        match (others.next(), others.next()) {
            (Some(entry), None) => Ok(Arc::clone(entry)),
            (None, _) => Err(not_found()),
            (Some(_), Some(_)) => Err(EngineError::new(
                ErrorCode::InvalidArgument,
                format!("several owners have a sandbox `{name}`"),
            )
            .hint("name it by its id; `pinfold list --all --json` shows ids")),
        }
    }

    /// Returns a sandbox by its id.
    pub(crate) fn by_id(&self, id: &SandboxId) -> Option<Arc<Entry>> {
        self.registry().by_id.get(id).cloned()
    }

    /// Keeps a name for a sandbox that is about to be its owner's.
    pub(crate) fn keep_name(
        &self,
        owner: &Principal,
        name: &SandboxName,
    ) -> Result<SandboxId, EngineError> {
        let mut registry = self.registry();
        let key = (owner.clone(), name.clone());
        if registry.by_name.contains_key(&key) {
            return Err(EngineError::new(
                ErrorCode::AlreadyExists,
                format!("there is a sandbox `{name}` already"),
            )
            .details(json!({ "name": name }))
            .hint(format!(
                "choose another name, or remove that one with `pinfold rm {name}`"
            )));
        }
        let id = SandboxId::new();
        registry.by_name.insert(key, id.clone());
        Ok(id)
    }

    /// Gives a name back that was kept, unless a sandbox has it by now.
    pub(crate) fn free_kept_name(&self, owner: &Principal, name: &SandboxName, kept: &SandboxId) {
        let mut registry = self.registry();
        let key = (owner.clone(), name.clone());
        if registry.by_name.get(&key) == Some(kept) && !registry.by_id.contains_key(kept) {
            registry.by_name.remove(&key);
        }
    }

    /// Enters a sandbox under the name that a claim gives it, and counts it for its new owner. Both
    /// its names are its own until one is forgotten. Answers nothing when no name is free.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] when a quota of the new owner is used up; then nothing has changed.
    pub(crate) fn enter_name(
        &self,
        entry: &Entry,
        binding: &Binding,
    ) -> Result<Option<SandboxName>, EngineError> {
        let mut registry = self.registry();
        let own = entry.key();
        let key = |name: &SandboxName| (binding.owner.clone(), name.clone());
        let name = match &binding.name {
            Some((name, kept)) => {
                Some(name.clone()).filter(|name| registry.by_name.get(&key(name)) == Some(kept))
            }
            // The name that it has inside, if its new owner has no other of that name.
            None => std::iter::once(own.1.clone())
                .chain((2..NUMBERS_MAX).filter_map(|number| own.1.numbered(number).ok()))
                .find(|name| {
                    let taken = registry.by_name.get(&key(name));
                    taken.is_none_or(|id| *id == entry.id)
                }),
        };
        let Some(name) = name else {
            return Ok(None);
        };
        let charge = |principal, cost| Charge {
            sandbox: &entry.id,
            principal,
            cost,
        };
        let now_ms = self.clock.now_ms();
        let own_resources = entry.row().spec.resources;
        let before = Cost::of(&own_resources);
        let after = Cost::of(&binding.spec.resources);
        let capacity = &self.config.capacity;
        registry
            .admission
            .promise(&entry.id, &binding.spec.resources, capacity)?;
        registry.ledger.release(&entry.id);
        let charged =
            registry
                .ledger
                .charge(charge(&binding.owner, after), &binding.quotas, now_ms);
        if let Err(error) = charged {
            let back = charge(&own.0, before);
            registry.admission.keep(&entry.id, &own_resources);
            registry.ledger.charge(back, &Quotas::NONE, now_ms)?;
            return Err(error);
        }
        registry.by_name.insert(key(&name), entry.id.clone());
        Ok(Some(name))
    }

    /// Forgets one of a sandbox's names.
    pub(crate) fn leave_name(&self, entry: &Entry, key: &(Principal, SandboxName)) {
        let mut registry = self.registry();
        if registry.by_name.get(key) == Some(&entry.id) {
            registry.by_name.remove(key);
        }
    }

    /// Removes what the driver keeps of one sandbox, when nothing else knows how.
    pub(crate) async fn sweep_only(&self, gone: &SandboxId) -> Result<(), EngineError> {
        let _alone = self.effects.write().await;
        let keep: HashSet<SandboxId> = {
            let registry = self.registry();
            let known = registry.by_id.keys().filter(|id| *id != gone);
            known.chain(&self.unreadable).cloned().collect()
        };
        let report = self.driver.sweep(&keep).await?;
        if report.leftovers.is_empty() {
            return Ok(());
        }
        Err(EngineError::new(
            ErrorCode::Internal,
            "something of a removed sandbox could not be removed",
        )
        .details(json!({ "leftovers": report.leftovers }))
        .hint("mend what the leftovers say, then remove the sandbox again"))
    }
}
