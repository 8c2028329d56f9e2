//! Makes the ordinary users that tests become, and delegates control groups to one of them.
//!
//! Three kinds of user meet a fresh machine: one with subordinate ids and delegated control groups,
//! one with subordinate ids, and one with nothing but a uid.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::setup::as_root;

/// The user with delegated control groups.
const DELEGATED: &str = "pinfold-test";

/// Users and the subordinate ids that each begins with.
const PEOPLE: &[(&str, Option<u32>)] = &[
    (DELEGATED, Some(1_000_000_000)),
    ("pinfold-plain", Some(1_000_100_000)),
    ("pinfold-single", None),
];

/// Ids of one user: what `useradd` gives.
const SUBORDINATE_COUNT: u32 = 65_536;

/// Makes whatever of it is not there yet.
pub(crate) fn make() -> Result<()> {
    for (name, subordinate) in PEOPLE {
        if !exists(name)? {
            crate::run(as_root("useradd").args([
                "--create-home",
                "--shell",
                "/bin/sh",
                "--no-log-init",
                name,
            ]))?;
        }
        set_subordinate_ids(name, *subordinate)?;
    }
    delegate_control_groups()
}

fn exists(name: &str) -> Result<bool> {
    let status = Command::new("id")
        .arg(name)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("failed to run id")?;
    Ok(status.success())
}

/// `useradd` gives subordinate ids or not, as the machine is configured; here they are exact.
fn set_subordinate_ids(name: &str, base: Option<u32>) -> Result<()> {
    for file in ["/etc/subuid", "/etc/subgid"] {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let mut lines: Vec<String> = text
            .lines()
            .filter(|line| line.split(':').next() != Some(name))
            .map(str::to_owned)
            .collect();
        if let Some(base) = base {
            lines.push(format!("{name}:{base}:{SUBORDINATE_COUNT}"));
        }
        let wanted = lines.join("\n") + "\n";
        if wanted != text {
            write_as_root(file, &wanted)?;
        }
    }
    Ok(())
}

fn write_as_root(path: &str, content: &str) -> Result<()> {
    use std::io::Write as _;
    let mut child = as_root("tee")
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("failed to write {path}"))?;
    child
        .stdin
        .take()
        .context("no pipe to tee")?
        .write_all(content.as_bytes())?;
    if !child.wait()?.success() {
        bail!("failed to write {path}");
    }
    Ok(())
}

/// Gives the user a group of its own in each hierarchy, as `pinfold doctor` tells people to.
fn delegate_control_groups() -> Result<()> {
    for mount in hierarchies()? {
        let group = mount.join(DELEGATED);
        crate::run(as_root("mkdir").arg("-p").arg(&group))?;
        let mut owned: Vec<PathBuf> = vec![group.clone()];
        for name in [
            "tasks",
            "cgroup.procs",
            "cgroup.subtree_control",
            "cgroup.threads",
        ] {
            let file = group.join(name);
            if file.exists() {
                owned.push(file);
            }
        }
        let user = format!("{DELEGATED}:{DELEGATED}");
        crate::run(as_root("chown").arg(user).args(owned))?;
    }
    Ok(())
}

/// Where the control group hierarchies of use are mounted.
fn hierarchies() -> Result<BTreeSet<PathBuf>> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("failed to read mounts")?;
    let useful = ["cpu", "cpuacct", "memory", "pids", "freezer"];
    Ok(mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (mount, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
            let wanted = match kind {
                "cgroup2" => true,
                "cgroup" => options.split(',').any(|option| useful.contains(&option)),
                _ => false,
            };
            (wanted && Path::new(mount).is_dir()).then(|| PathBuf::from(mount))
        })
        .collect())
}
