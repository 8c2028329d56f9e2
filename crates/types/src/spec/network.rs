//! What a sandbox is to reach of the network, as callers and settings say it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::SpecError;

/// Most hosts of one list: far more than a person writes, and small enough to compare one by one.
pub const HOSTS_MAX: usize = 256;

/// Most characters of one entry: the longest name of DNS, and a port.
const HOST_LENGTH_MAX: usize = 253 + 6;

/// Which hosts a sandbox may and may not reach. A sandbox reaches nothing that is not allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct NetworkSpec {
    /// Hosts that it may reach. This version reaches none, so it refuses what names any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_hosts: Vec<HostPattern>,
    /// Hosts that it may not reach, whatever else is allowed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub denied_hosts: Vec<HostPattern>,
}

impl NetworkSpec {
    /// Returns whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.allowed_hosts.is_empty() && self.denied_hosts.is_empty()
    }

    /// Checks the sizes of the lists.
    ///
    /// # Errors
    ///
    /// Names the first that is too long.
    pub fn check(&self) -> Result<(), SpecError> {
        for (what, list) in [
            ("the number of allowed hosts", &self.allowed_hosts),
            ("the number of denied hosts", &self.denied_hosts),
        ] {
            if list.len() > HOSTS_MAX {
                return Err(SpecError::TooLarge {
                    what,
                    size: list.len(),
                    limit: HOSTS_MAX,
                });
            }
        }
        Ok(())
    }
}

/// A host name, a `*.` wildcard, an address or a CIDR block, each with at most a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(pattern = r"^[a-z0-9*\[\]:./_-]{1,259}$")
)]
#[serde(try_from = "String", into = "String")]
pub struct HostPattern(String);

/// Why a text is not a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a host: write a name such as `pypi.org`, `*.pypi.org`, an address or a block \
     such as `10.0.0.0/8`, and a port behind a colon if only that is meant"
)]
pub struct HostError {
    /// The refused text, cut.
    pub text: String,
}

impl HostPattern {
    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for HostPattern {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        if text.len() <= HOST_LENGTH_MAX && is_pattern(text) {
            return Ok(Self(text.to_owned()));
        }
        Err(HostError {
            text: text.chars().take(64).collect(),
        })
    }
}

impl TryFrom<String> for HostPattern {
    type Error = HostError;

    fn try_from(text: String) -> Result<Self, HostError> {
        text.parse()
    }
}

impl From<HostPattern> for String {
    fn from(host: HostPattern) -> Self {
        host.0
    }
}

fn is_pattern(text: &str) -> bool {
    if is_block(text) {
        return true;
    }
    // An address of the sixth version has colons of its own, so a port needs brackets.
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => return address.parse::<std::net::Ipv6Addr>().is_ok(),
        Some((address, rest)) => {
            let known = address.parse::<std::net::Ipv6Addr>().is_ok();
            return known && rest.strip_prefix(':').is_some_and(is_port);
        }
        None => text
            .rsplit_once(':')
            .map_or((text, None), |(host, port)| (host, Some(port))),
    };
    port.is_none_or(is_port) && is_name(host.strip_prefix("*.").unwrap_or(host))
}

fn is_port(text: &str) -> bool {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits && text.parse::<u16>().is_ok_and(|port| port > 0)
}

fn is_block(text: &str) -> bool {
    let (address, length) = text
        .split_once('/')
        .map_or((text, None), |(address, length)| (address, Some(length)));
    let Ok(address) = address.parse::<std::net::IpAddr>() else {
        return false;
    };
    let most = if address.is_ipv4() { 32 } else { 128 };
    length.is_none_or(|length| length.parse::<u8>().is_ok_and(|length| length <= most))
}

fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let bytes = label.as_bytes();
        (1..=63).contains(&bytes.len())
            && bytes.iter().all(|byte| plain(*byte) || *byte == b'-')
            && bytes.first().copied().is_some_and(plain)
            && bytes.last().copied().is_some_and(plain)
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_wildcards_addresses_and_blocks() {
        for good in [
            "pypi.org",
            "*.pypi.org",
            "pypi.org:443",
            "10.0.0.0/8",
            "192.0.2.1",
            "192.0.2.1:80",
            "2001:db8::/32",
            "[2001:db8::1]:443",
            "_dns.example",
        ] {
            assert!(good.parse::<HostPattern>().is_ok(), "{good}");
        }
        let long = format!("{}.org", "a".repeat(300));
        for bad in [
            "",
            "*",
            "a b",
            "https://a.example",
            "A.example",
            "a..b",
            "-a.b",
            "a:0",
            "a:99999",
            "10.0.0.0/33",
            "[::1]:",
            "a.*.b",
            &long,
        ] {
            assert!(bad.parse::<HostPattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn lists_are_bounded() {
        let host: HostPattern = "a.example".parse().unwrap();
        let mut network = NetworkSpec {
            denied_hosts: vec![host; HOSTS_MAX],
            ..NetworkSpec::default()
        };
        assert_eq!(network.check(), Ok(()));
        network.denied_hosts.extend(network.denied_hosts.clone());
        assert!(network.check().is_err());
    }
}
