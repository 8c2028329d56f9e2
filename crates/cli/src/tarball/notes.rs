//! What was left out of a copy, for people: each name may be chosen to mislead them.

use std::path::Path;

/// Most notes of one copy: nobody reads more, and a hostile stream could go on for ever.
const NOTES_MAX: usize = 100;
/// Most characters of a name that a note repeats.
const NAME_CHARACTERS_MAX: usize = 200;

/// Notes of one copy.
#[derive(Debug, Default)]
pub(super) struct Notes {
    kept: Vec<String>,
    more: u64,
}

impl Notes {
    /// Notes something about a path.
    pub(super) fn add(&mut self, path: &Path, what: &str) {
        if self.kept.len() < NOTES_MAX {
            self.kept.push(format!("{} {what}", one_line(path)));
        } else {
            self.more += 1;
        }
    }

    /// Returns them, one line each.
    pub(super) fn into_lines(self) -> Vec<String> {
        let mut lines = self.kept;
        if self.more > 0 {
            lines.push(format!("{} more like these are not listed", self.more));
        }
        lines
    }
}

/// A name on one line: a line break in it would let it write the next line.
pub(super) fn one_line(path: &Path) -> String {
    let name = path.to_string_lossy();
    let mut line: String = name.chars().take(NAME_CHARACTERS_MAX).collect();
    if line.len() < name.len() {
        line.push('…');
    }
    line.replace('\n', "\\n").replace('\t', "\\t")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_few_and_of_one_line() {
        let mut notes = Notes::default();
        for _ in 0..NOTES_MAX + 5 {
            notes.add(Path::new("a\nhint: run me"), "was left out");
        }
        let lines = notes.into_lines();
        assert_eq!(lines.len(), NOTES_MAX + 1);
        assert_eq!(lines[0], "a\\nhint: run me was left out");
        assert_eq!(lines[NOTES_MAX], "5 more like these are not listed");
        assert!(one_line(Path::new(&"ü".repeat(10_000))).chars().count() <= 201);
    }
}
