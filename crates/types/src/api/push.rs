//! How pushing events to an outside collector goes.

use serde::{Deserialize, Serialize};

/// What was pushed since the daemon started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct PushReport {
    /// Events that the collector has taken; one that was sent twice counts twice.
    pub events: u64,
    /// Batches that it has taken.
    pub batches: u64,
    /// Batches that it did not take and that were or will be sent again.
    pub failures: u64,
    /// Streams that have events which it has not taken.
    pub waiting: u64,
    /// Why the last batch that failed did so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// RFC 3339, of the last batch that was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_success_at: Option<String>,
}
