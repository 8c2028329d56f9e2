//! The daemon's log in a file that does not grow without a bound.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::error::CliError;

/// Bytes of one file when nobody says otherwise: an editor still opens it.
const BYTES_DEFAULT: u64 = 16 << 20;

/// Least bytes of one file: some lines with long paths.
const BYTES_MIN: u64 = 64 << 10;

/// Former files that are kept beside the present one.
const FORMER_MAX: u32 = 4;

/// A file that becomes a former one when it is full.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl LogFile {
    /// Opens a file to go on at its end.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be opened.
    pub(crate) fn open(path: &Path, bytes_max: Option<u64>) -> Result<Self, CliError> {
        let failed = |error: &io::Error| {
            CliError::new(format!("failed to open the log {}", path.display())).caused_by(error)
        };
        let file = open(path).map_err(|error| failed(&error))?;
        let bytes = file.metadata().map_err(|error| failed(&error))?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes,
            bytes_max: bytes_max.unwrap_or(BYTES_DEFAULT).max(BYTES_MIN),
        })
    }

    fn former(&self, number: u32) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    }

    /// Begins a new file. Where files cannot be renamed the present one is emptied: what bounds the
    /// log must not depend on that.
    fn turn(&mut self) -> io::Result<()> {
        for number in (1..FORMER_MAX).rev() {
            let _missing = std::fs::rename(self.former(number), self.former(number + 1));
        }
        match std::fs::rename(&self.path, self.former(1)).and_then(|()| open(&self.path)) {
            Ok(file) => self.file = file,
            Err(_) => self.file.set_len(0)?,
        }
        self.bytes = 0;
        Ok(())
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len() as u64;
        if self.bytes > 0 && self.bytes.saturating_add(length) > self.bytes_max {
            self.turn()?;
        }
        // A line that a full disk does not take is not worth the daemon.
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_the_oldest_lines_go() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("log");
        let mut file = LogFile::open(&path, Some(1)).unwrap();
        let line = [b'x'; 8 << 10];
        for number in 0..76u8 {
            let mut line = line;
            line[0] = number;
            assert_eq!(file.write(&line).unwrap(), line.len());
        }
        let first = |path: PathBuf| std::fs::read(path).unwrap()[0];
        let mut names: Vec<_> = std::fs::read_dir(place.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["log", "log.1", "log.2", "log.3", "log.4"]);
        for entry in std::fs::read_dir(place.path()).unwrap() {
            assert!(entry.unwrap().metadata().unwrap().len() <= BYTES_MIN);
        }
        assert_eq!(first(path.clone()), 72);
        assert_eq!(first(file.former(1)), 64);
        assert_eq!(first(file.former(4)), 40);
        // The next daemon goes on where this one stopped.
        drop(file);
        let mut file = LogFile::open(&path, Some(1)).unwrap();
        file.write_all(b"more").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), (4 << 13) + 4);
    }

    #[test]
    fn where_nothing_can_be_renamed_it_is_bounded_all_the_same() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("log");
        let mut file = LogFile::open(&path, Some(1)).unwrap();
        std::fs::create_dir_all(file.former(1).join("in the way")).unwrap();
        for _ in 0..20 {
            file.write_all(&[b'x'; 8 << 10]).unwrap();
        }
        assert!(std::fs::metadata(&path).unwrap().len() <= BYTES_MIN);
    }
}
