//! From the bytes of a file to the bytes of an archive: digest, decompression and a bound.

use std::io::{self, BufRead, BufReader, ErrorKind, Read};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use super::invalid::InvalidImage;

/// How many bytes are read from the file at once.
const FILE_BUFFER_BYTES: usize = 128 << 10;
/// How many bytes lie between two reports of progress.
const PROGRESS_BYTES: u64 = 1 << 20;
/// How the first bytes of other compressions look, and what they are called.
const OTHER_COMPRESSIONS: &[(&[u8], &str)] = &[
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"PK\x03\x04", "zip"),
];
const GZIP: &[u8] = b"\x1f\x8b";

/// A stream went on after its bound.
#[derive(Debug, thiserror::Error)]
#[error("more than {limit} bytes")]
struct BoundPassed {
    limit: u64,
}

/// Reading an archive failed.
#[derive(Debug)]
pub(super) enum ReadFault {
    /// The archive is at fault.
    Invalid(InvalidImage),
    /// The host is.
    Host(io::Error),
}

impl From<InvalidImage> for ReadFault {
    fn from(problem: InvalidImage) -> Self {
        Self::Invalid(problem)
    }
}

impl From<io::Error> for ReadFault {
    fn from(error: io::Error) -> Self {
        // The decoder has no other way to say that its input is wrong.
        if error.raw_os_error().is_none() {
            match error.kind() {
                ErrorKind::UnexpectedEof => return InvalidImage::Truncated.into(),
                ErrorKind::InvalidData | ErrorKind::InvalidInput => {
                    return InvalidImage::Damaged.into();
                }
                _ => {}
            }
        }
        if let Some(passed) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
            let BoundPassed { limit } = *passed;
            return InvalidImage::TooLarge { limit }.into();
        }
        Self::Host(error)
    }
}

/// A file that is hashed as it is read.
pub(super) struct Hashed<'a> {
    file: &'a mut dyn Read,
    progress: &'a mut dyn FnMut(u64),
    digest: Sha256,
    read: u64,
    reported: u64,
}

impl Read for Hashed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.digest.update(buffer.get(..read).unwrap_or_default());
        self.read = self.read.saturating_add(read as u64);
        if self.read.saturating_sub(self.reported) >= PROGRESS_BYTES {
            self.reported = self.read;
            (self.progress)(self.read);
        }
        Ok(read)
    }
}

/// The archive's bytes after decompression, no more of them than a bound.
pub(super) struct Decoded<'a> {
    stream: Stream<'a>,
    limit: u64,
    left: u64,
}

enum Stream<'a> {
    Plain(BufReader<Hashed<'a>>),
    Gzip(Box<MultiGzDecoder<BufReader<Hashed<'a>>>>),
}

impl<'a> Decoded<'a> {
    /// Looks at the first bytes to tell how a file is compressed; its name is not believed.
    pub(super) fn new(
        file: &'a mut dyn Read,
        limit: u64,
        progress: &'a mut dyn FnMut(u64),
    ) -> Result<Self, ReadFault> {
        let hashed = Hashed {
            file,
            progress,
            digest: Sha256::new(),
            read: 0,
            reported: 0,
        };
        let mut file = BufReader::with_capacity(FILE_BUFFER_BYTES, hashed);
        let first = file.fill_buf()?;
        if let Some((_, with)) = OTHER_COMPRESSIONS
            .iter()
            .find(|(mark, _)| first.starts_with(mark))
        {
            let with = (*with).to_owned();
            return Err(InvalidImage::Compressed { with }.into());
        }
        let stream = if first.starts_with(GZIP) {
            Stream::Gzip(Box::new(MultiGzDecoder::new(file)))
        } else {
            Stream::Plain(file)
        };
        Ok(Self {
            stream,
            limit,
            left: limit,
        })
    }

    /// Reads on to the end of the file and returns the file's digest in hexadecimal digits.
    pub(super) fn finish(mut self) -> Result<String, ReadFault> {
        // What follows the end mark is padding; the last checksum of the compression follows it.
        io::copy(&mut self, &mut io::sink())?;
        let mut file = match self.stream {
            Stream::Plain(file) => file,
            Stream::Gzip(decoder) => decoder.into_inner(),
        };
        io::copy(&mut file, &mut io::sink())?;
        Ok(hexadecimal(&file.into_inner().digest.finalize()))
    }
}

impl Read for Decoded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match &mut self.stream {
            Stream::Plain(file) => file.read(buffer)?,
            Stream::Gzip(decoder) => decoder.read(buffer)?,
        };
        let limit = self.limit;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other(BoundPassed { limit }))?;
        Ok(read)
    }
}

/// Returns the digest of all that a file holds, in hexadecimal digits.
pub(crate) fn digest_of(file: &mut dyn Read, progress: &mut dyn FnMut(u64)) -> io::Result<String> {
    let mut hashed = Hashed {
        file,
        progress,
        digest: Sha256::new(),
        read: 0,
        reported: 0,
    };
    let mut buffer = vec![0; FILE_BUFFER_BYTES];
    while hashed.read(&mut buffer)? > 0 {}
    Ok(hexadecimal(&hashed.digest.finalize()))
}

/// Writes bytes in hexadecimal digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _written = write!(text, "{byte:02x}");
        text
    })
}
