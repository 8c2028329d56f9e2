//! What can be typed: every verb with its options.

mod audit;
mod events;
mod host;
mod key;
mod options;
mod pools;
mod update;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use pinfold_types::{ExecId, SandboxName, SandboxState};

pub(crate) use audit::{AuditListArguments, AuditVerb, AuditVerifyArguments};
pub(crate) use events::EventsArguments;
pub(crate) use host::HostOptions;
pub(crate) use key::{KeyCreateArguments, KeyRevokeArguments, KeyVerb};
pub(crate) use options::{PlaceOptions, ProgramOptions, SandboxOptions};
pub(crate) use pools::{PoolVerb, SizeOptions, TemplateCreateArguments, TemplateVerb};
pub(crate) use update::UpdateArguments;

use crate::environment;

const AFTER: &str = "\
Exit codes:
  the program's own, 128+N when signal N ended it, 124 after --timeout, 125 when pinfold
  failed, 126 when the command cannot be executed, 127 when it was not found, 2 for wrong usage

Set up:
  `pinfold doctor` shows what this host can do and how to mend what it cannot.";

/// Run untrusted code in a sandbox of its own
#[derive(Debug, Parser)]
#[command(
    name = "pinfold",
    version,
    after_help = AFTER,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Options of every verb.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Print JSON instead of tables and text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Read this configuration file
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// Talk to the daemon at this socket
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) socket: Option<String>,
    #[command(flatten)]
    pub(crate) elsewhere: HostOptions,
    /// Use the daemon of this state directory
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) state_dir: Option<String>,
    /// Fail when no daemon answers instead of starting one
    #[arg(long, global = true)]
    pub(crate) no_start: bool,
    /// Print colours: auto, always or never
    #[arg(long, global = true, value_name = "WHEN")]
    pub(crate) color: Option<String>,
    /// Print neither progress nor notes
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

impl Global {
    /// Returns the settings that were given as flags.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = Vec::new();
        for (key, value) in [
            (environment::SOCKET, &self.socket),
            (environment::STATE_DIR, &self.state_dir),
            (environment::COLOR, &self.color),
        ] {
            settings.extend(value.clone().map(|value| (key, value)));
        }
        settings.extend(self.elsewhere.settings());
        if self.no_start {
            settings.push((environment::AUTOSTART, "false".to_owned()));
        }
        settings
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a program in a new sandbox and remove the sandbox afterwards
    Run(RunArguments),
    /// Create sandboxes and print their names
    Create(CreateArguments),
    /// Change sandboxes that exist, also while they run
    Update(UpdateArguments),
    /// Start stopped sandboxes
    Start(Targets),
    /// Stop sandboxes and keep their disks
    Stop(StopArguments),
    /// Remove sandboxes with their disks
    #[command(visible_alias = "remove")]
    Rm(RmArguments),
    /// List sandboxes
    #[command(visible_alias = "ls")]
    List(ListArguments),
    /// Show sandboxes in full, or the daemon when none is named
    Status(OptionalTargets),
    /// Run a program in sandboxes that exist
    Exec(ExecArguments),
    /// Print what programs in a sandbox wrote
    Logs(LogsArguments),
    /// Copy files and directories into or out of a sandbox
    Cp(CpArguments),
    /// Show CPU, memory, disk and uptime of every sandbox
    Report,
    /// Print the metrics of a sandbox's agent as JSON
    Metrics(MetricsArguments),
    /// Print what happened to sandboxes, execs, pools and keys
    Events(EventsArguments),
    /// Suspend sandboxes in memory
    Pause(Targets),
    /// Let suspended sandboxes go on
    Resume(Targets),
    /// Describe sandboxes once and make them by name
    #[command(subcommand)]
    Template(TemplateVerb),
    /// Keep sandboxes of a template running for whoever comes next
    #[command(subcommand)]
    Pool(PoolVerb),
    /// Check what this host can do and print what mends the rest
    Doctor(DoctorArguments),
    /// Run the daemon in the foreground; SIGTERM ends it and sandboxes live on
    Serve(ServeArguments),
    /// Make, list and revoke API keys for the daemon's port
    #[command(subcommand)]
    Key(KeyVerb),
    /// Check or print the audit log of a daemon of this machine
    #[command(subcommand)]
    Audit(AuditVerb),
    /// Show or explain the configuration
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Print a completion script for a shell
    Completion(CompletionArguments),
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArguments {
    /// Attack sandboxes of this host and print what held; ends with 1 when an attack works
    #[arg(long)]
    pub(crate) attack: bool,
    /// Attack sandboxes of this driver
    #[arg(
        long,
        value_name = "DRIVER",
        requires = "attack",
        default_value = "native"
    )]
    pub(crate) driver: String,
    /// Make only this attack; give it again for more
    #[arg(long, value_name = "ATTACK", requires = "attack")]
    pub(crate) only: Vec<String>,
    /// The program that attacks, which is not part of pinfold
    #[arg(
        long,
        value_name = "PATH",
        requires = "attack",
        env = "PINFOLD_ATTACK_BIN",
        hide_env_values = true
    )]
    pub(crate) attack_program: Option<std::path::PathBuf>,
}

