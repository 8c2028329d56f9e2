//! What the threat model claims is shown by tests: each that it names is there.

use std::path::Path;

use anyhow::{Context as _, Result};

/// The page whose claims are checked.
const PAGE: &str = "THREAT-MODEL.md";
/// The list of all attacks, which the test `attack` keeps true.
const ATTACKS: &str = "docs/reference/attacks.md";

/// Returns what the page names that is not there, and the claims that nothing is named for.
pub(crate) fn problems(root: &Path, files: &[&str]) -> Result<Vec<String>> {
    let read = |file: &str| {
        std::fs::read_to_string(root.join(file)).with_context(|| format!("failed to read {file}"))
    };
    let attacks = read(ATTACKS)?;
    let mut tests = Vec::new();
    for file in files.iter().filter(|file| file.starts_with("crates/")) {
        let source = Path::new(file).extension().is_some_and(|end| end == "rs");
        if source && root.join(file).exists() {
            let text = read(file)?;
            // What a macro makes of a property is a test too.
            if text.contains("::test]") || text.contains("#[test]") || text.contains("#[test_case")
            {
                tests.push(((*file).to_owned(), text));
            }
        }
    }
    Ok(claims(&read(PAGE)?)
        .into_iter()
        .flat_map(|(line, shown_by)| {
            let names = names(shown_by);
            let nothing = names
                .is_empty()
                .then(|| format!("{PAGE}:{line}: nothing shows this claim"));
            let unknown = names
                .into_iter()
                .filter(|name| !is_known(name, &attacks, &tests))
                .map(move |name| format!("{PAGE}:{line}: there is no attack or test `{name}`"));
            nothing.into_iter().chain(unknown).collect::<Vec<_>>()
        })
        .collect())
}

/// Returns the last column of each row of claims, and its line.
fn claims(page: &str) -> Vec<(usize, &str)> {
    page.lines()
        .enumerate()
        .filter(|(_, line)| line.starts_with("| ") && !line.starts_with("| the attacker"))
        .filter_map(|(index, line)| {
            let shown_by = line.trim_end().strip_suffix('|')?.rsplit(" | ").next()?;
            Some((index + 1, shown_by))
        })
        .collect()
}

/// Returns what stands in back quotes.
fn names(shown_by: &str) -> Vec<&str> {
    shown_by.split('`').skip(1).step_by(2).collect()
}

/// Returns whether a name is an attack's, the beginning of some, a group's, a crate's, a module's
/// with tests or a test's.
fn is_known(name: &str, attacks: &str, tests: &[(String, String)]) -> bool {
    if let Some(beginning) = name.strip_suffix('…') {
        return attacks.contains(&format!("\n| `{beginning}"));
    }
    if attacks.contains(&format!("\n| `{name}` |")) || attacks.contains(&format!("\n## {name}\n")) {
        return true;
    }
    let mut folders: Vec<&str> = name.split("::").collect();
    let last = folders.pop().unwrap_or_default();
    tests.iter().any(|(file, text)| {
        let path = file.trim_end_matches(".rs");
        let beneath = folders
            .iter()
            .all(|folder| path.split('/').any(|part| part == *folder));
        let module = path.split('/').any(|part| part == last);
        beneath && (module || text.contains(&format!("fn {last}(")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_attacks_groups_modules_and_tests() {
        let attacks = "\n## host\n\n| attack |\n| `host-file` | x |\n";
        let tests = [(
            "crates/engine/src/tests/pools.rs".to_owned(),
            "#[test]\nfn a_claim() {}".to_owned(),
        )];
        let known = |name| is_known(name, attacks, &tests);
        for name in [
            "host",
            "host-file",
            "host-…",
            "engine",
            "engine::pools",
            "engine::pools::a_claim",
            "pools",
        ] {
            assert!(known(name), "{name}");
        }
        for name in [
            "host-",
            "guest-…",
            "cli::pools",
            "engine::pools::other",
            "linux",
        ] {
            assert!(!known(name), "{name}");
        }
    }

    #[test]
    fn a_row_is_read_from_its_last_column() {
        let page = "| the attacker | x | shown by |\n|---|---|---|\n| a | `b` | `c`, test `d` |\n";
        let found = claims(page);
        assert_eq!(found, [(3, "`c`, test `d` ")]);
        assert_eq!(names(found[0].1), ["c", "d"]);
    }
}
