//! The guest agent: process 1 of every sandbox, which serves execs, files and metrics.
//!
//! The core knows no protocol: [`process`] and [`journal`] run execs, [`files`], [`archive`] and
//! [`watch`] look after files, [`metrics`] measures, [`dial`] reaches ports. The dialects on top
//! are thin: `connect` for the agent's own services, `json` for readiness, metrics and dials. It
//! is a crate of its own because it is built statically, small, and runs inside the sandbox.

#![deny(clippy::indexing_slicing)]

pub mod archive;
mod boot;
mod connect;
pub mod dial;
pub mod files;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod journal;
mod json;
pub mod metrics;
pub mod process;
mod processes;
mod ready;
mod root;
mod serve;
mod users;
pub mod watch;
pub mod worker;

use std::sync::Arc;

pub use boot::init;

/// Version of the agent, as `ready` and `--version` tell it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Everything that the dialects serve.
#[derive(Debug)]
pub struct Agent {
    table: process::Table,
    files: files::Files,
    workers: worker::Workers,
    usage: Arc<metrics::Usage>,
    dials: dial::Dials,
}

/// How much of a caller's text an error repeats.
const SHOWN_BYTES_MAX: usize = 256;

/// Cuts a caller's text to what an error may repeat.
fn shorten(text: &str) -> String {
    if text.len() <= SHOWN_BYTES_MAX {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(SHOWN_BYTES_MAX);
    format!("{}…", text.get(..end).unwrap_or_default())
}
