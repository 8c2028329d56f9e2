//! The id of a request: the daemon's own, or one that its caller brought.

use std::fmt;
use std::str::FromStr;

use super::generate;

/// Shortest id that a caller may bring: a shorter one would hardly be the only one in a log.
const LENGTH_MIN: usize = 8;

/// Longest id that a caller may bring: room for a UUID with a prefix.
const LENGTH_MAX: usize = 64;

/// Identifies one request to the daemon, in its answer, in the log and in the audit log.
///
/// A caller may bring one: 8 to 64 letters, digits, `.`, `_` and `-`, the first a letter or a digit.
/// So it can stand in any line without an escape.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestId(String);

/// Why a text is not the id of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is not {LENGTH_MIN} to {LENGTH_MAX} letters, digits, `.`, `_` and `-` that begin with a \
     letter or digit"
)]
pub struct RequestIdError;

impl RequestId {
    /// Makes a new, unique id.
    ///
    /// # Panics
    ///
    /// Panics when the kernel has no random numbers, which cannot happen after boot.
    #[expect(clippy::new_without_default, reason = "an id is never a default value")]
    pub fn new() -> Self {
        Self(generate('r'))
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RequestId {
    type Err = RequestIdError;

    fn from_str(text: &str) -> Result<Self, RequestIdError> {
        let bytes = text.as_bytes();
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
        let good = (LENGTH_MIN..=LENGTH_MAX).contains(&bytes.len())
            && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.iter().all(plain);
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(RequestIdError)
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_id_is_plain_and_bounded() {
        let longest = "a".repeat(LENGTH_MAX);
        let own = RequestId::new();
        for good in ["abcdefgh", "7d4a-11.x_Y", own.as_str(), longest.as_str()] {
            assert_eq!(
                good.parse::<RequestId>().map(|id| id.0),
                Ok(good.to_owned())
            );
        }
        let long = "a".repeat(LENGTH_MAX + 1);
        for bad in [
            "",
            "short",
            "-abcdefgh",
            "abcdefg\n",
            "abcdefg h",
            "abcdefgä",
            "abcdef\"}",
            long.as_str(),
        ] {
            assert_eq!(bad.parse::<RequestId>(), Err(RequestIdError), "{bad:?}");
        }
    }
}
