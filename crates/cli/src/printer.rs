//! The only place that writes to the terminal.
//!
//! Standard output is data; everything else goes to standard error. When the reader of standard
//! output goes away, we end quietly like other tools do.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use anstream::ColorChoice;
use owo_colors::OwoColorize as _;
use pinfold_linux::weaken::{Defence, is_off};
use serde::Serialize;

use crate::error::CliError;

/// Narrowest width that can be wished for.
const WIDTH_MIN: usize = 20;

/// Longest line of a table where the width of the terminal is unknown.
const WIDTH_DEFAULT: usize = 80;

/// How to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printer {
    /// JSON instead of tables.
    pub(crate) json: bool,
    /// Neither progress nor notes.
    pub(crate) quiet: bool,
}

/// Decides about colours once for the whole process.
pub(crate) fn choose_color(word: Option<&str>) {
    let choice = match word {
        Some("always") => ColorChoice::Always,
        Some("never") => ColorChoice::Never,
        _ => ColorChoice::Auto,
    };
    choice.write_global();
}

/// Returns the width that a table may have: the terminal's, and none when nobody looks.
pub(crate) fn table_width() -> Option<usize> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        // Nobody exports it by chance: whoever pipes a table and sets it wants that width.
        return width_of(std::env::var("COLUMNS").ok().as_deref());
    }
    let width = rustix::termios::tcgetwinsize(&stdout).map_or(0, |size| usize::from(size.ws_col));
    Some(if width == 0 { WIDTH_DEFAULT } else { width })
}

/// Reads a width; what is none, or too narrow for any table, is no wish.
fn width_of(columns: Option<&str>) -> Option<usize> {
    columns?
        .trim()
        .parse()
        .ok()
        .filter(|width| *width >= WIDTH_MIN)
}

#[expect(clippy::unused_self, reason = "whoever prints has to hold the printer")]
impl Printer {
    /// Writes data.
    ///
    /// # Errors
    ///
    /// Fails when standard output cannot be written.
    pub(crate) fn data(self, text: &str) -> Result<(), CliError> {
        let mut stdout = anstream::stdout().lock();
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush())
            .map_err(|error| output_error(&error))
    }

    /// Writes one line of data.
    ///
    /// # Errors
    ///
    /// Fails when standard output cannot be written.
    pub(crate) fn line(self, text: &str) -> Result<(), CliError> {
        self.data(&format!("{text}\n"))
    }

    /// Writes a value as JSON for people and programs.
    ///
    /// # Errors
    ///
    /// Fails when standard output cannot be written.
    pub(crate) fn value(self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| CliError::new("failed to write JSON").caused_by(&error))?;
        self.line(&text)
    }

    /// Says something by the way.
    pub(crate) fn note(self, text: &str) {
        if !self.quiet {
            say(&format!("{} {}", "note:".cyan(), printable(text)));
        }
    }

    /// Warns.
    pub(crate) fn warn(self, text: &str) {
        say(&format!(
            "{} {}",
            "warning:".yellow().bold(),
            printable(text)
        ));
    }

    /// Shows something that is not the data that was asked for.
    pub(crate) fn aside(self, text: &str) {
        say(printable(text).trim_end());
    }

    /// Tells a failure: what, why, and what to do.
    pub(crate) fn error(self, error: &CliError) {
        if error.is_quiet() {
            return;
        }
        if self.json {
            say(&error.to_json());
            return;
        }
        let mut text = format!("{} {}", "error:".red().bold(), printable(error.message()));
        for cause in error.causes() {
            let cause = printable(cause);
            let _infallible = write!(text, "\n  {} {cause}", "caused by:".red());
        }
        if let Some(hint) = error.hint_text() {
            let hint = printable(hint);
            let _infallible = write!(
                text,
                "

{} {hint}",
                "hint:".green().bold()
            );
        }
        say(&text);
    }
}

fn say(text: &str) {
    let mut stderr = anstream::stderr().lock();
    // There is nobody left to tell when standard error is closed.
    let _nobody_listens = writeln!(stderr, "{text}");
}

/// Turns a failure to write our output into what we end with.
pub(crate) fn output_error(error: &io::Error) -> CliError {
    if error.kind() == io::ErrorKind::BrokenPipe {
        CliError::broken_pipe()
    } else {
        CliError::new("failed to write the output").caused_by(error)
    }
}

/// Makes control characters visible: a message may hold text that a guest chose.
pub(crate) fn printable(text: &str) -> String {
    if is_off(Defence::Printable) {
        return text.to_owned();
    }
    let mut clean = String::with_capacity(text.len());
    for character in text.chars() {
        let breaks = matches!(character, '\n' | '\t');
        if (character.is_control() && !breaks) || turns_around(character) {
            clean.extend(character.escape_default());
        } else {
            clean.push(character);
        }
    }
    clean
}

/// Returns whether a character changes the order or the lines in which others are shown, so that
/// a text reads as another.
pub(crate) fn turns_around(character: char) -> bool {
    matches!(
        character,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_width_that_is_none_is_no_wish() {
        assert_eq!(width_of(Some("60")), Some(60));
        for none in [None, Some(""), Some("0"), Some("-5"), Some("wide")] {
            assert_eq!(width_of(none), None);
        }
    }

    #[test]
    fn a_guests_text_cannot_drive_the_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\r"), "a\\u{1b}[31mb\\r");
        assert_eq!(printable("höflich\n"), "höflich\n");
        assert_eq!(printable("\u{9b}31m"), "\\u{9b}31m");
        assert_eq!(printable("cod.\u{202e}txt"), "cod.\\u{202e}txt");
    }
}
