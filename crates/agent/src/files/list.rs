//! Lists directories in name order, page by page, whatever their size.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;

use pinfold_linux::weaken::{Defence, is_off};
use rustix::fs::{AtFlags, Dir, FileType, OFlags};
use rustix::io::Errno;

use super::{FileError, Files, Info, check, failed, read_link};

/// Most entries of one page.
pub const LIST_ENTRIES_MAX: usize = 1000;

/// One page of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Entries in name order.
    pub entries: Vec<Info>,
    /// Whether there are further ones.
    pub more: bool,
}

impl Files {
    /// Lists the entries whose names come after `after`, at most `limit`.
    ///
    /// Only one page is ever in memory, so each page reads the whole directory. Names that are no
    /// UTF-8 are listed, and ordered, with their bytes replaced.
    ///
    /// # Errors
    /// Fails when it is no directory that can be read.
    pub fn list(&self, path: &str, after: &str, limit: usize) -> Result<Page, FileError> {
        self.try_list(path, after, limit)
            .map_err(failed("list", path))
    }

    fn try_list(&self, path: &str, after: &str, limit: usize) -> io::Result<Page> {
        check(path)?;
        let limit = match limit {
            limit if is_off(Defence::ListPages) => limit,
            0 => LIST_ENTRIES_MAX,
            limit => limit.min(LIST_ENTRIES_MAX),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let directory = self.root().resolve(path, flags)?;
        let mut names: BTreeMap<String, CString> = BTreeMap::new();
        let mut more = false;
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let shown = name.to_string_lossy();
            if *shown <= *after {
                continue;
            }
            if names.len() == limit
                && names
                    .last_key_value()
                    .is_some_and(|(last, _)| *shown > **last)
            {
                more = true;
                continue;
            }
            names.insert(shown.into_owned(), name.to_owned());
            if names.len() > limit {
                names.pop_last();
                more = true;
            }
        }
        let mut entries = Vec::with_capacity(names.len());
        for (shown, name) in names {
            let stat = match rustix::fs::statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
                // Removed since.
                Err(Errno::NOENT) => continue,
                done => done?,
            };
            let target = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Symlink => read_link(&directory, &name).unwrap_or_default(),
                _ => String::new(),
            };
            entries.push(Info::new(shown, &stat, target));
        }
        Ok(Page { entries, more })
    }
}
