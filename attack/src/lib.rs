//! What is tried against a sandbox: the list, and the words in which the program that tries it and
//! `pinfold doctor --attack` talk. No attack is in here, so that the product holds none.

mod list;
mod needs;
mod outside;

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use list::ATTACKS;
pub use needs::{BRING_DOWN, is_proven, needs_of, needs_root, why_untested};
pub use outside::{HARMLESS, OUTSIDE};

/// Variable that holds the [`Facts`] as JSON.
pub const FACTS_VARIABLE: &str = "PINFOLD_ATTACK_FACTS";
/// Where the neighbour says that everything that is attacked in it is there.
pub const NEIGHBOUR_READY: &str = "/tmp/neighbour-ready";
/// What every thing to be stolen contains.
pub const SECRET: &str = "pinfold-attack-secret";
/// How the program says that an attack could not even be tried.
pub const NOT_MADE: &str = "could not be made";
/// Where a directory of the host is shown inside, for reading only.
pub const SHARE: &str = "/attack-share";

/// What an attack reaches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Process 1 of its own sandbox.
    Agent,
    /// The host's kernel, processes, files and network.
    Host,
    /// Another sandbox.
    Neighbour,
    /// What the host's own programs and files give away.
    Image,
    /// More than the sandbox was given.
    Limits,
    /// The host, by way of the product: copies, images, its API, an agent that lies.
    Product,
    /// What published escapes of such software reached, one replay each.
    Published,
}

impl Group {
    /// Returns its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Host => "host",
            Self::Neighbour => "neighbour",
            Self::Image => "image",
            Self::Limits => "limits",
            Self::Product => "product",
            Self::Published => "published",
        }
    }
}

/// One attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attack {
    /// Its stable name.
    pub name: &'static str,
    /// What it reaches for.
    pub group: Group,
    /// What it tries, one line.
    pub tries: &'static str,
    /// What stands in its way.
    pub defence: &'static str,
    /// The switches of the test build without which it succeeds, as a test shows; empty when
    /// nothing shows that it would.
    pub succeeds_without: &'static [&'static str],
}

/// How an attack ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It did not work.
    Failed,
    /// It worked.
    Worked,
    /// What it needs does not exist here.
    NotExpressible,
}

/// What the program says of one attack, one line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Said {
    /// The attack.
    pub name: String,
    /// How it ended; absent when it is about to begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// What was seen.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// What an attacker could only guess, so that it need not be lucky.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Facts {
    /// A process of the host.
    pub host_pid: i32,
    /// The host's name.
    pub host_name: String,
    /// An abstract Unix socket of the host that accepts connections.
    pub host_abstract: String,
    /// A TCP port of the host's `127.0.0.1` that accepts connections.
    pub host_port: u16,
    /// The address by which the host reaches others, if any.
    pub host_address: Option<IpAddr>,
    /// Attacks that this host's kernel knows nothing of, and what it lacks.
    pub missing: BTreeMap<String, String>,
    /// A file of the host that holds [`SECRET`] and everybody may read.
    pub host_file: String,
    /// Most bytes of memory that the sandbox was given, when that is held.
    pub memory_bytes: Option<u64>,
    /// Most processes that the sandbox was given, when that is held.
    pub processes: Option<u64>,
    /// Most bytes of disk that the sandbox was given, when that is held.
    pub disk_bytes: Option<u64>,
    /// Most files that its disk was given, when that is held.
    pub disk_files: Option<u64>,
    /// Whether [`SHARE`] is there.
    pub share: bool,
    /// First host id of the sandbox, where it has ids of its own.
    pub ids_first: Option<u32>,
    /// First host id of the neighbour, where it has ids of its own.
    pub neighbour_ids_first: Option<u32>,
    /// What an attack from outside is given; absent inside.
    pub outside: Option<Outside>,
}

/// What an attack from outside a sandbox, by way of the product, is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outside {
    /// The product's program.
    pub product: String,
    /// The socket of the daemon, or of the product that believes the attack's own agent.
    pub socket: String,
    /// Where the attack's own agent listens; absent when the daemon's are real.
    pub agent: Option<String>,
    /// A directory that is the attack's alone.
    pub scratch: String,
    /// Where the daemon keeps its state.
    pub state: String,
}

/// Returns every attack, in the order in which they run.
pub fn all() -> impl Iterator<Item = &'static Attack> {
    ATTACKS.iter().chain(OUTSIDE)
}

/// Returns the attack with a name.
pub fn attack(name: &str) -> Option<&'static Attack> {
    all().find(|attack| attack.name == name)
}

/// Writes the reference page of all attacks.
pub fn reference() -> String {
    use std::fmt::Write as _;
    let mut page = String::from(
        "# Attacks\n\n\
         <!-- Made from attack/src/list.rs; the test `attack` keeps it true. -->\n\n\
         `pinfold doctor --attack` runs these inside sandboxes of this host, or against them by way\n\
         of the product, and prints which held.\n\
         An attack that is not *shown to work* below is reported as `untested` when it fails:\n\
         nothing proves that it would have worked without its defence. For the others a test\n\
         switches the named defences off, in a build that is never released, and sees the attack\n\
         succeed. Several names were left out together. What says *as root* means something in\n\
         sandboxes of the host's root alone. What *needs* something is `not expressible` on a host\n\
         that lacks it, and where that was so on every host of the test yet, it is untested on others.\n",
    );
    for group in [
        Group::Agent,
        Group::Host,
        Group::Neighbour,
        Group::Image,
        Group::Limits,
        Group::Product,
        Group::Published,
    ] {
        let name = group.name();
        let _infallible = write!(
            page,
            "\n## {name}\n\n| attack | tries to | defence | shown to work without |\n|---|---|---|---|\n"
        );
        for attack in all().filter(|attack| attack.group == group) {
            let mut without = match attack.succeeds_without {
                [] => {
                    let why = why_untested(attack.name).unwrap_or("nothing shows it");
                    format!("untested: {why}")
                }
                switches if is_proven(attack) => format!("`{}`", switches.join("`, `")),
                switches => format!("untested, should be `{}`", switches.join("`, `")),
            };
            if needs_root(attack) {
                without.push_str("; as root");
            }
            if let Some(needs) = needs_of(attack.name) {
                let _infallible = write!(without, "; needs {needs}");
            }
            let _infallible = writeln!(
                page,
                "| `{}` | {} | {} | {without} |",
                attack.name, attack.tries, attack.defence
            );
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_of_one_kind() {
        let mut names: Vec<_> = all().map(|attack| attack.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().count());
        for name in names {
            assert!(
                name.chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'),
                "{name}"
            );
        }
    }
}
