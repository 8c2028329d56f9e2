//! What in a file makes a program run something.
//!
//! Each answer errs towards yes: what cannot be read as what it should be is not trusted.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Keys of `[core]` that name a program or a place of programs.
const CORE: &[&str] = &[
    "fsmonitor",
    "sshcommand",
    "hookspath",
    "pager",
    "editor",
    "askpass",
    "gitproxy",
    "alternaterefscommand",
    "worktree",
    "attributesfile",
    "excludesfile",
    "virtualfilesystem",
];
/// Sections of which every key is one, with or without a part of their own.
const SECTIONS: &[&str] = &[
    "include",
    "includeif",
    "filter",
    "alias",
    "credential",
    "pager",
    "browser",
    "man",
    "difftool",
    "mergetool",
    "guitool",
    "sequence",
    "trailer",
    "tar",
    "gitcvs",
    "instaweb",
    "hook",
    "sendemail",
    "interactive",
    "imap",
];
/// Keys that are one in any other section.
const KEYS: &[&str] = &[
    "command",
    "cmd",
    "textconv",
    "driver",
    "program",
    "process",
    "clean",
    "smudge",
    "helper",
    "uploadpack",
    "receivepack",
    "vcs",
    "proxy",
    "insteadof",
    "pushinsteadof",
    "packobjectshook",
    "editor",
    "pager",
    "external",
    "difffilter",
    "sshcommand",
    "hookspath",
    "path",
];

/// Returns whether a git configuration names a program, or another file that could.
pub(super) fn git_config(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes).to_lowercase();
    let mut section = String::new();
    for line in text.trim_start_matches('\u{feff}').lines() {
        let mut rest = line.trim();
        if let Some(inner) = rest.strip_prefix('[') {
            let Some((head, after)) = split_section(inner) else {
                return true;
            };
            // `[core "x"]` is not `[core]`, and `[filter.x]` is an old way to write `[filter "x"]`.
            let name = head
                .split(|c: char| c == '.' || c == '"' || c.is_whitespace())
                .next()
                .unwrap_or_default();
            name.clone_into(&mut section);
            rest = after.trim();
        }
        if rest.is_empty() || rest.starts_with(['#', ';']) {
            continue;
        }
        let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
        if is_dangerous(&section, key.trim(), value.trim()) {
            return true;
        }
    }
    false
}

/// Splits `core] key = value`, where a quoted part may hold a bracket.
fn split_section(text: &str) -> Option<(&str, &str)> {
    let mut quoted = false;
    let mut escaped = false;
    for (index, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ']' if !quoted => return Some((text.get(..index)?, text.get(index + 1..)?)),
            _ => {}
        }
    }
    None
}

fn is_dangerous(section: &str, key: &str, value: &str) -> bool {
    match section {
        "core" if key == "fsmonitor" => !matches!(value, "true" | "false"),
        "core" => CORE.contains(&key),
        "submodule" if key == "update" => value.contains('!'),
        "protocol" => value.contains("always"),
        "merge" | "diff" | "gpg" | "remote" | "url" | "submodule" | "uploadpack" | "gui" => {
            KEYS.contains(&key)
        }
        _ => SECTIONS.contains(&section) || KEYS.contains(&key),
    }
}

/// Returns whether attributes name a program of the configuration.
pub(super) fn git_attributes(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes).to_lowercase();
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .flat_map(str::split_whitespace)
        .any(|word| {
            ["filter=", "diff=", "merge="]
                .iter()
                .any(|key| word.starts_with(key))
        })
}

#[derive(Deserialize)]
struct Scripts {
    #[serde(default)]
    scripts: BTreeMap<String, serde_json::Value>,
}

fn scripts_of(bytes: &[u8], run_by_itself: &[&str]) -> bool {
    serde_json::from_slice::<Scripts>(bytes).map_or(true, |package| {
        let mut names = package.scripts.keys();
        names.any(|name| run_by_itself.contains(&name.to_lowercase().as_str()))
    })
}

/// Returns whether an npm package has scripts that an install runs.
pub(super) fn package_scripts(bytes: &[u8]) -> bool {
    scripts_of(
        bytes,
        &[
            "preinstall",
            "install",
            "postinstall",
            "preprepare",
            "prepare",
            "postprepare",
            "prepublish",
            "dependencies",
        ],
    )
}

/// Returns whether a composer package has scripts that an install runs.
pub(super) fn composer_scripts(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Scripts>(bytes).map_or(true, |package| {
        let mut names = package.scripts.keys();
        names.any(|name| name.starts_with("pre-") || name.starts_with("post-"))
    })
}
