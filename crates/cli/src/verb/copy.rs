//! `cp`: files and directories into and out of a sandbox.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use futures::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use pinfold_types::ErrorCode;
use pinfold_types::api::MakeDirectoryRequest;

use crate::arguments::CpArguments;
use crate::context::{Context, api_error};
use crate::error::CliError;
use crate::handoff::{Found, Handoff};
use crate::table::{self, Column};
use crate::tarball;
use crate::terminal;

/// Most lines of a table about what came out: a screen.
const SHOWN_MAX: usize = 20;

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Side {
    Host(PathBuf),
    Inside { sandbox: String, path: String },
}

impl Side {
    /// `NAME:PATH` is inside; everything that starts like a path, or has no colon, is of the host.
    fn parse(text: &str) -> Self {
        match text.split_once(':') {
            Some((sandbox, path))
                if !sandbox.is_empty() && !sandbox.contains('/') && !sandbox.starts_with('.') =>
            {
                Self::Inside {
                    sandbox: sandbox.to_owned(),
                    path: if path.is_empty() { "." } else { path }.to_owned(),
                }
            }
            _ => Self::Host(PathBuf::from(text)),
        }
    }
}

/// `cp`.
pub(super) async fn copy(context: &Context, arguments: &CpArguments) -> Result<u8, CliError> {
    let source = Side::parse(&arguments.source);
    match (source, Side::parse(&arguments.destination)) {
        (Side::Host(_), Side::Inside { .. }) if arguments.strict => {
            return Err(
                CliError::new("--strict is about what comes out of a sandbox")
                    .hint("leave it out of a copy in")
                    .exit(2),
            );
        }
        (Side::Host(from), Side::Inside { sandbox, path }) => {
            copy_in(context, &from, &sandbox, &absolute(&path)).await?;
        }
        (Side::Inside { sandbox, path }, Side::Host(to)) => {
            let found =
                copy_out(context, &sandbox, &absolute(&path), (&to, arguments.strict)).await?;
            return tell(context, &found);
        }
        (Side::Host(_), Side::Host(_)) => {
            return Err(CliError::new("neither path is inside a sandbox")
                .hint("write one of them as NAME:PATH; a host path with a colon as ./PATH")
                .exit(2));
        }
        (Side::Inside { .. }, Side::Inside { .. }) => {
            return Err(CliError::new("both paths are inside sandboxes")
                .hint("copy to this host first, then in")
                .exit(2));
        }
    }
    Ok(0)
}

/// A relative path inside is beneath the workspace.
fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        let below = path.trim_start_matches("./");
        let below = if below == "." { "" } else { below };
        format!("{}/{below}", crate::program::WORKSPACE)
    }
}

async fn copy_in(
    context: &Context,
    from: &Path,
    sandbox: &str,
    path: &str,
) -> Result<(), CliError> {
    let failed = || CliError::new(format!("failed to copy {}", from.display()));
    let metadata = std::fs::symlink_metadata(from).map_err(|error| failed().caused_by(&error))?;
    let own_name = final_name(from)?;
    let trimmed = path.trim_end_matches('/');
    let is_directory = match context.client.stat(sandbox, path, true).await {
        Ok(info) => info.kind == "directory",
        Err(error) if error.code() == ErrorCode::NotFound => {
            // Tells a missing sandbox from a missing path.
            context.client.get(sandbox).await.map_err(api_error)?;
            path.ends_with('/')
        }
        Err(error) => return Err(api_error(error)),
    };
    let (directory, name) = if is_directory || trimmed.is_empty() {
        (if trimmed.is_empty() { "/" } else { trimmed }, own_name)
    } else {
        let (parent, name) = trimmed.rsplit_once('/').unwrap_or(("", trimmed));
        (
            if parent.is_empty() { "/" } else { parent },
            name.to_owned(),
        )
    };
    let parents = MakeDirectoryRequest {
        path: directory.to_owned(),
        mode: None,
        parents: true,
    };
    let made = context.client.make_directory(sandbox, &parents).await;
    made.map_err(api_error)?;

    let bar = bar(context, metadata.is_file().then_some(metadata.len()));
    let (mut writer, receiver) = tarball::to_connection();
    let (source, counted) = (from.to_owned(), bar.clone());
    let packing = tokio::task::spawn_blocking(move || {
        let packed = tarball::pack(&source, &name, &mut writer, &|bytes| counted.inc(bytes));
        match packed {
            Ok(notes) => Ok(notes),
            Err(error) => {
                let told = std::io::Error::new(error.kind(), error.to_string());
                writer.fail(told);
                Err(error)
            }
        }
    });
    let archive = tarball::stream(receiver);
    let sent = context.client.unpack(sandbox, directory, archive).await;
    let packed = packing.await.map_err(|error| failed().caused_by(&error))?;
    bar.finish_and_clear();
    match (packed, sent) {
        // A broken pipe here only means that the other side stopped, which `sent` explains.
        (Err(error), Ok(_)) => Err(failed().caused_by(&error)),
        (Err(error), Err(_)) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(failed().caused_by(&error))
        }
        (_, Err(error)) => Err(api_error(error)),
        (Ok(notes), Ok(_)) => {
            for note in notes {
                context.printer.warn(&note);
            }
            Ok(())
        }
    }
}

