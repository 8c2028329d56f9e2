//! Attacks the sandbox that it runs in, and says what worked.
//!
//! `run` runs attacks, each in a process of its own; `one` is such a process; `outside` makes one
//! from outside a sandbox, by way of the product, and `act` what it has done inside; `sit` is the
//! neighbour that is attacked; `missing` says on the host what its kernel does not have;
//! `reference` writes the page of the reference.

mod agent;
mod call;
mod host;
mod image;
mod kept;
mod kernel;
mod limits;
mod missing;
mod mounts;
mod neighbour;
mod outside;

use std::io::{self, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitCode, Stdio};

use pinfold_attack::{ATTACKS, FACTS_VARIABLE, Facts, Outcome, Said};

/// Seconds after which an attack has failed: none has to wait for anything.
const ATTACK_SECONDS_MAX: u32 = 15;
/// Most bytes that are told of one attack.
const DETAIL_BYTES_MAX: usize = 300;

/// Variable that tells an attack the agent's process id.
const AGENT_VARIABLE: &str = "PINFOLD_ATTACK_AGENT";

/// What an attack found.
#[derive(Debug)]
enum Found {
    /// It did not work.
    Failed(String),
    /// It worked.
    Worked(String),
    /// What it needs does not exist here.
    NotExpressible(String),
}

impl Found {
    /// Says that a call that should have been refused was not.
    fn of<T>(result: io::Result<T>, worked: &str) -> Self {
        match result {
            Ok(_) => Self::Worked(worked.to_owned()),
            Err(error) => Self::Failed(error.to_string()),
        }
    }
}

/// How an attack is made.
type Attempt = fn(&Facts) -> Found;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match obey(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(io::stderr(), "pinfold-attack: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn obey(words: &[&str]) -> io::Result<()> {
    match words {
        ["run", only @ ..] => run(only),
        ["one", name] => one(name, ATTACK_SECONDS_MAX, attempts()),
        ["outside", name] => one(name, outside::SECONDS_MAX, outside::attempts()),
        ["act", words @ ..] => outside::act(words),
        ["sit"] => neighbour::sit(),
        ["missing"] => say(&serde_json::to_string(&missing::missing())?),
        ["reference"] => say(pinfold_attack::reference().trim_end()),
        ["--version"] => say(&format!("pinfold-attack {}", env!("CARGO_PKG_VERSION"))),
        _ => Err(io::Error::other(
            "say `run [--only NAME]… [--from NAME]`, `one NAME`, `outside NAME`, `sit`, `missing`, \
             `reference` or `--version`",
        )),
    }
}

/// Returns what each name stands for.
fn attempts() -> impl Iterator<Item = &'static (&'static str, Attempt)> {
    [
        agent::ATTEMPTS,
        host::ATTEMPTS,
        kernel::ATTEMPTS,
        mounts::ATTEMPTS,
        neighbour::ATTEMPTS,
        image::ATTEMPTS,
        limits::ATTEMPTS,
        kept::ATTEMPTS,
    ]
    .into_iter()
    .flatten()
}

fn facts() -> Facts {
    std::env::var(FACTS_VARIABLE)
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default()
}

/// Runs attacks in the order of the list, each announced before it begins.
fn run(arguments: &[&str]) -> io::Result<()> {
    let mut only = Vec::new();
    let mut from = None;
    for pair in arguments.chunks(2) {
        match pair {
            ["--only", name] => only.push(*name),
            ["--from", name] => from = Some(*name),
            _ => return Err(io::Error::other("only `--only NAME` and `--from NAME`")),
        }
    }
    let chosen = ATTACKS
        .iter()
        .skip_while(|attack| from.is_some_and(|from| from != attack.name))
        .filter(|attack| only.is_empty() || only.contains(&attack.name));
    for attack in chosen {
        let begun = Said {
            name: attack.name.to_owned(),
            outcome: None,
            detail: String::new(),
        };
        tell(&begun)?;
        tell(&apart(attack.name)?)?;
    }
    Ok(())
}

/// Makes an attack in another process, which it may bring down with it.
fn apart(name: &str) -> io::Result<Said> {
    let output = Command::new("/proc/self/exe")
        .args(["one", name])
        .env(
            AGENT_VARIABLE,
            std::os::unix::process::parent_id().to_string(),
        )
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()?;
    let said = serde_json::from_slice(&output.stdout);
    Ok(said.unwrap_or_else(|_| Said {
        name: name.to_owned(),
        outcome: Some(Outcome::Failed),
        detail: match output.status.signal() {
            Some(libc::SIGALRM) => format!("did not end in {ATTACK_SECONDS_MAX} s"),
            Some(signal) => format!("ended by signal {signal}"),
            None => format!("ended with {}", output.status),
        },
    }))
}

/// Makes one attack.
fn one(
    name: &str,
    seconds: u32,
    mut attempts: impl Iterator<Item = &'static (&'static str, Attempt)>,
) -> io::Result<()> {
    call::end_after(seconds);
    let Some((_, attempt)) = attempts.find(|(known, _)| *known == name) else {
        return Err(io::Error::other("no such attack"));
    };
    let facts = facts();
    let (outcome, mut detail) = match (attempt(&facts), facts.missing.get(name)) {
        (Found::Failed(_), Some(missing)) => (Outcome::NotExpressible, missing.clone()),
        (found, _) => outcome_of(found),
    };
    let end = detail.floor_char_boundary(DETAIL_BYTES_MAX);
    detail.truncate(end);
    tell(&Said {
        name: name.to_owned(),
        outcome: Some(outcome),
        detail,
    })
}

fn outcome_of(found: Found) -> (Outcome, String) {
    match found {
        Found::Failed(detail) => (Outcome::Failed, detail),
        Found::Worked(detail) => (Outcome::Worked, detail),
        Found::NotExpressible(detail) => (Outcome::NotExpressible, detail),
    }
}

fn tell(said: &Said) -> io::Result<()> {
    say(&serde_json::to_string(said)?)
}

fn say(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use pinfold_attack::OUTSIDE;

    use super::*;

    #[test]
    fn every_attack_of_the_list_can_be_made_and_no_other() {
        for (mut made, attacks) in [
            (
                attempts().map(|(name, _)| *name).collect::<Vec<_>>(),
                ATTACKS,
            ),
            (
                outside::attempts().map(|(name, _)| *name).collect(),
                OUTSIDE,
            ),
        ] {
            let mut listed: Vec<_> = attacks.iter().map(|attack| attack.name).collect();
            made.sort_unstable();
            listed.sort_unstable();
            assert_eq!(made, listed);
        }
    }
}
