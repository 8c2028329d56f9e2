//! Error codes of the public API, and the one way to print a chain of errors.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Prints an error and its causes as `outer: middle: root`.
///
/// No `Display` in this project repeats its source's text, so nothing is said twice.
#[derive(Debug)]
pub struct ErrorChain<'a>(pub &'a dyn Error);

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

macro_rules! error_codes {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal, $status:literal, $actor:ident, $retry:literal;)*) => {
        /// What went wrong, as callers may depend on it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[serde(rename_all = "snake_case")]
        pub enum ErrorCode { $($(#[doc = $doc])* $name,)* }

        impl ErrorCode {
            /// Every code, in the order of the reference.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Returns the code as the API writes it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Returns the HTTP status.
            pub const fn http_status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// Returns what it means, in one sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),*).trim_ascii(),)* }
            }

            /// Returns who can mend it.
            pub const fn actor(self) -> Actor {
                match self { $(Self::$name => Actor::$actor,)* }
            }

            /// Returns whether the same request may succeed later.
            pub const fn retry_helps(self) -> bool {
                match self { $(Self::$name => $retry,)* }
            }
        }
    };
}

/// Who can mend an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// The caller, by another request.
    User,
    /// Whoever runs the host.
    Operator,
    /// Us.
    Bug,
}

impl Actor {
    /// Returns the actor as the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Operator => "operator",
            Self::Bug => "bug",
        }
    }
}

error_codes! {
    /// The request is malformed or a value is outside its range.
    InvalidArgument = "invalid_argument", 400, User, false;
    /// Whoever asks showed no key, or one that is not valid.
    Unauthenticated = "unauthenticated", 401, User, false;
    /// The peer may not do that.
    PermissionDenied = "permission_denied", 403, User, false;
    /// There is no such sandbox, exec or path.
    NotFound = "not_found", 404, User, false;
    /// The name is taken.
    AlreadyExists = "already_exists", 409, User, false;
    /// The sandbox's state does not allow it.
    IllegalState = "illegal_state", 409, User, false;
    /// The command was not found inside the sandbox.
    CommandNotFound = "command_not_found", 422, User, false;
    /// The command was found and cannot be executed.
    CommandNotExecutable = "command_not_executable", 422, User, false;
    /// The working directory is not there.
    DirectoryNotFound = "directory_not_found", 422, User, false;
    /// The image is not there or not an image.
    InvalidImage = "invalid_image", 422, User, false;
    /// The user is not known inside the sandbox.
    UnknownUser = "unknown_user", 422, User, false;
    /// The idempotency key was used for another request.
    IdempotencyMismatch = "idempotency_mismatch", 422, User, false;
    /// A limit of pinfold's own is reached.
    LimitExceeded = "limit_exceeded", 429, User, true;
    /// A quota of the caller's principal is used up.
    QuotaExceeded = "quota_exceeded", 429, User, true;
    /// What sandboxes request together is more than the host is said to have.
    CapacityExceeded = "capacity_exceeded", 503, Operator, true;
    /// The driver or image cannot do that.
    Unsupported = "unsupported", 501, User, false;
    /// More host ids are needed than this user has.
    NeedsSubids = "needs_subids", 501, Operator, false;
    /// A named limit needs a cgroup that this host does not give.
    NeedsCgroup = "needs_cgroup", 501, Operator, false;
    /// A named disk limit cannot be held on this host.
    NeedsDiskLimit = "needs_disk_limit", 501, Operator, false;
    /// The host lacks something that sandboxes need.
    HostUnsupported = "host_unsupported", 501, Operator, false;
    /// The isolation tier asked for cannot be given.
    TierUnavailable = "tier_unavailable", 501, Operator, false;
    /// The guest agent did not answer in time.
    AgentSilent = "agent_silent", 504, User, true;
    /// The sandbox's instance is gone.
    InstanceGone = "instance_gone", 410, User, false;
    /// The host's disk or memory is used up.
    ResourceExhausted = "resource_exhausted", 507, Operator, true;
    /// The daemon is shutting down or too busy.
    Unavailable = "unavailable", 503, Operator, true;
    /// A fault of ours; the log has the details.
    Internal = "internal", 500, Bug, false;
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The body of every error answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApiErrorBody {
    /// The error.
    pub error: ApiErrorDetail,
}

/// What an error answer says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApiErrorDetail {
    /// Stable code.
    pub code: ErrorCode,
    /// One sentence for people.
    pub message: String,
    /// Further facts, as the code documents them.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub details: serde_json::Value,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Finds the request in the daemon's log.
    #[serde(default)]
    pub request_id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_written_as_serde_writes_them() {
        for code in ErrorCode::ALL {
            assert_eq!(serde_json::to_string(code).unwrap(), format!("\"{code}\""));
            assert!((400..=599).contains(&code.http_status()));
            assert!(code.meaning().ends_with('.'), "{code}");
        }
    }
}
