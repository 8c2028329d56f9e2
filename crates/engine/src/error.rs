//! What callers and whoever starts the daemon are told when something fails.

use std::path::PathBuf;

use pinfold_driver::DriverError;
use pinfold_driver::agent::AgentError;
use pinfold_types::error::Actor;
use pinfold_types::spec::SpecError;
use pinfold_types::{ErrorChain, ErrorCode, SandboxState};
use serde_json::json;

/// Any cause, for the log.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a request to the engine failed.
///
/// Everything but the source is for the caller; the source is for the log only.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct EngineError {
    /// Stable code.
    pub code: ErrorCode,
    /// Lower-case fragment for people.
    pub message: String,
    /// Further facts, as the code documents them; null when there are none.
    pub details: serde_json::Value,
    /// What to do next.
    pub hint: Option<String>,
    /// The cause.
    #[source]
    pub(crate) source: Option<Cause>,
}

impl EngineError {
    /// Makes an error without details, hint or cause.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: serde_json::Value::Null,
            hint: None,
            source: None,
        }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds facts.
    #[must_use]
    pub fn details(mut self, details: serde_json::Value) -> Self {
        self.details = details;
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Cause>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Says that a sandbox's state does not allow a step, and names both states.
    pub(crate) fn illegal_state(name: &str, from: SandboxState, to: SandboxState) -> Self {
        let error = Self::new(
            ErrorCode::IllegalState,
            format!("sandbox `{name}` is {from} and cannot become {to}"),
        )
        .details(json!({ "from": from, "to": to }));
        match from {
            SandboxState::Stopped if to == SandboxState::Stopping => {
                error.hint("nothing needs doing")
            }
            SandboxState::Stopped | SandboxState::Failed => {
                error.hint(format!("start it with `pinfold start {name}`"))
            }
            SandboxState::Running if to == SandboxState::Starting => {
                error.hint("it runs already, so nothing needs doing")
            }
            SandboxState::Removing => error.hint("it is being removed; make a new one"),
            SandboxState::Creating
            | SandboxState::Running
            | SandboxState::Paused
            | SandboxState::Stopping
            | SandboxState::Starting => error,
        }
    }

    pub(crate) fn not_found(what: &str, target: &str) -> Self {
        let shown: String = target.chars().take(64).collect();
        Self::new(ErrorCode::NotFound, format!("there is no {what} `{shown}`")).hint(match what {
            "sandbox" => "see all of them with `pinfold list --all`",
            "template" => "see all of them with `pinfold template list`",
            "pool" => "see all of them with `pinfold pool list`",
            _ => "see all of them with `pinfold logs`",
        })
    }

    pub(crate) fn closing() -> Self {
        Self::new(ErrorCode::Unavailable, "the daemon is shutting down")
            .hint("try again; the next command starts a new daemon")
    }

    /// An input or output error on our own files.
    pub(crate) fn host_io(what: &str, source: std::io::Error) -> Self {
        if is_full(&source) {
            Self::new(
                ErrorCode::ResourceExhausted,
                format!("failed to {what}: the host's disk is full"),
            )
            .hint("free space on the file system of the state directory; nothing was lost")
            .caused_by(source)
        } else {
            Self::new(ErrorCode::Internal, format!("failed to {what}")).caused_by(source)
        }
    }
}

/// Returns whether an error says that a disk or a quota is used up.
pub(crate) fn is_full(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
    )
}

impl From<AgentError> for EngineError {
    fn from(error: AgentError) -> Self {
        Self {
            code: error.code,
            message: error.message,
            details: serde_json::Value::Null,
            hint: error.hint,
            source: None,
        }
    }
}

impl From<DriverError> for EngineError {
    fn from(mut error: DriverError) -> Self {
        let leftovers = std::mem::take(&mut error.leftovers);
        let code = error.kind.code();
        // Who can mend it must see the cause; a fault of ours is told to the log alone.
        let (message, source) = if code.actor() == Actor::Bug {
            (error.message.clone(), error.source.take())
        } else {
            (chain(&error), None)
        };
        Self {
            code,
            message,
            details: if leftovers.is_empty() {
                serde_json::Value::Null
            } else {
                json!({ "leftovers": leftovers })
            },
            hint: error.hint.take(),
            source,
        }
    }
}

impl From<SpecError> for EngineError {
    fn from(error: SpecError) -> Self {
        Self::new(ErrorCode::InvalidArgument, error.to_string())
    }
}

/// Prints an error with its causes for the log.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    ErrorChain(error).to_string()
}

/// Why an engine could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another daemon uses the state directory.
    #[error("another daemon uses the state directory `{}`{}", path.display(), process(*pid))]
    Locked {
        /// The state directory.
        path: PathBuf,
        /// The other daemon, when it said so.
        pid: Option<u32>,
    },
    /// A directory or file of the state cannot be used.
    #[error("failed to {what} `{}`", path.display())]
    State {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The database is damaged. It was copied and left where it is.
    #[error(
        "the database `{}` is damaged; it was not changed, and a copy is at `{}`",
        path.display(), backup.display()
    )]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// Its copy.
        backup: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Cause,
    },
    /// A newer pinfold wrote the database.
    #[error(
        "the database `{}` has version {found}, and this pinfold knows versions up to {known}",
        path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest known version.
        known: i64,
    },
    /// The database cannot be used.
    #[error("failed to {what} the database `{}`", path.display())]
    Database {
        /// What was tried.
        what: &'static str,
        /// The database.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Cause,
    },
}

fn process(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})"))
        .unwrap_or_default()
}

impl OpenError {
    /// Returns what to do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Locked { path, pid } => Some(match pid {
                Some(pid) => format!(
                    "use that daemon, end it with `kill {pid}`, or set PINFOLD_STATE_DIR to \
                     another directory"
                ),
                None => format!(
                    "see who it is with `fuser -v '{}/{}'`",
                    path.display(),
                    crate::lock::LOCK_FILE
                ),
            }),
            Self::State { source, path, .. } => match source.kind() {
                std::io::ErrorKind::PermissionDenied => Some(format!(
                    "make it yours with `sudo chown -R \"$(id -u):$(id -g)\" '{}'`, or set \
                     PINFOLD_STATE_DIR",
                    path.display()
                )),
                _ if is_full(source) => {
                    Some("free space on the file system of the state directory".to_owned())
                }
                _ => None,
            },
            Self::Corrupt { path, .. } => Some(format!(
                "begin with an empty database by `rm -f '{0}' '{0}-wal' '{0}-shm'`; its sandboxes \
                 are then removed at the next start, and the copy stays",
                path.display()
            )),
            Self::Newer { .. } => Some("run the pinfold that wrote it, or a newer one".to_owned()),
            Self::Database { .. } => None,
        }
    }
}
