//! What callers and whoever starts the daemon are told when something fails.

use std::path::PathBuf;

use pinfold_types::ErrorCode;

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
}

/// Why an engine could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another daemon uses the state directory.
    #[error("another daemon uses the state directory `{}`", path.display())]
    Locked {
        /// The state directory.
        path: PathBuf,
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
}

impl OpenError {
    /// Returns what to do next.
    pub fn hint(&self) -> Option<String> {
        None
    }
}
