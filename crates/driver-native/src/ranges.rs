//! Which range of host ids each sandbox of the host's root has.
//!
//! An entry is a symbolic link whose name is the first id and whose target says whose it is: made
//! with its content in one step, and never by two. Disks hold the image's own ids, so a range is
//! needed only while processes live.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pinfold_linux::identity::RANGE_LENGTH;
use pinfold_linux::weaken::{Defence, is_off};
use pinfold_types::SandboxId;

/// First ids to give: what systemd's table of ids leaves unused, then what it gives to containers.
const SPANS: [(u32, u32); 2] = [(0x7000_0000, 0x7FFF_0000), (0x1000_0000, 0x7000_0000)];

/// Why no range could be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RangeError {
    /// Every one is in use.
    #[error("every range of host ids is in use")]
    Exhausted,
    /// The directory of entries is not usable.
    #[error("failed to {step} `{}`", path.display())]
    Directory {
        /// What was tried.
        step: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The entries of one host.
#[derive(Debug, Clone)]
pub(crate) struct Ranges {
    directory: PathBuf,
    /// Whose the entries of this daemon are.
    owner: PathBuf,
}

impl Ranges {
    pub(crate) fn new(directory: PathBuf, owner: PathBuf) -> Self {
        Self { directory, owner }
    }

    /// Takes a range for a sandbox and answers its first id.
    pub(crate) fn take(&self, id: &SandboxId) -> Result<u32, RangeError> {
        let failed = |step: &'static str, path: &Path| {
            let path = path.to_path_buf();
            move |source| RangeError::Directory { step, path, source }
        };
        if is_off(Defence::IdRange) {
            return Ok(SPANS[0].0);
        }
        let directory = &self.directory;
        fs::create_dir_all(directory).map_err(failed("make", directory))?;
        let granted = granted_to_users();
        for _ in 0..2 {
            for base in candidates(id) {
                let last = base + (RANGE_LENGTH - 1);
                if granted
                    .iter()
                    .any(|(from, to)| *from <= last && base <= *to)
                {
                    continue;
                }
                let entry = directory.join(base.to_string());
                match std::os::unix::fs::symlink(self.content(id), &entry) {
                    Ok(()) => return Ok(base),
                    Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(source) => return Err(failed("make", &entry)(source)),
                }
            }
            // Only when all are in use is it worth looking which of them nobody owns any more.
            self.reclaim();
        }
        Err(RangeError::Exhausted)
    }

    /// Gives a range back; only its owner's entry is removed.
    pub(crate) fn give_back(&self, id: &SandboxId, base: u32) -> Result<(), RangeError> {
        let entry = self.directory.join(base.to_string());
        if fs::read_link(&entry).ok().as_deref() != Some(&self.content(id)) {
            return Ok(());
        }
        match fs::remove_file(&entry) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(RangeError::Directory {
                step: "remove",
                path: entry,
                source,
            }),
            _ => Ok(()),
        }
    }

    fn content(&self, id: &SandboxId) -> PathBuf {
        self.owner.join(id.as_str())
    }

    /// Removes every entry whose sandbox has no directory.
    pub(crate) fn reclaim(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        for entry in entries.filter_map(Result::ok) {
            let owned = fs::read_link(entry.path()).is_ok_and(|owner| owner.is_dir());
            if !owned {
                let _raced = fs::remove_file(entry.path());
            }
        }
    }
}

/// Returns first ids to try, beginning at one that depends on the sandbox so that few collide.
fn candidates(id: &SandboxId) -> impl Iterator<Item = u32> {
    let seed = id.as_str().bytes().fold(0_u32, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u32::from(byte))
    });
    SPANS.into_iter().flat_map(move |(from, to)| {
        let count = (to - from) / RANGE_LENGTH;
        (0..count).map(move |step| from + (seed % count + step) % count * RANGE_LENGTH)
    })
}

/// Reads the ranges, first and last id, that the system granted to its users.
fn granted_to_users() -> Vec<(u32, u32)> {
    ["/etc/subuid", "/etc/subgid"]
        .into_iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|text| text.lines().filter_map(granted_by_line).collect::<Vec<_>>())
        .collect()
}

/// Reads a line `name:first:count`.
fn granted_by_line(line: &str) -> Option<(u32, u32)> {
    let mut parts = line.split(':').skip(1);
    let first: u32 = parts.next()?.trim().parse().ok()?;
    let count: u32 = parts.next()?.trim().parse().ok()?;
    Some((first, first.saturating_add(count.checked_sub(1)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(letter: char) -> SandboxId {
        letter.to_string().repeat(20).parse().unwrap()
    }

    #[test]
    fn ranges_are_distinct_and_come_back() {
        let directory = tempfile::tempdir().unwrap();
        let owner = directory.path().join("state");
        let ranges = Ranges::new(directory.path().join("ids"), owner.clone());
        for letter in ['a', 'b'] {
            fs::create_dir_all(owner.join(id(letter).as_str())).unwrap();
        }
        let first = ranges.take(&id('a')).unwrap();
        let same_start = ranges.take(&id('a')).unwrap();
        let second = ranges.take(&id('b')).unwrap();
        assert!(first != second && first != same_start);
        assert!(first.abs_diff(same_start) >= RANGE_LENGTH);
        // Somebody else's is not given back.
        ranges.give_back(&id('a'), second).unwrap();
        assert!(
            directory
                .path()
                .join("ids")
                .join(second.to_string())
                .is_symlink()
        );
        ranges.give_back(&id('b'), second).unwrap();
        ranges.give_back(&id('b'), second).unwrap();
        assert!(
            !directory
                .path()
                .join("ids")
                .join(second.to_string())
                .is_symlink()
        );
        fs::remove_dir(owner.join(id('a').as_str())).unwrap();
        ranges.reclaim();
        assert_eq!(
            fs::read_dir(directory.path().join("ids")).unwrap().count(),
            0
        );
    }

    #[test]
    fn candidates_are_whole_ranges_within_the_spans() {
        let all: Vec<u32> = candidates(&id('a')).collect();
        assert_eq!(all.len(), 4095 + 24576);
        for base in &all {
            assert_eq!(base % RANGE_LENGTH, 0);
            assert!(
                base.checked_add(RANGE_LENGTH)
                    .is_some_and(|end| end <= 0x7FFF_0000)
            );
        }
    }

    #[test]
    fn lines_of_grants_are_read() {
        assert_eq!(granted_by_line("a:100000:65536"), Some((100_000, 165_535)));
        for bad in ["", "a", "a:b:c", "a:1", "a:1:0"] {
            assert_eq!(granted_by_line(bad), None, "{bad}");
        }
    }
}
