//! Archives as nobody should make them.

/// Bytes of a header, and what data is padded to.
pub(super) const BLOCK: usize = 512;

pub(super) const FILE: u8 = b'0';
pub(super) const HARD_LINK: u8 = b'1';
pub(super) const LINK: u8 = b'2';
pub(super) const DEVICE: u8 = b'3';
pub(super) const DIRECTORY: u8 = b'5';
pub(super) const LONG_NAME: u8 = b'L';
pub(super) const SPARSE: u8 = b'S';

/// An archive that is being made.
#[derive(Debug, Default)]
pub(super) struct Archive(Vec<u8>);

impl Archive {
    /// Adds an entry with data.
    pub(super) fn file(mut self, name: &str, data: &[u8]) -> Self {
        self.0.extend(header(name, FILE, "", data.len() as u64));
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// Adds an entry without data.
    pub(super) fn entry(mut self, name: &str, kind: u8, target: &str) -> Self {
        self.0.extend(header(name, kind, target, 0));
        self
    }

    /// Adds a block as it is.
    pub(super) fn block(mut self, block: &[u8]) -> Self {
        self.0.extend_from_slice(block);
        self
    }

    /// Ends it.
    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }

    /// Takes it as it is.
    pub(super) fn open(self) -> Vec<u8> {
        self.0
    }
}

/// Makes a header. Names and targets are cut at 100 bytes.
pub(super) fn header(name: &str, kind: u8, target: &str, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    put(&mut block, 0, &name.as_bytes()[..name.len().min(100)]);
    put(&mut block, 100, b"0000755\0");
    put(&mut block, 108, b"0000000\0");
    put(&mut block, 116, b"0000000\0");
    put(&mut block, 124, &number(size));
    put(&mut block, 136, b"00000000000\0");
    put(&mut block, 156, &[kind]);
    put(&mut block, 157, &target.as_bytes()[..target.len().min(100)]);
    put(&mut block, 257, b"ustar  \0");
    if kind == DEVICE {
        // `/dev/zero`, which does no harm: whether it can be opened is the same question for all.
        put(&mut block, 329, b"0000001\0");
        put(&mut block, 337, b"0000005\0");
    }
    checked(block)
}

/// Holes that are tried: first one that shows enough where nothing refuses it and fills no disk.
pub(super) const HOLES: [u64; 2] = [64 << 20, 1 << 62];

/// Makes the header of a file with one hole of some bytes and one block of data after it.
pub(super) fn hole(name: &str, bytes: u64) -> [u8; BLOCK] {
    let mut block = header(name, SPARSE, "", 512);
    put(&mut block, 386, &number(bytes));
    put(&mut block, 398, &number(512));
    put(&mut block, 483, &number(bytes + 512));
    checked(block)
}

fn put(block: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    for (place, byte) in block.iter_mut().skip(at).zip(bytes) {
        *place = *byte;
    }
}

/// Writes a number in digits, or as GNU does when there are too many.
fn number(value: u64) -> [u8; 12] {
    let mut field = [0; 12];
    let digits = format!("{value:011o}");
    if digits.len() == 11 {
        for (place, digit) in field.iter_mut().zip(digits.bytes()) {
            *place = digit;
        }
    } else {
        field[0] = 0x80;
        for (place, byte) in field.iter_mut().skip(4).zip(value.to_be_bytes()) {
            *place = byte;
        }
    }
    field
}

fn checked(mut block: [u8; BLOCK]) -> [u8; BLOCK] {
    put(&mut block, 148, b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    put(&mut block, 148, format!("{sum:06o}\0 ").as_bytes());
    block
}
