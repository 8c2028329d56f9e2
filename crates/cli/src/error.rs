//! What the command line says when something fails, and the exit codes it ends with.

use std::error::Error;
use std::fmt;

use pinfold_types::{ErrorCode, ExecExit};

/// Exit codes that are ours and not a program's.
pub(crate) mod exit_code {
    /// A question was answered with no, as in `status` of a daemon that does not run.
    pub(crate) const NO: u8 = 1;
    /// Something other than the program failed.
    pub(crate) const FAILURE: u8 = 125;
    /// The command was found and cannot be executed.
    pub(crate) const NOT_EXECUTABLE: u8 = 126;
    /// The command was not found.
    pub(crate) const NOT_FOUND: u8 = 127;
    /// Whoever read our output went away, as a shell shows a SIGPIPE.
    pub(crate) const BROKEN_PIPE: u8 = 141;
}

/// A failure as it is told to a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CliError {
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
    code: Option<ErrorCode>,
    exit: u8,
    quiet: bool,
}

impl CliError {
    /// Makes a failure of ours.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            causes: Vec::new(),
            hint: None,
            code: None,
            exit: exit_code::FAILURE,
            quiet: false,
        }
    }

    /// Makes the failure that nobody needs to hear of: the reader of our output went away.
    pub(crate) fn broken_pipe() -> Self {
        Self {
            quiet: true,
            exit: exit_code::BROKEN_PIPE,
            ..Self::new("the reader of the output went away")
        }
    }

    /// Makes a failure that has already been told; only its exit code is left.
    pub(crate) fn told(exit: u8) -> Self {
        Self {
            quiet: true,
            exit,
            ..Self::new("told before")
        }
    }

    /// Adds what to do next.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what to do next when there is something.
    #[must_use]
    pub(crate) fn maybe_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint.or(self.hint);
        self
    }

    /// Adds a cause and the causes of that.
    #[must_use]
    pub(crate) fn caused_by(mut self, cause: &dyn Error) -> Self {
        let mut next = Some(cause);
        while let Some(error) = next {
            self.causes.push(error.to_string());
            next = error.source();
        }
        self
    }

    /// Ends with another exit code.
    #[must_use]
    pub(crate) fn exit(mut self, exit: u8) -> Self {
        self.exit = exit;
        self
    }

    /// Puts words before the message.
    #[must_use]
    pub(crate) fn within(mut self, context: &str) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// Returns the exit code to end with.
    pub(crate) fn exit_code(&self) -> u8 {
        self.exit
    }

    /// Returns whether nothing is to be said.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Returns what failed, without causes and hint.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Returns the causes, outermost first.
    pub(crate) fn causes(&self) -> &[String] {
        &self.causes
    }

    /// Returns what to do next.
    pub(crate) fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Returns the failure as one line of JSON for programs: what the API says of an error, as far as
    /// it is known here.
    pub(crate) fn to_json(&self) -> String {
        serde_json::json!({ "error": {
            "code": self.code,
            "message": self.message,
            "causes": self.causes,
            "hint": self.hint,
            "exit_code": self.exit,
        }})
        .to_string()
    }

    /// Makes a failure from what the API answered.
    pub(crate) fn of_api(code: ErrorCode, message: &str, hint: Option<String>) -> Self {
        let exit = match code {
            ErrorCode::CommandNotFound => exit_code::NOT_FOUND,
            ErrorCode::CommandNotExecutable => exit_code::NOT_EXECUTABLE,
            _ => exit_code::FAILURE,
        };
        let mut told = Self::new(message)
            .maybe_hint(hint.or_else(|| own_hint(code).map(str::to_owned)))
            .exit(exit);
        told.code = Some(code);
        told
    }
}

/// What to do about a code when the daemon gave no hint of its own.
fn own_hint(code: ErrorCode) -> Option<&'static str> {
    match code {
        ErrorCode::AlreadyExists => Some("choose another name, or leave out --name"),
        ErrorCode::CommandNotFound => Some("check the spelling, or that the image has the program"),
        ErrorCode::CommandNotExecutable => {
            Some("run it through its interpreter, or make it executable with `chmod +x`")
        }
        ErrorCode::DirectoryNotFound => Some("make the directory first, or leave out --workdir"),
        ErrorCode::InvalidImage => {
            Some("name `host`, a directory, or a tarball of a root filesystem")
        }
        ErrorCode::UnknownUser => Some("name a user of the image, or a number"),
        ErrorCode::NeedsSubids
        | ErrorCode::NeedsCgroup
        | ErrorCode::NeedsDiskLimit
        | ErrorCode::HostUnsupported
        | ErrorCode::TierUnavailable => {
            Some("`pinfold doctor` shows what is missing and the command that mends it")
        }
        ErrorCode::AgentSilent => Some("look with `pinfold status NAME`, or remove it with `rm`"),
        ErrorCode::IllegalState => {
            Some("`pinfold status NAME` shows its state; `pinfold start NAME` starts it")
        }
        ErrorCode::InstanceGone => Some("`pinfold start NAME` starts it again"),
        ErrorCode::Unavailable => Some("try again in a moment"),
        ErrorCode::Internal => {
            Some("the daemon's log, `daemon.log` in its state directory, says more")
        }
        _ => None,
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for CliError {}

/// Turns an exit code as a shell shows it into one that a process can end with.
pub(crate) fn exit_byte(code: i32) -> u8 {
    u8::try_from(code & 0xff).unwrap_or(exit_code::FAILURE)
}

/// Returns the byte that ends us like a program ended.
pub(crate) fn exit_of(exit: &ExecExit) -> u8 {
    exit_byte(exit.shell_code())
}
