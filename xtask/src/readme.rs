//! Does what the README tells a newcomer to do first.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

/// Ends the daemon that the command started, and waits until it is gone.
const END_DAEMON: &str = "pid=$(cargo run --quiet --locked -- status --no-start --json | \
    grep -o '\"pid\": *[0-9]*' | grep -o '[0-9]*') && kill $pid && \
    timeout 30 sh -c \"while kill -0 $pid 2> /dev/null; do sleep 0.05; done\"";

/// Runs the README's first command, with an unoptimised build to save time, and checks the answer.
pub(crate) fn follow(root: &Path, agent: &Path) -> Result<()> {
    let text = std::fs::read_to_string(root.join("README.md")).context("failed to read it")?;
    let command = text
        .lines()
        .find(|line| line.starts_with("cargo run --release -- "))
        .context("the README has no first command")?;
    let state = std::env::temp_dir().join(format!("pinfold-readme-{}", std::process::id()));
    let run = |command: &str| {
        Command::new("sh")
            .args(["-c", command])
            .env("PINFOLD_AGENT_BIN", agent)
            .env("PINFOLD_STATE_DIR", &state)
            .current_dir(root)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("failed to start a shell")
    };
    let debug = command.replacen(" --release", " --quiet --locked", 1);
    let answer = run(&debug);
    let end = run(END_DAEMON);
    let answer = answer?;
    ensure!(
        answer.status.success(),
        "{debug} ended with {}",
        answer.status
    );
    let printed = String::from_utf8_lossy(&answer.stdout);
    if printed != "42\n" {
        bail!("{debug} printed {printed:?}");
    }
    ensure!(end?.status.success(), "the daemon was not found afterwards");
    std::fs::remove_dir_all(&state).context("failed to remove its state")
}
