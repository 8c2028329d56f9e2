//! Changing what is there: a sandbox that lives, an exec that is no longer wanted.

use std::time::Duration;

use pinfold_types::api::{Readiness, Sandbox, SignalRequest, UpdateSandboxRequest};
use pinfold_types::doctor::FindingStatus;
use pinfold_types::{ErrorCode, ExecId};

use super::{Engine, Result};
use crate::caller::Caller;
use crate::entry::{Entry, Message};
use crate::error::EngineError;
use crate::exec::try_forget;

/// Longest time that a killed exec may take until its end is written.
const END_TIME_MAX: Duration = Duration::from_secs(15);

/// Longest time that each part may take to say that it is ready.
const READY_TIME_MAX: Duration = Duration::from_secs(5);

const SIGKILL: i32 = 9;

impl Engine {
    /// Changes labels, environment, deadlines and limits, of a sandbox in any state.
    ///
    /// Limits of a running one change at once, where the driver can do that. Counts as use.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why; then nothing has changed.
    pub async fn update(
        &self,
        caller: &Caller,
        target: &str,
        request: UpdateSandboxRequest,
    ) -> Result<Sandbox> {
        let core = &self.core;
        core.check_open()?;
        let entry = core.find(caller, target)?;
        let wanted = request.apply(&entry.row().spec);
        if wanted.resources != entry.row().spec.resources {
            core.recharge(&entry, &wanted.resources, &core.quotas(caller))?;
        }
        let request = Box::new(request);
        let updated = entry.ask(|reply| Message::Update { request, reply }).await;
        // It is counted as what it has become, also when it was refused.
        let counted = core.recount(&entry);
        updated.and_then(|sandbox| counted.map(|()| sandbox))
    }

    /// Forgets an exec with its journal; kills it first when it runs.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why; the same call tries again.
    pub async fn exec_remove(&self, caller: &Caller, target: &str, exec_id: &ExecId) -> Result<()> {
        self.core.check_open()?;
        let entry = self.core.find(caller, target)?;
        if entry.exec(exec_id).is_some() {
            self.end_exec(caller, &entry, exec_id).await?;
        }
        let row = self.core.store.exec(&entry.id, exec_id).await?;
        match row {
            None => return Err(EngineError::not_found("exec", exec_id.as_str())),
            // Its row is written before anybody knows it.
            Some(row) if row.exit.is_none() => {
                return Err(EngineError::new(
                    ErrorCode::IllegalState,
                    format!("exec `{exec_id}` is just being started"),
                )
                .hint("try again"));
            }
            Some(_) => {}
        }
        try_forget(&self.core, &entry.id, exec_id).await
    }

    /// Kills an exec and waits until its end is written down.
    async fn end_exec(&self, caller: &Caller, entry: &Entry, exec_id: &ExecId) -> Result<()> {
        let kill = SignalRequest {
            signal: SIGKILL,
            tree: true,
        };
        let target = entry.id.as_str();
        let killed = self.exec_signal(caller, target, exec_id, kill).await;
        // It may have ended by itself meanwhile.
        if let Err(error) = killed
            && entry
                .exec(exec_id)
                .is_some_and(|cell| cell.journal.exit().is_none())
        {
            return Err(error);
        }
        let ended = async {
            // With back-pressure its last output waits for a reader.
            let mut reader = self
                .exec_events(caller, target, exec_id, u64::MAX, true)
                .await?;
            while reader.next().await.is_some() {}
            loop {
                let dropped = entry.exec_dropped.notified();
                if entry.exec(exec_id).is_none() {
                    return Ok(());
                }
                dropped.await;
            }
        };
        match tokio::time::timeout(END_TIME_MAX, ended).await {
            Ok(ended) => ended,
            Err(_) => Err(EngineError::new(
                ErrorCode::AgentSilent,
                format!(
                    "exec `{exec_id}` was killed and did not end within {} s",
                    END_TIME_MAX.as_secs()
                ),
            )
            .hint("try again, or remove its sandbox")),
        }
    }

    /// Looks whether sandboxes can be made: the database takes writes, and the driver has what it
    /// needs.
    pub async fn ready(&self) -> Readiness {
        let mut reasons = Vec::new();
        if self.core.check_open().is_err() {
            reasons.push("the daemon is shutting down".to_owned());
        } else {
            let written = self.core.store.touch(self.core.clock.now_ms());
            match tokio::time::timeout(READY_TIME_MAX, written).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => reasons.push(error.to_string()),
                Err(_) => reasons.push("the database does not answer".to_owned()),
            }
        }
        match tokio::time::timeout(READY_TIME_MAX, self.core.driver.probe()).await {
            Ok(findings) => reasons.extend(
                findings
                    .into_iter()
                    .filter(|finding| finding.status == FindingStatus::Missing)
                    .map(|finding| format!("{}: {}", finding.name, finding.detail)),
            ),
            Err(_) => reasons.push("the driver does not answer".to_owned()),
        }
        Readiness {
            ready: reasons.is_empty(),
            reasons,
        }
    }
}
