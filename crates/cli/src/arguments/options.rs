//! Options that several verbs have.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use pinfold_types::spec::{DeadlineAction, IsolationTier, Language, parse_duration_ms};
use pinfold_types::{ByteSize, MilliCpu, MountSpec, SandboxName};

use crate::environment::parse_isolation;

/// What a sandbox is made from.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sandbox options")]
pub(crate) struct SandboxOptions {
    /// Root filesystem: host, a directory, or a tarball of one
    #[arg(long)]
    pub(crate) image: Option<String>,
    /// Name of the sandbox; one is made up when left out
    #[arg(short, long, value_parser = super::sandbox_name)]
    pub(crate) name: Option<SandboxName>,
    /// Most CPUs, as in 0.5 or 2
    #[arg(long)]
    pub(crate) cpus: Option<MilliCpu>,
    /// Most memory, as in 256m; swap counts to it
    #[arg(short, long, value_name = "SIZE")]
    pub(crate) memory: Option<ByteSize>,
    /// Most processes and threads
    #[arg(long, value_name = "N")]
    pub(crate) pids: Option<u32>,
    /// Most bytes on the sandbox's disk, as in 2g
    #[arg(long, value_name = "SIZE")]
    pub(crate) disk: Option<ByteSize>,
    /// Most files on the sandbox's disk
    #[arg(long, value_name = "N")]
    pub(crate) inodes: Option<u64>,
    /// Share of the CPU when there is too little, as in 0.5
    #[arg(long, value_name = "CPUS")]
    pub(crate) cpu_request: Option<MilliCpu>,
    /// Memory that is taken away last when there is too little
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory_request: Option<ByteSize>,
    /// Disk that is promised when the host's is shared out
    #[arg(long, value_name = "SIZE")]
    pub(crate) disk_request: Option<ByteSize>,
    /// Show a host path inside, read-only unless :rw is added
    #[arg(short = 'v', long, value_name = "SOURCE:TARGET[:rw]")]
    pub(crate) mount: Vec<MountSpec>,
    /// Show a host directory at /in, read-only
    #[arg(long = "in", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) input: Option<PathBuf>,
    /// Show a host directory at /out, writable; it is made when missing
    #[arg(long = "out", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) output: Option<PathBuf>,
    /// Keep a directory at /persist that outlives stop and start
    #[arg(long)]
    pub(crate) persist: bool,
    /// Make files in a directory inside, /sbx-events, events of the sandbox's stream
    #[arg(long)]
    pub(crate) events: bool,
    /// Attach a label of your own
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) label: Vec<(String, String)>,
    /// Remove the sandbox this long after its creation
    #[arg(long, value_name = "DURATION", value_parser = duration_ms)]
    pub(crate) lifetime: Option<u64>,
    /// What to do at the end of --lifetime: remove, stop or pause
    #[arg(long, value_name = "ACTION", default_value = "remove")]
    pub(crate) lifetime_action: DeadlineAction,
    /// Suspend the sandbox after this long without activity
    #[arg(long, value_name = "DURATION", value_parser = duration_ms)]
    pub(crate) idle: Option<u64>,
    /// What to do after --idle: pause, stop or remove
    #[arg(long, value_name = "ACTION", default_value = "pause")]
    pub(crate) idle_action: DeadlineAction,
    /// Weakest acceptable isolation: namespace, gvisor or vm
    #[arg(long, value_name = "TIER", value_parser = parse_isolation)]
    pub(crate) isolation: Option<IsolationTier>,
    /// Serve the agent's metrics on TCP port 8888 inside
    #[arg(long)]
    pub(crate) agent_tcp: bool,
}

/// What is run, and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Program options")]
pub(crate) struct ProgramOptions {
    /// Copy a file to /workspace, and run it when no command is given; may be repeated
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: Vec<PathBuf>,
    /// Language of --file or --hello: python, javascript, node, ruby or golang
    #[arg(short, long)]
    pub(crate) language: Option<Language>,
    /// Run a hello world of the language
    #[arg(long, conflicts_with_all = ["file", "command"])]
    pub(crate) hello: bool,
    /// End the program and all its children after this long
    #[arg(long, value_name = "DURATION", value_parser = some_time_ms)]
    pub(crate) timeout: Option<u64>,
    /// Pass our standard input on
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
}

/// Where and as whom programs run.
#[derive(Debug, Args)]
#[command(next_help_heading = "Program options")]
pub(crate) struct PlaceOptions {
    /// Set a variable, or take ours when only a name is given
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Set the variables of a file of NAME=VALUE lines
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) env_file: Vec<PathBuf>,
    /// Directory that programs start in
    #[arg(short, long, value_name = "PATH")]
    pub(crate) workdir: Option<String>,
    /// User that programs run as
    #[arg(short, long)]
    pub(crate) user: Option<String>,
}

/// Reads a duration.
/// Reads a duration that is not nothing.
fn some_time_ms(text: &str) -> Result<u64, String> {
    match duration_ms(text)? {
        0 => Err("a program cannot end at once; leave it out for no limit".to_owned()),
        time => Ok(time),
    }
}

pub(super) fn duration_ms(text: &str) -> Result<u64, String> {
    parse_duration_ms(text).map_err(|error| error.to_string())
}

/// Reads `NAME=VALUE`.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

/// Reads a point in time as milliseconds since the Unix epoch.
pub(super) fn since(text: &str) -> Result<i64, String> {
    if let Ok(duration_ms) = parse_duration_ms(text) {
        let duration_ms = i64::try_from(duration_ms).unwrap_or(i64::MAX);
        return Ok(pinfold_types::api::now_ms().saturating_sub(duration_ms));
    }
    pinfold_types::api::parse_time_ms(text).ok_or_else(|| {
        "write a duration such as 10m, or a time such as 2026-01-31T12:00:00Z".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_takes_a_duration_or_a_time() {
        assert_eq!(since("1970-01-01T00:00:01Z"), Ok(1000));
        assert!(since("1h").unwrap() < pinfold_types::api::now_ms());
        assert!(since("yesterday").is_err());
    }
}
