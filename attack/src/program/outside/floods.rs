//! Attacks with more output than anybody wants.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::super::{Attempt, Found};
use super::product::{Product, memory_kib, pause};
use super::with;

/// How long output is made that nobody reads.
const FLOOD: Duration = Duration::from_secs(4);
/// Most memory by which the daemon may grow for it: its named buffers are a few MiB.
const GROWTH_KIB_MAX: u64 = 64 << 10;
/// Bytes of output, and the most of it that may be on disk: the default bound of a journal is 64
/// MiB, and its parts are whole.
const OUTPUT_BYTES: u64 = 160 << 20;
const JOURNAL_BYTES_MAX: u64 = 96 << 20;

pub(super) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("output-flood", |facts| with(facts, output_flood)),
    ("log-flood", |facts| with(facts, log_flood)),
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
