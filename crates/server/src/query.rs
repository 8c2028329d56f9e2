//! The query of a request: every name known, nothing given twice, every value checked.

use std::fmt::Display;
use std::str::FromStr;

use pinfold_types::api::PAGE_ENTRIES_MAX;

use crate::error::ApiError;

/// Longest query: two paths of the longest kind with every byte escaped.
const QUERY_BYTES_MAX: usize = 32 << 10;

/// A query that holds only names that its route knows.
#[derive(Debug)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Reads a query. `once` may each stand once, `many` any number of times.
    pub(crate) fn read(
        text: Option<&str>,
        once: &[&'static str],
        many: &[&'static str],
    ) -> Result<Self, ApiError> {
        let text = text.unwrap_or_default();
        if text.len() > QUERY_BYTES_MAX {
            return Err(ApiError::too_large("the query", QUERY_BYTES_MAX));
        }
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (unescaped(name)?, unescaped(value)?);
            let known_once = once.contains(&name.as_str());
            if !known_once && !many.contains(&name.as_str()) {
                return Err(unknown(&name, once, many));
            }
            if known_once && pairs.iter().any(|(seen, _)| *seen == name) {
                return Err(ApiError::invalid(format!(
                    "`{name}` stands twice in the query"
                )));
            }
            pairs.push((name, value));
        }
        Ok(Self { pairs })
    }

    /// Returns a value.
    pub(crate) fn get(&self, name: &'static str) -> Option<&str> {
        self.all(name).next()
    }

    /// Returns every value of a name.
    pub(crate) fn all(&self, name: &'static str) -> impl Iterator<Item = &str> {
        self.pairs
            .iter()
            .filter(move |(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// Returns a value that must be there.
    pub(crate) fn required(&self, name: &'static str) -> Result<&str, ApiError> {
        self.get(name)
            .ok_or_else(|| ApiError::invalid(format!("the query lacks `{name}`")))
    }

    /// Returns a value that is `true` or `false`; a bare name is true.
    pub(crate) fn flag(&self, name: &'static str) -> Result<Option<bool>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some("true" | "1" | "") => Ok(Some(true)),
            Some("false" | "0") => Ok(Some(false)),
            Some(other) => Err(wrong(name, other, "write `true` or `false`")),
        }
    }

    /// Returns a value that is read from text.
    pub(crate) fn parsed<T>(&self, name: &'static str) -> Result<Option<T>, ApiError>
    where
        T: FromStr,
        T::Err: Display,
    {
        self.get(name)
            .map(|text| {
                text.parse()
                    .map_err(|error: T::Err| wrong(name, text, error))
            })
            .transpose()
    }

    /// Returns the `limit` of a page.
    pub(crate) fn page_limit(&self) -> Result<usize, ApiError> {
        let limit = self.parsed("limit")?.unwrap_or(PAGE_ENTRIES_MAX);
        if (1..=PAGE_ENTRIES_MAX).contains(&limit) {
            return Ok(limit);
        }
        Err(ApiError::invalid(format!(
            "`limit` is {limit}, which is outside 1 to {PAGE_ENTRIES_MAX}"
        )))
    }

    /// Returns a value of octal digits.
    pub(crate) fn octal(&self, name: &'static str) -> Result<Option<u32>, ApiError> {
        self.get(name)
            .map(|text| {
                u32::from_str_radix(text, 8)
                    .ok()
                    .filter(|mode| *mode <= 0o7777)
                    .ok_or_else(|| wrong(name, text, "write octal digits up to 7777"))
            })
            .transpose()
    }
}

fn unknown(name: &str, once: &[&str], many: &[&str]) -> ApiError {
    let known: Vec<&str> = once.iter().chain(many).copied().collect();
    let known = if known.is_empty() {
        "this route takes none".to_owned()
    } else {
        format!("this route takes {}", known.join(", "))
    };
    ApiError::invalid(format!("unknown query `{}`: {known}", shortened(name)))
}

fn wrong(name: &str, text: &str, expected: impl Display) -> ApiError {
    ApiError::invalid(format!(
        "`{}` is not usable as `{name}`: {expected}",
        shortened(text)
    ))
}

fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Undoes the escapes of a form: `%XX` is a byte and `+` a space.
fn unescaped(text: &str) -> Result<String, ApiError> {
    let broken = || {
        ApiError::invalid(format!(
            "the query's escapes are broken near `{}`",
            shortened(text)
        ))
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
                let (Some(high), Some(low)) = (digit(), digit()) else {
                    return Err(broken());
                };
                bytes.push(u8::try_from(high * 16 + low).map_err(|_| broken())?);
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).map_err(|_| broken())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_undone_and_broken_ones_refused() {
        let read = |text| Query::read(Some(text), &["path"], &[]);
        for (text, path) in [
            ("path=%2Fa%20b+c%2B", "/a b c+"),
            ("path=a%3D=b&", "a==b"),
            ("path=%C3%A4", "ä"),
        ] {
            assert_eq!(read(text).unwrap().get("path"), Some(path));
        }
        for broken in ["path=%", "path=%2", "path=%zz", "path=%ff", "%ff=1"] {
            assert!(read(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn unknown_and_repeated_names_are_refused() {
        let read = |text| Query::read(Some(text), &["path"], &["label"]);
        assert!(read("paht=/").is_err());
        assert!(read("path=/&path=/").is_err());
        let query = read("label=a&label=b").unwrap();
        assert_eq!(query.all("label").collect::<Vec<_>>(), ["a", "b"]);
        assert!(read(&format!("path={}", "a".repeat(QUERY_BYTES_MAX))).is_err());
    }

    #[test]
    fn values_are_checked() {
        let query = Query::read(Some("a=&b=no&c=7x&d=99999"), &["a", "b", "c", "d"], &[]).unwrap();
        assert_eq!(query.flag("a").unwrap(), Some(true));
        assert!(query.flag("b").is_err());
        assert!(query.parsed::<u64>("c").is_err());
        assert!(query.octal("d").is_err());
        assert_eq!(query.parsed::<u64>("d").unwrap(), Some(99999));
        assert!(query.required("e").is_err());
    }
}
