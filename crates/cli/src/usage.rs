//! What is said when the words that were typed cannot be read.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::error::ErrorKind;

use crate::error::CliError;

/// Exit code of wrong usage.
const USAGE: u8 = 2;

/// Tells help, the version or an error, and returns what to exit with.
pub(crate) fn tell(error: &clap::Error) -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let is_error =
        error.use_stderr() && error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if is_error && asks_for_json(&words) {
        let text = error.render().to_string();
        let message = text.lines().next().unwrap_or_default();
        let message = message.strip_prefix("error: ").unwrap_or(message);
        let told = CliError::new(message)
            .maybe_hint(hint(error, &words).map(str::to_owned))
            .exit(USAGE);
        return end(&format!("{}\n", told.to_json()));
    }
    // Nobody is left to be told when the output is closed.
    let _nobody_listens = error.print();
    if let Some(hint) = hint(error, &words) {
        return end(&format!("\nhint: {hint}\n"));
    }
    u8::try_from(error.exit_code()).unwrap_or(USAGE).into()
}

fn end(text: &str) -> ExitCode {
    let mut stderr = std::io::stderr().lock();
    let _nobody_listens = stderr.write_all(text.as_bytes());
    USAGE.into()
}

fn before_the_command(words: &[OsString]) -> impl Iterator<Item = &OsString> {
    words.iter().skip(1).take_while(|word| *word != "--")
}

fn asks_for_json(words: &[OsString]) -> bool {
    before_the_command(words).any(|word| word == "--json")
}

/// A command whose options were taken for ours.
fn hint(error: &clap::Error, words: &[OsString]) -> Option<&'static str> {
    let verb = |name: &str| before_the_command(words).any(|word| word == name);
    let meant = match error.kind() {
        ErrorKind::UnknownArgument => verb("exec") || verb("run"),
        // It may have the name of one of ours.
        ErrorKind::InvalidValue | ErrorKind::ValueValidation | ErrorKind::ArgumentConflict => {
            verb("exec")
        }
        _ => false,
    };
    let unseparated = !words.iter().any(|word| word == "--");
    (meant && unseparated)
        .then_some("write `--` before the program to run, as in `pinfold exec NAME -- ls -l`")
}
