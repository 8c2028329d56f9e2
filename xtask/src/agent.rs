//! Builds the guest agent as a static program, once for all tests of a run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

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
    let target = target_directory(root);
    crate::run(&mut released(root, features))?;
    existing(&target.join(TARGET).join("agent/pinfold-agent"))
}

/// Sees that no released agent can be built whose defences can be left out.
pub(crate) fn refuse_weakened(root: &Path) -> Result<()> {
    let output = released(root, &["--features", "test-weaken"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && said.contains("no release build may have it"),
        "a release build takes the feature `test-weaken`, or fails for another reason: {said}"
    );
    Ok(())
}

/// A directory of its own: the flags differ, and one directory would be built over and over.
fn target_directory(root: &Path) -> PathBuf {
    crate::target_directory(root).join("agent")
}

fn released(root: &Path, features: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command
        .args(["build", "--locked", "--quiet", "--package", "pinfold-agent"])
        .args(["--profile", "agent", "--target", TARGET])
        .args(features)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_TARGET_DIR", target_directory(root))
        .current_dir(root);
    command
}

/// What the test of the attacks needs besides the product.
pub(crate) struct Attackers {
    /// The program that attacks.
    pub(crate) program: PathBuf,
    /// An agent that leaves out the defences that it is told to.
    pub(crate) weak_agent: PathBuf,
}

/// Builds them with debug assertions, without which nothing can be left out.
pub(crate) fn build_attackers(root: &Path) -> Result<Attackers> {
    let target = crate::target_directory(root).join("attack");
    for (package, features) in [("pinfold-attack", ""), ("pinfold-agent", "test-weaken")] {
        crate::run(
            Command::new("cargo")
                .args(["build", "--locked", "--quiet", "--package", package])
                .args(["--features", features, "--target", TARGET])
                .env("RUSTFLAGS", "-C target-feature=+crt-static")
                .env("CARGO_TARGET_DIR", &target)
                .env("CARGO_PROFILE_DEV_DEBUG", "0")
                .current_dir(root),
        )?;
    }
    let built = target.join(TARGET).join("debug");
    Ok(Attackers {
        program: existing(&built.join("pinfold-attack"))?,
        weak_agent: existing(&built.join("pinfold-agent"))?,
    })
}

fn existing(built: &Path) -> Result<PathBuf> {
    built
        .canonicalize()
        .with_context(|| format!("{} was not built", built.display()))
}
