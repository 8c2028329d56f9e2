//! Our terminal while a program inside has one: raw, and restored whatever happens.

use std::io::IsTerminal as _;

use pinfold_types::exec::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::error::CliError;

/// Size where none can be found out.
const SIZE_DEFAULT: TerminalSize = TerminalSize {
    columns: 80,
    rows: 24,
};

/// A raw terminal; restored when dropped, also while a panic unwinds.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Makes standard input raw.
    ///
    /// # Errors
    ///
    /// Fails when standard input is no terminal.
    pub(crate) fn enter() -> Result<Self, CliError> {
        let failed = || CliError::new("failed to make the terminal raw");
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).map_err(|error| failed().caused_by(&error))?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Drain, &raw)
            .map_err(|error| failed().caused_by(&error))?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // When the terminal has hung up there is nothing left to restore.
        let _hung_up = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// Checks that `-t` can be meant.
///
/// # Errors
///
/// Says what to leave out when standard input is no terminal.
pub(crate) fn require() -> Result<(), CliError> {
    if std::io::stdin().is_terminal() {
        return Ok(());
    }
    Err(CliError::new("standard input is not a terminal")
        .hint("leave out -t, or use -i alone to pass input on")
        .exit(2))
}

/// Returns the terminal's size.
pub(crate) fn size() -> TerminalSize {
    rustix::termios::tcgetwinsize(std::io::stdin())
        .ok()
        .filter(|size| size.ws_col > 0 && size.ws_row > 0)
        .map_or(SIZE_DEFAULT, |size| TerminalSize {
            columns: size.ws_col,
            rows: size.ws_row,
        })
}

/// Returns whether people look at standard error, so that progress helps.
pub(crate) fn progress_helps() -> bool {
    std::io::stderr().is_terminal()
}
