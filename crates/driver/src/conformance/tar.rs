//! Archives made by hand, so that they can be ones that no honest program makes.

/// Size of a block of an archive.
const BLOCK: usize = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind<'a> {
    File(&'a [u8]),
    Symlink(&'a str),
    Hardlink(&'a str),
}

/// Writes one entry in the `ustar` format.
pub(super) fn entry(name: &str, kind: Kind<'_>) -> Vec<u8> {
    let (flag, link, data) = match kind {
        Kind::File(data) => (b'0', "", data),
        Kind::Symlink(target) => (b'2', target, &[][..]),
        Kind::Hardlink(target) => (b'1', target, &[][..]),
    };
    let mut header = vec![0u8; BLOCK];
    let mut put = |offset: usize, bytes: &[u8]| {
        for (place, byte) in header.iter_mut().skip(offset).zip(bytes) {
            *place = *byte;
        }
    };
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", data.len()).as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[flag]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    for (place, byte) in header
        .iter_mut()
        .skip(148)
        .zip(format!("{sum:06o}\0 ").bytes())
    {
        *place = byte;
    }
    header.extend_from_slice(data);
    header.resize(header.len().next_multiple_of(BLOCK), 0);
    header
}

/// Ends an archive.
pub(super) fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut archive = entries.concat();
    archive.resize(archive.len() + 2 * BLOCK, 0);
    archive
}
