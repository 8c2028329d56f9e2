//! `events`.

use clap::Args;
use pinfold_types::api::DaemonEventKind;

/// `events`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pinfold events
  pinfold events --follow build
  pinfold events --type exec.ended --json")]
pub(crate) struct EventsArguments {
    /// Name or id of a sandbox; also of one that is gone
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Go on with what happens from now on
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Print only this type, such as sandbox.created; may be repeated
    #[arg(short, long = "type", value_name = "TYPE")]
    pub(crate) kind: Vec<DaemonEventKind>,
    /// Print only events after the one with this number
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 0,
        hide_default_value = true
    )]
    pub(crate) after: u64,
}
