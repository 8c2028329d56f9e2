//! Checks of the repository's own text that no lint makes.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// File and module names that say nothing of what is inside.
const EMPTY_NAMES: &[&str] = &[
    "util", "utils", "common", "helper", "helpers", "misc", "shared",
];

/// A text that must not stand in a Rust file, and why.
struct Forbidden {
    text: &'static str,
    reason: &'static str,
}

// The texts are split so that this file does not find itself.
const FORBIDDEN: &[Forbidden] = &[
    Forbidden {
        text: concat!("#[", "ignore"),
        reason: "an ignored test shows nothing",
    },
    Forbidden {
        text: concat!("unbounded", "_channel"),
        reason: "every queue has a named limit",
    },
    Forbidden {
        text: concat!("thread::", "sleep"),
        reason: "wait for the condition itself",
    },
    Forbidden {
        text: concat!("to", "do!("),
        reason: "unfinished",
    },
    Forbidden {
        text: concat!("unimpl", "emented!("),
        reason: "unfinished",
    },
    Forbidden {
        text: concat!("#[", "allow("),
        reason: "use #[expect(lint, reason = ...)]",
    },
];

/// Fails and names every place that breaks a rule.
pub(crate) fn check(root: &Path) -> Result<()> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("failed to list the files")?;
    if !output.status.success() {
        bail!(
            "git ls-files failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let listed = String::from_utf8_lossy(&output.stdout);
    let files: Vec<&str> = listed.lines().collect();
    let mut wrong = crate::claims::problems(root, &files)?;
    for file in files {
        if let Some(problem) = name_problem(file) {
            wrong.push(problem);
        }
        let path = root.join(file);
        if Path::new(file).extension().is_some_and(|end| end == "rs")
            && !file.contains("/generated/")
            && path.exists()
        {
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("failed to read {file}"))?;
            wrong.extend(text_problems(file, &text));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("{} places to mend:\n  {}", wrong.len(), wrong.join("\n  "))
}

fn name_problem(file: &str) -> Option<String> {
    let stem = Path::new(file).file_stem()?.to_str()?;
    let folder = Path::new(file)
        .parent()?
        .file_name()
        .and_then(|name| name.to_str());
    let empty = |name: &str| EMPTY_NAMES.contains(&name);
    (empty(stem) || folder.is_some_and(empty))
        .then(|| format!("{file}: name it after what it does"))
}

fn text_problems(file: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let place = format!("{file}:{}", index + 1);
        for rule in FORBIDDEN.iter().filter(|rule| line.contains(rule.text)) {
            wrong.push(format!("{place}: `{}`: {}", rule.text, rule.reason));
        }
        if line.contains("#[error(") && line.contains(concat!("{", "source")) {
            wrong.push(format!(
                "{place}: an error's text must not repeat its source"
            ));
        }
        let marker = concat!("TO", "DO");
        if line.contains(marker) && !line.contains(concat!("TO", "DO(#")) {
            wrong.push(format!("{place}: a {marker} carries an issue number"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_finds_its_fault() {
        for rule in FORBIDDEN {
            assert_eq!(text_problems("a.rs", rule.text).len(), 1, "{}", rule.text);
        }
        let repeated = concat!("#[er", "ror(\"failed: {source}\")]");
        assert_eq!(text_problems("a.rs", repeated).len(), 1);
        assert_eq!(text_problems("a.rs", concat!("// TO", "DO later")).len(), 1);
        assert!(text_problems("a.rs", concat!("// TO", "DO(#7): later")).is_empty());
    }

    #[test]
    fn names_that_say_nothing_are_refused() {
        assert!(name_problem("crates/a/src/utils.rs").is_some());
        assert!(name_problem("crates/a/src/common/x.rs").is_some());
        assert!(name_problem("crates/a/src/journal.rs").is_none());
    }
}
