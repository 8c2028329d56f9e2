//! Archives that the guest agent unpacks for a caller, and what it packs of them again.

use std::io::{self, Write};

use pinfold_agent::fuzzing::files;

use crate::archive;
use crate::place::{Item, Place};

/// Where it is unpacked to, inside.
const DIRECTORY: &str = "/to";

/// Most bytes that are packed again.
const PACKED_BYTES_MAX: usize = 8 << 20;

/// Kinds of files that are not packed.
const LEFT_OUT: [u32; 2] = [0o010_000, 0o140_000];

/// Nothing outside the directory is touched, and what came out can be packed and unpacked again.
pub fn run(data: &[u8]) {
    let Some(archive) = archive::archive(data) else {
        return;
    };
    let place = Place::new();
    let files = files(&place.inside()).expect("the directory is there");
    let unpacked = files.unpack(DIRECTORY, "", &mut archive::reader(&archive));
    place.check();
    for item in place.tree("") {
        let top = item.name.as_os_str().is_empty() || item.name.starts_with("to");
        assert!(top, "outside the directory: {item:?}");
    }
    if unpacked.is_err() {
        return;
    }
    let mut packed = Bounded(Vec::new());
    if let Err(error) = files.pack(DIRECTORY, &mut packed) {
        // More than was asked for, or deeper than is packed; anything else is a fault.
        let text = pinfold_types::ErrorChain(&error).to_string();
        assert!(packed.is_full() || text.contains("deep"), "{text}");
        return;
    }
    let second = Place::new();
    let other = self::files(&second.inside()).expect("the directory is there");
    let again = other.unpack("/", "", &mut packed.0.as_slice());
    let again = again.map_err(|error| pinfold_types::ErrorChain(&error).to_string());
    assert!(again.is_ok(), "{again:?}");
    second.check();
    assert_eq!(contents(second.tree("to")), contents(place.tree("to")));
}

fn contents(tree: Vec<Item>) -> Vec<Item> {
    let kept = tree.into_iter();
    kept.filter(|item| !LEFT_OUT.contains(&item.kind))
        .map(|mut item| {
            // A look opens what is closed to its owner.
            item.mode |= 0o700;
            item
        })
        .collect()
}

/// Takes so many bytes and no more.
struct Bounded(Vec<u8>);

impl Bounded {
    fn is_full(&self) -> bool {
        self.0.len() >= PACKED_BYTES_MAX
    }
}

impl Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let room = PACKED_BYTES_MAX.saturating_sub(self.0.len());
        let taken = data.len().min(room);
        self.0.extend(data.iter().take(taken));
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
