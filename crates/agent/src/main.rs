//! The guest agent as a static binary: `init` inside a sandbox, `launcher` on the host.

use std::io::Write as _;
use std::process::ExitCode;

/// What went wrong before the binary knew what to be.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        // The sandbox's id may follow, so that it shows in a list of processes.
        Some("init") => pinfold_agent::init(),
        Some("launcher") => ExitCode::from(pinfold_linux::launcher::serve()),
        Some("--version") => {
            let line = format!("pinfold-agent {}\n", pinfold_agent::VERSION);
            match std::io::stdout().write_all(line.as_bytes()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        _ => complain("say `init`, `launcher` or `--version`"),
    }
}

/// Standard error is a log of the host's; if even that is gone nobody is left to be told.
fn complain(message: &str) -> ExitCode {
    drop(writeln!(std::io::stderr(), "pinfold-agent: {message}"));
    ExitCode::from(EXIT_USAGE)
}
