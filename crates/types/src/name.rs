//! Names that people give to sandboxes, and names that we make when they give none.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::looks_like_id;

/// Longest name in characters: a DNS label less room for a port prefix.
pub const NAME_LENGTH_MAX: usize = 42;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The pattern is not met.
    #[error(
        "`{text}` is not a name: names are 1 to {NAME_LENGTH_MAX} lower-case letters, digits and \
         dashes, start with a letter and do not end with a dash"
    )]
    Pattern {
        /// The refused text, cut to a printable length.
        text: String,
    },
    /// The name could be mistaken for an id.
    #[error("`{text}` has the form of an id and cannot be a name")]
    LooksLikeId {
        /// The refused text.
        text: String,
    },
}

/// The name of a sandbox, unique per owner.
///
/// Matches `[a-z]([a-z0-9-]{0,40}[a-z0-9])?` and never looks like an id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(pattern = "^[a-z]([a-z0-9-]{0,40}[a-z0-9])?$")
)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxName(String);

impl SandboxName {
    /// Makes a name like `python-quiet-otter` from a prefix (a language or an image's last word).
    ///
    /// The prefix is reduced to what a name may hold; an unusable one is left out.
    ///
    /// # Panics
    ///
    /// Panics when the kernel has no random numbers, which cannot happen after boot.
    pub fn generate(prefix: &str) -> Self {
        let mut random = [0u8; 2];
        getrandom::fill(&mut random)
            .expect("the kernel's random source is always there after boot");
        let word = |list: &'static [&'static str], byte: u8| {
            list.get(usize::from(byte) % list.len())
                .copied()
                .unwrap_or("quiet")
        };
        let tail = format!(
            "{}-{}",
            word(ADJECTIVES, random[0]),
            word(ANIMALS, random[1])
        );
        let head: String = prefix
            .chars()
            .filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
            .take(16)
            .collect();
        let text = if head.starts_with(|c: char| c.is_ascii_lowercase()) {
            format!("{head}-{tail}")
        } else {
            tail
        };
        Self(text)
    }

    /// Appends a number, for instance to tell the members of `--count N` apart.
    ///
    /// # Errors
    ///
    /// Returns [`NameError`] when the result is too long.
    pub fn numbered(&self, number: u32) -> Result<Self, NameError> {
        format!("{}-{number}", self.0).parse()
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SandboxName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        check(text)?;
        Ok(Self(text.to_owned()))
    }
}

/// Returns whether a text follows the pattern of all names.
pub(crate) fn check(text: &str) -> Result<(), NameError> {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    let good = !bytes.is_empty()
        && bytes.len() <= NAME_LENGTH_MAX
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.last().is_some_and(|b| *b != b'-')
        && bytes.iter().all(inner);
    if !good {
        return Err(NameError::Pattern {
            text: text.chars().take(64).collect(),
        });
    }
    if looks_like_id(text) {
        return Err(NameError::LooksLikeId {
            text: text.to_owned(),
        });
    }
    Ok(())
}

impl fmt::Display for SandboxName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for SandboxName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<SandboxName> for String {
    fn from(name: SandboxName) -> String {
        name.0
    }
}

const ADJECTIVES: &[&str] = &[
    "able", "amber", "bold", "brave", "brisk", "calm", "clear", "clever", "cosy", "crisp", "deft",
    "early", "eager", "fair", "fleet", "fond", "fresh", "gentle", "glad", "golden", "grand",
    "green", "happy", "hardy", "honest", "humble", "jolly", "keen", "kind", "light", "lively",
    "lucky", "mellow", "merry", "mild", "neat", "nimble", "noble", "placid", "plain", "polite",
    "proud", "quick", "quiet", "rapid", "ready", "royal", "rustic", "serene", "sharp", "silent",
    "silver", "smart", "snug", "sober", "steady", "still", "sturdy", "sunny", "swift", "tidy",
    "warm", "wise", "young",
];

const ANIMALS: &[&str] = &[
    "badger", "beaver", "bison", "calf", "camel", "cat", "colt", "crane", "crow", "deer", "dove",
    "duck", "eagle", "egret", "elk", "ermine", "ewe", "falcon", "ferret", "finch", "foal", "fox",
    "gecko", "goat", "goose", "hare", "hawk", "hen", "heron", "horse", "ibex", "kid", "koala",
    "lamb", "lark", "lemur", "lion", "llama", "lynx", "mare", "marten", "mole", "moose", "mouse",
    "mule", "newt", "otter", "owl", "ox", "panda", "pony", "puffin", "quail", "ram", "raven",
    "robin", "seal", "sheep", "stoat", "swan", "tapir", "toad", "vole", "wren",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_pattern() {
        let long = "a".repeat(NAME_LENGTH_MAX);
        for good in ["a", "a1", "python-quiet-otter", long.as_str()] {
            assert!(good.parse::<SandboxName>().is_ok(), "{good}");
        }
        let too_long = "a".repeat(NAME_LENGTH_MAX + 1);
        for bad in [
            "",
            "-a",
            "a-",
            "1a",
            "A",
            "a_b",
            "ü",
            "a b",
            "../x",
            too_long.as_str(),
        ] {
            assert!(bad.parse::<SandboxName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_never_looks_like_an_id() {
        let id = crate::SandboxId::new();
        assert!(matches!(
            id.as_str().parse::<SandboxName>(),
            Err(NameError::LooksLikeId { .. })
        ));
    }

    #[test]
    fn generated_names_are_names() {
        for prefix in ["", "python", "Host/../x", "ubuntu:22.04", "7zip"] {
            let name = SandboxName::generate(prefix);
            assert_eq!(name.as_str().parse::<SandboxName>().as_ref(), Ok(&name));
        }
    }
}
