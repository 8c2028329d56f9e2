//! API keys: requests and answers of `/v1/keys`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::KeyId;
use crate::principal::{Principal, PrincipalName, Role};
use crate::units::{ByteSize, MilliCpu};

/// Begins the text of every key, so that people and scanners know one when they see it.
pub const KEY_PREFIX: &str = "pf_";

/// What one principal may have at once. What is absent is not limited here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Quotas {
    /// Sandboxes, stopped ones included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandboxes: Option<u32>,
    /// CPU limits of all sandboxes together, stopped ones included, in thousandths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<MilliCpu>,
    /// Memory limits of all sandboxes together, stopped ones included, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Execs that run at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub execs: Option<u32>,
    /// Sandboxes made in a minute; as many may be made in one burst.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creations: Option<u32>,
}

impl Quotas {
    /// Limits nothing.
    pub const NONE: Self = Self {
        sandboxes: None,
        cpus: None,
        memory: None,
        execs: None,
        creations: None,
    };

    /// Returns these with what they leave open taken from `defaults`.
    #[must_use]
    pub fn or(self, defaults: Self) -> Self {
        Self {
            sandboxes: self.sandboxes.or(defaults.sandboxes),
            cpus: self.cpus.or(defaults.cpus),
            memory: self.memory.or(defaults.memory),
            execs: self.execs.or(defaults.execs),
            creations: self.creations.or(defaults.creations),
        }
    }
}

/// `POST /v1/keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateKeyRequest {
    /// What people call the key; unique among those of its principal.
    pub name: PrincipalName,
    /// Whom the key stands for. When absent: an admin's key is for a new principal with the key's
    /// name, everybody else's for themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<Principal>,
    /// What whoever shows the key may do.
    #[serde(default)]
    pub role: Role,
    /// Milliseconds after which the key is refused; never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// Takes the place of the daemon's quotas, where something is named; for admins to give.
    #[serde(default)]
    pub quotas: Quotas,
}

/// A key as the API shows it. The secret is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Key {
    /// Its id, which is also a part of its text.
    pub id: KeyId,
    /// Its name.
    pub name: PrincipalName,
    /// Whom it stands for.
    pub principal: Principal,
    /// What whoever shows it may do.
    pub role: Role,
    /// What takes the place of the daemon's quotas.
    #[serde(default)]
    pub quotas: Quotas,
    /// The key that it was made with; it is revoked with that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_with: Option<KeyId>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339; absent when it does not expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// RFC 3339, exact to a minute; absent when it was never shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<String>,
}

/// Answer of `POST /v1/keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreatedKey {
    /// What is known of the key from now on.
    pub key: Key,
    /// What to send as `Authorization: Bearer …`. It is never shown again.
    pub token: KeyToken,
}

/// `GET /v1/keys`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeyList {
    /// By principal and name.
    pub keys: Vec<Key>,
}

/// Answer of `DELETE /v1/keys/{id}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RevokedKeys {
    /// The key and those that were made with it.
    pub revoked: Vec<KeyId>,
}

/// The text of a key. It has no `Display`, and its `Debug` tells nothing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct KeyToken(String);

impl KeyToken {
    /// Takes the text of a key.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the text, to be shown or sent and never logged.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyToken(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_debugged() {
        let token = KeyToken::new("pf_secret");
        assert!(!format!("{token:?}").contains("secret"));
        assert_eq!(serde_json::to_string(&token).unwrap(), "\"pf_secret\"");
    }

    #[test]
    fn what_a_key_leaves_open_is_the_default() {
        let defaults = Quotas {
            sandboxes: Some(1),
            execs: Some(2),
            ..Quotas::NONE
        };
        let own = Quotas {
            sandboxes: Some(9),
            ..Quotas::NONE
        };
        let expected = Quotas {
            sandboxes: Some(9),
            execs: Some(2),
            ..Quotas::NONE
        };
        assert_eq!(own.or(defaults), expected);
    }

    #[test]
    fn a_request_needs_only_a_name() {
        let request: CreateKeyRequest = serde_json::from_str(r#"{"name":"ci"}"#).unwrap();
        assert_eq!(request.role, Role::User);
        assert_eq!(request.quotas, Quotas::NONE);
        assert!(serde_json::from_str::<CreateKeyRequest>(r#"{"name":"ci","x":1}"#).is_err());
    }
}
