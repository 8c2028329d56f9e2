//! Changes to files inside a sandbox.

use serde::{Deserialize, Serialize};

/// One change, as `…/files/watch` tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileChange {
    /// The watched directory.
    pub directory: String,
    /// The entry in it; empty for the directory itself.
    pub name: String,
    /// What happened, as in `created`; several when the kernel told them as one.
    pub kinds: Vec<FileChangeKind>,
    /// `inotify(7)` mask.
    pub mask: u32,
    /// Joins the two halves of a rename; 0 for everything else.
    pub cookie: u32,
}

/// What happened to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum FileChangeKind {
    /// It was read.
    Accessed,
    /// Its content changed.
    Modified,
    /// Its mode, owner or times changed.
    Attributes,
    /// It was closed after it was open for writing.
    Written,
    /// It was closed without that.
    Closed,
    /// It was opened.
    Opened,
    /// It was moved away from here.
    MovedFrom,
    /// It was moved here.
    MovedTo,
    /// It was made.
    Created,
    /// It was removed.
    Removed,
    /// The watched directory itself was removed.
    DirectoryRemoved,
    /// The watched directory itself was moved.
    DirectoryMoved,
    /// Its file system was unmounted.
    Unmounted,
    /// The kernel forgot some changes: there were too many.
    Overflow,
    /// The watch has ended.
    Ended,
}

impl FileChangeKind {
    /// Every kind with its bit of `inotify(7)`.
    const BITS: [(u32, Self); 15] = [
        (0x1, Self::Accessed),
        (0x2, Self::Modified),
        (0x4, Self::Attributes),
        (0x8, Self::Written),
        (0x10, Self::Closed),
        (0x20, Self::Opened),
        (0x40, Self::MovedFrom),
        (0x80, Self::MovedTo),
        (0x100, Self::Created),
        (0x200, Self::Removed),
        (0x400, Self::DirectoryRemoved),
        (0x800, Self::DirectoryMoved),
        (0x2000, Self::Unmounted),
        (0x4000, Self::Overflow),
        (0x8000, Self::Ended),
    ];

    /// Returns what a mask says.
    pub fn of_mask(mask: u32) -> Vec<Self> {
        let set = Self::BITS.iter().filter(|(bit, _)| mask & bit != 0);
        set.map(|(_, kind)| *kind).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_names_every_bit_that_it_has() {
        assert_eq!(FileChangeKind::of_mask(0x100), [FileChangeKind::Created]);
        let both = FileChangeKind::of_mask(0x4000_0000 | 0x40 | 0x8);
        assert_eq!(both, [FileChangeKind::Written, FileChangeKind::MovedFrom]);
        assert!(FileChangeKind::of_mask(0).is_empty());
    }
}
