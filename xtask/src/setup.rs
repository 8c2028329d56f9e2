//! Installs what the tests need from the distribution's own packages.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

/// A program or file that tests need, and the Debian package that brings it.
struct Tool {
    path: &'static str,
    package: &'static str,
}

const TOOLS: &[Tool] = &[
    tool("/usr/bin/cc", "gcc"),
    tool("/usr/include/stdio.h", "libc6-dev"),
    tool("/usr/bin/protoc", "protobuf-compiler"),
    tool("/usr/bin/git", "git"),
    tool("/usr/bin/python3", "python3"),
    tool("/usr/bin/curl", "curl"),
    tool("/usr/bin/nsenter", "util-linux"),
    tool("/usr/bin/node", "nodejs"),
    tool("/usr/bin/npm", "npm"),
    tool("/usr/bin/newuidmap", "uidmap"),
    tool("/usr/bin/mmdebstrap", "mmdebstrap"),
    tool("/usr/bin/dpkg-scanpackages", "dpkg-dev"),
    tool("/usr/bin/setpriv", "util-linux"),
    tool("/usr/bin/unshare", "util-linux"),
    tool("/usr/sbin/ip", "iproute2"),
    tool("/usr/bin/pgrep", "procps"),
    tool("/usr/bin/vi", "vim-tiny"),
    tool("/usr/bin/less", "less"),
    tool("/usr/sbin/mkfs.ext4", "e2fsprogs"),
    tool("/usr/sbin/useradd", "passwd"),
    tool("/etc/ssl/certs/ca-certificates.crt", "ca-certificates"),
];

const fn tool(path: &'static str, package: &'static str) -> Tool {
    Tool { path, package }
}

/// Installs the packages whose programs are missing; does nothing when none is.
pub(crate) fn install_missing() -> Result<()> {
    let missing: Vec<&str> = TOOLS
        .iter()
        .filter(|tool| !is_there(tool.path))
        .map(|tool| tool.package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("install these by your distribution's means, then run this again: {missing:?}");
    }
    install(&missing)?;
    let still: Vec<&Tool> = TOOLS.iter().filter(|tool| !is_there(tool.path)).collect();
    if let Some(tool) = still.first() {
        bail!(
            "{} is not there although {} is installed",
            tool.path,
            tool.package
        );
    }
    Ok(())
}

/// Installs packages of the distribution.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    // An installation that was cut off makes every later one fail until it is finished.
    crate::run(as_root("dpkg").args(["--configure", "-a"]))?;
    apt(&["update", "--quiet=2"])?;
    let mut arguments = vec!["install", "--yes", "--quiet=2", "--no-install-recommends"];
    arguments.extend(packages);
    apt(&arguments)
}

fn is_there(path: &str) -> bool {
    // On a system whose /usr is not merged, some programs live in /bin and /sbin.
    Path::new(path).exists()
        || Path::new("/")
            .join(path.trim_start_matches("/usr/"))
            .exists()
}

fn apt(arguments: &[&str]) -> Result<()> {
    crate::run(
        as_root("apt-get")
            .args(["-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

/// Prepares a command that runs as root: directly when we are, else by `sudo`.
pub(crate) fn as_root(program: &str) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

/// Returns whether this process runs as root, from the kernel's own account of it.
pub(crate) fn is_root() -> bool {
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
