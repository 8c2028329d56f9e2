//! `key` and its verbs.

use clap::{Args, Subcommand};
use pinfold_types::api::keys::Quotas;
use pinfold_types::{ByteSize, MilliCpu, Principal, PrincipalName, Role};

use super::options::duration_ms;

/// `key`.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyVerb {
    /// Make a key and print it, once
    Create(KeyCreateArguments),
    /// List keys
    #[command(visible_alias = "ls")]
    List,
    /// Revoke keys, by name or id, with those that were made with them
    #[command(visible_alias = "rm")]
    Revoke(KeyRevokeArguments),
}

/// `key create`.
#[derive(Debug, Args)]
pub(crate) struct KeyCreateArguments {
    /// Name of the key
    pub(crate) name: PrincipalName,
    /// What it allows: viewer, user or admin
    #[arg(long, default_value = "user")]
    pub(crate) role: Role,
    /// Whom it stands for: a name or uid:NUMBER; an admin's key is for a new principal of its name
    #[arg(long)]
    pub(crate) principal: Option<Principal>,
    /// Refuse it after this long
    #[arg(long, value_name = "DURATION", value_parser = duration_ms)]
    pub(crate) expires: Option<u64>,
    /// Most sandboxes
    #[arg(long, value_name = "N", help_heading = "Quotas")]
    pub(crate) sandboxes: Option<u32>,
    /// Most CPUs of all sandboxes together
    #[arg(long, value_name = "CPUS", help_heading = "Quotas")]
    pub(crate) cpus: Option<MilliCpu>,
    /// Most memory of all sandboxes together
    #[arg(long, value_name = "SIZE", help_heading = "Quotas")]
    pub(crate) memory: Option<ByteSize>,
    /// Most execs at once
    #[arg(long, value_name = "N", help_heading = "Quotas")]
    pub(crate) execs: Option<u32>,
    /// Most sandboxes made in a minute
    #[arg(long, value_name = "N", help_heading = "Quotas")]
    pub(crate) creations: Option<u32>,
}

impl KeyCreateArguments {
    /// Returns the quotas that were named.
    pub(crate) const fn quotas(&self) -> Quotas {
        Quotas {
            sandboxes: self.sandboxes,
            cpus: self.cpus,
            memory: self.memory,
            execs: self.execs,
            creations: self.creations,
        }
    }
}

/// `key revoke`.
#[derive(Debug, Args)]
pub(crate) struct KeyRevokeArguments {
    /// Names or ids of keys
    #[arg(required = true, value_name = "KEY")]
    pub(crate) keys: Vec<String>,
}
