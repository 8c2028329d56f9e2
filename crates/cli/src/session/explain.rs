//! Says why a program ended when its exit code alone does not.

use pinfold_types::api::Sandbox;
use pinfold_types::{ErrorCode, ExecExit};

use crate::error::CliError;
use crate::signals;
use crate::view;

/// Returns what to say about an end, and what to do about it.
///
/// `tail` is the end of the program's standard error: a full disk and a full process table are seen
/// by the program alone.
pub(crate) fn explain(
    exit: &ExecExit,
    sandbox: &Sandbox,
    timeout_ms: Option<u64>,
    tail: &str,
) -> Option<CliError> {
    let resources = &sandbox.spec.resources;
    if exit.timed_out {
        let after = timeout_ms.map_or_else(
            || "its time-out".to_owned(),
            |ms| format!("its time-out of {}", view::exact(ms)),
        );
        return Some(
            CliError::new(format!("the command was ended after {after}"))
                .hint("give it more time with --timeout"),
        );
    }
    if exit.out_of_memory {
        let size = resources
            .memory
            .map(view::size)
            .or_else(|| granted(sandbox, "memory"))
            .map_or_else(String::new, |size| format!(" of {size}"));
        return Some(
            CliError::new(format!("the command was ended by the memory limit{size}"))
                .hint("raise it with --memory"),
        );
    }
    if exit.lost {
        return Some(CliError::of_api(
            ErrorCode::InstanceGone,
            "the sandbox ended before the command did",
            Some(format!("`pinfold status {}` says why", sandbox.name)),
        ));
    }
    if exit.code == Some(0) {
        return None;
    }
    if let Some(told) = of_tail(tail, sandbox) {
        return Some(told);
    }
    // Somebody wanted these; the others are accidents.
    let wanted = [
        signals::HANGUP,
        signals::INTERRUPT,
        signals::PIPE,
        signals::TERMINATE,
    ];
    let signal = exit.signal.filter(|signal| !wanted.contains(signal))?;
    let name = signals::name(signal).map_or_else(String::new, |name| format!(" ({name})"));
    Some(CliError::new(format!(
        "the command was ended by signal {signal}{name}"
    )))
}

/// What the program itself complained of, as far as a limit of ours is behind it.
fn of_tail(tail: &str, sandbox: &Sandbox) -> Option<CliError> {
    let resources = &sandbox.spec.resources;
    if tail.contains("No space left on device") {
        let size = resources
            .disk
            .map(view::size)
            .or_else(|| granted(sandbox, "disk"))
            .map_or_else(String::new, |size| format!(" of {size}"));
        return Some(
            CliError::new(format!("the command filled the disk limit{size}"))
                .hint("raise it with --disk; /tmp counts to --memory"),
        );
    }
    let forks = [
        "Resource temporarily unavailable",
        "can't start new thread",
        "Cannot fork",
    ];
    if forks.iter().any(|text| tail.contains(text)) {
        let count = resources
            .pids
            .map(|pids| pids.to_string())
            .or_else(|| granted(sandbox, "pids"))
            .map_or_else(String::new, |count| format!(" of {count}"));
        return Some(
            CliError::new(format!(
                "the command may have reached the process limit{count}"
            ))
            .hint("raise it with --pids"),
        );
    }
    None
}

/// What the sandbox was really given.
fn granted(sandbox: &Sandbox, name: &str) -> Option<String> {
    let granted = sandbox.granted.as_ref()?;
    granted.limits.get(name).cloned()
}
