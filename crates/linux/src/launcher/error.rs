//! Why a launch failed, in words that a driver can sort and a person can act on.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What kind of thing stood in the way, so that a driver can answer with the right code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LaunchFailure {
    /// This host does not allow what every sandbox needs.
    HostUnsupported,
    /// The image's root filesystem cannot be used as one.
    InvalidImage,
    /// A host path that the caller named cannot be shown inside.
    InvalidMount,
    /// It is not this caller's right to use that host path.
    Forbidden,
    /// More ids are needed than the caller holds; subordinate ids would give them.
    NeedsSubids,
    /// A limit of the host or of the sandbox's parent is reached.
    ResourceExhausted,
    /// The plan itself is wrong, which is a fault of the program that made it.
    InvalidPlan,
    /// The sandbox, or what was asked for in it, is not there.
    NotFound,
    /// Nobody listens on that port inside.
    ConnectionRefused,
    /// The launcher process has ended; start another one. Sandboxes live on.
    LauncherGone,
    /// Anything else.
    Internal,
}

/// How long one step of a launch took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// What was done.
    pub step: String,
    /// Microseconds since the step before it ended.
    pub micros: u64,
}

/// Why the launcher could not do what it was asked.
///
/// What had been made for it is gone again.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The launcher process could not be started.
    #[error("failed to start the launcher: {step}")]
    Start {
        /// What was tried.
        step: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The launcher process did not answer; it has ended.
    #[error("the launcher does not answer")]
    Gone {
        /// What the socket said.
        #[source]
        source: io::Error,
    },
    /// A step failed.
    #[error("failed to {step}{}", at(path.as_ref()))]
    Step {
        /// What kind of failure that is.
        failure: LaunchFailure,
        /// What was tried, as words that follow "failed to".
        step: String,
        /// Where, if it was about a path.
        path: Option<PathBuf>,
        /// What to do about it, if that is known.
        hint: Option<String>,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl LaunchError {
    /// Returns what kind of failure this is.
    pub fn failure(&self) -> LaunchFailure {
        match self {
            Self::Start { .. } => LaunchFailure::HostUnsupported,
            Self::Gone { .. } => LaunchFailure::LauncherGone,
            Self::Step { failure, .. } => *failure,
        }
    }

    /// Returns what to do about it, if that is known.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Step { hint, .. } => hint.as_deref(),
            Self::Start { .. } | Self::Gone { .. } => None,
        }
    }

    /// Returns the step that failed, as words that follow "failed to".
    pub fn step(&self) -> &str {
        match self {
            Self::Start { step, .. } => step,
            Self::Gone { .. } => "reach the launcher",
            Self::Step { step, .. } => step,
        }
    }
}

fn at(path: Option<&PathBuf>) -> String {
    path.map(|path| format!(" `{}`", path.display()))
        .unwrap_or_default()
}
