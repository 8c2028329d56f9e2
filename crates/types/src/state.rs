//! The states of a sandbox and the legal steps between them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    /// A row exists; the instance is being made.
    Creating,
    /// The instance runs and its agent answered.
    Running,
    /// Frozen in memory.
    Paused,
    /// Being shut down.
    Stopping,
    /// No instance; the disk is kept.
    Stopped,
    /// A stopped sandbox is being made again.
    Starting,
    /// Something ended it; the reason is kept beside.
    Failed,
    /// Being removed; gone when done.
    Removing,
}

impl SandboxState {
    /// Every state, in the order of a life.
    pub const ALL: [Self; 8] = [
        Self::Creating,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Stopped,
        Self::Starting,
        Self::Failed,
        Self::Removing,
    ];

    /// Returns whether a sandbox may go from this state to another.
    pub const fn may_become(self, next: Self) -> bool {
        use SandboxState::{
            Creating, Failed, Paused, Removing, Running, Starting, Stopped, Stopping,
        };
        match (self, next) {
            (Removing, _) => false,
            (_, Failed | Removing)
            | (Creating | Starting | Paused, Running)
            | (Running, Paused)
            | (Running | Paused | Failed, Stopping)
            | (Stopping, Stopped)
            | (Stopped | Failed, Starting) => true,
            _ => false,
        }
    }

    /// Returns whether an instance exists or is being made in this state.
    pub const fn is_active(self) -> bool {
        matches!(
            self,
            Self::Creating | Self::Running | Self::Paused | Self::Starting | Self::Stopping
        )
    }

    /// Returns the state's name as the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Failed => "failed",
            Self::Removing => "removing",
        }
    }
}

impl fmt::Display for SandboxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a text is not a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a state: states are creating, running, paused, stopping, stopped, starting, \
     failed and removing"
)]
pub struct StateError {
    /// The refused text.
    pub text: String,
}

impl FromStr for SandboxState {
    type Err = StateError;

    fn from_str(text: &str) -> Result<Self, StateError> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| StateError {
                text: text.chars().take(64).collect(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_removing_and_everything_else_may_fail() {
        for state in SandboxState::ALL {
            assert!(!SandboxState::Removing.may_become(state));
            assert_eq!(
                state.may_become(SandboxState::Failed),
                state != SandboxState::Removing
            );
            assert_eq!(state.as_str().parse::<SandboxState>(), Ok(state));
        }
        assert!(!SandboxState::Stopped.may_become(SandboxState::Running));
        assert!(!SandboxState::Stopped.may_become(SandboxState::Paused));
    }
}
