//! `pinfold-bench`: long runs of the real product, with figures.

mod claims;
mod flood;
mod held;
mod random;
mod soak;
mod trend;
mod yard;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Long runs of pinfold, with figures.
#[derive(Debug, Parser)]
#[command(name = "pinfold-bench")]
struct Arguments {
    #[command(subcommand)]
    run: Run,
}

#[derive(Debug, Subcommand)]
enum Run {
    /// Use sandboxes at random against a model, and look for what is lost and what leaks (as root)
    Soak(Soak),
    /// Let programs write as fast as they can to readers that have stopped (as root)
    Flood(Flood),
    /// Claim warm sandboxes, one after the other and all at once (as root)
    Claims(Claims),
}

/// What is claimed.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Claims {
    /// Claim as many, from a pool of as many
    #[arg(long, default_value_t = 100)]
    count: usize,
    /// Claim them again from a pool of as few
    #[arg(long, default_value_t = 10)]
    few: usize,
    /// Run the product as this user
    #[arg(long)]
    as_user: Option<String>,
    /// The product
    #[arg(long, default_value = "target/release/pinfold")]
    product: PathBuf,
}

/// What a flood does.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Flood {
    /// End after this long, once with back-pressure and once without
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Programs at once, each with a reader of its own
    #[arg(long, default_value_t = 1)]
    programs: usize,
    /// Run the product as this user
    #[arg(long)]
    as_user: Option<String>,
    /// The product
    #[arg(long, default_value = "target/release/pinfold")]
    product: PathBuf,
}

/// What a soak does.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Soak {
    /// End after this long
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Kill this often, each time during an operation, and end after the last
    #[arg(long, default_value_t = 0)]
    kills: u64,
    /// Run the product as this user
    #[arg(long)]
    as_user: Option<String>,
    /// The product
    #[arg(long, default_value = "target/release/pinfold")]
    product: PathBuf,
    /// Do the same operations as a run that printed this
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().run {
        Run::Soak(soak) => soak::run(&soak),
        Run::Flood(flood) => flood::run(&flood),
        Run::Claims(claims) => claims::run(&claims),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Tells the figures.
#[expect(
    clippy::print_stdout,
    reason = "the figures are what the program is for"
)]
pub(crate) fn say(line: &str) {
    println!("{line}");
}
