//! Changing a sandbox that is there already.

use pinfold_types::ErrorCode;
use pinfold_types::api::UpdateSandboxRequest;

use super::Keeper;
use crate::engine::check_deadlines;
use crate::error::{EngineError, chain};
use crate::store::SandboxRow;

impl Keeper {
    /// Writes the change down, then makes the instance follow; undoes it when that fails.
    pub(super) async fn update(
        &mut self,
        request: &UpdateSandboxRequest,
    ) -> Result<(), EngineError> {
        let spec = request.apply(&self.row.spec);
        spec.check()?;
        check_deadlines(&spec, &self.core)?;
        let live = self.live.clone();
        let limits_change = spec.resources != self.row.spec.resources;
        if limits_change && live.is_some() && !self.core.driver.capabilities().live_resources {
            return Err(EngineError::new(
                ErrorCode::Unsupported,
                format!(
                    "driver `{}` cannot change the limits of a sandbox that runs on this host",
                    self.core.driver.kind().as_str()
                ),
            )
            .hint("stop the sandbox, change it, and start it again"));
        }
        let lifetime_changes = spec.deadlines.lifetime_ms != self.row.spec.deadlines.lifetime_ms;
        if lifetime_changes && let Some(length_ms) = spec.deadlines.lifetime_ms {
            let end_ms = self.row.created_ms.saturating_add_unsigned(length_ms);
            if end_ms <= self.core.clock.now_ms() {
                return Err(EngineError::new(
                    ErrorCode::InvalidArgument,
                    "the lifetime counts from the creation, and that long ago it was already",
                )
                .hint("name a longer one, or remove the sandbox"));
            }
        }
        let before = self.row.clone();
        self.write(SandboxRow {
            spec,
            lifetime_done: before.lifetime_done && !lifetime_changes,
            ..before.clone()
        })
        .await?;
        if limits_change && let Some(live) = live {
            match live.instance.update(&self.row.spec.resources).await {
                Ok(granted) => {
                    let row = SandboxRow {
                        record: Some(live.instance.record()),
                        granted: Some(granted),
                        ..self.row.clone()
                    };
                    self.write(row).await?;
                }
                Err(error) => {
                    self.write(before).await?;
                    return Err(error.into());
                }
            }
        }
        self.entry.activity.touch();
        // Another deadline may succeed where the last one failed.
        self.retry_at = None;
        Ok(())
    }

    async fn write(&mut self, row: SandboxRow) -> Result<(), EngineError> {
        if let Err(error) = self.core.store.save(&row).await {
            tracing::error!(sandbox = %row.id, error = %chain(&error), "change not written");
            return Err(error.into());
        }
        self.row = row;
        self.publish();
        Ok(())
    }
}
