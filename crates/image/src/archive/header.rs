//! One 512-byte header of a tar archive, as ustar and GNU tar write it.

use super::invalid::InvalidImage;

/// Size of a header, and what data is padded to.
pub(super) const BLOCK_BYTES: usize = 512;

/// Where the checksum stands in a header; it is summed as if these were spaces.
const CHECKSUM: std::ops::Range<usize> = 148..156;

/// A header's fields as they stand, before extensions.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) kind: u8,
    pub(super) mode: u32,
    pub(super) user: u64,
    pub(super) group: u64,
    pub(super) size: u64,
    pub(super) modified: i64,
    /// Major and minor number, of a device.
    pub(super) device: (u32, u32),
    /// Size with its holes, of a sparse file as GNU tar writes it.
    pub(super) sparse_size: u64,
}

impl Header {
    /// Reads a header that is not all zeros; `number` counts headers from 1, for messages.
    pub(super) fn parse(block: &[u8; BLOCK_BYTES], number: u64) -> Result<Self, InvalidImage> {
        if !checksum_holds(block) {
            return Err(match number {
                1 => InvalidImage::NotAnArchive,
                _ => InvalidImage::Checksum { number },
            });
        }
        let unsigned = |range: std::ops::Range<usize>, field: &str| {
            signed(&block[range])
                .and_then(|value| u64::try_from(value).ok())
                .ok_or_else(|| unreadable(number, field))
        };
        let mode = unsigned(100..108, "mode")?;
        Ok(Self {
            name: full_name(block),
            link: text(&block[157..257]).to_vec(),
            kind: block[156],
            mode: u32::try_from(mode & 0o7777).map_err(|_| unreadable(number, "mode"))?,
            user: unsigned(108..116, "owner")?,
            group: unsigned(116..124, "group")?,
            size: unsigned(124..136, "size")?,
            modified: signed(&block[136..148]).ok_or_else(|| unreadable(number, "time"))?,
            device: (small(&block[329..337]), small(&block[337..345])),
            sparse_size: signed(&block[483..495])
                .and_then(|size| size.try_into().ok())
                .unwrap_or(0),
        })
    }
}

pub(super) fn unreadable(number: u64, field: &str) -> InvalidImage {
    InvalidImage::Field {
        number,
        field: field.to_owned(),
    }
}

/// Reads a number that nothing depends on.
fn small(field: &[u8]) -> u32 {
    signed(field)
        .and_then(|value| value.try_into().ok())
        .unwrap_or(0)
}

fn full_name(block: &[u8; BLOCK_BYTES]) -> Vec<u8> {
    let name = text(&block[..100]);
    let prefix = text(&block[345..500]);
    // GNU tar keeps other things where ustar has the prefix, and marks itself by two spaces.
    let ustar = &block[257..263] == b"ustar\0";
    if !ustar || prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

/// Returns the bytes up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0);
    &field[..end.unwrap_or(field.len())]
}

fn checksum_holds(block: &[u8; BLOCK_BYTES]) -> bool {
    let Some(stated) = signed(&block[CHECKSUM]) else {
        return false;
    };
    let summed = |of: fn(u8) -> i64| -> i64 {
        let outside = |index: usize| !CHECKSUM.contains(&index);
        let bytes = block.iter().enumerate();
        bytes
            .map(|(index, byte)| of(if outside(index) { *byte } else { b' ' }))
            .sum()
    };
    // Some old programs summed signed bytes.
    stated == summed(i64::from) || stated == summed(|byte| i64::from(byte.cast_signed()))
}

/// Reads a number in octal digits, or in base 256 where its first bit is set.
fn signed(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base_256(field),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<i64> {
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// Reads a big-endian two's complement number whose first bit is a mark and no digit.
fn base_256(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    let negative = first & 0x40 != 0;
    let first = if negative { first | 0x80 } else { first & 0x7f };
    let start = i128::from(first.cast_signed());
    rest.iter()
        .try_fold(start, |value, byte| {
            value.checked_mul(256)?.checked_add(i128::from(*byte))
        })
        .and_then(|value| i64::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(signed(b"0000644\0"), Some(0o644));
        assert_eq!(signed(b"  644 \0\0"), Some(0o644));
        assert_eq!(signed(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(signed(b"77777777777"), Some(0o777_7777_7777));
        assert_eq!(signed(b"6a4\0"), None);
        assert_eq!(signed(b"-1\0"), None);
        assert_eq!(signed(&[0x80, 0, 0, 1, 0]), Some(256));
        assert_eq!(signed(&[0xff; 12]), Some(-1));
        assert_eq!(signed(&[0x81; 12]), None);
        assert_eq!(signed(&[]), Some(0));
    }

    #[test]
    fn a_wrong_checksum_is_named_by_its_place() {
        let block = [b'x'; BLOCK_BYTES];
        assert_eq!(
            Header::parse(&block, 1).unwrap_err(),
            InvalidImage::NotAnArchive
        );
        assert_eq!(
            Header::parse(&block, 7).unwrap_err(),
            InvalidImage::Checksum { number: 7 }
        );
    }
}
