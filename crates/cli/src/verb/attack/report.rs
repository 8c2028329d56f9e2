//! What the attacks came to, for people and for programs.

use std::fmt::Write as _;

use pinfold_attack::{Attack, Group, Outcome, Said, is_proven, why_untested};
use pinfold_types::api::Sandbox;
use pinfold_types::spec::IsolationTier;
use serde::Serialize;

use super::exposure::{Seen, exposure};
use crate::error::CliError;
use crate::printer::{Printer, printable, table_width};
use crate::table::{Column, render};

/// Width of the table where nobody looks.
const WIDTH: usize = 80;
/// Most characters that are told of one attack: a guest may say anything.
const DETAIL_CHARACTERS_MAX: usize = 300;

/// Said where something is `untested`.
const UNTESTED: &str =
    "nothing shows that an attack that is `untested` would have worked without its defence";

/// How an attack was judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// It failed, and a test shows that it works without its defence.
    Held,
    /// It worked.
    Broken,
    /// It failed, and nothing shows that it would work without its defence.
    Untested,
    /// What it needs does not exist here.
    NotExpressible,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Broken => "BROKEN",
            Self::Untested => "untested",
            Self::NotExpressible => "not expressible",
        }
    }
}

/// One attack and how it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Judged {
    pub(super) name: &'static str,
    group: Group,
    result: Verdict,
    tries: &'static str,
    defence: &'static str,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    why_untested: Option<&'static str>,
}

impl Judged {
    /// Judges what the program said; nothing for what is no answer.
    pub(super) fn of(said: &Said) -> Option<Self> {
        let attack = pinfold_attack::attack(&said.name)?;
        Some(Self::new(attack, said.outcome?, &said.detail))
    }

    /// Judges an outcome.
    pub(super) fn new(attack: &'static Attack, outcome: Outcome, detail: &str) -> Self {
        let result = match outcome {
            Outcome::Worked => Verdict::Broken,
            Outcome::NotExpressible => Verdict::NotExpressible,
            Outcome::Failed if !is_proven(attack) => Verdict::Untested,
            Outcome::Failed => Verdict::Held,
        };
        Self {
            name: attack.name,
            group: attack.group,
            result,
            tries: attack.tries,
            defence: attack.defence,
            why_untested: why_untested(attack.name),
            detail: detail.chars().take(DETAIL_CHARACTERS_MAX).collect(),
        }
    }
}

/// All of it, and where it was seen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Report {
    version: &'static str,
    kernel: String,
    driver: String,
    tier: IsolationTier,
    ids: String,
    attacks: Vec<Judged>,
    exposure: Vec<String>,
}

impl Report {
    /// Puts a report together for what a sandbox really got.
    pub(super) fn new(sandbox: &Sandbox, attacks: Vec<Judged>) -> Self {
        let granted = sandbox.granted.clone().unwrap_or_default();
        let mut exposure = exposure(&Seen::of(sandbox));
        exposure.extend(granted.notes);
        if attacks
            .iter()
            .any(|judged| judged.result == Verdict::Untested)
        {
            exposure.push(UNTESTED.to_owned());
        }
        let system = rustix::system::uname();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            kernel: system.release().to_string_lossy().into_owned(),
            driver: granted.driver,
            tier: granted.isolation,
            ids: granted.ids,
            attacks,
            exposure,
        }
    }

    /// Returns whether any attack worked.
    pub(super) fn is_broken(&self) -> bool {
        self.count(Verdict::Broken) > 0
    }

    fn count(&self, verdict: Verdict) -> usize {
        let of = |judged: &&Judged| judged.result == verdict;
        self.attacks.iter().filter(of).count()
    }

    /// Prints it.
    ///
    /// # Errors
    ///
    /// Fails when standard output cannot be written.
    pub(super) fn print(&self, printer: Printer) -> Result<(), CliError> {
        if printer.json {
            printer.value(self)
        } else {
            printer.data(&self.text())
        }
    }

    fn text(&self) -> String {
        const COLUMNS: &[Column] = &[
            Column::left("GROUP"),
            Column::left("ATTACK"),
            Column::left("RESULT"),
            Column::cut("SEEN"),
        ];
        let rows: Vec<Vec<String>> = self
            .attacks
            .iter()
            .map(|judged| {
                vec![
                    judged.group.name().to_owned(),
                    judged.name.to_owned(),
                    judged.result.word().to_owned(),
                    judged.detail.clone(),
                ]
            })
            .collect();
        let mut text = render(COLUMNS, &rows, Some(table_width().unwrap_or(WIDTH)));
        let _infallible = writeln!(
            text,
            "\n{} attacks: {} held, {} broken, {} untested, {} not expressible here",
            self.attacks.len(),
            self.count(Verdict::Held),
            self.count(Verdict::Broken),
            self.count(Verdict::Untested),
            self.count(Verdict::NotExpressible),
        );
        let _infallible = writeln!(
            text,
            "pinfold {}, driver {}, ids {}, kernel {}",
            self.version,
            printable(&self.driver),
            printable(&self.ids),
            printable(&self.kernel),
        );
        let untested = |judged: &&Judged| judged.result == Verdict::Untested;
        for judged in self.attacks.iter().filter(untested) {
            if let Some(why) = judged.why_untested {
                let _infallible = writeln!(text, "{} is untested: {why}", judged.name);
            }
        }
        text.push_str("\nnot stopped by this tier:\n");
        for line in &self.exposure {
            let _infallible = writeln!(text, "- {}", printable(line));
        }
        text
    }
}
