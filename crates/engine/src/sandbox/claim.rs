//! Giving a warm sandbox to a caller: its name, owner, environment, labels, mounts, limits and
//! deadlines come to it while it runs.
//!
//! What a claim needs of the instance is done only after its intention is written down; a sandbox
//! that a crash finds in between goes. The row that names the new owner is written before anybody
//! hears of the claim, so before the owner can send a first byte.

use std::sync::Arc;

use pinfold_driver::Instance;
use pinfold_types::api::Sandbox;
use pinfold_types::api::keys::Quotas;
use pinfold_types::crash_point;
use pinfold_types::{Principal, SandboxId, SandboxName, SandboxSpec, SandboxState};

use super::Keeper;
use crate::error::{EngineError, chain};
use crate::pool::Provenance;
use crate::store::{Once, SandboxRow};

/// What a caller wants a warm sandbox to be.
#[derive(Debug, Clone)]
pub(crate) struct Binding {
    pub(crate) owner: Principal,
    /// The name that was kept for it; its own when absent.
    pub(crate) name: Option<(SandboxName, SandboxId)>,
    pub(crate) spec: SandboxSpec,
    /// The version of the template that the caller means.
    pub(crate) version: u32,
    /// What its new owner may have.
    pub(crate) quotas: Quotas,
    /// The idempotency key that it is asked for with.
    pub(crate) once: Option<Once>,
}

/// What became of a claim.
#[derive(Debug)]
pub(crate) enum Taken {
    /// It is the caller's.
    Bound(Box<Sandbox>),
    /// It cannot be claimed any more.
    Gone,
    /// It could not become what was wanted, and is removed.
    Unfit(String),
}

impl Keeper {
    pub(super) async fn claim(&mut self, binding: Binding) -> Result<Taken, EngineError> {
        let provenance = &self.row.provenance;
        let fits = self.row.state == SandboxState::Running
            && provenance.is_waiting()
            && provenance.version() == binding.version;
        let Some(live) = self.live.clone().filter(|_| fits) else {
            return Ok(Taken::Gone);
        };
        let former = self.row.clone();
        let Some(name) = self.core.enter_name(&self.entry, &binding)? else {
            return Ok(Taken::Gone);
        };
        let now_ms = self.core.clock.now_ms();
        let row = SandboxRow {
            name,
            owner: binding.owner,
            spec: binding.spec,
            created_ms: now_ms,
            changed_ms: now_ms,
            provenance: provenance.claimed(),
            ..former.clone()
        };
        let (old, new) = (
            (former.owner.clone(), former.name.clone()),
            (row.owner.clone(), row.name.clone()),
        );
        match self.bind(&live.instance, &former, row, binding.once).await {
            Ok(()) => {
                self.entry.activity.touch();
                self.publish();
                if old != new {
                    self.core.leave_name(&self.entry, &old);
                }
                Ok(Taken::Bound(Box::new(self.row.shown())))
            }
            Err(error) => {
                tracing::warn!(sandbox = %self.row.id, error = %chain(&error), "not claimed");
                self.unbind(former).await;
                if old != new {
                    self.core.leave_name(&self.entry, &new);
                }
                Ok(Taken::Unfit(error.to_string()))
            }
        }
    }

    /// Makes the instance what the row says, and the row what counts.
    async fn bind(
        &mut self,
        instance: &Arc<dyn Instance>,
        former: &SandboxRow,
        row: SandboxRow,
        once: Option<Once>,
    ) -> Result<(), EngineError> {
        let provenance = row.provenance.clone();
        let limits = row.spec.resources != former.spec.resources;
        if limits || !row.spec.mounts.is_empty() {
            self.row = SandboxRow {
                provenance: former.provenance.leaving(),
                ..row
            };
            self.core.store.save(&self.row).await?;
            crash_point!("engine.claim_intended");
            self.give(instance, limits).await?;
            crash_point!("engine.claim_bound");
        } else {
            self.row = row;
        }
        self.row.provenance = Provenance::clone(&provenance);
        self.core.store.save_once(&self.row, once).await?;
        crash_point!("engine.claim_written");
        Ok(())
    }

    async fn give(
        &mut self,
        instance: &Arc<dyn Instance>,
        limits: bool,
    ) -> Result<(), EngineError> {
        if limits {
            instance.update(&self.row.spec.resources).await?;
        }
        let mounts = self
            .host_paths()
            .mounts(self.asker(), &self.row.spec.mounts)?;
        for mount in &mounts {
            instance.attach(mount).await?;
        }
        self.note(instance)
    }

    /// Removes a sandbox that may hold a part of what its caller wanted.
    async fn unbind(&mut self, former: SandboxRow) {
        // It goes under its former name; the caller's is free for another.
        self.row = former;
        if let Err(error) = self.remove(false).await {
            tracing::error!(sandbox = %self.row.id, error = %chain(&error), "not removed");
        }
    }

    /// Tells the pool, if it waits in one, to look at it.
    pub(super) fn tell_pool(&self) {
        if let Some(key) = self.row.provenance.pool() {
            self.core.pools.wake(&key);
        }
    }
}
