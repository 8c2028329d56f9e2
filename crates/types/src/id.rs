//! Typed identifiers.
//!
//! Every id matches `[a-z][a-z0-9]{19}`: a kind letter, nine characters of time (so ids sort by
//! creation) and ten random ones. The pattern fits DNS labels, Kubernetes names and E2B's ids.

mod request;

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub use request::{RequestId, RequestIdError};

/// Length of every id in characters.
pub const ID_LENGTH: usize = 20;

/// The digits of an id, in ASCII order so that text order is numeric order.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Characters that hold the creation time: 9 × 5 bits of milliseconds last until the year 3084.
const TIME_LENGTH: usize = 9;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an id: ids are a letter followed by 19 lower-case letters or digits")]
pub struct IdError {
    /// The refused text, cut to a printable length.
    pub text: String,
}

/// Returns whether a text has the form of an id of any kind.
pub fn looks_like_id(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == ID_LENGTH
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

fn generate(kind: char) -> String {
    let now_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis();
    let mut random = [0u8; ID_LENGTH - 1 - TIME_LENGTH];
    getrandom::fill(&mut random).expect("the kernel's random source is always there after boot");
    let mut text = String::with_capacity(ID_LENGTH);
    text.push(kind);
    for place in (0..TIME_LENGTH).rev() {
        text.push(digit((now_ms >> (5 * place)) & 31));
    }
    text.extend(random.iter().map(|byte| digit(u128::from(byte & 31))));
    text
}

fn digit(value: u128) -> char {
    let index = usize::try_from(value & 31).unwrap_or(0);
    char::from(ALPHABET.get(index).copied().unwrap_or(b'0'))
}

macro_rules! typed_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(pattern = "^[a-z][a-z0-9]{19}$"))]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Makes a new, unique id.
            ///
            /// # Panics
            ///
            /// Panics when the kernel has no random numbers, which cannot happen after boot.
            #[expect(clippy::new_without_default, reason = "an id is never a default value")]
            pub fn new() -> Self {
                Self(generate($kind))
            }

            /// Returns the id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                if looks_like_id(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(IdError { text: text.chars().take(64).collect() })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

typed_id!(
    /// Identifies one sandbox for ever.
    SandboxId,
    's'
);
typed_id!(
    /// Identifies one exec for ever.
    ExecId,
    'x'
);
typed_id!(
    /// Identifies one API key for ever. It is the public part of the key and no secret.
    KeyId,
    'k'
);

/// The id that stands for the events which programs of a sandbox drop: they are of no exec.
const EVENTS: &str = "events00000000000000";

/// What callers may write for it.
const EVENTS_SHORT: &str = "events";

impl ExecId {
    /// Returns the id of the stream of a sandbox's own events.
    pub fn events() -> Self {
        Self(EVENTS.to_owned())
    }

    /// Returns whether this is the id of the stream of a sandbox's own events, and of no exec.
    pub fn is_events(&self) -> bool {
        self.0 == EVENTS
    }

    /// Reads an id, or the short word for the stream of a sandbox's own events.
    ///
    /// # Errors
    ///
    /// Returns [`IdError`] when it is neither.
    pub fn of_stream(text: &str) -> Result<Self, IdError> {
        if text == EVENTS_SHORT {
            return Ok(Self::events());
        }
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_ids_are_distinct_parse_and_sort_by_time() {
        let first = SandboxId::new();
        let second = SandboxId::new();
        assert_ne!(first, second);
        assert_eq!(first.as_str().parse::<SandboxId>(), Ok(first.clone()));
        assert!(first.as_str()[..10] <= second.as_str()[..10]);
    }

    #[test]
    fn malformed_ids_are_refused() {
        for text in [
            "",
            "s",
            "S0000000000000000000",
            "00000000000000000000",
            "s000000000000000000é",
        ] {
            assert!(text.parse::<SandboxId>().is_err(), "{text}");
        }
    }
}
