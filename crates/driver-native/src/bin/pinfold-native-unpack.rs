//! Unpacks images where the caller's subordinate ids are mapped, for the tests of this crate; the
//! product does the same by a subcommand of its own.

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os()
        .skip_while(|word| word != pinfold_image::worker::SUBCOMMAND)
        .skip(1)
        .collect();
    let (mut input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
    ExitCode::from(pinfold_image::worker::serve(
        &words,
        &mut input,
        &mut output,
    ))
}
