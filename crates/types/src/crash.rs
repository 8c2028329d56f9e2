//! Named points where a test may end the process at once, as a power cut or `kill -9` would.
//!
//! Only code built with the feature `crash-points` has them; in a product they are nothing.

/// Names the variable whose value is the point to end at.
pub const CRASH_AT: &str = "PINFOLD_CRASH_AT";

/// Ends the process without any clean-up when `PINFOLD_CRASH_AT` names this point.
#[cfg(feature = "crash-points")]
pub fn at(point: &str) {
    if std::env::var_os(CRASH_AT).is_some_and(|wanted| wanted == point) {
        std::process::abort();
    }
}

/// Does nothing: this build has no crash points.
#[cfg(not(feature = "crash-points"))]
#[inline]
pub const fn at(_point: &str) {}

/// Marks a crash point, as in `crash_point!("engine.row_written")`.
#[macro_export]
macro_rules! crash_point {
    ($point:literal) => {
        $crate::crash::at($point)
    };
}
