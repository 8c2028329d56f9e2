//! Directory trees as tar streams: made from host files, and unpacked on the host from a stream
//! that a hostile sandbox wrote.

mod extension;
mod notes;
mod pack;
mod unpack;

use std::fs::File;
use std::io::{self, Read, Write};

use bytes::{Buf as _, Bytes};
use futures::Stream;
use tokio::sync::mpsc;

pub(crate) use pack::pack;
pub(crate) use unpack::unpack;

/// Chunks on their way between a blocking thread and a connection.
const QUEUE_CHUNKS: usize = 16;

/// Bytes of one chunk.
const CHUNK_BYTES: usize = 64 << 10;

/// Makes a pipe whose writing end blocks and whose reading end is awaited.
pub(crate) fn to_connection() -> (ChunkWriter, mpsc::Receiver<io::Result<Bytes>>) {
    let (sender, receiver) = mpsc::channel(QUEUE_CHUNKS);
    let writer = ChunkWriter {
        sender,
        pending: Vec::with_capacity(CHUNK_BYTES),
    };
    (writer, receiver)
}

/// Makes a stream of what comes out of a pipe's reading end.
pub(crate) fn stream(
    receiver: mpsc::Receiver<io::Result<Bytes>>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    futures::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    })
}

/// Makes a stream of a file's content, read on a thread.
pub(crate) fn stream_of(mut file: File) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let (mut writer, receiver) = to_connection();
    tokio::task::spawn_blocking(move || {
        let copied = io::copy(&mut file, &mut writer).and_then(|_| writer.flush());
        if let Err(error) = copied {
            writer.fail(error);
        }
    });
    stream(receiver)
}

/// Makes a pipe whose writing end is awaited and whose reading end blocks.
pub(crate) fn from_connection() -> (mpsc::Sender<io::Result<Bytes>>, ChunkReader) {
    let (sender, receiver) = mpsc::channel(QUEUE_CHUNKS);
    let reader = ChunkReader {
        receiver,
        current: Bytes::new(),
    };
    (sender, reader)
}

/// The blocking end that writes.
#[derive(Debug)]
pub(crate) struct ChunkWriter {
    sender: mpsc::Sender<io::Result<Bytes>>,
    pending: Vec<u8>,
}

impl ChunkWriter {
    /// Tells the other end that the stream is not whole.
    pub(crate) fn fail(self, error: io::Error) {
        // The other end may have given up before us.
        let _gone = self.sender.blocking_send(Err(error));
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let room = CHUNK_BYTES.saturating_sub(self.pending.len());
        let taken = data.len().min(room);
        self.pending.extend(data.iter().take(taken));
        if self.pending.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::replace(
            &mut self.pending,
            Vec::with_capacity(CHUNK_BYTES),
        ));
        self.sender
            .blocking_send(Ok(chunk))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

/// The blocking end that reads.
#[derive(Debug)]
pub(crate) struct ChunkReader {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(chunk) => self.current = chunk?,
            }
        }
        let count = self.current.len().min(buffer.len());
        if let Some(part) = buffer.get_mut(..count) {
            self.current.copy_to_slice(part);
        }
        Ok(count)
    }
}
