//! What leaves a sandbox and a program of the host might later run by itself.
//!
//! Here is no I/O and nothing of `cp`: whoever takes files out of a sandbox asks about each, says
//! what was found, and with `strict` leaves it out. A file that is run only when somebody asks for it
//! (a `Makefile`, a source file) is not meant.

mod content;
mod rules;
#[cfg(test)]
mod tests;

use std::path::{Component, Path};

use serde::Serialize;

use self::rules::{Pattern, RULES};

/// Most bytes of a file that are looked into; one that is larger counts as if it held the worst.
pub(crate) const CONTENT_BYTES_MAX: usize = 1 << 20;
/// Most findings that are told; a hostile tree can hold any number.
pub(crate) const FINDINGS_MAX: usize = 1000;
/// Most names of a path that are compared.
const NAMES_MAX: usize = 2048;

const EXECUTABLE: &str = "executable";

/// Something that a program of the host might act on by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// Where it is, beneath the destination.
    pub(crate) path: String,
    /// What it is, in a word or two.
    pub(crate) kind: &'static str,
    /// What may run it, and when.
    pub(crate) why: &'static str,
    /// It was left out; of an executable or setuid file, only those bits.
    pub(crate) held: bool,
}

/// What is done with something that comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decision {
    /// It is written.
    pub(crate) take: bool,
    /// The bits of its mode less those that are held back. Setuid and its like may still be among
    /// them: whoever writes the file leaves them out.
    pub(crate) mode: u32,
}

/// Looks at everything that leaves a sandbox.
#[derive(Debug)]
pub(crate) struct Handoff {
    /// Names of the destination directory, since a copy may go right into `.git/hooks`.
    base: Vec<String>,
    strict: bool,
    findings: Vec<Finding>,
    more: u64,
    held: u64,
}

impl Handoff {
    /// Begins for what goes into a directory, whose path is absolute and without links.
    pub(crate) fn new(directory: &Path, strict: bool) -> Self {
        Self {
            base: names(directory),
            strict,
            findings: Vec::new(),
            more: 0,
            held: 0,
        }
    }

    /// Returns whether something may be left out.
    pub(crate) const fn is_strict(&self) -> bool {
        self.strict
    }

    /// Returns whether [`Handoff::file`] has to see what is in a file.
    pub(crate) fn needs_content(&self, path: &Path) -> bool {
        let names = self.names(path);
        RULES
            .iter()
            .any(|rule| rule.content.is_some() && rule.pattern.matches(&names))
    }

    /// Looks at a regular file. `head` is what is in it, up to a byte more than
    /// [`CONTENT_BYTES_MAX`]; it may be empty when nobody needs it.
    pub(crate) fn file(&mut self, path: &Path, mode: u32, head: &[u8]) -> Decision {
        let names = self.names(path);
        let whole = head.len() <= CONTENT_BYTES_MAX;
        let found = RULES.iter().find(|rule| {
            rule.pattern.matches(&names)
                && rule.content.is_none_or(|content| !whole || content(head))
        });
        let mut decision = Decision { take: true, mode };
        let found = found
            .map(|rule| (rule.kind, rule.why))
            .or_else(|| misleading(path));
        if let Some((kind, why)) = found {
            decision.take = !self.strict;
            self.note(path, kind, why, self.strict);
        }
        if mode & 0o6000 != 0 {
            // They are never taken, whoever asks.
            self.note(
                path,
                "setuid",
                "it would run as its owner; the bit is left out",
                true,
            );
        }
        if decision.take && mode & 0o111 != 0 {
            if self.strict {
                decision.mode &= !0o111;
            }
            self.note(path, EXECUTABLE, "it can be run by its name", self.strict);
        }
        decision
    }

    /// Looks at a second name of a file that came before: what is in it is not looked into again.
    pub(crate) fn hard_link(&mut self, path: &Path) -> bool {
        let names = self.names(path);
        let found = RULES.iter().find(|rule| rule.pattern.matches(&names));
        self.judge(path, found.map(|rule| (rule.kind, rule.why)))
    }

    /// Looks at a symbolic link; answers whether it is written.
    pub(crate) fn symlink(&mut self, path: &Path, target: &Path) -> bool {
        let names = self.names(path);
        let found = RULES
            .iter()
            .find(|rule| rule.pattern.matches(&names) || rule.pattern.begins_at(&names))
            .map(|rule| (rule.kind, rule.why));
        let out = leads_out(path, target).then_some((
            "link out",
            "who follows it reads or writes outside of what was copied",
        ));
        self.judge(path, found.or(out))
    }

    /// Looks at a directory: only its name can mislead.
    pub(crate) fn directory(&mut self, path: &Path) {
        if let Some((kind, why)) = misleading(path) {
            self.note(path, kind, why, false);
        }
    }

