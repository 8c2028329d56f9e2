//! Tests that every driver passes unchanged.
//!
//! A driver's own test file names a factory, and the suite expands to one named test for each
//! case:
//!
//! ```text
//! async fn setup() -> pinfold_driver::conformance::Setup { … }
//! pinfold_driver::conformance::suite!(setup);
//! ```
//!
//! A case that needs what a driver does not claim in its capabilities prints `skipped: reason`.
//! What is claimed and not claimed is itself checked, in both directions.

#[doc(hidden)]
pub mod execs;
#[doc(hidden)]
pub mod files;
#[doc(hidden)]
pub mod input;
#[doc(hidden)]
pub mod journal;
#[doc(hidden)]
pub mod lifecycle;
#[doc(hidden)]
pub mod limits;
#[doc(hidden)]
pub mod live;
#[doc(hidden)]
pub mod ports;
mod sandbox;
mod tar;
#[doc(hidden)]
pub mod tree;

use std::any::Any;
use std::future::Future;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use pinfold_types::{ErrorChain, SandboxId};

pub use self::sandbox::{Command, Finished, Sandbox};
use crate::agent::AgentError;
use crate::contract::{Driver, DriverError, InstanceRecord};

#[doc(inline)]
pub use crate::conformance_suite as suite;

/// Longest time for one case; the slowest take a few seconds.
const CASE_TIME_MAX: Duration = Duration::from_mins(2);
/// Longest time until something that must happen has happened.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// Between two looks at something that must happen.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A driver to be tested, and what the suite must know to test it.
pub struct Setup {
    /// The driver, with nothing in it.
    pub driver: Arc<dyn Driver>,
    /// Facts about it.
    pub facts: Facts,
}

/// Makes the same driver again over the same state, as a new daemon does.
pub type Opener = Box<dyn Fn() -> BoxFuture<'static, Arc<dyn Driver>> + Send + Sync>;
/// Lists what an instance has left on the host.
pub type Leftovers = Box<dyn Fn(&SandboxId) -> Vec<String> + Send + Sync>;
/// Kills an instance's agent from the host, without a word.
pub type Killer = Box<dyn Fn(&InstanceRecord) + Send + Sync>;

/// What the suite cannot find out by itself.
pub struct Facts {
    /// An image with a shell, coreutils and `setsid`.
    pub image: String,
    /// Makes the driver again after the first was dropped.
    pub open: Opener,
    /// Looks for what must not be there after an instance was removed: processes, mounts, cgroups,
    /// directories, one line each.
    pub leftovers: Leftovers,
    /// Kills an agent.
    pub kill_agent: Killer,
    /// An existing directory on the host that mounts may come from.
    pub host_dir: PathBuf,
    /// Dropped after the case: temporary directories.
    pub keep: Box<dyn Any + Send + Sync>,
}

/// Why a case did not pass.
#[derive(Debug)]
pub enum Stop {
    /// The driver does not do what it must.
    Failed(String),
    /// The driver does not claim to do that.
    Skipped(String),
}

/// What a case ends with.
pub type Verdict<T = ()> = Result<T, Stop>;

impl From<AgentError> for Stop {
    fn from(error: AgentError) -> Self {
        Self::Failed(format!("{} ({})", error.message, error.code))
    }
}

impl From<DriverError> for Stop {
    fn from(error: DriverError) -> Self {
        Self::Failed(format!("{} ({:?})", ErrorChain(&error), error.kind))
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(ErrorChain(&error).to_string())
    }
}

impl From<serde_json::Error> for Stop {
    fn from(error: serde_json::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Fails the case unless a condition holds.
macro_rules! ensure {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            return Err($crate::conformance::Stop::Failed(format!(
                "{}:{}: {}",
                file!(),
                line!(),
                format_args!($($text)+)
            )));
        }
    };
}
pub(crate) use ensure;

/// Fails the case unless two values are the same.
macro_rules! ensure_eq {
    ($left:expr, $right:expr) => {
        match (&$left, &$right) {
            (left, right) => $crate::conformance::ensure!(
                left == right,
                "{} is {left:?} and not {right:?}",
                stringify!($left)
            ),
        }
    };
}
pub(crate) use ensure_eq;

