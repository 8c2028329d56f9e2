//! Errors of the agent, as callers see them.

use connectrpc::{ConnectError, ErrorCode as ConnectCode};
use pinfold_types::ErrorCode;
use pinfold_types::weaken::{Defence, is_off};

use super::AgentError;
use super::transport::{TransportError, hint_for};

/// Most characters of a text that an agent puts into an error: it may be made by the guest.
const MESSAGE_CHARS_MAX: usize = 512;

/// Words that the agent may put before a message, and what they mean.
const PREFIXED: [(&str, ErrorCode); 6] = [
    ("command_not_found", ErrorCode::CommandNotFound),
    ("command_not_executable", ErrorCode::CommandNotExecutable),
    ("directory_not_found", ErrorCode::DirectoryNotFound),
    ("unknown_user", ErrorCode::UnknownUser),
    ("invalid_argument", ErrorCode::InvalidArgument),
    ("limit_exceeded", ErrorCode::LimitExceeded),
];

/// How an error begins when the agent's connection ends within an answer, as it does when its sandbox
/// is stopped or removed meanwhile: no fault of the daemon.
const BROKEN_OFF: &str = "failed to read response body";

/// How our own side of the protocol says that an answer is larger than we accept. It has no other
/// mark; an agent that says the same of itself gains nothing.
const OVERSIZE: [&str; 4] = [
    "message size ",
    "response body size ",
    "response buffer ",
    "decompressed size ",
];

impl AgentError {
    pub(super) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: hint(code),
        }
    }

    /// The agent answered something that no honest agent answers.
    pub(super) fn broken_contract(what: impl std::fmt::Display) -> Self {
        Self {
            code: ErrorCode::Internal,
            message: format!("the agent's answer is not believed: {what}"),
            hint: Some(
                "its sandbox may be hostile; stop it with `pinfold stop`, or report a bug"
                    .to_owned(),
            ),
        }
    }

    /// The agent did not answer in the time that is named for it.
    pub(super) fn silent(what: &str, waited: std::time::Duration) -> Self {
        Self::new(
            ErrorCode::AgentSilent,
            format!(
                "the agent did not answer `{what}` within {} s",
                waited.as_secs()
            ),
        )
    }
}

impl From<TransportError> for AgentError {
    fn from(error: TransportError) -> Self {
        Self {
            code: error.code,
            message: error.message,
            hint: error.hint,
        }
    }
}

impl From<ConnectError> for AgentError {
    fn from(error: ConnectError) -> Self {
        let transport = error
            .source_arc()
            .and_then(|source| source.downcast_ref::<TransportError>().cloned());
        if let Some(transport) = transport {
            return transport.into();
        }
        let text = printable(error.message.as_deref().unwrap_or_default());
        if error.code == ConnectCode::Internal && text.starts_with(BROKEN_OFF) {
            return Self::new(
                ErrorCode::InstanceGone,
                "the guest agent went away while it answered",
            );
        }
        if let Some((code, rest)) = prefixed(&text) {
            return Self::new(code, rest);
        }
        if error.code == ConnectCode::ResourceExhausted
            && OVERSIZE.iter().any(|start| text.starts_with(start))
        {
            return Self::broken_contract(text);
        }
        let code = code_of(error.code);
        if text.is_empty() {
            Self::new(
                code,
                format!("the agent answered `{}`", error.code.as_str()),
            )
        } else {
            Self::new(code, text)
        }
    }
}

/// Splits `code=<x>; message`; an unknown word is left as it stands.
pub(super) fn prefixed(text: &str) -> Option<(ErrorCode, &str)> {
    let (word, rest) = text.strip_prefix("code=")?.split_once("; ")?;
    let (_, code) = PREFIXED.iter().find(|(known, _)| *known == word)?;
    Some((*code, rest))
}

fn code_of(code: ConnectCode) -> ErrorCode {
    match code {
        ConnectCode::NotFound => ErrorCode::NotFound,
        ConnectCode::InvalidArgument | ConnectCode::OutOfRange => ErrorCode::InvalidArgument,
        ConnectCode::FailedPrecondition => ErrorCode::IllegalState,
        ConnectCode::ResourceExhausted => ErrorCode::ResourceExhausted,
        ConnectCode::AlreadyExists => ErrorCode::AlreadyExists,
        ConnectCode::PermissionDenied | ConnectCode::Unauthenticated => ErrorCode::PermissionDenied,
        ConnectCode::Unimplemented => ErrorCode::Unsupported,
        ConnectCode::DeadlineExceeded | ConnectCode::Unavailable => ErrorCode::AgentSilent,
        ConnectCode::Canceled | ConnectCode::Aborted => ErrorCode::Unavailable,
        _ => ErrorCode::Internal,
    }
}

fn hint(code: ErrorCode) -> Option<String> {
    let text = match code {
        ErrorCode::CommandNotFound => {
            "name the program by its path inside the sandbox, or use an image that has it"
        }
        ErrorCode::CommandNotExecutable => {
            "check its permissions and its first line; scripts need an interpreter that exists inside"
        }
        ErrorCode::DirectoryNotFound => {
            "make the directory first, or name another one with `--workdir`"
        }
        ErrorCode::UnknownUser => {
            "name a user of the sandbox's /etc/passwd, or a number, as in `1000:1000`"
        }
        ErrorCode::ResourceExhausted => {
            "free space or memory inside the sandbox, or give it a larger limit"
        }
        ErrorCode::Unsupported => {
            "the agent inside is older than this pinfold; start the sandbox anew"
        }
        code => return hint_for(code),
    };
    Some(text.to_owned())
}

/// Cuts a text of the guest and takes out what could steer a terminal.
pub(super) fn printable(text: &str) -> String {
    if is_off(Defence::AgentTexts) {
        return text.to_owned();
    }
    text.chars()
        .take(MESSAGE_CHARS_MAX)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_word_before_the_message_is_the_code() {
        let error = AgentError::from(ConnectError::not_found("code=unknown_user; no user `bob`"));
        assert_eq!(error.code, ErrorCode::UnknownUser);
        assert_eq!(error.message, "no user `bob`");
        assert!(error.hint.is_some());
    }

    #[test]
    fn an_unknown_word_changes_nothing() {
        let error = AgentError::from(ConnectError::not_found("code=internal; x"));
        assert_eq!(error.code, ErrorCode::NotFound);
        assert_eq!(error.message, "code=internal; x");
    }

    #[test]
    fn every_prefix_is_spelled_as_its_code() {
        for (word, code) in PREFIXED {
            assert_eq!(word, code.as_str());
        }
    }

    #[test]
    fn a_message_cannot_steer_a_terminal_or_fill_memory() {
        let error = AgentError::from(ConnectError::internal(format!(
            "\x1b]0;x\x07{}",
            "a".repeat(10_000)
        )));
        assert!(!error.message.contains(char::is_control));
        assert_eq!(error.message.chars().count(), MESSAGE_CHARS_MAX);
    }
}
