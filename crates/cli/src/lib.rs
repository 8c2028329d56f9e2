//! The pinfold command line and daemon.
//!
//! Here is the one place where the parts are put together: `daemon` names the concrete driver, and
//! everything else is a client of the public API. Only `printer` and `output` write to the
//! terminal.

mod agent_binary;
mod allocator;
mod arguments;
mod autostart;
mod config;
mod context;
mod daemon;
mod defaults;
mod environment;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod handoff;
mod listen;
mod log_file;
#[cfg(test)]
mod migrating;
mod output;
mod pools;
mod port;
mod printer;
mod program;
mod remote;
mod request;
mod session;
mod shown;
mod signals;
mod table;
mod tarball;
mod terminal;
mod traces;
mod usage;
mod verb;
mod view;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;

use crate::arguments::{Arguments, Verb};
use crate::config::{Config, Sources};
use crate::error::CliError;
use crate::printer::Printer;

/// The hidden verb of the program that unpacks images in another user namespace.
const UNPACK: &str = "internal-unpack";

/// Runs the program with the arguments of this process and returns what it exits with.
pub fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == UNPACK) {
        let words: Vec<OsString> = words.collect();
        let (mut input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
        return pinfold_image::worker::serve(&words, &mut input, &mut output).into();
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage::tell(&error),
    };
    let printer = Printer {
        json: arguments.global.json,
        quiet: arguments.global.quiet,
    };
    match perform(arguments, printer) {
        Ok(code) => code.into(),
        Err(error) => {
            printer.error(&error);
            error.exit_code().into()
        }
    }
}

fn perform(arguments: Arguments, printer: Printer) -> Result<u8, CliError> {
    let mut flags = arguments.global.settings();
    if let Verb::Serve(serve) = &arguments.verb {
        if arguments.global.elsewhere.host.is_some() {
            return Err(CliError::new(
                "`serve` runs a daemon here, and --host names one elsewhere",
            )
            .hint("name the address of its port with --listen")
            .exit(2));
        }
        flags.extend(serve.settings());
    }
    let sources = Sources::of_process(arguments.global.config.clone(), flags);
    let config = Config::load(&sources)?;
    printer::choose_color(config.text(environment::COLOR));
    for name in &config.unknown_variables {
        printer.warn(&format!(
            "the variable {name} means nothing; `pinfold config reference` lists those that do"
        ));
    }
    match arguments.verb {
        // The daemon's helpers are started before its runtime, so it makes the runtime itself.
        Verb::Serve(serve) => daemon::serve(&config, &serve, printer),
        verb => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| CliError::new("failed to start").caused_by(&error))?;
            let result = runtime.block_on(verb::perform(verb, config, printer));
            // A thread that still reads standard input must not be waited for.
            runtime.shutdown_background();
            result
        }
    }
}
