//! What may be wrong with an image.

use serde::{Deserialize, Serialize};

/// Most characters of a hostile name that a message repeats.
const SHOWN_CHARACTERS_MAX: usize = 120;

/// Why something is not usable as an image. Each text reads after the image's name and a colon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum InvalidImage {
    /// The file is empty or begins with something else.
    #[error("the file is not a tar archive")]
    NotAnArchive,
    /// It is compressed by other means than gzip.
    #[error("the archive is compressed with {with}, which is not supported: use .tar or .tar.gz")]
    Compressed {
        /// The program that compressed it.
        with: String,
    },
    /// It ends before its end mark.
    #[error("the archive ends too early: it was cut off or is still being written")]
    Truncated,
    /// The compressed stream is not one.
    #[error("the archive's compressed data is damaged")]
    Damaged,
    /// A header's checksum does not hold.
    #[error("the archive is damaged: the checksum of its header {number} is wrong")]
    Checksum {
        /// Which header, counted from 1.
        number: u64,
    },
    /// A header's field cannot be read.
    #[error("the archive is damaged: header {number} has a {field} that cannot be read")]
    Field {
        /// Which header, counted from 1.
        number: u64,
        /// Which field.
        field: String,
    },
    /// An entry is of a kind that images do not have.
    #[error("entry `{name}` is {what}, which is not supported: make the archive without it")]
    Unsupported {
        /// The entry.
        name: String,
        /// What it is.
        what: String,
    },
    /// A name is absolute, goes upwards or is no name.
    #[error(
        "entry `{name}` {fault}: archive a root filesystem with `tar -C DIRECTORY -cf IMAGE.tar .`"
    )]
    Name {
        /// The entry.
        name: String,
        /// What is wrong with it.
        fault: String,
    },
    /// A part of an entry's path is a link or a file.
    #[error("entry `{name}` lies beneath something that is no directory")]
    NotBeneathDirectory {
        /// The entry.
        name: String,
    },
    /// A hard link names nothing that came before it.
    #[error("hard link `{name}` is to `{target}`, which is no earlier entry of the archive")]
    HardLink {
        /// The entry.
        name: String,
        /// What it should be another name of.
        target: String,
    },
    /// A name that was a directory comes again as something else.
    #[error("entry `{name}` is a directory first and something else later")]
    Replaces {
        /// The entry.
        name: String,
    },
    /// More entries than any image has.
    #[error("the archive has more than {limit} entries")]
    TooManyEntries {
        /// The limit.
        limit: u64,
    },
    /// More bytes than any image has, counted after decompression.
    #[error("the archive holds more than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// An owner is none of the ids that a sandbox has.
    #[error(
        "entry `{name}` belongs to id {id}, and a sandbox has only ids up to {largest}: give another owner with `tar --owner=0 --group=0`"
    )]
    Owner {
        /// The entry.
        name: String,
        /// The owner or the group.
        id: u64,
        /// The largest id that would do.
        largest: u64,
    },
    /// A directory that the sandbox mounts something on is something else.
    #[error("`/{name}` in it is not a directory")]
    Reserved {
        /// Its name.
        name: String,
    },
    /// Nothing in it looks like a root filesystem.
    #[error(
        "it is no root filesystem: it has none of the directories bin, sbin, usr and lib, and no program"
    )]
    NotARoot,
    /// The root filesystem lies one directory deeper.
    #[error(
        "the root filesystem lies in its directory `{directory}`: archive the contents of that directory, or name it"
    )]
    OneDeeper {
        /// The directory.
        directory: String,
    },
    /// An archive of image layers instead of a root filesystem.
    #[error(
        "it holds image layers instead of a root filesystem: export a container's files, as `docker export` does"
    )]
    Layers,
    /// It was changed between two looks.
    #[error("the archive changed while it was read: try again when it is complete")]
    Changed,
    /// The sandboxes' own state lies in it.
    #[error("it holds the state of pinfold itself")]
    HoldsState,
}

/// Returns a hostile name as it may be shown: short, in one line and without control characters.
pub(super) fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let mut characters = text.chars();
    let mut shown: String = characters
        .by_ref()
        .take(SHOWN_CHARACTERS_MAX)
        .flat_map(char::escape_debug)
        .collect();
    if characters.next().is_some() {
        shown.push('…');
    }
    shown
}
