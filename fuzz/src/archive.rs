//! Tar archives out of the engine's bytes.
//!
//! A changed header has a wrong checksum and would always be refused at once, so the checksums can
//! be set right first. An archive may also go on for long after the engine's bytes, which shows
//! what is held in memory.

use std::io::{self, Read};

/// Bytes of a block.
const BLOCK: usize = 512;

/// Bytes that follow where an archive goes on: more than may be allocated.
const TAIL_BYTES: u64 = (crate::ALLOCATED_BYTES_MAX as u64) + (8 << 20);

/// The first byte of an input says what is done to the others.
const MENDED: u8 = 1;
const ENDED: u8 = 2;
const ENDLESS: u8 = 4;

/// An archive, mended or not, as its first byte says, and whether it goes on for long.
pub(crate) fn archive(data: &[u8]) -> Option<(Vec<u8>, bool)> {
    let (choice, archive) = data.split_first()?;
    let mut archive = archive.to_vec();
    if choice & MENDED != 0 {
        mend(&mut archive);
    }
    if choice & ENDED != 0 {
        let whole = archive.len().next_multiple_of(BLOCK) + 2 * BLOCK;
        archive.resize(whole, 0);
    }
    Some((archive, choice & ENDLESS != 0))
}

/// Returns a reader of an archive.
pub(crate) fn reader((archive, endless): &(Vec<u8>, bool)) -> impl Read + '_ {
    let tail = if *endless { TAIL_BYTES } else { 0 };
    archive.as_slice().chain(io::repeat(b'a').take(tail))
}

/// Sets the checksum of every header that can be found by the sizes that headers tell.
fn mend(archive: &mut [u8]) {
    let mut at = 0;
    while let Some(header) = archive.get_mut(at..at + BLOCK) {
        if header.iter().all(|byte| *byte == 0) {
            return;
        }
        let sum = checksum(header);
        let text = format!("{sum:06o}\0 ");
        if let Some(place) = header.get_mut(148..156) {
            place.copy_from_slice(text.as_bytes());
        }
        let size = header.get(124..136).map_or(0, octal);
        let blocks = usize::try_from(size).unwrap_or(usize::MAX).div_ceil(BLOCK);
        let Some(next) = blocks
            .checked_mul(BLOCK)
            .and_then(|bytes| at.checked_add(bytes)?.checked_add(BLOCK))
        else {
            return;
        };
        at = next;
    }
}

fn checksum(header: &[u8]) -> u32 {
    let bytes = header.iter().enumerate();
    bytes
        .map(|(place, byte)| match place {
            148..156 => u32::from(b' '),
            _ => u32::from(*byte),
        })
        .sum()
}

fn octal(field: &[u8]) -> u64 {
    field
        .iter()
        .skip_while(|byte| **byte == b' ')
        .take_while(|byte| (b'0'..=b'7').contains(*byte))
        .fold(0, |size, digit| size << 3 | u64::from(digit - b'0'))
}
