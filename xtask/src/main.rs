//! `cargo xtask`: the one way to set up, test and check this repository.

mod codegen;
mod deps;
mod setup;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};

/// Development tasks of pinfold.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Task {
    /// Install what the tests need (Debian or Ubuntu, asks for root only when something is missing)
    Setup,
    /// Set up, then run every test and every check of the repository
    Test,
    /// Check formatting and lints
    Lint,
    /// Check that dependencies between crates follow the table in ARCHITECTURE.md
    Deps,
    /// Check the conventions that a lint cannot
    Tidy,
    /// Write the stubs of the agent's services from their contract (needs protoc)
    Codegen,
    /// Build the reference documentation, with warnings as errors
    Docs,
}

fn main() -> ExitCode {
    match perform(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the one place where a task says why it failed"
)]
fn report(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}

fn perform(task: Task) -> Result<()> {
    let root = repository_root()?;
    match task {
        Task::Setup => setup::install_missing(),
        Task::Test => test(&root),
        Task::Lint => lint(&root),
        Task::Deps => deps::check(&root),
        Task::Tidy => tidy::check(&root),
        Task::Codegen => codegen::write(&root),
        Task::Docs => docs(&root),
    }
}

fn test(root: &Path) -> Result<()> {
    setup::install_missing()?;
    deps::check(root)?;
    tidy::check(root)?;
    codegen::check(root)?;
    cargo(
        root,
        &[
            "test",
            "--workspace",
            "--all-features",
            "--locked",
            "--doc",
            "--exclude",
            "pinfold-agent-api",
        ],
    )?;
    cargo(
        root,
        &[
            "test",
            "--workspace",
            "--all-features",
            "--locked",
            "--lib",
            "--bins",
            "--tests",
        ],
    )
}

fn lint(root: &Path) -> Result<()> {
    cargo(root, &["fmt", "--all", "--check"])?;
    cargo(
        root,
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ],
    )
}

fn docs(root: &Path) -> Result<()> {
    run(Command::new("cargo")
        .args(["doc", "--workspace", "--no-deps", "--locked", "--quiet"])
        .env("RUSTDOCFLAGS", "-D warnings")
        .current_dir(root))
}

fn cargo(root: &Path, arguments: &[&str]) -> Result<()> {
    run(Command::new("cargo").args(arguments).current_dir(root))
}

/// Runs a command with our own input and output and fails when it does.
fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("failed to start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

fn repository_root() -> Result<PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_path_buf)
        .context("the xtask crate has no parent directory")
}
