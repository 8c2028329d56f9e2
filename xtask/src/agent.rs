//! Builds the guest agent as a static program, once for all tests of a run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

/// The target whose C library can be linked statically.
const TARGET: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-unknown-linux-gnu"
} else {
    "x86_64-unknown-linux-gnu"
};

/// What an agent for tests has beside: points at which they end it.
pub(crate) const FOR_TESTS: &[&str] = &["--features", "crash-points"];

/// Builds it and answers its path.
pub(crate) fn build(root: &Path, features: &[&str]) -> Result<PathBuf> {
    // A directory of its own: the flags differ, and one directory would be built over and over.
    let target = crate::target_directory(root).join("agent");
    crate::run(
        Command::new("cargo")
            .args(["build", "--locked", "--quiet", "--package", "pinfold-agent"])
            .args(["--profile", "agent", "--target", TARGET])
            .args(features)
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .env("CARGO_TARGET_DIR", &target)
            .current_dir(root),
    )?;
    let built = target.join(TARGET).join("agent/pinfold-agent");
    built
        .canonicalize()
        .with_context(|| format!("{} was not built", built.display()))
}
