//! Checks that the crates depend on each other only as the table allows.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// For each crate, the ones of ours that it may use. Layers go downward only.
const ALLOWED: &[(&str, &[&str])] = &[
    ("pinfold-types", &[]),
    ("pinfold-agent-api", &[]),
    ("pinfold-linux", &["pinfold-types"]),
    (
        "pinfold-agent",
        &["pinfold-types", "pinfold-agent-api", "pinfold-linux"],
    ),
    ("pinfold-image", &["pinfold-types", "pinfold-linux"]),
    ("pinfold-net", &["pinfold-types", "pinfold-linux"]),
    ("pinfold-driver", &["pinfold-types", "pinfold-agent-api"]),
    (
        "pinfold-driver-native",
        &[
            "pinfold-types",
            "pinfold-driver",
            "pinfold-linux",
            "pinfold-image",
            "pinfold-net",
        ],
    ),
    (
        "pinfold-engine",
        &[
            "pinfold-types",
            "pinfold-driver",
            "pinfold-image",
            "pinfold-net",
        ],
    ),
    ("pinfold-client", &["pinfold-types"]),
    ("pinfold-server", &["pinfold-types", "pinfold-engine"]),
    ("pinfold-bench", &[]),
    (
        "pinfold-fuzz",
        &[
            "pinfold",
            "pinfold-types",
            "pinfold-linux",
            "pinfold-agent",
            "pinfold-image",
            "pinfold-driver",
            "pinfold-engine",
            "pinfold-server",
        ],
    ),
    ("pinfold-attack", &[]),
    ("xtask", &[]),
];

/// The composition root may use every crate of ours.
const COMPOSITION_ROOT: &str = "pinfold";

/// Fails and names every edge that the table does not hold.
pub(crate) fn check(root: &Path) -> Result<()> {
    let output = Command::new("cargo")
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(root)
        .output()
        .context("failed to run cargo metadata")?;
    if !output.status.success() {
        bail!(
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("failed to read it")?;
    let wrong = wrong_edges(&metadata);
    if wrong.is_empty() {
        return Ok(());
    }
    bail!(
        "dependencies that the table in ARCHITECTURE.md does not hold:\n  {}",
        wrong.join("\n  ")
    )
}

fn wrong_edges(metadata: &Value) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        if name == COMPOSITION_ROOT {
            continue;
        }
        let Some(may_use) = allowed.get(name) else {
            wrong.push(format!("{name} is not in the table"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            // Tests may use what they like of the lower layers and of themselves.
            if dependency["kind"].as_str() == Some("dev") {
                continue;
            }
            let used = dependency["name"].as_str().unwrap_or_default();
            let ours = used == COMPOSITION_ROOT || used.starts_with("pinfold-");
            if ours && !may_use.contains(&used) {
                wrong.push(format!("{name} -> {used}"));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(name: &str, uses: &str) -> Value {
        json!({"packages": [{"name": name, "dependencies": [{"name": uses, "kind": null}]}]})
    }

    #[test]
    fn an_upward_edge_and_an_unknown_crate_are_named() {
        assert_eq!(
            wrong_edges(&package("pinfold-types", "pinfold-engine")),
            ["pinfold-types -> pinfold-engine"]
        );
        assert_eq!(
            wrong_edges(&package("pinfold-new", "serde")),
            ["pinfold-new is not in the table"]
        );
        assert!(wrong_edges(&package("pinfold-linux", "pinfold-types")).is_empty());
        assert!(wrong_edges(&package("pinfold", "pinfold-engine")).is_empty());
    }
}
