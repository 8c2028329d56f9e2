//! The time as deadlines and journals see it.

use tokio::time::Instant;

/// Tells the time of day; tests let it follow the runtime's own, which they can turn.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Clock {
    turned: Option<(i64, Instant)>,
}

impl Clock {
    /// Returns a clock that follows the runtime's time from now on.
    #[cfg(test)]
    pub(crate) fn of_runtime() -> Self {
        Self {
            turned: Some((pinfold_types::api::now_ms(), Instant::now())),
        }
    }

    /// Returns milliseconds since the Unix epoch.
    pub(crate) fn now_ms(&self) -> i64 {
        match self.turned {
            None => pinfold_types::api::now_ms(),
            Some((base_ms, base)) => base_ms
                .saturating_add(i64::try_from(base.elapsed().as_millis()).unwrap_or(i64::MAX)),
        }
    }
}
