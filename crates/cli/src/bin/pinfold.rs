//! The program; everything is in the library, so that the fuzz targets reach what reads input.

use std::process::ExitCode;

fn main() -> ExitCode {
    pinfold::main()
}
