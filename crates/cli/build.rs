//! Builds the guest agent as a static binary, so that `cargo build` alone yields a product.

use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Names a finished agent to embed instead of building one.
const OVERRIDE: &str = "PINFOLD_AGENT_BIN";

/// The agent is built with this profile of the workspace.
const PROFILE: &str = "agent";

/// Crates whose change makes another agent.
const SOURCES: &[&str] = &["agent", "agent-api", "linux", "types"];

/// What the outer cargo sets for its own build and would change the inner one.
const REMOVED: &[&str] = &[
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_MAKEFLAGS",
    "MAKEFLAGS",
    "RUSTC",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "CLIPPY_ARGS",
    "CLIPPY_CONF_DIR",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    // A build after a lint must not keep the empty agent that the lint was content with.
    println!("cargo::rerun-if-env-changed=RUSTC_WORKSPACE_WRAPPER");
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let root = manifest
        .parent()
        .and_then(Path::parent)
        .ok_or("the crate is not two directories beneath the workspace")?;
    for name in SOURCES {
        for part in ["src", "Cargo.toml"] {
            println!(
                "cargo::rerun-if-changed={}",
                root.join("crates").join(name).join(part).display()
            );
        }
    }
    println!(
        "cargo::rerun-if-changed={}",
        root.join("Cargo.toml").display()
    );
    let embedded = out.join("pinfold-agent");
    if let Some(finished) = env::var_os(OVERRIDE).filter(|path| !path.is_empty()) {
        println!("cargo::rerun-if-changed={}", finished.display());
        copy(Path::new(&finished), &embedded)?;
    } else if is_only_checked() {
        // Lints look at our source and never run the product: an earlier agent or none will do.
        if !embedded.exists() {
            fs::write(&embedded, [])?;
        }
    } else {
        copy(&build(root, &out)?, &embedded)?;
    }
    println!(
        "cargo::rustc-env=EMBEDDED_AGENT_PATH={}",
        embedded.display()
    );
    Ok(())
}

/// Clippy compiles through a wrapper. A plain `cargo check` cannot be told from a build.
fn is_only_checked() -> bool {
    let wrapper = env::var_os("RUSTC_WORKSPACE_WRAPPER").unwrap_or_default();
    wrapper.to_string_lossy().contains("clippy")
}

/// Builds the agent in a target directory of its own: the outer cargo holds the lock of its own.
fn build(root: &Path, out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let target = variable("TARGET")?;
    let directory = out.join("agent-target");
    let mut cargo = Command::new(variable("CARGO")?);
    cargo
        .current_dir(root)
        .args([
            "build",
            "--package",
            "pinfold-agent",
            "--bin",
            "pinfold-agent",
        ])
        .args(["--profile", PROFILE, "--locked", "--target"])
        .arg(&target)
        .arg("--target-dir")
        .arg(&directory);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if REMOVED.contains(&&*text)
            || text.starts_with("CARGO_PROFILE_")
            || text.starts_with("CARGO_FEATURE_")
            || text.starts_with("CARGO_CFG_")
        {
            cargo.env_remove(&name);
        }
    }
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    let status = cargo.status()?;
    if !status.success() {
        return Err(format!("building the guest agent failed with {status}").into());
    }
    Ok(directory.join(target).join(PROFILE).join("pinfold-agent"))
}

fn copy(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    fs::copy(from, to)
        .map(drop)
        .map_err(|error| format!("failed to embed {}: {error}", from.display()).into())
}

fn variable(name: &str) -> Result<OsString, Box<dyn Error>> {
    env::var_os(name).ok_or_else(|| format!("cargo does not set {name}").into())
}
