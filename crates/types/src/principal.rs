//! Who owns and who asks: principals and their roles.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::{self, NameError};

/// What the text of a host's user begins with.
const USER_PREFIX: &str = "uid:";

/// Why a text is not a principal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a principal: principals are `uid:NUMBER` or a name")]
pub struct PrincipalError {
    /// The refused text, cut to a printable length.
    pub text: String,
    /// Why it is not a name; absent when it was read as a user of the host.
    #[source]
    pub source: Option<NameError>,
}

/// The name of a principal that is no user of the host.
///
/// Has the pattern of sandbox names, so it is never taken for a user of the host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(pattern = "^[a-z]([a-z0-9-]{0,40}[a-z0-9])?$")
)]
#[serde(try_from = "String", into = "String")]
pub struct PrincipalName(String);

impl PrincipalName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PrincipalName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        name::check(text)?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for PrincipalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for PrincipalName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<PrincipalName> for String {
    fn from(name: PrincipalName) -> String {
        name.0
    }
}

/// Who owns things and asks for them.
///
/// Written `uid:1000` for a user of the host, else as the name that API keys carry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Principal {
    /// A user of the host, as the kernel names it.
    User(u32),
    /// Whoever holds an API key of this name.
    Named(PrincipalName),
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) => f.pad(&format!("{USER_PREFIX}{uid}")),
            Self::Named(name) => name.fmt(f),
        }
    }
}

impl FromStr for Principal {
    type Err = PrincipalError;

    fn from_str(text: &str) -> Result<Self, PrincipalError> {
        let refused = |source| PrincipalError {
            text: text.chars().take(64).collect(),
            source,
        };
        let Some(number) = text.strip_prefix(USER_PREFIX) else {
            return match text.parse() {
                Ok(name) => Ok(Self::Named(name)),
                Err(source) => Err(refused(Some(source))),
            };
        };
        // One principal has one text: no sign and no leading zeros.
        number
            .parse::<u32>()
            .ok()
            .filter(|uid| uid.to_string() == number)
            .map(Self::User)
            .ok_or_else(|| refused(None))
    }
}

impl TryFrom<String> for Principal {
    type Error = PrincipalError;

    fn try_from(text: String) -> Result<Self, PrincipalError> {
        text.parse()
    }
}

impl From<Principal> for String {
    fn from(principal: Principal) -> String {
        principal.to_string()
    }
}

/// Why a text is not a role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a role: roles are viewer, user and admin")]
pub struct RoleError {
    /// The refused text, cut to a printable length.
    pub text: String,
}

/// What a caller may do. Each role may do all that the ones before it may.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sees what its principal owns and changes nothing.
    Viewer,
    /// Makes and changes what its principal owns.
    #[default]
    User,
    /// Sees and changes everything.
    Admin,
}

impl Role {
    /// Every role, the least first.
    pub const ALL: &'static [Self] = &[Self::Viewer, Self::User, Self::Admin];

    /// Returns the role as the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::User => "user",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        Self::ALL
            .iter()
            .copied()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| RoleError {
                text: text.chars().take(64).collect(),
            })
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for Principal {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::schema::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .description(Some("`uid:1000` for a user of the host, else a name"))
            .pattern(Some("^(uid:[0-9]+|[a-z]([a-z0-9-]{0,40}[a-z0-9])?)$"))
            .into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for Principal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn principals_have_one_text_each() {
        let named = Principal::Named("ci".parse().unwrap());
        for (principal, text) in [
            (Principal::User(0), "uid:0"),
            (Principal::User(u32::MAX), "uid:4294967295"),
            (named, "ci"),
        ] {
            assert_eq!(principal.to_string(), text);
            assert_eq!(text.parse(), Ok(principal.clone()));
            let json = serde_json::to_string(&principal).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<Principal>(&json).unwrap(), principal);
        }
        for bad in [
            "",
            "uid:",
            "uid:01",
            "uid:+1",
            "uid:-1",
            "uid:4294967296",
            "UID:1",
            "Ci",
            "a b",
            "k0000000000000000000",
        ] {
            assert!(bad.parse::<Principal>().is_err(), "{bad}");
        }
    }

    #[test]
    fn roles_are_ordered_and_written_as_serde_writes_them() {
        assert!(Role::Viewer < Role::User && Role::User < Role::Admin);
        for role in Role::ALL {
            assert_eq!(serde_json::to_string(role).unwrap(), format!("\"{role}\""));
            assert_eq!(role.as_str().parse(), Ok(*role));
        }
        assert!("root".parse::<Role>().is_err());
    }
}