/// Sandboxes that something is done to.
#[derive(Debug, Args)]
pub(crate) struct Targets {
    /// Names or ids of sandboxes
    #[arg(value_name = "NAME", required_unless_present = "all")]
    pub(crate) names: Vec<String>,
    /// Take every sandbox
    #[arg(short, long, conflicts_with = "names")]
    pub(crate) all: bool,
}

/// Sandboxes to show, or none.
#[derive(Debug, Args)]
pub(crate) struct OptionalTargets {
    /// Names or ids of sandboxes
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Take every sandbox
    #[arg(short, long, conflicts_with = "names")]
    pub(crate) all: bool,
}

impl OptionalTargets {
    /// Returns whether no sandbox is meant.
    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty() && !self.all
    }
}

const RUN_EXAMPLES: &str = "\
Examples:
  pinfold run -- python3 -c 'print(6*7)'
  pinfold run --file main.py
  pinfold run --language ruby --hello
  pinfold run -it -- bash
  pinfold run --memory 256m --timeout 30s --in ./data --out ./result -- sh job.sh
  tar c . | pinfold run -i -- tar t

Directories inside:
  /workspace   where programs start; --file is copied there
  /in          --in DIR, read-only
  /out         --out DIR, writable
  /persist     with --persist, outlives stop and start";

/// `run`.
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub(crate) struct RunArguments {
    /// Program and its arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    pub(crate) command: Vec<String>,
    /// Keep the sandbox afterwards
    #[arg(short, long, conflicts_with = "rm")]
    pub(crate) keep: bool,
    /// Remove the sandbox afterwards, which is the default
    #[arg(long, hide = true)]
    pub(crate) rm: bool,
    /// Make the sandbox from this template; other options are put over it
    #[arg(short = 'T', long, value_name = "TEMPLATE", value_parser = sandbox_name)]
    pub(crate) template: Option<SandboxName>,
    #[command(flatten)]
    pub(crate) program: ProgramOptions,
    #[command(flatten)]
    pub(crate) place: PlaceOptions,
    #[command(flatten)]
    pub(crate) sandbox: SandboxOptions,
}

/// `create`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pinfold create --name build --memory 1g
  pinfold create --count 3 --language python
  pinfold create --persist --idle 1h --idle-action stop")]
pub(crate) struct CreateArguments {
    /// Create this many; with --name, a number is added to the name
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) count: Option<u32>,
    /// Make the sandbox from this template; other options are put over it
    #[arg(short = 'T', long, value_name = "TEMPLATE", value_parser = sandbox_name)]
    pub(crate) template: Option<SandboxName>,
    /// Language of the sandbox, for --hello and --file: python, javascript, node, ruby or golang
    #[arg(short, long)]
    pub(crate) language: Option<pinfold_types::spec::Language>,
    #[command(flatten)]
    pub(crate) sandbox: SandboxOptions,
    #[command(flatten)]
    pub(crate) place: PlaceOptions,
}

/// `stop`.
#[derive(Debug, Args)]
pub(crate) struct StopArguments {
    #[command(flatten)]
    pub(crate) targets: Targets,
    /// Time that programs have to end by themselves
    #[arg(short, long, value_name = "DURATION", value_parser = options::duration_ms)]
    pub(crate) grace: Option<u64>,
}

/// `rm`.
#[derive(Debug, Args)]
pub(crate) struct RmArguments {
    #[command(flatten)]
    pub(crate) targets: Targets,
    /// Keep what is in /persist and print where it is
    #[arg(long)]
    pub(crate) keep_persist: bool,
    /// Do not fail when a sandbox is not there
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// `list`.
#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// List only sandboxes in this state; may be repeated
    #[arg(short, long, value_name = "STATE")]
    pub(crate) state: Vec<SandboxState>,
    /// List stopped sandboxes as well
    #[arg(short, long)]
    pub(crate) all: bool,
    /// List instead what waits in pools; for admins
    #[arg(short, long)]
    pub(crate) warm: bool,
    /// List only sandboxes with this label; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = options::pair)]
    pub(crate) label: Vec<(String, String)>,
}

/// `exec`.
#[derive(Debug, Args)]
#[command(
    override_usage = "pinfold exec [OPTIONS] <NAME>... [-- <COMMAND>...]\n       \
                      pinfold exec [OPTIONS] --all [-- <COMMAND>...]",
    after_help = "\
Examples:
  pinfold exec build -- make test
  pinfold exec -it build -- bash
  pinfold exec --all --hello
  pinfold exec one two --file check.py
  pinfold exec --detach build -- ./server --port 80

