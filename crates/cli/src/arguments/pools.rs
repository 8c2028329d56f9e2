//! Verbs of templates and pools.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use pinfold_types::SandboxName;
use pinfold_types::spec::Language;

use super::{PlaceOptions, SandboxOptions, sandbox_name};

/// `template`.
#[derive(Debug, Subcommand)]
pub(crate) enum TemplateVerb {
    /// Create a template from sandbox options or a file, or a new version of it
    Create(Box<TemplateCreateArguments>),
    /// List the templates that you may use
    #[command(visible_alias = "ls")]
    List,
    /// Show a template in full
    Show {
        /// Name of the template
        #[arg(value_name = "NAME", value_parser = sandbox_name)]
        name: SandboxName,
    },
    /// Remove templates that no pool is of
    #[command(visible_alias = "remove")]
    Rm {
        /// Names of templates
        #[arg(value_name = "NAME", required = true, value_parser = sandbox_name)]
        names: Vec<SandboxName>,
    },
}

/// `template create`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pinfold template create py --language python --memory 512m
  pinfold template create py --file py.yaml --shared
  pinfold create --template py --name one

A file holds what the API calls a spec, as in:
  image: host
  resources: {memory: 512m, cpus: 1}
  env: {PYTHONUNBUFFERED: '1'}")]
pub(crate) struct TemplateCreateArguments {
    /// Name of the template
    #[arg(value_name = "TEMPLATE", value_parser = sandbox_name)]
    pub(crate) template: SandboxName,
    /// Read the whole template from this YAML file
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// Let everybody use it; for admins
    #[arg(long)]
    pub(crate) shared: bool,
    /// Language of its sandboxes: python, javascript, node, ruby or golang
    #[arg(short, long, conflicts_with = "file")]
    pub(crate) language: Option<Language>,
    #[command(flatten)]
    pub(crate) sandbox: SandboxOptions,
    #[command(flatten)]
    pub(crate) place: PlaceOptions,
}

/// `pool`.
#[derive(Debug, Subcommand)]
pub(crate) enum PoolVerb {
    /// Create a pool and begin to fill it
    Create(PoolCreateArguments),
    /// List the pools that you may claim from
    #[command(visible_alias = "ls")]
    List,
    /// Change the size of a pool
    Scale {
        /// Name of the pool
        #[arg(value_name = "NAME", value_parser = sandbox_name)]
        name: SandboxName,
        #[command(flatten)]
        size: SizeOptions,
    },
    /// Remove pools with their warm sandboxes; claimed ones stay
    #[command(visible_alias = "remove")]
    Rm {
        /// Names of pools
        #[arg(value_name = "NAME", required = true, value_parser = sandbox_name)]
        names: Vec<SandboxName>,
    },
}

/// `pool create`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pinfold pool create fast --template py --size 5
  pinfold pool create busy --template py --min 2 --max 50
  pinfold create --template py")]
pub(crate) struct PoolCreateArguments {
    /// Name of the pool
    #[arg(value_name = "NAME", value_parser = sandbox_name)]
    pub(crate) name: SandboxName,
    /// Template of its sandboxes
    #[arg(short, long, value_name = "TEMPLATE", value_parser = sandbox_name)]
    pub(crate) template: SandboxName,
    #[command(flatten)]
    pub(crate) size: SizeOptions,
}

/// How many sandboxes are kept warm.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct SizeOptions {
    /// Keep this many warm
    #[arg(short, long, value_name = "N", required_unless_present = "max")]
    pub(crate) size: Option<u32>,
    /// Keep at least this many warm, and more as claims come
    #[arg(long, value_name = "N", conflicts_with = "size", requires = "max")]
    pub(crate) min: Option<u32>,
    /// Keep at most this many warm
    #[arg(long, value_name = "N", conflicts_with = "size")]
    pub(crate) max: Option<u32>,
}
