//! The records of a pax extended header.

use super::header::unreadable;
use super::invalid::InvalidImage;

/// What extended headers say of the entry that follows them; each replaces a header's field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Extensions {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) user: Option<u64>,
    pub(super) group: Option<u64>,
    pub(super) modified: Option<(i64, u32)>,
    pub(super) capability: Option<Vec<u8>>,
    pub(super) sparse: bool,
}

impl Extensions {
    /// Takes what a pax header says; what has no meaning for an image is skipped.
    pub(super) fn read(&mut self, records: &[u8], number: u64) -> Result<(), InvalidImage> {
        let malformed = || unreadable(number, "extended record");
        let mut rest = records;
        while !rest.is_empty() {
            // Some programs pad with zeros.
            if rest.iter().all(|byte| *byte == 0) {
                return Ok(());
            }
            let (record, after) = split_record(rest).ok_or_else(malformed)?;
            let equals = record.iter().position(|byte| *byte == b'=');
            let (key, value) = record.split_at(equals.ok_or_else(malformed)?);
            self.take(key, value.get(1..).unwrap_or_default())
                .ok_or_else(malformed)?;
            rest = after;
        }
        Ok(())
    }

    /// Lets the later of two answers count.
    pub(super) fn over(self, below: &Self) -> Self {
        let below = below.clone();
        Self {
            path: self.path.or(below.path),
            link: self.link.or(below.link),
            size: self.size.or(below.size),
            user: self.user.or(below.user),
            group: self.group.or(below.group),
            modified: self.modified.or(below.modified),
            capability: self.capability.or(below.capability),
            sparse: self.sparse || below.sparse,
        }
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value)?),
            b"uid" => self.user = Some(number(value)?),
            b"gid" => self.group = Some(number(value)?),
            b"mtime" => self.modified = Some(time(value)?),
            b"SCHILY.xattr.security.capability" => self.capability = Some(value.to_vec()),
            _ => self.sparse |= key.starts_with(b"GNU.sparse."),
        }
        Some(())
    }
}

/// Splits `LENGTH KEY=VALUE\n` off, where the length counts itself.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(number(&bytes[..space])?).ok()?;
    let record = bytes.get(space + 1..length)?;
    Some((record.strip_suffix(b"\n")?, bytes.get(length..)?))
}

fn number(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    // `parse` would accept a sign.
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

/// Reads seconds with a fraction, as in `-12.5`, into whole seconds and the nanoseconds after.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanoseconds = fraction
        .bytes()
        .chain(std::iter::repeat(b'0'))
        .take(9)
        .fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(records: &[u8]) -> Option<Extensions> {
        let mut extensions = Extensions::default();
        extensions.read(records, 1).ok().map(|()| extensions)
    }

    #[test]
    fn records_replace_fields() {
        let found = read(b"11 path=ab\n12 size=123\n30 mtime=1350244992.023960108\n").unwrap();
        assert_eq!(found.path.as_deref(), Some(&b"ab"[..]));
        assert_eq!(found.size, Some(123));
        assert_eq!(found.modified, Some((1_350_244_992, 23_960_108)));
        assert!(read(b"22 GNU.sparse.size=10\n").unwrap().sparse);
        assert_eq!(time(b"-1.5"), Some((-2, 500_000_000)));
    }

    #[test]
    fn malformed_records_are_refused() {
        for records in [
            &b"11 path=a\n"[..],
            b"5 path=a\n",
            b"0 path=a\n",
            b"99999999999999999999 a=b\n",
            b"7 path\n",
            b"path=a\n",
            b"12 size=-12\n",
            b"18446744073709551615 a=b\n",
        ] {
            assert_eq!(read(records), None, "{}", String::from_utf8_lossy(records));
        }
    }
}
