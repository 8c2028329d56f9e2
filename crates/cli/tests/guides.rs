//! The guides' examples, run as they stand.
//!
//! In a block marked `console`, a line that begins with `$ ` is a command for bash and the lines
//! after it are what it prints, standard error included; `...` alone stands for any lines, `[..]`
//! for any text within a line, and a last line `[exit N]` for its exit code.

#![cfg(test)]

use std::path::{Path, PathBuf};

#[path = "world/world.rs"]
mod world;

use world::{Person, World};

#[derive(Debug)]
struct Example {
    place: String,
    command: String,
    expected: Vec<String>,
    code: i32,
}

fn examples(path: &Path) -> Vec<Example> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut examples: Vec<Example> = Vec::new();
    let mut inside = false;
    for (index, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            inside = line == "```console";
            continue;
        }
        if !inside {
            continue;
        }
        if let Some(command) = line.strip_prefix("$ ") {
            examples.push(Example {
                place: format!("{}:{}", path.display(), index + 1),
                command: command.to_owned(),
                expected: Vec::new(),
                code: 0,
            });
        } else if let Some(last) = examples.last_mut() {
            let code = line
                .strip_prefix("[exit ")
                .and_then(|rest| rest.strip_suffix(']'));
            match code.and_then(|code| code.parse().ok()) {
                Some(code) => last.code = code,
                None => last.expected.push(line.trim_end().to_owned()),
            }
        }
    }
    examples
}

fn line_matches(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split("[..]");
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        last = Some(part);
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    match last {
        None => rest.is_empty(),
        Some(part) => part.is_empty() || rest.is_empty() || line.ends_with(part),
    }
}

fn matches(pattern: &[String], lines: &[&str]) -> bool {
    match pattern.split_first() {
        None => lines.is_empty(),
        Some((first, rest)) if first == "..." => {
            (0..=lines.len()).any(|skip| matches(rest, &lines[skip..]))
        }
        Some((first, rest)) => lines
            .split_first()
            .is_some_and(|(line, others)| line_matches(first, line) && matches(rest, others)),
    }
}

fn follow(guide: &str, person: Person) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide");
    let examples = examples(&root.join(guide));
    assert!(!examples.is_empty(), "{guide} has no examples");
    let world = World::new(person);
    let product = PathBuf::from(world.pinfold(["x"]).get_program());
    let product = if product.ends_with("pinfold") {
        product
    } else {
        // The product comes after the words that make another user.
        PathBuf::from(
            world
                .pinfold(["x"])
                .get_args()
                .find(|word| Path::new(word).ends_with("pinfold"))
                .unwrap(),
        )
    };
    let path = format!("{}:/usr/bin:/bin", product.parent().unwrap().display());
    for example in examples {
        let output = world
            .command(Path::new("/bin/bash"))
            .args(["-c", &format!("exec 2>&1; {}", example.command)])
            .env("PATH", &path)
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines: Vec<&str> = printed.lines().map(str::trim_end).collect();
        let place = &example.place;
        assert!(
            matches(&example.expected, &lines),
            "{place}: {example:?} printed\n{printed}"
        );
        assert_eq!(
            output.status.code(),
            Some(example.code),
            "{place}: {printed}"
        );
    }
}

#[test]
fn every_guide_is_followed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide");
    let mut guides: Vec<String> = std::fs::read_dir(root)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| Path::new(name).extension().is_some_and(|end| end == "md"))
        .collect();
    guides.sort();
    assert!(guides.len() >= 4, "{guides:?}");
    for guide in guides {
        follow(&guide, Person::Root);
    }
}

#[test]
fn the_first_guide_holds_for_an_ordinary_user() {
    follow("getting-started.md", Person::Plain);
    follow("getting-started.md", Person::Single);
}

#[test]
fn patterns_match_what_they_should() {
    assert!(line_matches("a[..]c", "abbc"));
    assert!(!line_matches("a[..]c", "abbd"));
    assert!(line_matches("[..]", ""));
    let pattern = |lines: &[&str]| {
        lines
            .iter()
            .map(|line| (*line).to_owned())
            .collect::<Vec<_>>()
    };
    assert!(matches(&pattern(&["a", "...", "z"]), &["a", "b", "z"]));
    assert!(!matches(&pattern(&["a"]), &["a", "b"]));
    assert!(matches(&pattern(&[]), &[]));
}
