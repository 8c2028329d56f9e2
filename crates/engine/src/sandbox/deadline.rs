//! What ends or suspends a sandbox by itself.

use std::time::Duration;

use pinfold_types::SandboxState;
use pinfold_types::api::DaemonEventKind;
use pinfold_types::spec::DeadlineAction;
use tokio::time::Instant;

use super::{GRACE_DEFAULT, Keeper};
use crate::error::chain;
use crate::meters::Step;
use crate::store::Noted;

/// Longest sleep before the clock is looked at again: the time of day may be set, and a laptop's
/// sleep does not count as the runtime's time.
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(30);

/// Wait before an action that failed is tried again.
const RETRY_TIME: Duration = Duration::from_secs(5);

/// What is due next, and in how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) wait: Duration,
    /// Nothing when the clock has only to be looked at again.
    pub(super) action: Option<(DeadlineAction, Which)>,
}

/// Which deadline it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Lifetime,
    Idle,
}

/// Waits until something is due; for ever when nothing is.
pub(super) async fn reached(due: Option<Due>) {
    match due {
        Some(due) => tokio::time::sleep(due.wait).await,
        None => std::future::pending().await,
    }
}

impl Which {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Lifetime => "lifetime",
            Self::Idle => "idle time",
        }
    }
}

const fn action_name(action: DeadlineAction) -> &'static str {
    match action {
        DeadlineAction::Remove => "remove",
        DeadlineAction::Stop => "stop",
        DeadlineAction::Pause => "pause",
    }
}

impl Keeper {
    /// Returns what is due next in the present state.
    pub(super) fn next_due(&self) -> Option<Due> {
        // Deadlines are its caller's, and count from the claim.
        if self.row.provenance.is_waiting() {
            return None;
        }
        let now_ms = self.core.clock.now_ms();
        let deadlines = &self.row.spec.deadlines;
        let lifetime = deadlines
            .lifetime_ms
            .filter(|_| !self.row.lifetime_done && self.applies(deadlines.lifetime_action))
            .map(|length_ms| {
                let at_ms = self.row.created_ms.saturating_add_unsigned(length_ms);
                (at_ms, deadlines.lifetime_action, Which::Lifetime)
            });
        let idle = deadlines
            .idle_ms
            .filter(|_| {
                let active = matches!(self.row.state, SandboxState::Running | SandboxState::Paused);
                active && self.applies(deadlines.idle_action)
            })
            .map(|length_ms| {
                let last_ms = self
                    .entry
                    .activity
                    .last_ms(self.row.state == SandboxState::Paused);
                let at_ms = last_ms.saturating_add_unsigned(length_ms);
                (at_ms, deadlines.idle_action, Which::Idle)
            });
        let (at_ms, action, which) = lifetime
            .into_iter()
            .chain(idle)
            .min_by_key(|(at_ms, _, _)| *at_ms)?;
        let left = Duration::from_millis(u64::try_from(at_ms.saturating_sub(now_ms)).unwrap_or(0));
        let refused = self.retry_at.map_or(Duration::ZERO, |at| {
            at.saturating_duration_since(Instant::now())
        });
        let wait = left.max(refused);
        Some(Due {
            wait: wait.min(LOOK_AGAIN_MAX),
            action: (wait <= LOOK_AGAIN_MAX).then_some((action, which)),
        })
    }

    const fn applies(&self, action: DeadlineAction) -> bool {
        match action {
            DeadlineAction::Remove => true,
            DeadlineAction::Stop => {
                matches!(self.row.state, SandboxState::Running | SandboxState::Paused)
            }
            DeadlineAction::Pause => matches!(self.row.state, SandboxState::Running),
        }
    }

    /// Does what is due, unless the sandbox was used meanwhile.
    pub(super) async fn on_due(&mut self, due: Option<Due>) {
        let Some((action, which)) = due.and_then(|due| due.action) else {
            return;
        };
        let still = self
            .next_due()
            .is_some_and(|due| due.wait.is_zero() && due.action == Some((action, which)));
        if !still {
            return;
        }
        tracing::info!(sandbox = %self.row.id, ?action, ?which, "deadline reached");
        if which == Which::Lifetime {
            self.row.lifetime_done = true;
        }
        let reason = format!("{} reached: {}", which.as_str(), action_name(action));
        let noted = self.core.store.note_event(Noted {
            at_ms: self.core.clock.now_ms(),
            kind: DaemonEventKind::DeadlineFired,
            owner: self.row.owner.clone(),
            sandbox: self.row.id.clone(),
            name: self.row.name.to_string(),
            reason: reason.clone(),
        });
        if let Err(error) = noted.await {
            // A full disk must not keep anybody from making room.
            tracing::warn!(sandbox = %self.row.id, error = %chain(&error), "event not written");
        }
        self.goes_because = Some(reason);
        let began = Instant::now();
        let (step, done) = match action {
            DeadlineAction::Remove => (Step::Remove, self.remove(false).await.map(drop)),
            DeadlineAction::Stop => (Step::Stop, self.stop(GRACE_DEFAULT).await),
            DeadlineAction::Pause => (Step::Pause, self.pause().await),
        };
        self.goes_because = None;
        self.timed(step, began, &done);
        self.retry_at = None;
        if let Err(error) = done {
            tracing::error!(
                sandbox = %self.row.id, error = %chain(&error), "deadline's action failed"
            );
            if which == Which::Lifetime {
                self.row.lifetime_done = false;
            }
            self.retry_at = Some(Instant::now() + RETRY_TIME);
        }
    }
}
