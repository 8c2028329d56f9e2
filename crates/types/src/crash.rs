//! Named points where a test may end the process at once, as a power cut or `kill -9` would.
//!
//! Only code built with the feature `crash-points` has them; in a product they are nothing. Every
//! point is in [`POINTS`], and a mark that is not does not compile, so no test can miss one.

/// Names the variable whose value is the point to end at.
pub const CRASH_AT: &str = "PINFOLD_CRASH_AT";

/// Every point that the code marks.
pub const POINTS: &[&str] = &[
    "agent.acknowledged",
    "agent.ending",
    "agent.exec_entered",
    "agent.exec_spawned",
    "agent.exit_journaled",
    "agent.exit_known",
    "agent.file_written",
    "agent.forgotten",
    "agent.output_journaled",
    "agent.output_read",
    "agent.serving",
    "driver.adopted",
    "driver.cgroup_made",
    "driver.cgroup_removed",
    "driver.claims_partial",
    "driver.directory_kept",
    "driver.directory_removed",
    "driver.disk_made",
    "driver.launched",
    "driver.listening",
    "driver.processes_ended",
    "driver.range_given_back",
    "driver.range_taken",
    "driver.recorded",
    "driver.stored",
    "driver.swept_one",
    "engine.adopted",
    "engine.claim_bound",
    "engine.claim_intended",
    "engine.claim_written",
    "engine.exec_exit_written",
    "engine.exec_row_written",
    "engine.exec_started",
    "engine.files_removed",
    "engine.image_prepared",
    "engine.instance_paused",
    "engine.instance_removed",
    "engine.instance_resumed",
    "engine.instance_started",
    "engine.instance_stopped",
    "engine.journal_appended",
    "engine.persist_made",
    "engine.removing_written",
    "engine.row_deleted",
    "engine.row_inserted",
    "engine.running_written",
    "engine.starting_written",
    "engine.stopping_written",
    "engine.swept",
    "launcher.asked",
    "launcher.born",
    "launcher.first_process",
    "launcher.forked",
    "launcher.prepared",
    "launcher.ready",
];

/// Returns whether a name is in [`POINTS`].
#[must_use]
pub const fn is_point(name: &str) -> bool {
    let mut at = 0;
    while at < POINTS.len() {
        if same(POINTS[at].as_bytes(), name.as_bytes()) {
            return true;
        }
        at += 1;
    }
    false
}

const fn same(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let mut at = 0;
    while at < one.len() {
        if one[at] != other[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// Returns the point to end at, for a child whose environment is otherwise its own.
#[cfg(feature = "crash-points")]
pub fn wanted() -> Option<std::ffi::OsString> {
    std::env::var_os(CRASH_AT)
}

/// Returns nothing: this build has no crash points.
#[cfg(not(feature = "crash-points"))]
pub const fn wanted() -> Option<std::ffi::OsString> {
    None
}

/// Ends the process without any clean-up when `PINFOLD_CRASH_AT` names this point.
#[cfg(feature = "crash-points")]
pub fn at(point: &str) {
    use std::io::Write as _;
    if wanted().is_none_or(|wanted| wanted != point) {
        return;
    }
    // The test reads it from the log; where there is none, the end alone has to tell.
    drop(writeln!(std::io::stderr(), "crash point {point}"));
    if std::process::id() == 1 {
        // The kernel keeps signals of its own from process 1, so that can only leave.
        #[expect(
            clippy::exit,
            reason = "an end without any clean-up is what this is for"
        )]
        std::process::exit(134);
    }
    std::process::abort();
}

/// Does nothing: this build has no crash points.
#[cfg(not(feature = "crash-points"))]
#[inline]
pub const fn at(_point: &str) {}

/// Marks a crash point, as in `crash_point!("engine.row_inserted")`.
#[macro_export]
macro_rules! crash_point {
    ($point:literal) => {{
        const { assert!($crate::crash::is_point($point), "not in crash::POINTS") };
        $crate::crash::at($point)
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_sorted_and_known() {
        assert!(POINTS.is_sorted());
        assert!(POINTS.iter().all(|point| is_point(point)));
        assert!(!is_point("engine.row") && !is_point(""));
    }
}