async fn copy_out(
    context: &Context,
    sandbox: &str,
    path: &str,
    (to, strict): (&Path, bool),
) -> Result<Found, CliError> {
    let failed = || CliError::new(format!("failed to copy to {}", to.display()));
    let trimmed = path.trim_end_matches('/');
    let own_name = trimmed.rsplit_once('/').map_or("", |(_, name)| name);
    let (directory, name) = destination(
        to,
        if own_name.is_empty() {
            sandbox
        } else {
            own_name
        },
    )?;
    let info = context
        .client
        .stat(sandbox, path, false)
        .await
        .map_err(api_error)?;
    let mut archive = context
        .client
        .pack(sandbox, path)
        .await
        .map_err(api_error)?;
    let bar = bar(context, (info.kind == "file").then_some(info.size));
    let (sender, reader) = tarball::from_connection();
    let counted = bar.clone();
    let unpacking = tokio::task::spawn_blocking(move || {
        let mut handoff = Handoff::new(&directory, strict);
        let progress = |bytes| counted.inc(bytes);
        let unpacked = tarball::unpack(reader, &directory, &name, &mut handoff, &progress);
        (unpacked, handoff.finish())
    });
    let mut broken = None;
    while let Some(chunk) = archive.next().await {
        let chunk = chunk.map_err(|error| {
            let told = std::io::Error::other(error.to_string());
            broken = Some(error);
            told
        });
        // The unpacking side ends first when it refuses something.
        if sender.send(chunk).await.is_err() || broken.is_some() {
            break;
        }
    }
    drop(sender);
    let (unpacked, found) = unpacking
        .await
        .map_err(|error| failed().caused_by(&error))?;
    bar.finish_and_clear();
    if let Some(error) = broken {
        return Err(api_error(error));
    }
    let unpacked = unpacked.map_err(|error| failed().caused_by(&error))?;
    for note in unpacked.notes {
        context.printer.warn(&note);
    }
    Ok(found)
}

/// Where on this host a copy goes: a directory that is there, and the copy's name in it.
fn destination(to: &Path, own_name: &str) -> Result<(PathBuf, OsString), CliError> {
    let failed = || CliError::new(format!("failed to copy to {}", to.display()));
    let wants_directory = to.to_string_lossy().ends_with('/');
    let (directory, name): (PathBuf, OsString) = if to.is_dir() {
        (to.to_owned(), own_name.into())
    } else if wants_directory {
        return Err(failed()
            .caused_by(&CliError::new("there is no such directory"))
            .hint("make it first, or leave out the `/` at the end"));
    } else {
        let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = parent.unwrap_or_else(|| Path::new("."));
        (directory.to_owned(), final_name(to)?.into())
    };
    if !directory.is_dir() {
        return Err(failed()
            .caused_by(&CliError::new("the directory above it is not there"))
            .hint("make it first"));
    }
    let real = directory.canonicalize();
    Ok((real.map_err(|error| failed().caused_by(&error))?, name))
}

/// Says what a program of the host might run by itself, and ends with 1 when something was held.
fn tell(context: &Context, found: &Found) -> Result<u8, CliError> {
    if context.printer.json {
        context.printer.value(found)?;
    }
    let count = found.findings.len() as u64 + found.more;
    if count > 0 {
        let rest = match (found.held > 0, context.printer.json) {
            (true, _) => "; some of it was left out",
            (false, true) => "",
            (false, false) => "; `--strict` leaves it out",
        };
        context.printer.warn(&format!(
            "{count} of what came out may be run by programs of this host{rest}"
        ));
    }
    if !context.printer.json {
        show(context, found);
    }
    Ok(u8::from(found.held > 0))
}

fn show(context: &Context, found: &Found) {
    if found.findings.is_empty() {
        return;
    }
    let mut columns = vec![
        Column::left("PATH"),
        Column::left("KIND"),
        Column::left("WHY"),
    ];
    if found.held > 0 {
        columns.insert(0, Column::left("LEFT OUT"));
    }
    let row = |finding: &crate::handoff::Finding| {
        let left_out = (found.held > 0).then_some(if finding.held { "yes" } else { "no" });
        let told = [finding.path.as_str(), finding.kind, finding.why];
        left_out
            .into_iter()
            .chain(told)
            .map(str::to_owned)
            .collect()
    };
    let rows: Vec<_> = found.findings.iter().take(SHOWN_MAX).map(row).collect();
    context.printer.aside(&table::render(&columns, &rows, None));
    let more = found.findings.len().saturating_sub(SHOWN_MAX) as u64 + found.more;
    if more > 0 {
        context
            .printer
            .note(&format!("and {more} more; `--json` lists them"));
    }
}

/// The name that a path ends with; `.` and `..` are resolved, so that a copy of them has a name.
fn final_name(path: &Path) -> Result<String, CliError> {
    let named = path.file_name().map(std::ffi::OsStr::to_owned);
    let name = named.or_else(|| path.canonicalize().ok()?.file_name().map(ToOwned::to_owned));
    name.and_then(|name| name.into_string().ok())
        .ok_or_else(|| CliError::new(format!("{} has no name to copy to", path.display())))
}

fn bar(context: &Context, length: Option<u64>) -> ProgressBar {
    if context.printer.quiet || !terminal::progress_helps() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match length {
        Some(length) => (
            ProgressBar::new(length),
            "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        ),
        None => (
            ProgressBar::no_length(),
            "{spinner} {bytes} {bytes_per_sec}",
        ),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_with_a_name_is_inside() {
        let inside = |sandbox: &str, path: &str| Side::Inside {
            sandbox: sandbox.to_owned(),
            path: path.to_owned(),
        };
        assert_eq!(Side::parse("a:/b"), inside("a", "/b"));
        assert_eq!(Side::parse("a:"), inside("a", "."));
        assert_eq!(Side::parse("a:b:c"), inside("a", "b:c"));
        for host in ["a", "./a:b", "/x/a:b", "../a:b", ":x"] {
            assert_eq!(Side::parse(host), Side::Host(host.into()), "{host}");
        }
        assert_eq!(absolute("."), "/workspace/");
        assert_eq!(absolute("./x"), "/workspace/x");
        assert_eq!(absolute("/x/"), "/x/");
    }
}
