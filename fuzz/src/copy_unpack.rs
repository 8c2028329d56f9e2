//! `pinfold cp`: what a sandbox sends as an archive, unpacked on the host by whoever asked for it.

use pinfold::fuzzing::{pack, unpack};

use crate::archive;
use crate::place::{Item, Place};

/// Name of the copy.
const NAME: &str = "copy";

/// Bits of a mode that must not come out: setuid, setgid and sticky.
const SPECIAL: u32 = 0o7000;

/// Kinds of files that come out: regular ones, directories and symbolic links.
const KINDS: [u32; 3] = [0o100_000, 0o040_000, 0o120_000];

/// Nothing outside is touched, nothing special comes out, and what came out can be copied on.
pub fn run(data: &[u8]) {
    let Some(archive) = archive::archive(data) else {
        return;
    };
    let place = Place::new();
    let unpacked = unpack(archive::reader(&archive), &place.inside(), NAME);
    place.check();
    let whole = place.tree("");
    for item in &whole {
        let below = item.name.as_os_str().is_empty() || item.name.starts_with(NAME);
        assert!(below, "not beneath the copy: {item:?}");
        assert!(KINDS.contains(&item.kind), "{item:?}");
        let own = item.name.as_os_str().is_empty() || item.kind == 0o120_000;
        assert!(own || item.mode & SPECIAL == 0, "{item:?}");
    }
    if unpacked.is_ok() && whole.len() > 1 {
        again(&place);
    }
}

/// Copies what came out once more and compares.
fn again(place: &Place) {
    let mut stream = Vec::new();
    let left_out = pack(&place.inside().join(NAME), NAME, &mut stream);
    assert_eq!(
        left_out,
        Ok(Vec::new()),
        "what came out could not be packed"
    );
    let second = Place::new();
    let unpacked = unpack(stream.as_slice(), &second.inside(), NAME);
    assert!(unpacked.is_ok(), "{unpacked:?}");
    second.check();
    assert_eq!(contents(second.tree(NAME)), contents(place.tree(NAME)));
}

/// A look opens what is closed to its owner, so modes are compared without the owner's own bits.
fn contents(mut tree: Vec<Item>) -> Vec<Item> {
    for item in &mut tree {
        item.mode |= 0o700;
    }
    tree
}
