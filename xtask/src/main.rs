//! `cargo xtask`: the one way to set up, test and check this repository.

mod agent;
mod claims;
mod codegen;
mod deps;
mod fixtures;
mod fuzz;
mod people;
mod python;
mod readme;
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

#[derive(Debug, Clone, Subcommand)]
enum Task {
    /// Install what the tests need (Debian or Ubuntu, asks for root only when something is missing)
    Setup,
    /// Make the users that the tests become, and delegate control groups to one of them
    People,
    /// Fetch and make what the tests give to sandboxes
    Fixtures,
    /// Make the Python environment of the tests' clients and print its program
    Python,
    /// Build the static guest agent and print where it is
    Agent,
    /// Build what `doctor --attack` runs, and the weak agent of its test; print the former
    Attack,
    /// Set up, then run every test and every check of the repository
    Test,
    /// Check formatting and lints
    Lint,
    /// Check that dependencies between crates follow the table in ARCHITECTURE.md
    Deps,
    /// Check the conventions that a lint cannot
    Tidy,
    /// Fuzz every parser of hostile input for a while
    Fuzz(fuzz::FuzzArguments),
    /// Write the stubs of the agent's services from their contract (needs protoc)
    Codegen,
    /// Write openapi/pinfold.json and the reference pages from the code
    Openapi,
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
        Task::People => people::make(),
        Task::Fixtures => fixtures::make(&root).map(|path| report_path(&path)),
        Task::Python => python::make(&root).map(|path| report_path(&path)),
        Task::Agent => agent::build(&root, &[]).map(|path| report_path(&path)),
        Task::Attack => agent::build_attackers(&root).map(|made| report_path(&made.program)),
        Task::Test => test(&root),
        Task::Lint => lint(&root),
        Task::Deps => deps::check(&root),
        Task::Tidy => tidy::check(&root),
        Task::Fuzz(arguments) => fuzz::run(&root, &arguments),
        Task::Codegen => codegen::write(&root),
        Task::Openapi => openapi(&root),
        Task::Docs => docs(&root),
    }
}

fn test(root: &Path) -> Result<()> {
    deps::check(root)?;
    tidy::check(root)?;
    setup::install_missing()?;
    codegen::check(root)?;
    people::make()?;
    let fixtures = fixtures::make(root)?;
    let python = python::make(root)?;
    let agent = agent::build(root, agent::FOR_TESTS)?;
    agent::refuse_weakened(root)?;
    let attackers = agent::build_attackers(root)?;
    readme::follow(root, &agent)?;
    let with_tests = ["test", "--workspace", "--all-features", "--locked"];
    run(Command::new("cargo")
        .args(with_tests)
        .args(["--doc", "--exclude", "pinfold-agent-api"])
        .env("PINFOLD_AGENT_BIN", &agent)
        .current_dir(root))?;
    run(Command::new("cargo")
        .args(with_tests)
        .args(["--lib", "--bins", "--tests", "--no-fail-fast"])
        .env("PINFOLD_AGENT_BIN", &agent)
        .env("PINFOLD_FIXTURES", &fixtures)
        .env("PINFOLD_PYTHON", &python)
        .env("PINFOLD_ATTACK_BIN", &attackers.program)
        .env("PINFOLD_WEAK_AGENT", &attackers.weak_agent)
        .current_dir(root))
}

/// Lets the tests that compare what is generated write it instead.
fn openapi(root: &Path) -> Result<()> {
    run(Command::new("cargo")
        .args([
            "test",
            "--package",
            "pinfold-server",
            "--all-features",
            "--locked",
            "--quiet",
        ])
        .args(["--test", "api", "--", "reference", "openapi"])
        .env("PINFOLD_UPDATE_REFERENCE", "1")
        .current_dir(root))
}

fn lint(root: &Path) -> Result<()> {
    run(Command::new("cargo")
        .args(["fmt", "--all", "--check"])
        .current_dir(root))?;
    run(Command::new("cargo")
        .args(["clippy", "--workspace", "--all-targets", "--all-features"])
        .args(["--locked", "--quiet", "--", "-D", "warnings"])
        .current_dir(root))
}

fn docs(root: &Path) -> Result<()> {
    // The product embeds the agent; without this, each profile would build one of its own.
    let agent = agent::build(root, agent::FOR_TESTS)?;
    run(Command::new("cargo")
        .args(["doc", "--workspace", "--no-deps", "--locked", "--quiet"])
        .env("RUSTDOCFLAGS", "-D warnings")
        .env("PINFOLD_AGENT_BIN", agent)
        .current_dir(root))
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

/// Where cargo puts what it builds for this repository.
fn target_directory(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

#[expect(clippy::print_stdout, reason = "the path is what the task is for")]
fn report_path(path: &Path) {
    println!("{}", path.display());
}

fn repository_root() -> Result<PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_path_buf)
        .context("the xtask crate has no parent directory")
}
