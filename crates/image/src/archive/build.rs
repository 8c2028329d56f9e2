//! Writes tar archives: the skeleton of image `host`, and what tests unpack.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::header::BLOCK_BYTES;

/// Most bytes of a name in a plain header; longer ones get an extended header.
const NAME_BYTES_PLAIN: usize = 100;
/// When everything in a built archive was changed, so that equal content is an equal archive.
const MODIFIED: u64 = 946_684_800;

/// An archive being written to memory.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    bytes: Vec<u8>,
}

/// Who owns an entry and what they may do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access {
    pub(crate) owner: u32,
    pub(crate) mode: u32,
}

impl Builder {
    pub(crate) fn directory(&mut self, path: &Path, access: Access) {
        self.entry(b'5', (path, Path::new("")), access, 0);
    }

    pub(crate) fn link(&mut self, path: &Path, target: &Path) {
        let access = Access {
            owner: 0,
            mode: 0o777,
        };
        self.entry(b'2', (path, target), access, 0);
    }

    pub(crate) fn file(&mut self, path: &Path, content: &[u8], access: Access) {
        self.entry(b'0', (path, Path::new("")), access, content.len());
        self.data(content);
    }

    /// Writes the end mark and returns the archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 2 * BLOCK_BYTES]);
        self.bytes
    }

    /// Writes a header as it is given, its checksum apart.
    pub(crate) fn entry(
        &mut self,
        kind: u8,
        (path, target): (&Path, &Path),
        access: Access,
        size: usize,
    ) {
        let name = path.as_os_str().as_bytes();
        let link = target.as_os_str().as_bytes();
        let mut records = Vec::new();
        for (key, value) in [("path", name), ("linkpath", link)] {
            if value.len() > NAME_BYTES_PLAIN {
                records.extend(record(key, value));
            }
        }
        if !records.is_empty() {
            let nobody = Access { owner: 0, mode: 0 };
            self.header(b'x', (b"extended", b""), nobody, records.len());
            self.data(&records);
        }
        self.header(kind, (name, link), access, size);
    }

    /// Writes what follows a header, with its padding.
    pub(crate) fn data(&mut self, content: &[u8]) {
        self.bytes.extend_from_slice(content);
        let length = self.bytes.len().next_multiple_of(BLOCK_BYTES);
        self.bytes.resize(length, 0);
    }

    fn header(&mut self, kind: u8, (name, link): (&[u8], &[u8]), access: Access, size: usize) {
        let mut block = [0; BLOCK_BYTES];
        put(&mut block, 0, &name[..name.len().min(NAME_BYTES_PLAIN)]);
        put(&mut block, 100, format!("{:07o}", access.mode).as_bytes());
        put(&mut block, 108, format!("{:07o}", access.owner).as_bytes());
        put(&mut block, 116, format!("{:07o}", access.owner).as_bytes());
        put(&mut block, 124, format!("{size:011o}").as_bytes());
        put(&mut block, 136, format!("{MODIFIED:011o}").as_bytes());
        put(&mut block, 148, b"        ");
        put(&mut block, 156, &[kind]);
        put(&mut block, 157, &link[..link.len().min(NAME_BYTES_PLAIN)]);
        put(&mut block, 257, b"ustar\x0000");
        let sum: u64 = block.iter().copied().map(u64::from).sum();
        put(&mut block, 148, format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&block);
    }
}

fn put(block: &mut [u8; BLOCK_BYTES], at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Writes a pax record, whose length counts its own digits.
pub(crate) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    let mut record = format!("{length} {key}=").into_bytes();
    record.extend_from_slice(value);
    record.push(b'\n');
    record
}
