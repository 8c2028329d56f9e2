//! Paths and queries of requests.

use std::fmt::Write as _;

/// A request target that is put together piece by piece.
#[derive(Debug)]
pub(crate) struct Target {
    text: String,
    has_query: bool,
}

impl Target {
    /// Starts with a path below `/v1`.
    pub(crate) fn new(path: &str) -> Self {
        Self {
            text: format!("/v1{path}"),
            has_query: false,
        }
    }

    /// Starts with `/v1/sandboxes/{sandbox}` and a path below it.
    pub(crate) fn sandbox(sandbox: &str, below: &str) -> Self {
        Self::new(&format!("/sandboxes/{}{below}", escaped(sandbox)))
    }

    /// Adds a pair to the query.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.text.push(if self.has_query { '&' } else { '?' });
        self.has_query = true;
        self.text.push_str(name);
        self.text.push('=');
        self.text.push_str(&escaped(value));
        self
    }

    /// Adds `name=true` when it holds.
    pub(crate) fn flag(self, name: &str, holds: bool) -> Self {
        if holds { self.with(name, "true") } else { self }
    }

    /// Returns the finished text.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

/// Escapes everything but RFC 3986's unreserved characters.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_end_a_part_is_escaped() {
        let target = Target::sandbox("../a b", "/files")
            .with("path", "/ä&=?#%")
            .flag("no", false)
            .flag("yes", true);
        assert_eq!(
            target.as_str(),
            "/v1/sandboxes/..%2Fa%20b/files?path=%2F%C3%A4%26%3D%3F%23%25&yes=true"
        );
    }
}
