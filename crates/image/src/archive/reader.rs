//! The entries of a tar archive, one after another.

use std::io::Read;

use pinfold_linux::weaken::{Defence, is_off};

use super::decode::ReadFault;
use super::entry::{Entry, Kind, link_target, plain_path};
use super::header::{BLOCK_BYTES, Header, unreadable};
use super::invalid::{InvalidImage, shown};
use super::records::Extensions;

/// Most bytes of one extended header: a few names and extended attributes fit many times.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;

/// Reads entries of ustar, pax and GNU archives.
#[derive(Debug)]
pub(super) struct Reader<R> {
    source: R,
    /// Bytes of the current entry's data that nobody has read yet.
    data_left: u64,
    /// Zeros after them.
    padding_left: u64,
    /// Bytes of the current entry's hole, which is never read unless a test wants it.
    hole_left: u64,
    /// How many headers were read, of extensions too.
    headers: u64,
    headers_max: u64,
    /// What holds for every entry from here on.
    global: Extensions,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(source: R, headers_max: u64) -> Self {
        Self {
            source,
            data_left: 0,
            padding_left: 0,
            hole_left: 0,
            headers: 0,
            headers_max,
            global: Extensions::default(),
        }
    }

    /// Returns the next entry, or nothing at the archive's end mark.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, ReadFault> {
        let mut here = Extensions::default();
        loop {
            self.skip_data()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            match header.kind {
                b'x' => {
                    let records = self.extension(&header)?;
                    here.read(&records, self.headers)?;
                }
                b'g' => {
                    let records = self.extension(&header)?;
                    self.global.read(&records, self.headers)?;
                }
                b'L' => here.path = Some(without_nul(self.extension(&header)?)),
                b'K' => here.link = Some(without_nul(self.extension(&header)?)),
                // The label of a volume.
                b'V' => {}
                _ => {
                    let extensions = std::mem::take(&mut here).over(&self.global);
                    return self.entry(header, extensions).map(Some);
                }
            }
        }
    }

    /// Reads data of the entry that came last; 0 bytes mean its end.
    pub(super) fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, ReadFault> {
        if self.hole_left > 0 {
            let most = usize::try_from(self.hole_left).unwrap_or(usize::MAX);
            let hole = buffer.get_mut(..most.min(buffer.len())).unwrap_or_default();
            hole.fill(0);
            self.hole_left = self.hole_left.saturating_sub(hole.len() as u64);
            return Ok(hole.len());
        }
        let most =
            usize::try_from(self.data_left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let read = match buffer.get_mut(..most) {
            Some(buffer) if most > 0 => self.source.read(buffer)?,
            _ => return Ok(0),
        };
        if read == 0 {
            return Err(InvalidImage::Truncated.into());
        }
        self.data_left = self.data_left.saturating_sub(read as u64);
        Ok(read)
    }

    pub(super) fn into_source(self) -> R {
        self.source
    }

    fn header(&mut self) -> Result<Option<Header>, ReadFault> {
        if self.headers >= self.headers_max {
            let limit = self.headers_max;
            return Err(InvalidImage::TooManyEntries { limit }.into());
        }
        self.headers += 1;
        let mut block = [0; BLOCK_BYTES];
        match read_full(&mut self.source, &mut block)? {
            BLOCK_BYTES => {}
            _ if self.headers == 1 => return Err(InvalidImage::NotAnArchive.into()),
            _ => return Err(InvalidImage::Truncated.into()),
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::parse(&block, self.headers)?;
        self.expect_data(match header.kind {
            // These have no data, whatever their size field says.
            b'1'..=b'6' => 0,
            _ => header.size,
        });
        Ok(Some(header))
    }

    fn entry(&mut self, header: Header, extensions: Extensions) -> Result<Entry, ReadFault> {
        let name = extensions.path.unwrap_or(header.name);
        let link = extensions.link.unwrap_or(header.link);
        let unsupported = |what: &str| InvalidImage::Unsupported {
            name: shown(&name),
            what: what.to_owned(),
        };
        if extensions.sparse {
            return Err(unsupported("a sparse file").into());
        }
        let size = extensions.size.unwrap_or(header.size);
        let kind = match header.kind {
            // Before ustar, directories were files whose name ends so.
            0 | b'0' | b'7' if name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => Kind::File { size },
            b'1' => Kind::HardLink {
                target: plain_path(&link)?,
            },
            b'2' => Kind::SymbolicLink {
                target: link_target(&name, link)?,
            },
            b'3' | b'4' => Kind::Device {
                number: header.device,
            },
            b'5' => Kind::Directory,
            b'6' => Kind::Pipe,
            b'S' if is_off(Defence::ArchiveSparse) => {
                self.hole_left = header.sparse_size.saturating_sub(size);
                Kind::File { size }
            }
            b'S' => return Err(unsupported("a sparse file").into()),
            b'M' => return Err(unsupported("the rest of a file in another volume").into()),
            b'D' => return Err(unsupported("a list of an incremental backup").into()),
            _ => return Err(unsupported("of an unknown kind").into()),
        };
        if let Kind::File { size } = kind {
            self.expect_data(size);
        }
        Ok(Entry {
            path: plain_path(&name)?,
            kind,
            mode: header.mode,
            user: extensions.user.unwrap_or(header.user),
            group: extensions.group.unwrap_or(header.group),
            modified: extensions.modified.unwrap_or((header.modified, 0)),
            capability: extensions.capability,
        })
    }

    fn expect_data(&mut self, size: u64) {
        self.data_left = size;
        let block = BLOCK_BYTES as u64;
        self.padding_left = (block - size % block) % block;
    }

    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, ReadFault> {
        if header.size > EXTENSION_BYTES_MAX {
            return Err(unreadable(self.headers, "extension that is too long").into());
        }
        let mut content = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let read = self.read_data(&mut buffer)?;
            match buffer.get(..read) {
                Some(part) if read > 0 => content.extend_from_slice(part),
                _ => return Ok(content),
            }
        }
    }

    fn skip_data(&mut self) -> Result<(), ReadFault> {
        let left = self.data_left.saturating_add(self.padding_left);
        let skipped = std::io::copy(&mut self.source.by_ref().take(left), &mut std::io::sink())?;
        if skipped < left {
            return Err(InvalidImage::Truncated.into());
        }
        self.expect_data(0);
        Ok(())
    }
}

fn without_nul(mut name: Vec<u8>) -> Vec<u8> {
    let end = name.iter().position(|byte| *byte == 0);
    name.truncate(end.unwrap_or(name.len()));
    name
}

/// Fills the buffer as far as the source goes.
fn read_full(source: &mut impl Read, buffer: &mut [u8]) -> Result<usize, std::io::Error> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match source.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
