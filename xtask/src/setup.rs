//! Installs what the tests need from the distribution's own packages.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

/// A program that tests need, and the Debian package that brings it.
struct Tool {
    path: &'static str,
    package: &'static str,
}

const TOOLS: &[Tool] = &[
    Tool {
        path: "/usr/bin/cc",
        package: "gcc",
    },
    Tool {
        path: "/usr/bin/protoc",
        package: "protobuf-compiler",
    },
    Tool {
        path: "/usr/bin/git",
        package: "git",
    },
];

/// Installs the packages whose programs are missing; does nothing when none is.
pub(crate) fn install_missing() -> Result<()> {
    let missing: Vec<&str> = TOOLS
        .iter()
        .filter(|tool| {
            !Path::new(tool.path).exists()
                && !Path::new("/")
                    .join(tool.path.trim_start_matches("/usr/"))
                    .exists()
        })
        .map(|tool| tool.package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("install these by your distribution's means, then run this again: {missing:?}");
    }
    let mut prefix: Vec<&str> = Vec::new();
    if !is_root() {
        prefix.push("sudo");
    }
    apt(&prefix, &["update", "--quiet=2"])?;
    let mut arguments = vec!["install", "--yes", "--quiet=2", "--no-install-recommends"];
    arguments.extend(&missing);
    apt(&prefix, &arguments)
}

fn apt(prefix: &[&str], arguments: &[&str]) -> Result<()> {
    let mut words = prefix.to_vec();
    words.push("apt-get");
    words.extend(arguments);
    let Some((program, rest)) = words.split_first() else {
        bail!("no command to run")
    };
    crate::run(
        Command::new(program)
            .args(rest)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

/// Returns whether this process runs as root, from the kernel's own account of it.
fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:"))
            .and_then(|uids| {
                uids.split_whitespace()
                    .nth(1)
                    .map(|effective| effective == "0")
            })
            .unwrap_or(false)
    })
}
