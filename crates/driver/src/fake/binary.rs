//! Finds or builds the agent that tests run.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Names an agent binary that is there already.
const BINARY_VARIABLE: &str = "PINFOLD_AGENT_BIN";
/// Where the agent's sources are.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// What was built: once for the tests of this process; others wait for cargo's own lock.
static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Why there is no agent to run.
#[derive(Debug, thiserror::Error)]
pub enum AgentBinaryError {
    /// The variable names nothing that can be run.
    #[error("`PINFOLD_AGENT_BIN` names `{path}`, which is not a file")]
    Missing {
        /// What it names.
        path: PathBuf,
    },
    /// Cargo cannot be run.
    #[error("failed to run `{command}`")]
    Run {
        /// The command.
        command: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The agent does not build.
    #[error("failed to build the agent with `{command}`: {output}")]
    Build {
        /// The command.
        command: String,
        /// What it said.
        output: String,
    },
}

/// Returns the static agent binary for tests: the one that `PINFOLD_AGENT_BIN` names, else one that
/// is built now, beneath `scratch` (a test's `CARGO_TARGET_TMPDIR`). Blocks while it builds.
///
/// # Errors
///
/// Says why there is none.
pub fn agent_binary(scratch: &Path) -> Result<PathBuf, AgentBinaryError> {
    if let Some(path) = std::env::var_os(BINARY_VARIABLE) {
        let path = PathBuf::from(path);
        if path.is_file() {
            return Ok(path);
        }
        return Err(AgentBinaryError::Missing { path });
    }
    let mut built = BUILT
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(path) = built.as_ref() {
        return Ok(path.clone());
    }
    let path = build(&scratch.join("agent"))?;
    Ok(built.insert(path).clone())
}

fn build(target_dir: &Path) -> Result<PathBuf, AgentBinaryError> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--package", "pinfold-agent"])
        .args(["--target", &target])
        .current_dir(WORKSPACE)
        .env("CARGO_TARGET_DIR", target_dir)
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    let shown = format!("{command:?}");
    let output = command.output().map_err(|source| AgentBinaryError::Run {
        command: shown.clone(),
        source,
    })?;
    if !output.status.success() {
        return Err(AgentBinaryError::Build {
            command: shown,
            output: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    }
    Ok(target_dir.join(target).join("debug/pinfold-agent"))
}
