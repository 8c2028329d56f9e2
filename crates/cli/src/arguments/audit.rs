//! `audit` and its verbs.

use clap::{Args, Subcommand};

/// `audit`.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditVerb {
    /// Check that nothing was changed, removed, moved or cut off, and print the last hash
    Verify(AuditVerifyArguments),
    /// Print lines, oldest first
    #[command(visible_alias = "ls")]
    List(AuditListArguments),
}

/// `audit verify`.
#[derive(Debug, Args)]
pub(crate) struct AuditVerifyArguments {
    /// Fail unless a line has this hash, which an earlier verify printed as the head
    #[arg(long, value_name = "HASH")]
    pub(crate) expect: Option<String>,
}

/// `audit list`.
#[derive(Debug, Args)]
pub(crate) struct AuditListArguments {
    /// Print only this many, the latest
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) last: u64,
    /// Print only what this principal did
    #[arg(long, value_name = "PRINCIPAL")]
    pub(crate) principal: Option<String>,
}
