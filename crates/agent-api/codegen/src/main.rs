//! Writes the generated stubs into the directory that the first argument names.
//!
//! Run by `cargo xtask codegen` in the directory of `pinfold-agent-api`; needs `protoc`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1) else {
        eprintln!("error: name the directory to write to");
        return ExitCode::FAILURE;
    };
    let written = connectrpc_build::Config::new()
        .files(&["proto/agent.proto"])
        .includes(&["proto/"])
        .out_dir(std::path::PathBuf::from(directory))
        .emit_rerun_directives(false)
        .generate_json(false)
        .gate_client_feature(true)
        .include_file("mod.rs")
        .compile();
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
