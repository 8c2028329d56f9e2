//! What every verb needs: the settings, the printer, and the daemon.

use pinfold_client::{Client, ClientError, Endpoint};
use pinfold_types::api::{ListQuery, Sandbox, Version};
use pinfold_types::{ErrorCode, SandboxState};

use crate::arguments::Targets;
use crate::autostart;
use crate::config::Config;
use crate::error::CliError;
use crate::printer::Printer;
use crate::remote;

/// What to do when a daemon does not know us: it speaks of headers, and here is none to write.
const NO_KEY: &str = "set PINFOLD_API_KEY, or name a file that holds a key with --key-file; \
                      `pinfold key create NAME` on the daemon's host makes one";

/// What every verb needs.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// The settings.
    pub(crate) config: std::sync::Arc<Config>,
    /// How to print.
    pub(crate) printer: Printer,
    /// The daemon.
    pub(crate) client: Client,
}

impl Context {
    /// Finds the daemon, or starts it.
    ///
    /// # Errors
    ///
    /// Fails when no daemon answers and none may or can be started.
    pub(crate) async fn connect(config: Config, printer: Printer) -> Result<Self, CliError> {
        if let Some(endpoint) = config.host() {
            let client = remote::open(&config, &endpoint, printer).await?;
            let daemon = client.version().await.map_err(api_error)?;
            let context = Self {
                config: std::sync::Arc::new(config),
                printer,
                client,
            };
            context.compare_versions(&daemon, Some(&endpoint));
            return Ok(context);
        }
        autostart::ensure(&config)?;
        let (client, daemon) = match greet(&config).await {
            // It accepted us and ended in the same moment: there is no second such moment.
            Err(error) if went_away(&error) => {
                autostart::ensure(&config)?;
                greet(&config).await
            }
            greeted => greeted,
        }
        .map_err(api_error)?;
        let context = Self {
            config: std::sync::Arc::new(config),
            printer,
            client,
        };
        context.compare_versions(&daemon, None);
        Ok(context)
    }

    /// Returns the same for whoever answers at another socket.
    ///
    /// # Errors
    ///
    /// Fails when nobody does.
    pub(crate) async fn of(&self, socket: &std::path::Path) -> Result<Self, CliError> {
        let client = Client::connect(socket).await.map_err(api_error)?;
        Ok(Self {
            client,
            ..self.clone()
        })
    }

    /// Says so when the daemon is of another version: it may not understand us.
    fn compare_versions(&self, daemon: &Version, host: Option<&Endpoint>) {
        let ours = env!("CARGO_PKG_VERSION");
        if daemon.version == ours {
            return;
        }
        if let Some(host) = host {
            self.printer.warn(&format!(
                "the daemon at {host} is pinfold {} and this is pinfold {ours}",
                daemon.version
            ));
        } else {
            self.printer.warn(&format!(
                "the daemon is pinfold {} and this is pinfold {ours}; `kill {}` ends it and the next \
                 command starts the new one, while sandboxes live on",
                daemon.version, daemon.pid
            ));
        }
    }

    /// Waits for a daemon again, after it went away under us.
    ///
    /// # Errors
    ///
    /// Fails when none answers and none may or can be started.
    pub(crate) async fn reconnect(&self) -> Result<(), CliError> {
        let config = self.config.clone();
        if config.host().is_some() {
            // Only who runs it starts it; whether it is back is seen by asking.
            return Ok(());
        }
        // It may block on a lock and a starting daemon.
        tokio::task::spawn_blocking(move || autostart::ensure(&config))
            .await
            .map_err(|error| CliError::new("failed to look for the daemon").caused_by(&error))?
    }

    /// Lists what `--all` means for a verb: those in one of some states, or all.
    ///
    /// # Errors
    ///
    /// Fails when the daemon does.
    pub(crate) async fn all(&self, states: &[SandboxState]) -> Result<Vec<Sandbox>, CliError> {
        let query = ListQuery {
            states: states.to_vec(),
            all: true,
            ..ListQuery::default()
        };
        self.client.list_all(&query).await.map_err(api_error)
    }

    /// Returns what was typed, or all sandboxes in some states.
    ///
    /// # Errors
    ///
    /// Fails when the daemon does.
    pub(crate) async fn targets(
        &self,
        targets: &Targets,
        states: &[SandboxState],
    ) -> Result<Vec<Target>, CliError> {
        if !targets.all {
            let typed = |name: &String| Target {
                key: name.clone(),
                shown: name.clone(),
            };
            return Ok(targets.names.iter().map(typed).collect());
        }
        let all = self.all(states).await?;
        Ok(all.iter().map(Target::of).collect())
    }
}

/// Connects to the daemon and asks who it is.
async fn greet(config: &Config) -> Result<(Client, Version), ClientError> {
    let client = Client::connect(&config.socket()).await?;
    let daemon = client.version().await?;
    Ok((client, daemon))
}

/// Returns whether the daemon ended while it was spoken to.
fn went_away(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::NoDaemon { .. } | ClientError::Transport { .. }
    )
}

/// A sandbox that something is done to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// What the daemon is told: an id where we know it, since names are an owner's own.
    pub(crate) key: String,
    /// What people are told.
    pub(crate) shown: String,
}

impl Target {
    fn of(sandbox: &Sandbox) -> Self {
        Self {
            key: sandbox.id.to_string(),
            shown: sandbox.name.to_string(),
        }
    }
}

/// Turns what the client says into what a person reads.
#[expect(
    clippy::needless_pass_by_value,
    reason = "it is what every `map_err` is given"
)]
pub(crate) fn api_error(error: ClientError) -> CliError {
    if let ClientError::Api(detail) = &error {
        let hint = if detail.code == ErrorCode::Unauthenticated {
            Some(NO_KEY.to_owned())
        } else {
            detail.hint.clone()
        };
        let mut told = CliError::of_api(detail.code, &detail.message, hint);
        if detail.code == ErrorCode::Internal && !detail.request_id.is_empty() {
            told = told.caused_by(&CliError::new(format!("request {}", detail.request_id)));
        }
        return told;
    }
    let hint = error.hint();
    let told = CliError::new(error.to_string()).maybe_hint(hint);
    match std::error::Error::source(&error) {
        Some(source) => told.caused_by(source),
        None => told,
    }
}
