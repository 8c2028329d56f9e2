//! Attacks from outside a sandbox: the program makes them on this host, by way of the product.

use std::path::Path;
use std::process::{Command, Stdio};

use pinfold_attack::{Attack, FACTS_VARIABLE, Facts, Outcome, Outside, Said};

use super::bait::Bait;
use super::report::Judged;
use super::stand::{Believing, Stand};
use crate::context::Context;
use crate::error::CliError;

/// How the names of attacks begin whose agent is the program's own.
const LIAR: &str = "liar-";

/// Makes attacks from outside.
pub(super) struct Outsider<'a> {
    pub(super) context: &'a Context,
    pub(super) program: &'a Path,
    pub(super) bait: &'a Bait,
}

impl Outsider<'_> {
    /// Makes each of these attacks.
    pub(super) async fn run(&self, attacks: Vec<&'static Attack>) -> Result<Vec<Judged>, CliError> {
        let mut judged = Vec::new();
        if attacks.is_empty() {
            return Ok(judged);
        }
        let agent = self.bait.directory().join("agent.sock");
        let driver = Believing::new(agent.clone());
        let stand = Stand::open(&self.bait.directory().join("stand"), driver).await?;
        let config = &self.context.config;
        for attack in attacks {
            let mut given = Outside {
                socket: config.socket().display().to_string(),
                state: config.state_dir().display().to_string(),
                ..Outside::default()
            };
            if attack.name.starts_with(LIAR) {
                given.socket = stand.socket().display().to_string();
                given.state = stand.state().display().to_string();
                given.agent = Some(agent.display().to_string());
            }
            judged.push(self.make(attack, given).await?);
        }
        stand.close().await;
        Ok(judged)
    }

    /// Has the program make an attack, in a directory of its own.
    async fn make(&self, attack: &'static Attack, given: Outside) -> Result<Judged, CliError> {
        let failed = || CliError::new(format!("failed to make the attack `{}`", attack.name));
        let product = std::env::current_exe().map_err(|error| failed().caused_by(&error))?;
        let scratch = self.bait.directory().join(attack.name);
        std::fs::create_dir(&scratch).map_err(|error| failed().caused_by(&error))?;
        let facts = Facts {
            outside: Some(Outside {
                product: product.display().to_string(),
                scratch: scratch.display().to_string(),
                ..given
            }),
            ..self.bait.facts()
        };
        let facts = serde_json::to_string(&facts).map_err(|error| failed().caused_by(&error))?;
        let mut command = Command::new(self.program);
        command
            .args(["outside", attack.name])
            .env(FACTS_VARIABLE, facts)
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        // It ends itself when its time is over.
        let output = tokio::task::spawn_blocking(move || command.output())
            .await
            .map_err(|error| failed().caused_by(&error))?
            .map_err(|error| failed().caused_by(&error))?;
        let said = serde_json::from_slice::<Said>(&output.stdout).ok();
        Ok(said.as_ref().and_then(Judged::of).unwrap_or_else(|| {
            let detail = format!("{}: it said nothing", pinfold_attack::NOT_MADE);
            Judged::new(attack, Outcome::NotExpressible, &detail)
        }))
    }
}
