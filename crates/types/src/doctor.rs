//! What `doctor` and a driver's probe find out about a host.

use serde::{Deserialize, Serialize};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum FindingStatus {
    /// There and usable.
    Ok,
    /// Missing; something works less well or not at all, as the finding says.
    Degraded,
    /// Missing; no sandbox can be made without it.
    Missing,
}

/// One prerequisite, whether it is there, and what mends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Finding {
    /// Stable short name, as in `cgroup.memory`.
    pub name: String,
    /// Whether it is there.
    pub status: FindingStatus,
    /// What was seen, one line.
    pub detail: String,
    /// The exact command that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}
