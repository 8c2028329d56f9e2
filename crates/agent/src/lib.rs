//! The guest agent: process 1 of every sandbox, which serves execs, files and metrics.

/// Version of the agent, as `ready` and `--version` tell it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Serves one sandbox until it ends.
pub fn init() -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
