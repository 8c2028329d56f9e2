//! What happened in the daemon: `GET /v1/events`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::exec::ExecExit;
use crate::id::{ExecId, KeyId, SandboxId};
use crate::principal::Principal;

/// Most events that a daemon keeps; then the oldest go. At some hundred bytes each that is ten to
/// twenty megabytes, and days of what one busy host does.
pub const DAEMON_EVENTS_KEPT_MAX: u64 = 50_000;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub enum DaemonEventKind {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }

        impl DaemonEventKind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Returns the kind as the API writes it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

kinds! {
    /// Somebody's sandbox is being made.
    SandboxCreated = "sandbox.created",
    /// It runs, for the first time or again.
    SandboxRunning = "sandbox.running",
    /// It is frozen.
    SandboxPaused = "sandbox.paused",
    /// It has stopped and its disk is kept.
    SandboxStopped = "sandbox.stopped",
    /// It has ended by itself or could not be started.
    SandboxFailed = "sandbox.failed",
    /// Nothing of it is left.
    SandboxRemoved = "sandbox.removed",
    /// A warm sandbox became somebody's.
    SandboxClaimed = "sandbox.claimed",
    /// A deadline was reached; what it does to the sandbox follows.
    DeadlineFired = "deadline.fired",
    /// An exec is being started.
    ExecStarted = "exec.started",
    /// It has ended.
    ExecEnded = "exec.ended",
    /// It was not started.
    ExecFailed = "exec.failed",
    /// A pool has one warm sandbox more.
    PoolRefilled = "pool.refilled",
    /// An API key was made.
    KeyCreated = "key.created",
    /// An API key is no longer valid.
    KeyRevoked = "key.revoked",
}

impl fmt::Display for DaemonEventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a text is no kind of event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no kind of event: kinds are such as `sandbox.created` and `exec.ended`")]
pub struct DaemonEventKindError {
    /// The refused text, cut to a printable length.
    pub text: String,
}

impl FromStr for DaemonEventKind {
    type Err = DaemonEventKindError;

    fn from_str(text: &str) -> Result<Self, DaemonEventKindError> {
        let known = Self::ALL.iter().find(|kind| kind.as_str() == text);
        known.copied().ok_or_else(|| DaemonEventKindError {
            text: text.chars().take(64).collect(),
        })
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DaemonEvent {
    /// Its number; later events have larger ones. Others' events leave gaps.
    pub id: u64,
    /// RFC 3339.
    pub time: String,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: DaemonEventKind,
    /// Whose it is.
    pub owner: Principal,
    /// The sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<SandboxId>,
    /// Name of the sandbox or of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The exec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec_id: Option<ExecId>,
    /// The key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<KeyId>,
    /// The pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How the exec ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExecExit>,
}

/// `GET /v1/events`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DaemonEventList {
    /// Oldest first.
    pub events: Vec<DaemonEvent>,
    /// What to give as `after` for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
    /// Number of the oldest event that is still kept, whosever it is; what is before it is gone.
    pub first_kept: u64,
}

/// Which events are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DaemonEventQuery {
    /// Only later ones than this.
    pub after: u64,
    /// Only those of a sandbox, by its id or name.
    pub sandbox: Option<String>,
    /// Only these kinds; empty is every kind.
    pub kinds: Vec<DaemonEventKind>,
    /// Most of one page; 0 is as many as a page may hold.
    pub limit: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_as_it_is_written() {
        for kind in DaemonEventKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(*kind));
            let json = serde_json::to_string(kind).unwrap();
            assert_eq!(json, format!("\"{kind}\""));
        }
        assert!("sandbox".parse::<DaemonEventKind>().is_err());
    }
}
