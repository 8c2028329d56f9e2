//! One entry of an archive, with a name that is checked.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use pinfold_linux::weaken::{Defence, is_off};

use super::invalid::{InvalidImage, shown};

/// Most bytes of a path that the kernel takes, without its final NUL.
pub(super) const NAME_BYTES_MAX: usize = 4095;
/// Most directories above an entry. Real images have a few dozen; removal stays quick.
const DEPTH_MAX: usize = 1024;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Followed by `size` bytes.
    File { size: u64 },
    /// Another name of an earlier entry.
    HardLink { target: PathBuf },
    /// A link whose target is kept as it is.
    SymbolicLink { target: PathBuf },
    /// A directory.
    Directory,
    /// A named pipe.
    Pipe,
    /// A character or block device.
    Device { number: (u32, u32) },
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Relative, without `.` and `..`; empty for the root itself.
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) user: u64,
    pub(super) group: u64,
    /// Seconds and the nanoseconds after.
    pub(super) modified: (i64, u32),
    /// The extended attribute that holds file capabilities.
    pub(super) capability: Option<Vec<u8>>,
}

/// Makes a name relative and plain, and refuses one that leads elsewhere.
pub(super) fn plain_path(name: &[u8]) -> Result<PathBuf, InvalidImage> {
    let wrong = |fault: &str| InvalidImage::Name {
        name: shown(name),
        fault: fault.to_owned(),
    };
    if name.is_empty() {
        return Err(wrong("has no name"));
    }
    if is_off(Defence::ArchiveNames) {
        return Ok(PathBuf::from(OsString::from_vec(name.to_vec())));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(wrong("has a name that is too long"));
    }
    if name.contains(&0) {
        return Err(wrong("has a zero byte in its name"));
    }
    if name.starts_with(b"/") {
        return Err(wrong("has an absolute name"));
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(wrong("leads out of the image")),
            part if parts.len() < DEPTH_MAX => parts.push(part),
            _ => return Err(wrong("lies too many directories deep")),
        }
    }
    Ok(PathBuf::from(OsString::from_vec(parts.join(&b'/'))))
}

/// Takes the target of a symbolic link as it is.
pub(super) fn link_target(name: &[u8], target: Vec<u8>) -> Result<PathBuf, InvalidImage> {
    if target.is_empty() || target.len() > NAME_BYTES_MAX || target.contains(&0) {
        return Err(InvalidImage::Name {
            name: shown(name),
            fault: "is a link to nothing that can be named".to_owned(),
        });
    }
    Ok(PathBuf::from(OsString::from_vec(target)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_plain_or_are_refused() {
        let plain = |name: &str| plain_path(name.as_bytes()).ok();
        assert_eq!(plain("./"), Some(PathBuf::new()));
        assert_eq!(plain("./usr//bin/./sh"), Some("usr/bin/sh".into()));
        assert_eq!(plain("..a/b.."), Some("..a/b..".into()));
        for name in ["", "/etc", "..", "a/../b", "a/..", "a\0b", "../x"] {
            assert_eq!(plain(name), None, "{name:?}");
        }
        assert_eq!(plain(&"d/".repeat(1025)), None);
        assert_eq!(plain(&"d".repeat(4096)), None);
    }
}