With several sandboxes each line of output has the sandbox's name in front."
)]
pub(crate) struct ExecArguments {
    /// Names or ids of sandboxes
    #[arg(value_name = "NAME", required_unless_present = "all")]
    pub(crate) names: Vec<String>,
    /// Program and its arguments, after `--`
    #[arg(value_name = "COMMAND", last = true)]
    pub(crate) command: Vec<String>,
    /// Take every running sandbox
    #[arg(short, long, conflicts_with = "names")]
    pub(crate) all: bool,
    /// Leave the program running and print its id
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) program: ProgramOptions,
    #[command(flatten)]
    pub(crate) place: PlaceOptions,
}

/// `logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArguments {
    /// Name or id of the sandbox
    #[arg(value_name = "NAME")]
    pub(crate) target: String,
    /// Print what comes until the programs end
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Print only what is newer: a duration such as 10m, or a time such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = options::since)]
    pub(crate) since: Option<i64>,
    /// Print only the output of this exec
    #[arg(long, value_name = "ID")]
    pub(crate) exec: Option<ExecId>,
    /// Put the time before each line
    #[arg(long)]
    pub(crate) timestamps: bool,
    /// Send everything to the terminal as it was written, not only text and colours
    #[arg(long)]
    pub(crate) raw: bool,
}

/// `cp`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pinfold cp main.py build:/workspace/
  pinfold cp ./src build:/workspace
  pinfold cp build:/workspace/report.txt .

A path inside is written NAME:PATH. A directory is copied with everything in it. When the
destination is a directory, the copy is made in it, else it gets the destination's name.
Links are copied as links and never followed; setuid bits and owners are not copied.")]
pub(crate) struct CpArguments {
    /// What to copy: PATH or NAME:PATH
    pub(crate) source: String,
    /// Where to: PATH or NAME:PATH
    pub(crate) destination: String,
    /// Leave out what a program of the host might run by itself, such as git hooks, and the bits that
    /// make files executable; ends with 1 when something was left out
    #[arg(long)]
    pub(crate) strict: bool,
}

/// `metrics`.
#[derive(Debug, Args)]
pub(crate) struct MetricsArguments {
    /// Names or ids of sandboxes
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<String>,
}

/// `serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    /// Listen on this address and port too, for API keys
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<String>,
    /// Listen on 127.0.0.1:8080 and let every program of this machine in without a key
    #[arg(long)]
    pub(crate) dev: bool,
    /// Log this, as in `info` or `pinfold_engine=debug`
    #[arg(long, value_name = "FILTER")]
    pub(crate) log: Option<String>,
    /// Write log lines as text or json
    #[arg(long, value_name = "FORMAT")]
    pub(crate) log_format: Option<String>,
    /// Leave the caller's session and say `ready` on standard output once requests are served
    #[arg(long, hide = true)]
    pub(crate) detached: bool,
}

impl ServeArguments {
    /// Returns the settings that were given as flags.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        [
            (environment::LISTEN, &self.listen),
            (environment::LOG, &self.log),
            (environment::LOG_FORMAT, &self.log_format),
        ]
        .into_iter()
        .filter_map(|(key, value)| value.clone().map(|value| (key, value)))
        .collect()
    }
}

/// `config`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Print every setting and its value
    Show {
        /// Print where each value comes from
        #[arg(long)]
        origin: bool,
    },
    /// Print the reference of every setting as Markdown
    Reference,
}

/// `completion`.
#[derive(Debug, Args)]
pub(crate) struct CompletionArguments {
    /// Shell to print the script for
    #[arg(value_parser = clap::value_parser!(Shell))]
    pub(crate) shell: Shell,
}

/// Reads a name, or says what names are.
pub(crate) fn sandbox_name(text: &str) -> Result<SandboxName, String> {
    text.parse::<SandboxName>()
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_holds() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_command_is_taken_as_it_is() {
        let words = |line: &str| -> Option<String> {
            let parsed = Arguments::try_parse_from(line.split(' ')).ok()?;
            match parsed.verb {
                Verb::Run(run) => Some(run.command.join(" ")),
                Verb::Exec(exec) => Some(format!(
                    "{}: {}",
                    exec.names.join(" "),
                    exec.command.join(" ")
                )),
                other => panic!("{other:?}"),
            }
        };
        for (line, expected) in [
            ("pinfold run -- echo -n --json", Some("echo -n --json")),
            (
                "pinfold run --pids 9 echo --pids 10",
                Some("echo --pids 10"),
            ),
            ("pinfold run echo -n -- x", Some("echo -n -- x")),
            ("pinfold run --surely-not", None),
            ("pinfold exec a -- ls -l", Some("a: ls -l")),
            (
                "pinfold exec a b -- sh -c x -- y",
                Some("a b: sh -c x -- y"),
            ),
            ("pinfold exec --all -- ls -l", Some(": ls -l")),
            ("pinfold exec a --timeout 5 -- ls", Some("a: ls")),
            ("pinfold exec --all a -- ls", None),
            ("pinfold exec -- ls", None),
        ] {
            assert_eq!(words(line).as_deref(), expected, "{line}");
        }
    }
}
