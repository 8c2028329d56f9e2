//! Whether a log is whole: nothing changed, taken out, put elsewhere or cut off.

use std::io;
use std::path::Path;

use super::line::{BEGINNING, Line, Unreadable, claimed_hash};
use super::writer::{FILES_MAX, files, first_seq, read};

/// Problems that are named; a log with more is no log.
const PROBLEMS_MAX: usize = 100;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Name of the file.
    pub file: String,
    /// Number of the line in it, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Lines that were read.
    pub lines: u64,
    /// Files that they are in.
    pub files: usize,
    /// Number of the first line.
    pub first_seq: u64,
    /// Number of the last line.
    pub last_seq: u64,
    /// Hash of the last line: remembered elsewhere, it shows later that nothing was cut off.
    pub head: String,
    /// Lines behind the one with the expected hash.
    pub beyond_expected: Option<u64>,
    /// What is wrong; nothing when the log is whole.
    pub problems: Vec<Problem>,
}

/// Reads a log and checks its chain. With `expected`, the hash of a line that must be there. Blocks.
///
/// # Errors
///
/// Returns why the files cannot be read.
pub fn verify(directory: &Path, expected: Option<&str>) -> io::Result<Verified> {
    let paths = files(directory)?;
    let mut check = Check {
        found: Verified {
            files: paths.len(),
            head: BEGINNING.to_owned(),
            ..Verified::default()
        },
        expected,
        file: String::new(),
        rotated: paths.len() >= FILES_MAX,
    };
    for (index, path) in paths.iter().enumerate() {
        check.file = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let named = first_seq(path).unwrap_or(0);
        if index > 0 && named != check.found.last_seq + 1 {
            check.problem(
                1,
                format!("the file's name says that it begins with {named}"),
            );
        }
        check.file(&read(path)?, index + 1 == paths.len());
    }
    if expected.is_some() && check.found.beyond_expected.is_none() {
        check.problem(
            0,
            "no line has the expected hash: the log was cut off or written anew".to_owned(),
        );
    }
    Ok(check.found)
}

/// Reads every line that can be read, oldest first. Blocks.
///
/// # Errors
///
/// Returns why the files cannot be read.
pub fn lines(directory: &Path, mut each: impl FnMut(Line)) -> io::Result<()> {
    for path in files(directory)? {
        for text in read(&path)?.split(|byte| *byte == b'\n') {
            if let Ok(written) = Line::decode(text) {
                each(written.line);
            }
        }
    }
    Ok(())
}

struct Check<'a> {
    found: Verified,
    expected: Option<&'a str>,
    file: String,
    /// The oldest files have gone, as they should.
    rotated: bool,
}

impl Check<'_> {
    fn problem(&mut self, line: usize, what: String) {
        if self.found.problems.len() < PROBLEMS_MAX {
            let file = self.file.clone();
            self.found.problems.push(Problem { file, line, what });
        }
    }

    fn file(&mut self, bytes: &[u8], last: bool) {
        let mut rest = bytes;
        let mut number = 0;
        while !rest.is_empty() {
            number += 1;
            let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
                let what = if last {
                    "the last line is torn: the daemon was ended while it wrote it, or it was cut off"
                } else {
                    "the last line of the file is cut off"
                };
                self.problem(number, what.to_owned());
                return;
            };
            let (text, behind) = rest.split_at(end);
            rest = behind.get(1..).unwrap_or_default();
            self.line(number, text);
        }
    }

    fn line(&mut self, number: usize, text: &[u8]) {
        let wanted = self.found.last_seq + 1;
        let written = match Line::decode(text) {
            Ok(written) => written,
            Err(fault) => {
                let what = match fault {
                    Unreadable::Form => format!("line {wanted} is no line of an audit log"),
                    Unreadable::Hash => format!("line {wanted} was changed: its hash is another"),
                };
                self.problem(number, what);
                self.skip(text);
                return;
            }
        };
        let (seq, first) = (written.line.seq, self.found.lines == 0);
        if first {
            self.found.first_seq = seq;
            if seq != 1 && !self.rotated {
                self.problem(
                    number,
                    format!("lines 1 to {} are missing", seq.saturating_sub(1)),
                );
            }
        } else if seq > wanted {
            self.problem(number, format!("lines {wanted} to {} are missing", seq - 1));
        } else if seq < wanted {
            self.problem(
                number,
                format!("line {seq} stands behind line {}", wanted - 1),
            );
        }
        let begins = first && (seq != 1 || written.line.previous == BEGINNING);
        if written.line.previous != self.found.head && !begins && (first || seq == wanted) {
            self.problem(
                number,
                format!("line {seq} does not follow the line before it: one of them was replaced"),
            );
        }
        self.found.lines += 1;
        self.found.last_seq = seq;
        self.found.beyond_expected = self.found.beyond_expected.map(|beyond| beyond + 1);
        if self.expected == Some(written.hash.as_str()) {
            self.found.beyond_expected = Some(0);
        }
        self.found.head = written.hash;
    }

    /// Goes on behind a line that cannot be believed: what follows claims to follow its hash.
    fn skip(&mut self, text: &[u8]) {
        self.found.lines += 1;
        self.found.last_seq += 1;
        self.found.head = claimed_hash(text);
    }
}
