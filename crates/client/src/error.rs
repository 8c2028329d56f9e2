//! Why a request did not give what was asked for.

use std::path::PathBuf;
use std::time::Duration;

use pinfold_types::ErrorCode;
use pinfold_types::error::ApiErrorDetail;

/// Any cause of another crate.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a request did not give what was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The daemon refused or failed.
    #[error("{}", .0.message)]
    Api(Box<ApiErrorDetail>),
    /// Nothing listens on the socket, or there is none.
    #[error("no daemon answers at `{}`", socket.display())]
    NoDaemon {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The socket is there and may not be used by this user.
    #[error("failed to connect to `{}`", socket.display())]
    Socket {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The socket or whoever listens on it belongs to another user, so it is not trusted.
    #[error("socket is owned by uid {owner}: `{}` is not trusted", socket.display())]
    ForeignSocket {
        /// The socket.
        socket: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// The host cannot be found, or nothing answers at its port.
    #[error("no daemon answers at `{host}`")]
    Unreachable {
        /// The host and its port.
        host: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The host did not prove who it is, or does not speak TLS.
    #[error("no TLS connection to `{host}`")]
    Tls {
        /// The host and its port.
        host: String,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// The certificates that should be trusted cannot be used.
    #[error("failed to read the trusted certificates of `{}`", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// Others could read what is said to the host.
    #[error("others could read everything on the way to `{host}`, which is asked without TLS")]
    PlainText {
        /// The host and its port.
        host: String,
    },
    /// The host sends us elsewhere, where the key is not shown.
    #[error("the host answers with a redirection (status {status}), which is not followed")]
    Redirected {
        /// The status of its answer.
        status: u16,
    },
    /// The daemon was too slow.
    #[error("the daemon did not answer within {} s", waited.as_secs())]
    TimedOut {
        /// How long was waited.
        waited: Duration,
    },
    /// The connection broke.
    #[error("the connection to the daemon broke")]
    Transport {
        /// Why.
        #[source]
        source: Cause,
    },
    /// What the caller wanted to send could not be read.
    #[error("failed to read what was to be sent")]
    Upload {
        /// Why.
        #[source]
        source: Cause,
    },
    /// The daemon's answer is not what this version understands.
    #[error("the daemon's answer is not understood: {what}")]
    Protocol {
        /// What is wrong with it.
        what: String,
    },
    /// The answer is larger than anything the daemon should send.
    #[error("the daemon's answer is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
}

impl ClientError {
    /// Returns the code that the API would use for it.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Api(detail) => detail.code,
            Self::NoDaemon { .. }
            | Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::Transport { .. } => ErrorCode::Unavailable,
            Self::Socket { .. }
            | Self::ForeignSocket { .. }
            | Self::Tls { .. }
            | Self::PlainText { .. } => ErrorCode::PermissionDenied,
            Self::Upload { .. } | Self::Authorities { .. } => ErrorCode::InvalidArgument,
            Self::Protocol { .. } | Self::TooLarge { .. } | Self::Redirected { .. } => {
                ErrorCode::Internal
            }
        }
    }

    /// Returns what to do next.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Api(detail) => return detail.hint.clone(),
            Self::NoDaemon { .. } => "start it with `pinfold serve`",
            Self::Socket { .. } => {
                "ask whoever runs the daemon to add you to the group `pinfold`, or unset \
                 PINFOLD_SOCKET to use a daemon of your own"
            }
            Self::ForeignSocket { .. } => {
                "remove the socket, or point PINFOLD_SOCKET to one of yours or root's"
            }
            Self::Unreachable { .. } => {
                "look whether the host is right, and whether its daemon runs with `serve --listen`"
            }
            Self::Tls { .. } => {
                "name the host as its certificate does, and the file of whoever signed it with \
                 --ca-file; a port without TLS is asked with http://"
            }
            Self::Authorities { .. } => "name a file of certificates in PEM with --ca-file",
            Self::PlainText { .. } => {
                "use https://, or an SSH tunnel; --insecure-http sends the key and everything else \
                 for all to read"
            }
            Self::Redirected { .. } => "name the host that it redirects to",
            Self::TimedOut { .. } => "look at the daemon's log, and try again",
            Self::Transport { .. } => "look whether the daemon still runs, and try again",
            Self::Protocol { .. } => {
                "the daemon may be of another version: compare `pinfold --version` with \
                 `pinfold status`"
            }
            Self::Upload { .. } | Self::TooLarge { .. } => return None,
        };
        Some(text.to_owned())
    }

    pub(crate) fn transport(source: impl Into<Cause>) -> Self {
        Self::Transport {
            source: source.into(),
        }
    }

    pub(crate) fn protocol(what: impl Into<String>) -> Self {
        Self::Protocol { what: what.into() }
    }
}