/// Waits until a condition holds, looking again and again.
pub(crate) async fn eventually<F>(what: &str, mut holds: impl FnMut() -> F) -> Verdict
where
    F: Future<Output = Verdict<bool>>,
{
    let deadline = tokio::time::Instant::now() + SOON;
    while !holds().await? {
        ensure!(
            tokio::time::Instant::now() < deadline,
            "not within {} s: {what}",
            SOON.as_secs()
        );
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

/// Waits for something that must come soon.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> Verdict<T> {
    tokio::time::timeout(SOON, future)
        .await
        .map_err(|_| Stop::Failed(format!("not within {} s: {what}", SOON.as_secs())))
}

/// Runs one case; the suite's tests call it.
///
/// # Errors
///
/// Says what is wrong with the driver, or what a passing case left behind.
pub fn check<S>(
    factory: impl FnOnce() -> S,
    case: for<'a> fn(&'a Setup) -> BoxFuture<'a, Verdict>,
) -> Result<(), String>
where
    S: Future<Output = Setup>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let setup = factory().await;
        let verdict = tokio::time::timeout(CASE_TIME_MAX, case(&setup)).await;
        let swept = setup.driver.sweep(&std::collections::HashSet::new()).await;
        match verdict {
            Ok(Ok(())) => {}
            Ok(Err(Stop::Failed(what))) => return Err(what),
            Ok(Err(Stop::Skipped(reason))) => {
                // A closed standard error does not fail a test.
                drop(writeln!(std::io::stderr(), "skipped: {reason}"));
            }
            Err(_) => return Err(format!("not done within {} s", CASE_TIME_MAX.as_secs())),
        }
        match swept {
            Ok(report) if report.leftovers.is_empty() => Ok(()),
            Ok(report) => Err(format!("the sweep left {:?}", report.leftovers)),
            Err(error) => Err(format!("the sweep failed: {}", ErrorChain(&error))),
        }
    })
}

/// Expands to the suite's tests for the driver that an async function `fn() -> Setup` makes.
#[macro_export]
macro_rules! conformance_suite {
    ($factory:expr) => {
        $crate::conformance_tests! { $factory;
            lifecycle:
                a_started_instance_answers, starting_twice_answers_the_same,
                starting_at_once_makes_one, what_is_not_an_image_is_refused,
                a_record_survives_storage, an_unknown_record_is_refused,
                a_new_daemon_adopts, what_ended_is_not_adopted,
                a_sweep_removes_what_nobody_owns, a_sweep_finds_what_a_dead_daemon_left,
                a_kept_disk_is_there_again, removing_leaves_nothing,
                shutting_down_is_idempotent, shutting_down_ends_stubborn_processes,
                the_end_of_the_agent_is_told, a_paused_instance_stands_still,
                pausing_is_idempotent, a_paused_instance_can_be_shut_down,
                capabilities_are_what_they_say;
            limits:
                mounts_are_as_writable_as_named, a_missing_mount_leaves_nothing,
                the_process_limit_holds, the_memory_limit_holds;
            live:
                mounts_come_and_go_while_it_lives, a_live_mount_is_no_way_out,
                limits_change_while_it_lives;
            execs:
                exit_codes_are_told, signals_that_end_are_told, standard_error_is_apart,
                the_environment_is_exact, the_working_directory_is_taken, users_are_resolved,
                a_missing_command_is_told, what_cannot_be_executed_is_told,
                a_missing_directory_is_told, an_unknown_user_is_told,
                impossible_commands_are_refused, starting_twice_starts_once,
                a_background_child_does_not_hold_the_exit, execs_are_listed_and_forgotten,
                unknown_execs_are_not_found, many_execs_run_at_once;
            tree:
                an_interrupt_reaches_the_process, a_time_out_ends_the_tree,
                a_signal_reaches_the_tree, a_signal_that_is_none_is_refused;
            input:
                input_reaches_the_process_and_ends, large_input_waits_for_its_reader,
                input_without_standard_input_is_refused, a_terminal_has_a_size,
                a_terminal_interrupts;
            journal:
                output_is_complete_and_in_order, the_exit_follows_all_output,
                a_reader_comes_back_without_gap_or_repeat, a_lost_client_ends_nothing,
                what_is_acknowledged_is_dropped, unacknowledged_output_blocks_its_process,
                two_readers_see_the_same;
            files:
                what_is_written_is_read, ranges_are_read, a_file_is_changed_in_place,
                a_broken_upload_changes_nothing, files_are_looked_at, directories_come_in_pages,
                directories_are_made, files_are_renamed, files_are_removed,
                removing_does_not_follow_links, links_do_not_lead_out, pipes_are_refused,
                changes_are_watched, archives_go_out_and_in, hostile_archives_are_refused,
                missing_files_are_not_found;
            ports:
                metrics_are_sane, a_listening_port_is_dialled, a_closed_port_is_refused,
                the_host_reaches_a_port;
        }
    };
}

/// One test for each case.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_tests {
    ($factory:expr; $($module:ident: $($case:ident),+;)+) => {
        $(mod $module {
            use super::*;
            $(#[test]
            fn $case() -> Result<(), String> {
                $crate::conformance::check($factory, |setup| {
                    Box::pin($crate::conformance::$module::$case(setup))
                })
            })+
        })+
    };
}
