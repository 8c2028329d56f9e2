//! What a caller may name as an image.

use std::fs::{self, FileType};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::PathBuf;

/// An image that a caller named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageRef {
    /// The programs of this host, under a skeleton made anew.
    Host,
    /// A directory that holds a root file system.
    Directory(PathBuf),
    /// A tar archive of a root file system.
    Tar(PathBuf),
    /// A tar archive compressed with gzip.
    TarGzip(PathBuf),
}

/// A text does not name an image.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ImageRefError {
    /// The archive is compressed with zstd.
    #[error("`{0}` is compressed with zstd, which is not supported yet: use .tar or .tar.gz")]
    Zstd(String),
    /// Nothing that is accepted.
    #[error(
        "`{0}` is neither `host`, nor an existing directory, nor an existing .tar, .tar.gz or .tgz file"
    )]
    Unknown(String),
}

impl ImageRef {
    /// Tells which image a text names.
    ///
    /// # Errors
    /// Fails if it is neither `host`, nor an existing directory, nor an existing archive.
    pub fn parse(text: &str) -> Result<Self, ImageRefError> {
        if text == "host" {
            return Ok(Self::Host);
        }
        let path = PathBuf::from(text);
        let kind = fs::metadata(&path).ok().map(|found| found.file_type());
        Self::of_kind(text, kind)
    }

    /// Tells which image a text names whose path was opened already.
    ///
    /// # Errors
    /// As [`ImageRef::parse`].
    pub fn of_opened(text: &str, opened: BorrowedFd<'_>) -> Result<Self, ImageRefError> {
        let kind = fs::metadata(path_of(opened))
            .ok()
            .map(|found| found.file_type());
        Self::of_kind(text, kind)
    }

    fn of_kind(text: &str, kind: Option<FileType>) -> Result<Self, ImageRefError> {
        let path = PathBuf::from(text);
        if kind.is_some_and(|kind| kind.is_dir()) {
            return Ok(Self::Directory(path));
        }
        let ends = |endings: &[&str]| endings.iter().any(|ending| text.ends_with(ending));
        if ends(&[".tar.zst", ".tzst"]) {
            return Err(ImageRefError::Zstd(text.to_owned()));
        }
        match kind.is_some_and(|kind| kind.is_file()) {
            true if ends(&[".tar"]) => Ok(Self::Tar(path)),
            true if ends(&[".tar.gz", ".tgz"]) => Ok(Self::TarGzip(path)),
            _ => Err(ImageRefError::Unknown(text.to_owned())),
        }
    }
}

/// Returns a path by which this process finds an open file, whatever became of its name.
pub(crate) fn path_of(opened: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_kinds_apart() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(at("a.tar"), "").unwrap();
        std::fs::write(at("a.tgz"), "").unwrap();
        assert_eq!(ImageRef::parse("host"), Ok(ImageRef::Host));
        assert_eq!(
            ImageRef::parse(&at("")),
            Ok(ImageRef::Directory(at("").into()))
        );
        assert_eq!(
            ImageRef::parse(&at("a.tar")),
            Ok(ImageRef::Tar(at("a.tar").into()))
        );
        assert_eq!(
            ImageRef::parse(&at("a.tgz")),
            Ok(ImageRef::TarGzip(at("a.tgz").into()))
        );
        assert!(matches!(
            ImageRef::parse("x.tar.zst"),
            Err(ImageRefError::Zstd(_))
        ));
        assert!(matches!(
            ImageRef::parse(&at("b.tar")),
            Err(ImageRefError::Unknown(_))
        ));
    }
}
