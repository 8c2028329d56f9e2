//! Keeps the checked-in stubs of the agent's services equal to their contract.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// The crate that holds the contract, from the repository's root.
const API_CRATE: &str = "crates/agent-api";

/// Writes the stubs into the repository.
pub(crate) fn write(root: &Path) -> Result<()> {
    generate(root, Path::new("src/generated"))
}

/// Fails when the checked-in stubs differ from what the contract gives.
pub(crate) fn check(root: &Path) -> Result<()> {
    let fresh = root.join("target/generated");
    if fresh.exists() {
        std::fs::remove_dir_all(&fresh).context("failed to clear the last check's output")?;
    }
    std::fs::create_dir_all(&fresh).context("failed to make a directory for the check")?;
    generate(root, &fresh)?;
    if files(&fresh)? == files(&root.join(API_CRATE).join("src/generated"))? {
        return Ok(());
    }
    bail!("the generated stubs differ from proto/agent.proto: run `cargo xtask codegen`")
}

fn generate(root: &Path, directory: &Path) -> Result<()> {
    crate::run(
        Command::new("cargo")
            .args([
                "run",
                "--quiet",
                "--locked",
                "--manifest-path",
                "codegen/Cargo.toml",
            ])
            .args([
                "--target-dir".as_ref(),
                root.join("target/codegen").as_os_str(),
            ])
            .arg("--")
            .arg(directory)
            .current_dir(root.join(API_CRATE)),
    )
}

fn files(directory: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory)
        .with_context(|| format!("failed to list {}", directory.display()))?
    {
        let entry = entry?;
        found.insert(
            PathBuf::from(entry.file_name()),
            std::fs::read(entry.path())?,
        );
    }
    Ok(found)
}