    /// Returns what was found, what is not only executable first.
    pub(crate) fn finish(mut self) -> Found {
        self.findings
            .sort_by_key(|finding| finding.kind == EXECUTABLE);
        Found {
            findings: self.findings,
            more: self.more,
            held: self.held,
        }
    }

    fn judge(&mut self, path: &Path, found: Option<(&'static str, &'static str)>) -> bool {
        let Some((kind, why)) = found.or_else(|| misleading(path)) else {
            return true;
        };
        self.note(path, kind, why, self.strict);
        !self.strict
    }

    fn note(&mut self, path: &Path, kind: &'static str, why: &'static str, held: bool) {
        // A setuid bit is always left out, which is nothing that `strict` did.
        self.held += u64::from(held && self.strict);
        if self.findings.len() >= FINDINGS_MAX {
            self.more += 1;
            return;
        }
        self.findings.push(Finding {
            path: path.to_string_lossy().into_owned(),
            kind,
            why,
            held,
        });
    }

    fn names(&self, path: &Path) -> Vec<String> {
        let mut all = self.base.clone();
        all.extend(names(path));
        all
    }
}

/// What was found, in all.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Found {
    /// The first of it.
    #[serde(rename = "handoff")]
    pub(crate) findings: Vec<Finding>,
    /// How much more there is.
    pub(crate) more: u64,
    /// How much was left out because that was wanted.
    pub(crate) held: u64,
}

/// The names of a path as the most forgiving file system or program compares them.
fn names(path: &Path) -> Vec<String> {
    // The last names are those that matter.
    let mut names: Vec<String> = path
        .components()
        .rev()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(folded(&name.to_string_lossy())),
            _ => None,
        })
        .take(NAMES_MAX)
        .collect();
    names.reverse();
    names
}

/// Folds what some file system takes for the same name: case, characters that show nothing, dots and
/// spaces at the end, a stream's name behind a colon, and a short name of `.git`.
fn folded(name: &str) -> String {
    let shown: String = name
        .chars()
        .filter(|character| !is_invisible(*character))
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
        .collect();
    let before_stream = match shown.split_once(':') {
        Some((before, _)) if !before.is_empty() => before,
        _ => &shown,
    };
    let trimmed = before_stream.trim_end_matches(['.', ' ']);
    match trimmed {
        "git~1" => ".git".to_owned(),
        "" => shown,
        _ => trimmed.to_owned(),
    }
}

/// Returns whether a character shows nothing, or turns the text around.
fn is_invisible(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

fn misleading(path: &Path) -> Option<(&'static str, &'static str)> {
    let last = path.file_name()?.to_string_lossy();
    let hides = last
        .chars()
        .any(|character| is_invisible(character) || character.is_control());
    hides.then_some((
        "misleading name",
        "it does not look like what it is: it holds characters that show nothing or turn text round",
    ))
}

/// Returns whether a link's target, by its text, is above the copy's top.
fn leads_out(path: &Path, target: &Path) -> bool {
    // The first name is the copy's own, so a link that is it has nothing beneath it to lead to.
    let mut depth = path.components().count().saturating_sub(2);
    if target.is_absolute() || path.components().count() < 2 {
        return target.is_absolute()
            || target.components().any(|part| part == Component::ParentDir);
    }
    for part in target.components() {
        match part {
            Component::ParentDir if depth == 0 => return true,
            Component::ParentDir => depth -= 1,
            Component::Normal(_) => depth += 1,
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    false
}

impl Pattern {
    fn matches(&self, names: &[String]) -> bool {
        let Some((last, above)) = names.split_last() else {
            return false;
        };
        match self {
            Self::Name(name) => last == name,
            Self::Ending(ending) => last.ends_with(ending),
            Self::End(path) => ends_with(names, path),
            Self::Under(path) => (1..=above.len())
                .any(|end| above.get(..end).is_some_and(|start| ends_with(start, path))),
            Self::In(directory, endings) => {
                above.last().is_some_and(|parent| parent == directory)
                    && endings.iter().any(|ending| last == ending)
            }
        }
    }

    /// Returns whether a link at that place could stand for a directory that the pattern names.
    fn begins_at(&self, names: &[String]) -> bool {
        match self {
            Self::Name(_) | Self::Ending(_) => false,
            Self::In(directory, _) => names.last().is_some_and(|last| last == directory),
            Self::End(path) => (1..path.len())
                .any(|end| path.get(..end).is_some_and(|start| ends_with(names, start))),
            Self::Under(path) => (1..=path.len())
                .any(|end| path.get(..end).is_some_and(|start| ends_with(names, start))),
        }
    }
}

fn ends_with(names: &[String], path: &[&str]) -> bool {
    names.len() >= path.len()
        && names
            .iter()
            .rev()
            .zip(path.iter().rev())
            .all(|(a, b)| a == b)
}
