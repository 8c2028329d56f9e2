//! Records of an archive that say more about the entry that follows them, read within bounds.

use std::io::{self, Read};

use pinfold_linux::weaken::{Defence, is_off};
use tar::{Entry, EntryType};

/// Most bytes of one record: many times the longest path and link, and some attributes.
const RECORD_BYTES_MAX: u64 = 1 << 20;

/// What records before an entry said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Extension {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    size: Option<u64>,
}

fn malformed(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

impl Extension {
    /// Takes what only says more about the next entry; returns whether it was that.
    ///
    /// # Errors
    ///
    /// Fails on a record that is too long or malformed, and on a sparse file, whose few bytes may
    /// stand for as many as there are.
    pub(super) fn take(&mut self, entry: &mut Entry<'_, impl Read>) -> io::Result<bool> {
        match entry.header().entry_type() {
            EntryType::GNULongName => self.path = Some(name(record(entry)?)),
            EntryType::GNULongLink => self.link = Some(name(record(entry)?)),
            EntryType::XHeader => self.add_pax(&record(entry)?)?,
            EntryType::XGlobalHeader => {}
            EntryType::GNUSparse if !is_off(Defence::ArchiveSparse) => {
                return Err(malformed("a sparse file"));
            }
            _ => {
                let size = entry.header().entry_size()?;
                if self.size.is_some_and(|other| other != size) {
                    return Err(malformed("a record's size that is not the header's"));
                }
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads lines of `LENGTH KEY=VALUE`, where the length counts the whole line.
    fn add_pax(&mut self, mut content: &[u8]) -> io::Result<()> {
        while !content.is_empty() {
            let (line, rest) = pax_line(content).ok_or_else(|| malformed("a malformed record"))?;
            content = rest;
            match line {
                (b"path", value) => self.path = Some(value.to_vec()),
                (b"linkpath", value) => self.link = Some(value.to_vec()),
                (b"size", value) => {
                    let size = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
                    self.size = Some(size.ok_or_else(|| malformed("a size that is no number"))?);
                }
                (key, _) if key.starts_with(b"GNU.sparse.") => {
                    return Err(malformed("a sparse file"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

type Line<'a> = (&'a [u8], &'a [u8]);

/// Splits off a line's key and value.
fn pax_line(content: &[u8]) -> Option<(Line<'_>, &[u8])> {
    let space = content.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(content.get(..space)?)
        .ok()?
        .parse()
        .ok()?;
    let line = content.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = line.iter().position(|byte| *byte == b'=')?;
    let (key, value) = line.split_at(equals);
    Some(((key, value.get(1..)?), content.get(length..)?))
}

fn record(entry: &mut Entry<'_, impl Read>) -> io::Result<Vec<u8>> {
    let too_long = entry.header().entry_size()? > RECORD_BYTES_MAX;
    if too_long && !is_off(Defence::ArchiveBounds) {
        return Err(malformed("a record that is too long"));
    }
    let mut content = Vec::new();
    entry.read_to_end(&mut content)?;
    Ok(content)
}

/// Takes the zero bytes off the end of a long name.
fn name(mut content: Vec<u8>) -> Vec<u8> {
    let end = content.iter().position(|byte| *byte == 0);
    content.truncate(end.unwrap_or(content.len()));
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_split_and_broken_ones_refused() {
        let mut extension = Extension::default();
        extension
            .add_pax(b"12 path=a/b\n14 linkpath=c\n11 size=42\n12 mtime=1.\n")
            .unwrap();
        assert_eq!(extension.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(extension.link.as_deref(), Some(&b"c"[..]));
        assert_eq!(extension.size, Some(42));
        for bad in [
            &b"x"[..],
            b"99 path=a\n",
            b"2 a",
            b"0 path=a\n",
            b"9 pathab\n",
            b"18446744073709551615 a=b\n",
            b"22 GNU.sparse.major=1\n",
            b"10 size=x\n",
        ] {
            assert!(Extension::default().add_pax(bad).is_err(), "{bad:?}");
        }
    }
}
