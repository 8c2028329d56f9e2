//! How far callers reach among the host's files.

use std::path::PathBuf;

use pinfold_types::MountSpec;
use serde::{Deserialize, Serialize};

/// How far a caller reaches among the host's files; the engine decides, the driver holds to it.
///
/// A driver opens a path with those rights, checks the descriptor and uses that descriptor: what
/// takes the path's place later has no effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostReach {
    /// The user with whose rights a path is opened; without one, with the daemon's.
    pub user: Option<u32>,
    /// What that user owns may be reached; without a user, whatever the daemon reaches.
    pub own: bool,
    /// What is beneath this directory may be reached, but through no link in it.
    pub beneath: Option<PathBuf>,
}

impl HostReach {
    /// Whatever the daemon itself reaches: the caller is its own user, or root.
    pub const DAEMON: Self = Self {
        user: None,
        own: true,
        beneath: None,
    };

    /// Returns whether a path is opened with the daemon's own rights and nothing is checked.
    pub const fn is_unlimited(&self) -> bool {
        self.user.is_none() && self.own
    }
}

impl Default for HostReach {
    fn default() -> Self {
        Self::DAEMON
    }
}

/// A host path to be shown inside, and whose right that must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostMount {
    /// What is shown where.
    pub mount: MountSpec,
    /// Whose right it must be.
    #[serde(default)]
    pub reach: HostReach,
}

impl From<MountSpec> for HostMount {
    /// Shows whatever the daemon itself reaches.
    fn from(mount: MountSpec) -> Self {
        Self {
            mount,
            reach: HostReach::DAEMON,
        }
    }
}
