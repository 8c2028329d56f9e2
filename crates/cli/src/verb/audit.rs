//! `audit`: reads the files themselves, so that it needs no daemon and trusts none.

use pinfold_server::{AuditLine, Verified};

use crate::arguments::{AuditListArguments, AuditVerb, AuditVerifyArguments};
use crate::config::Config;
use crate::error::{CliError, exit_code};
use crate::printer::{Printer, printable};

/// Directory of the log in the state directory.
pub(crate) const AUDIT: &str = "audit";

/// `audit`.
pub(super) fn audit(verb: &AuditVerb, config: &Config, printer: Printer) -> Result<u8, CliError> {
    if config.is_remote() {
        return Err(
            CliError::new("the audit log is read on the daemon's own host")
                .hint("run `pinfold audit` there")
                .exit(2),
        );
    }
    match verb {
        AuditVerb::Verify(arguments) => verify(arguments, config, printer),
        AuditVerb::List(arguments) => list(arguments, config, printer),
    }
}

fn verify(
    arguments: &AuditVerifyArguments,
    config: &Config,
    printer: Printer,
) -> Result<u8, CliError> {
    let directory = config.state_dir().join(AUDIT);
    let found = pinfold_server::verify_audit(&directory, arguments.expect.as_deref())
        .map_err(|error| unreadable(&directory, &error))?;
    if printer.json {
        printer.value(&as_json(&found))?;
    } else {
        for problem in &found.problems {
            let place = format!("{}:{}", problem.file, problem.line);
            printer.line(&printable(&format!("{place}: {}", problem.what)))?;
        }
        printer.line(&format!(
            "{} lines in {} files, numbers {} to {}",
            found.lines, found.files, found.first_seq, found.last_seq
        ))?;
        if let Some(beyond) = found.beyond_expected {
            printer.line(&format!("{beyond} lines behind the expected one"))?;
        }
        printer.line(&format!("head {}", found.head))?;
    }
    if found.problems.is_empty() {
        return Ok(0);
    }
    printer.warn("the audit log is not as the daemon wrote it");
    Ok(exit_code::NO)
}

fn as_json(found: &Verified) -> serde_json::Value {
    let problems: Vec<serde_json::Value> = found
        .problems
        .iter()
        .map(|problem| {
            serde_json::json!({
                "file": problem.file, "line": problem.line, "what": problem.what,
            })
        })
        .collect();
    serde_json::json!({
        "whole": found.problems.is_empty(),
        "lines": found.lines,
        "files": found.files,
        "first_seq": found.first_seq,
        "last_seq": found.last_seq,
        "head": found.head,
        "beyond_expected": found.beyond_expected,
        "problems": problems,
    })
}

fn list(arguments: &AuditListArguments, config: &Config, printer: Printer) -> Result<u8, CliError> {
    let directory = config.state_dir().join(AUDIT);
    let most = usize::try_from(arguments.last).unwrap_or(usize::MAX);
    let mut kept = std::collections::VecDeque::new();
    pinfold_server::audit_lines(&directory, |line| {
        let principal = arguments.principal.as_ref();
        if principal.is_none_or(|principal| *principal == line.principal) {
            kept.push_back(line);
        }
        if kept.len() > most {
            kept.pop_front();
        }
    })
    .map_err(|error| unreadable(&directory, &error))?;
    for line in kept {
        if printer.json {
            let text = serde_json::to_string(&line)
                .map_err(|error| CliError::new("failed to write JSON").caused_by(&error))?;
            printer.line(&text)?;
        } else {
            printer.line(&shown(&line))?;
        }
    }
    Ok(0)
}

fn shown(line: &AuditLine) -> String {
    let mut text = format!("{} {}  {}", line.seq, line.time, line.principal);
    if let Some(key) = &line.key {
        text.push_str(" key=");
        text.push_str(key);
    }
    let (peer, action, target) = (&line.peer, &line.action, &line.target);
    let rest = format!("  [{peer}]  {action}  {target}  {}", line.outcome);
    text.push_str(&rest);
    if let Some(detail) = &line.detail {
        text.push_str("  ");
        text.push_str(detail);
    }
    printable(&text).replace('\n', " ")
}

fn unreadable(directory: &std::path::Path, error: &std::io::Error) -> CliError {
    let failed = CliError::new(format!(
        "failed to read the audit log in {}",
        directory.display()
    ))
    .caused_by(error);
    if error.kind() == std::io::ErrorKind::NotFound {
        return failed.hint("the daemon makes it when it starts; name its --state-dir");
    }
    failed.hint("it is readable for the daemon's own user and for root")
}
