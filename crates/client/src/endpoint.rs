//! Where a daemon is, and what is shown to it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use http::HeaderValue;

/// Longest text of an endpoint: the longest host name with its scheme and port, or a socket's path.
const TEXT_BYTES_MAX: usize = 512;

/// Longest key that is shown: the daemon looks at no longer header.
const KEY_BYTES_MAX: usize = 249;

/// Where a daemon is: `unix:///run/pinfold/pinfold.sock`, `http://host:port` or `https://host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix socket of this host.
    Unix(PathBuf),
    /// A port, perhaps of another host.
    Tcp(Port),
}

/// A port and how it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Whether TLS is spoken.
    pub secure: bool,
    /// A name or an address; one of version 6 has no brackets.
    pub host: String,
    /// The number.
    pub port: u16,
}

impl Port {
    /// Returns what the header `host` says: the host with its port, brackets where they are needed.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(port) => {
                let scheme = if port.secure { "https" } else { "http" };
                write!(f, "{scheme}://{}", port.authority())
            }
        }
    }
}

/// Why a text names no daemon.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// It is longer than any.
    #[error("it is longer than {TEXT_BYTES_MAX} bytes")]
    TooLong,
    /// It begins with nothing that is known.
    #[error("it begins with none of `https://`, `http://` and `unix:///`")]
    Scheme,
    /// There is a user, a path or a query where none can be.
    #[error("it may hold a host and a port and nothing else")]
    More,
    /// There is no host, or what is there is none.
    #[error("it names no host")]
    Host,
    /// What is behind the colon is no port.
    #[error("its port is not a number from 1 to 65535")]
    Port,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(EndpointError::TooLong);
        }
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.starts_with('/') {
                Ok(Self::Unix(PathBuf::from(path)))
            } else {
                Err(EndpointError::Scheme)
            };
        }
        let (secure, rest) = if let Some(rest) = text.strip_prefix("https://") {
            (true, rest)
        } else if let Some(rest) = text.strip_prefix("http://") {
            (false, rest)
        } else {
            return Err(EndpointError::Scheme);
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#', '@']) {
            return Err(EndpointError::More);
        }
        let (host, port) = split(rest)?;
        let port = match port {
            None if secure => 443,
            None => 80,
            Some(text) => text
                .parse()
                .ok()
                .filter(|number| *number != 0)
                .ok_or(EndpointError::Port)?,
        };
        Ok(Self::Tcp(Port { secure, host, port }))
    }
}

/// Takes host and port apart; an address of version 6 stands in brackets.
fn split(text: &str) -> Result<(String, Option<&str>), EndpointError> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, behind) = rest.split_once(']').ok_or(EndpointError::Host)?;
        host.parse::<std::net::Ipv6Addr>()
            .map_err(|_| EndpointError::Host)?;
        return match behind.strip_prefix(':') {
            Some(port) => Ok((host.to_owned(), Some(port))),
            None if behind.is_empty() => Ok((host.to_owned(), None)),
            None => Err(EndpointError::Host),
        };
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if host.is_empty() || !host.chars().all(plain) {
        return Err(EndpointError::Host);
    }
    Ok((host.to_owned(), port))
}

/// An API key as it is shown to a daemon; nothing prints it.
#[derive(Clone)]
pub struct ApiKey(HeaderValue);

/// Why a text is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the API key is empty, longer than {KEY_BYTES_MAX} bytes, or holds what no key holds")]
pub struct ApiKeyError;

impl ApiKey {
    /// Takes a key's text; space around it is left out, since files end with a line's end.
    ///
    /// # Errors
    ///
    /// Returns [`ApiKeyError`] for what cannot be a key.
    pub fn new(text: &str) -> Result<Self, ApiKeyError> {
        let text = text.trim();
        let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.is_empty() || text.len() > KEY_BYTES_MAX || !plain {
            return Err(ApiKeyError);
        }
        let mut value =
            HeaderValue::from_str(&format!("Bearer {text}")).map_err(|_| ApiKeyError)?;
        value.set_sensitive(true);
        Ok(Self(value))
    }

    pub(crate) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_written() {
        for (text, shown) in [
            ("unix:///run/x.sock", "unix:///run/x.sock"),
            ("http://localhost:8080", "http://localhost:8080"),
            ("http://a.example/", "http://a.example:80"),
            ("https://a.example", "https://a.example:443"),
            ("https://[::1]:8443", "https://[::1]:8443"),
            ("https://[::1]", "https://[::1]:443"),
            ("https://127.0.0.1:1", "https://127.0.0.1:1"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), shown);
        }
        let long = format!("http://{}", "a".repeat(600));
        for (text, error) in [
            (long.as_str(), EndpointError::TooLong),
            ("localhost:8080", EndpointError::Scheme),
            ("unix://run/x.sock", EndpointError::Scheme),
            ("ftp://a", EndpointError::Scheme),
            ("https://a/v1", EndpointError::More),
            ("https://user:pw@a", EndpointError::More),
            ("https://a?x", EndpointError::More),
            ("https://", EndpointError::Host),
            ("https://a b", EndpointError::Host),
            ("https://[::1", EndpointError::Host),
            ("https://[x]:1", EndpointError::Host),
            ("https://[::1]1", EndpointError::Host),
            ("https://::1", EndpointError::Host),
            ("https://a:", EndpointError::Port),
            ("https://a:0", EndpointError::Port),
            ("https://a:65536", EndpointError::Port),
            ("https://a:b", EndpointError::Port),
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(error), "{text}");
        }
    }

    #[test]
    fn keys_are_checked_and_not_shown() {
        let key = ApiKey::new("pf_secret\n").unwrap();
        assert_eq!(key.header(), "Bearer pf_secret");
        assert!(!format!("{key:?} {:?}", key.header()).contains("secret"));
        let long = "x".repeat(KEY_BYTES_MAX + 1);
        for bad in ["", " \n", "a b", "a\r\nx: y", "ä", &long] {
            assert!(ApiKey::new(bad).is_err(), "{bad:?}");
        }
    }
}
