//! Whether a daemon can do its work.

use serde::{Deserialize, Serialize};

/// `GET /v1/ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Readiness {
    /// Sandboxes can be made.
    pub ready: bool,
    /// Why not, one line each.
    pub reasons: Vec<String>,
}
