//! Records that say more about the entry that follows them.

use std::io::{self, Read};

use super::EXTENSION_BYTES_MAX;

/// What records before an entry said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Extension {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
}

/// Makes an error that says what is wrong with an archive.
pub(super) fn malformed(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// Reads a record whole, if it is not too long.
pub(super) fn read(entry: &mut impl Read, size: u64) -> io::Result<Vec<u8>> {
    if size > EXTENSION_BYTES_MAX {
        return Err(malformed(
            "a record of the archive that names a path is too long",
        ));
    }
    let mut content = Vec::new();
    entry.read_to_end(&mut content)?;
    Ok(content)
}

/// Takes the zero bytes off the end of a GNU long name.
pub(super) fn name(mut content: Vec<u8>) -> Vec<u8> {
    let end = content
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(content.len());
    content.truncate(end);
    content
}

impl Extension {
    /// Reads a pax record: lines of `LENGTH KEY=VALUE`, where the length counts the whole line.
    pub(super) fn add_pax(&mut self, mut content: &[u8]) -> io::Result<()> {
        let bad = || malformed("the archive has a malformed pax record");
        while !content.is_empty() {
            let space = content
                .iter()
                .position(|byte| *byte == b' ')
                .ok_or_else(bad)?;
            let digits = content
                .get(..space)
                .and_then(|digits| std::str::from_utf8(digits).ok());
            let length: usize = digits
                .and_then(|digits| digits.parse().ok())
                .ok_or_else(bad)?;
            let line = content.get(space + 1..length).ok_or_else(bad)?;
            let line = line.strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = line.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
            let (key, value) = line.split_at(equals);
            self.add(key, value.get(1..).unwrap_or_default())?;
            content = content.get(length..).unwrap_or_default();
        }
        Ok(())
    }

    fn add(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => {
                let size = std::str::from_utf8(value)
                    .ok()
                    .and_then(|size| size.parse().ok());
                self.size = Some(size.ok_or_else(|| malformed("a pax size is no number"))?);
            }
            key if key.starts_with(b"GNU.sparse.") => return Err(sparse()),
            // Times, owners and attributes: the header's own, or none, will do.
            _ => {}
        }
        Ok(())
    }
}

/// The error for files that are stored with holes.
pub(super) fn sparse() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "the archive holds a sparse file; make it without `--sparse`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_records() {
        let mut extension = Extension::default();
        extension
            .add_pax(b"12 path=a/b\n15 linkpath=\xff\n19 mtime=17.25\xc3\xbc...\n")
            .unwrap_err();
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
            b"11 path=a/b\n",
            b"9 pathab\n",
            b"18446744073709551615 a=b\n",
            b"22 GNU.sparse.major=1\n",
        ] {
            assert!(Extension::default().add_pax(bad).is_err());
        }
    }
}
