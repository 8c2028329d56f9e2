//! Why an exec could not be started or handled.

use std::io;

use pinfold_linux::spawn::{SpawnError, Step};
use pinfold_types::error::ErrorCode;

use super::{ENDED_MAX, RUNNING_MAX};
use crate::users::UserError;

/// An exec could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Its user is not known.
    #[error("cannot start the command as user `{0}`")]
    User(String, #[source] UserError),
    /// Its user cannot be taken, since this sandbox has too few ids.
    #[error("this sandbox has no host id for user {user}; it needs subordinate ids")]
    NoId {
        /// The id inside.
        user: u32,
        /// What the kernel answered.
        #[source]
        source: SpawnError,
    },
    /// Its working directory cannot be entered.
    #[error("cannot enter the working directory `{path}`")]
    Directory {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The command is not there.
    #[error("command `{0}` was not found")]
    NotFound(String),
    /// The command is there and cannot run.
    #[error("command `{command}` cannot be executed: {reason}")]
    NotExecutable {
        /// Which.
        command: String,
        /// Why.
        reason: &'static str,
    },
    /// The kernel takes no command line and environment of this size.
    #[error(
        "the arguments and environment are too long for the kernel: \
         at most 128 KiB each and about 2 MiB together"
    )]
    TooLong,
    /// A limit of the sandbox or of ours is reached.
    #[error("{0}")]
    Limit(String),
    /// Something else refused.
    #[error("cannot start `{command}`")]
    Spawn {
        /// Which.
        command: String,
        /// How far it got.
        #[source]
        source: SpawnError,
    },
    /// A terminal or pipe could not be made.
    #[error("cannot make the streams of the command")]
    Streams(#[source] io::Error),
}

impl StartError {
    /// Returns the code that callers may depend on.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid(_) | Self::TooLong => ErrorCode::InvalidArgument,
            Self::User(..) => ErrorCode::UnknownUser,
            Self::NoId { .. } => ErrorCode::NeedsSubids,
            Self::Directory { .. } => ErrorCode::DirectoryNotFound,
            Self::NotFound(_) => ErrorCode::CommandNotFound,
            Self::NotExecutable { .. } => ErrorCode::CommandNotExecutable,
            Self::Limit(_) => ErrorCode::LimitExceeded,
            Self::Spawn { .. } | Self::Streams(_) => ErrorCode::Internal,
        }
    }

    pub(super) fn running() -> Self {
        Self::Limit(format!(
            "{RUNNING_MAX} execs run in this sandbox; wait for one or kill one"
        ))
    }

    pub(super) fn ended() -> Self {
        Self::Limit(format!(
            "{ENDED_MAX} ended execs of this sandbox were not acknowledged; read or forget some"
        ))
    }

    /// Says what a failed start means.
    pub(super) fn of(error: SpawnError, command: &str, directory: &str, user: u32) -> Self {
        let command = crate::shorten(command);
        let not_executable = |command, reason| Self::NotExecutable { command, reason };
        match (error.step, error.source.raw_os_error().unwrap_or(0)) {
            (Step::Execute, libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG) => {
                Self::NotFound(command)
            }
            (Step::Execute, libc::EACCES | libc::EPERM) => {
                not_executable(command, "it is not a file that this user may execute")
            }
            (Step::Execute, libc::ENOEXEC) => not_executable(
                command,
                "it is neither a program of this machine nor a script that begins with `#!`",
            ),
            (Step::Execute, libc::ELOOP | libc::EISDIR | libc::ETXTBSY) => not_executable(
                command,
                "it is a loop of links, a directory or being written",
            ),
            (Step::Interpreter, _) => not_executable(
                command,
                "the interpreter or loader that it names is not in the sandbox",
            ),
            (Step::Execute, libc::E2BIG) => Self::TooLong,
            (Step::Clone, libc::EAGAIN | libc::ENOMEM) => Self::Limit(
                "the sandbox has no process or memory left for another command; \
                 end one, or give it a larger limit"
                    .to_owned(),
            ),
            (Step::Directory, _) => Self::Directory {
                path: crate::shorten(directory),
                source: error.source,
            },
            (Step::Groups | Step::Group | Step::User, libc::EINVAL | libc::EPERM) => Self::NoId {
                user,
                source: error,
            },
            (Step::Limits, libc::EPERM | libc::EINVAL) => Self::Invalid(
                "a resource limit is above what this sandbox may have, or soft above hard"
                    .to_owned(),
            ),
            _ => Self::Spawn {
                command,
                source: error,
            },
        }
    }
}

/// An exec could not be handled.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// There is none of this id.
    #[error("there is no exec `{0}` in this sandbox")]
    Unknown(String),
    /// It runs.
    #[error("the exec is still running; signal it first")]
    Running,
    /// It has ended.
    #[error("the exec has ended")]
    Ended,
    /// It was started without standard input.
    #[error("the exec was started without standard input")]
    NoInput,
    /// It closed its standard input, or we did for it.
    #[error("the exec's standard input is closed")]
    InputClosed,
    /// The message is too long.
    #[error("one input is at most {} KiB; send several", super::INPUT_BYTES_MAX >> 10)]
    InputTooLong,
    /// It has no terminal.
    #[error("the exec has no terminal")]
    NoTerminal,
    /// There is no such signal.
    #[error("{0} is not the number of a signal")]
    NoSignal(i32),
    /// The size is none.
    #[error("a terminal has 1 to {} columns and rows", u16::MAX)]
    NoSize,
    /// The kernel refused.
    #[error("cannot {0}")]
    Kernel(&'static str, #[source] io::Error),
}
