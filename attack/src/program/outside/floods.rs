//! Attacks with more output than anybody wants.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::super::call::call_with;
use super::super::limits::adopt;
use super::super::{Attempt, Found};
use super::product::{Product, memory_kib, pause};
use super::with;

/// How long output is made that nobody reads.
const FLOOD: Duration = Duration::from_secs(6);
/// Most memory by which the daemon may grow for it: its named buffers are a few MiB.
const GROWTH_KIB_MAX: u64 = 64 << 10;
/// Bytes of output, and the most of it that may be on disk: the default bound of a journal is 64
/// MiB, and its parts are whole.
const OUTPUT_BYTES: u64 = 160 << 20;
const JOURNAL_BYTES_MAX: u64 = 96 << 20;

pub(super) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("output-flood", |facts| with(facts, output_flood)),
    ("log-flood", |facts| with(facts, log_flood)),
    ("host-watches", |facts| with(facts, host_watches)),
];

fn output_flood(product: &Product) -> io::Result<Found> {
    let sandbox = product.sandbox(&[])?;
    let daemon = product.daemon()?;
    let before = memory_kib(daemon)?;
    // Nobody ever reads from its pipe.
    let mut child = product
        .command(["exec", &sandbox.id, "--", "cat", "/dev/zero"])
        .spawn()?;
    pause(FLOOD);
    let answers = product.answers();
    let after = memory_kib(daemon)?;
    child.kill()?;
    child.wait()?;
    let grown = after.saturating_sub(before);
    Ok(if !answers {
        Found::Worked("the daemon does not answer".to_owned())
    } else if grown > GROWTH_KIB_MAX {
        Found::Worked(format!("the daemon grew by {} MiB", grown >> 10))
    } else {
        Found::Failed(format!("the daemon grew by {} MiB", grown >> 10))
    })
}

fn log_flood(product: &Product) -> io::Result<Found> {
    let journals = Path::new(&product.given.state).join("journals");
    if fs::read_dir(&journals).is_err() {
        return Ok(Found::NotExpressible(
            "the daemon's state is not this user's to look at".to_owned(),
        ));
    }
    let sandbox = product.sandbox(&[])?;
    let ran = sandbox.script(&format!("head -c {OUTPUT_BYTES} /dev/zero"))?;
    let kept = bytes_beneath(&journals.join(&sandbox.id))?;
    let told = format!("{} MiB are kept; {}", kept >> 20, ran.word());
    Ok(if kept > JOURNAL_BYTES_MAX {
        Found::Worked(told)
    } else {
        Found::Failed(told)
    })
}

/// Has a sandbox hold as many instances as it can, and sees whether the host's user has any left.
fn host_watches(product: &Product) -> io::Result<Found> {
    watch()?;
    let sandbox = product.sandbox(&[])?;
    sandbox.bring_program()?;
    sandbox.leave(&["/attack", "act", "watch", "/tmp/watching"])?;
    let told = sandbox.script(
        "i=0; while [ ! -s /tmp/watching ] && [ $i -lt 200 ]; do sleep 0.05; i=$((i+1)); done; \
         cat /tmp/watching",
    )?;
    let held = String::from_utf8_lossy(&told.out).into_owned();
    if held.is_empty() {
        return Err(io::Error::other("nobody watches"));
    }
    Ok(match watch() {
        Ok(()) => Found::Failed(format!("it holds {held}, and there are more")),
        Err(error) => Found::Worked(format!("it holds {held}: {error}")),
    })
}

/// Makes an instance of `inotify` and closes it.
fn watch() -> io::Result<()> {
    call_with(libc::SYS_inotify_init1, &[0]).map(|made| drop(adopt(made)))
}

fn bytes_beneath(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() {
            bytes_beneath(&entry.path())?
        } else {
            metadata.len()
        };
    }
    Ok(bytes)
}
