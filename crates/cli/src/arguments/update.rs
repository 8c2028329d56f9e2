//! Options of `update`.

use clap::Args;
use pinfold_types::spec::DeadlineAction;
use pinfold_types::{ByteSize, MilliCpu};

use super::Targets;
use super::options::{duration_ms, pair};

/// `update`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pinfold update build --idle 2h --lifetime 1d
  pinfold update build --memory 1g --cpus 2
  pinfold update --all --label reviewed=yes

What is not named stays as it is. Variables reach programs that are started later.")]
pub(crate) struct UpdateArguments {
    #[command(flatten)]
    pub(crate) targets: Targets,
    /// Do --idle-action after this long without activity; 0 is never
    #[arg(long, value_name = "DURATION", value_parser = duration_ms)]
    pub(crate) idle: Option<u64>,
    /// What to do after --idle: pause, stop or remove
    #[arg(long, value_name = "ACTION")]
    pub(crate) idle_action: Option<DeadlineAction>,
    /// Do --lifetime-action this long after the creation; 0 is never
    #[arg(long, visible_alias = "timeout", value_name = "DURATION", value_parser = duration_ms)]
    pub(crate) lifetime: Option<u64>,
    /// What to do at the end of --lifetime: remove, stop or pause
    #[arg(long, value_name = "ACTION")]
    pub(crate) lifetime_action: Option<DeadlineAction>,
    /// Set a label; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) label: Vec<(String, String)>,
    /// Take a label away; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) remove_label: Vec<String>,
    /// Set a variable; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) env: Vec<(String, String)>,
    /// Take a variable away; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) remove_env: Vec<String>,
    /// Most CPU time, as in 0.5 or 2
    #[arg(long, value_name = "CPUS")]
    pub(crate) cpus: Option<MilliCpu>,
    /// Most memory, swap included, as in 256m
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<ByteSize>,
    /// Most processes and threads
    #[arg(long, value_name = "N")]
    pub(crate) pids: Option<u32>,
}
