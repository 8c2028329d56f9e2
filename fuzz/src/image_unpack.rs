//! Archives of root filesystems, which come from anywhere.

use pinfold_image::{Limits, Owners, unpack_archive};

use crate::archive;
use crate::place::Place;

/// What an archive may hold here; enough for every path of the code, and small enough for memory.
const LIMITS: Limits = Limits {
    entries: 512,
    bytes: 4 << 20,
};

/// Bits of a mode for a block or character device.
const DEVICES: [u32; 2] = [0o060_000, 0o020_000];

/// Nothing outside is touched, the limits hold, and no device comes out.
pub fn run(data: &[u8]) {
    let Some(archive) = archive::archive(data) else {
        return;
    };
    let place = Place::new();
    let unpacked = unpack_archive(
        &mut archive::reader(&archive),
        &place.inside(),
        Owners::Caller,
        LIMITS,
        &mut |_| {},
    );
    place.check();
    let report = match unpacked {
        Ok(report) => report,
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains(char::is_control), "{text:?}");
            return;
        }
    };
    assert!(report.entries <= LIMITS.entries && report.bytes <= LIMITS.bytes);
    assert_eq!(report.digest.len(), 64);
    for item in place.tree("") {
        assert!(!DEVICES.contains(&item.kind), "a device: {item:?}");
    }
}
