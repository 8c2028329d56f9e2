//! Why a file operation failed.

use std::io;

use crate::users::UserError;
use crate::worker::WorkerError;

/// A file operation failed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The kernel refused, or the request makes no sense.
    #[error("cannot {operation} `{path}`")]
    At {
        /// What was to be done.
        operation: &'static str,
        /// With what.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Its owner is not known.
    #[error("cannot find the files' owner")]
    User(#[source] UserError),
    /// No worker could do it.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

impl FileError {
    /// Returns the cause, where the kernel gave one.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::At { source, .. } => Some(source),
            Self::User(_) | Self::Worker(_) => None,
        }
    }
}

/// Names the operation and path of an error.
pub(crate) fn failed(operation: &'static str, path: &str) -> impl Fn(io::Error) -> FileError {
    move |source| FileError::At {
        operation,
        path: crate::shorten(path),
        source,
    }
}

/// Makes an error that says what is wrong with a request.
pub(crate) fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason.into())
}
