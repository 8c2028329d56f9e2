//! One line, and how its hash is made.

use pinfold_types::api::format_time_ms;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What stands for the line before the first.
pub(super) const BEGINNING: &str =
    "0000000000000000000000000000000000000000000000000000000000000000";

/// Most bytes of one text of a line: the longest path of a route with its ids, and a message.
const TEXT_BYTES_MAX: usize = 1024;

/// Between the body of a line and its hash.
const HASH_FIELD: &str = ",\"hash\":\"";

/// What is written of one call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// When, in milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// Who; `-` is nobody whom the daemon knows.
    pub principal: String,
    /// Id of the key that was shown.
    pub key: Option<String>,
    /// Where it came from.
    pub peer: String,
    /// Id of the request.
    pub request_id: String,
    /// Method and template of the route, or what the daemon did itself.
    pub action: String,
    /// Path of the request.
    pub target: String,
    /// Status of the answer, with the code of a refusal.
    pub outcome: String,
    /// What else there is to say, such as the id of what was made.
    pub detail: Option<String>,
}

impl Entry {
    /// Returns what the daemon writes of itself.
    pub fn of_daemon(action: &str, detail: Option<String>) -> Self {
        Self {
            time_ms: pinfold_types::api::now_ms(),
            principal: "daemon".to_owned(),
            peer: "-".to_owned(),
            request_id: "-".to_owned(),
            action: action.to_owned(),
            target: "-".to_owned(),
            outcome: "ok".to_owned(),
            detail,
            key: None,
        }
    }
}

/// One line without its hash. Its JSON, fields in this order and without spaces, is what is hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Its number; the first is 1.
    pub seq: u64,
    /// RFC 3339.
    pub time: String,
    /// Who; `-` is nobody whom the daemon knows.
    pub principal: String,
    /// Id of the key that was shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Where it came from.
    pub peer: String,
    /// Id of the request.
    pub request_id: String,
    /// Method and template of the route, or what the daemon did itself.
    pub action: String,
    /// Path of the request.
    pub target: String,
    /// Status of the answer, with the code of a refusal.
    pub outcome: String,
    /// What else there is to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Hash of the line before.
    pub previous: String,
}

/// A line as it stands in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) line: Line,
    pub(super) hash: String,
}

/// Why a text is no line of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// It has not the form of a line.
    Form,
    /// Its hash is of something else.
    Hash,
}

impl Line {
    pub(super) fn new(entry: Entry, seq: u64, previous: &str) -> Self {
        Self {
            seq,
            time: format_time_ms(entry.time_ms),
            principal: cut(entry.principal),
            key: entry.key.map(cut),
            peer: cut(entry.peer),
            request_id: cut(entry.request_id),
            action: cut(entry.action),
            target: cut(entry.target),
            outcome: cut(entry.outcome),
            detail: entry.detail.map(cut),
            previous: previous.to_owned(),
        }
    }

    /// Returns the line as it is written, with its end, and its hash.
    pub(super) fn encode(&self) -> (String, String) {
        // A struct of texts and a number is always JSON.
        let body = serde_json::to_string(self).unwrap_or_default();
        let hash = hash(body.as_bytes());
        let open = body.strip_suffix('}').unwrap_or(&body);
        (format!("{open}{HASH_FIELD}{hash}\"}}\n"), hash)
    }

    /// Reads a line, without its end.
    pub(super) fn decode(text: &[u8]) -> Result<Written, Unreadable> {
        let text = std::str::from_utf8(text).map_err(|_| Unreadable::Form)?;
        let (open, rest) = text.rsplit_once(HASH_FIELD).ok_or(Unreadable::Form)?;
        let claimed = rest.strip_suffix("\"}").ok_or(Unreadable::Form)?;
        let body = format!("{open}}}");
        if hash(body.as_bytes()) != claimed {
            return Err(Unreadable::Hash);
        }
        let line = serde_json::from_str(&body).map_err(|_| Unreadable::Form)?;
        Ok(Written {
            line,
            hash: claimed.to_owned(),
        })
    }
}

fn cut(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let end = text.floor_char_boundary(TEXT_BYTES_MAX);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Returns the SHA-256 of bytes in hexadecimal digits.
pub(super) fn hash(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        // Writing to a string cannot fail.
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

/// Returns what stands for the hash of a line that cannot be believed: what it claims, or that of
/// its bytes.
pub(super) fn claimed_hash(text: &[u8]) -> String {
    let shown = String::from_utf8_lossy(text);
    let claimed = shown.rsplit_once(HASH_FIELD);
    let claimed = claimed.and_then(|(_, rest)| rest.strip_suffix("\"}"));
    let good = claimed.filter(|hash| hash.len() == BEGINNING.len());
    good.map_or_else(|| hash(text), str::to_owned)
}
