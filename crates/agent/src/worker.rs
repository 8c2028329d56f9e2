//! Runs file operations beside the runtime's one thread, which a slow disk must not stop.
//!
//! A thread lives as long as its operation, so an idle agent has none. Where the sandbox has no
//! process left for a thread, short operations run in place and long ones are refused.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::thread;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Most short operations at once.
const SHORT_MAX: usize = 4;
/// Most streams at once.
const STREAMS_MAX: usize = 32;
/// Stack of a thread; nothing here recurses.
const STACK_BYTES: usize = 256 << 10;
/// Chunks that a stream may be ahead of its reader.
const CHUNKS_AHEAD: usize = 4;
/// Bytes of a chunk that is sent.
pub const CHUNK_BYTES: usize = 256 << 10;

/// A stream cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// There are too many.
    #[error("{STREAMS_MAX} files are being transferred; wait for one")]
    Busy,
    /// There is no thread for it.
    #[error("the sandbox has no process left for a file transfer; end one")]
    NoThread(#[source] io::Error),
    /// The operation ended without an answer.
    #[error("the file operation broke off")]
    Broken,
}

/// Runs operations.
#[derive(Debug)]
pub(crate) struct Workers {
    short: Semaphore,
    streams: Arc<Semaphore>,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            short: Semaphore::new(SHORT_MAX),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
        }
    }
}

fn start(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let builder = thread::Builder::new().stack_size(STACK_BYTES);
    builder.spawn(work).map(drop)
}

impl Workers {
    /// Waits until no stream is run.
    #[cfg(feature = "fuzzing")]
    pub(crate) async fn idle(&self) {
        let all = u32::try_from(STREAMS_MAX).unwrap_or(u32::MAX);
        drop(self.streams.acquire_many(all).await);
    }

    /// Runs a short operation.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WorkerError> {
        let _place = self
            .short
            .acquire()
            .await
            .map_err(|_| WorkerError::Broken)?;
        let (told, answer) = oneshot::channel();
        // In a place of its own, so that it is still there when no thread takes it.
        let work = Arc::new(std::sync::Mutex::new(Some(work)));
        let taken = Arc::clone(&work);
        let take = move |place: &std::sync::Mutex<Option<_>>| {
            place
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .take()
        };
        let started = start(move || {
            if let Some(work) = take(&taken) {
                // Who asked may have gone.
                let _unheard = told.send(work()).is_err();
            }
        });
        match started {
            Ok(()) => answer.await.map_err(|_| WorkerError::Broken),
            Err(_) => take(&work).map(|work| work()).ok_or(WorkerError::Broken),
        }
    }

    /// Runs an operation that writes a stream; the receiver gets its chunks and its error.
    pub(crate) fn produce<E: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Chunks<E>) -> Result<(), E> + Send + 'static,
    ) -> Result<mpsc::Receiver<Result<Bytes, E>>, WorkerError> {
        let place = Arc::clone(&self.streams)
            .try_acquire_owned()
            .map_err(|_| WorkerError::Busy)?;
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        start(move || {
            let mut chunks = Chunks {
                sender,
                buffer: BytesMut::new(),
            };
            match work(&mut chunks) {
                Ok(()) => drop(chunks.flush()),
                // The receiver may have gone, which is then the error.
                Err(error) => drop(chunks.sender.blocking_send(Err(error))),
            }
            drop(place);
        })
        .map_err(WorkerError::NoThread)?;
        Ok(receiver)
    }

    /// Runs an operation that reads a stream.
    pub(crate) fn consume<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Incoming) -> T + Send + 'static,
    ) -> Result<Feed<T>, WorkerError> {
        let place = Arc::clone(&self.streams)
            .try_acquire_owned()
            .map_err(|_| WorkerError::Busy)?;
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let (told, answer) = oneshot::channel();
        start(move || {
            let mut incoming = Incoming {
                receiver,
                chunk: Bytes::new(),
                ended: false,
            };
            let _unheard = told.send(work(&mut incoming)).is_err();
            drop(place);
        })
        .map_err(WorkerError::NoThread)?;
        Ok(Feed { sender, answer })
    }
}

/// Where an operation writes its stream.
#[derive(Debug)]
pub(crate) struct Chunks<E> {
    sender: mpsc::Sender<Result<Bytes, E>>,
    buffer: BytesMut,
}

impl<E> Write for Chunks<E> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.buffer.capacity() == 0 {
            self.buffer.reserve(CHUNK_BYTES);
        }
        let room = CHUNK_BYTES.saturating_sub(self.buffer.len());
        let part = data.get(..room.min(data.len())).unwrap_or_default();
        self.buffer.extend_from_slice(part);
        if self.buffer.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::take(&mut self.buffer).freeze();
        self.sender
            .blocking_send(Ok(chunk))
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the reader has gone"))
    }
}

/// Where an operation reads its stream.
#[derive(Debug)]
pub(crate) struct Incoming {
    receiver: mpsc::Receiver<Option<Bytes>>,
    chunk: Bytes,
    ended: bool,
}

impl Incoming {
    /// Returns the next chunk, or nothing at the end.
    ///
    /// # Errors
    /// Fails when the sender broke off before the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.chunk.has_remaining() {
            return Ok(Some(std::mem::take(&mut self.chunk)));
        }
        if self.ended {
            return Ok(None);
        }
        match self.receiver.blocking_recv() {
            Some(Some(chunk)) => Ok(Some(chunk)),
            Some(None) => {
                self.ended = true;
                Ok(None)
            }
            None => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the sender broke off",
            )),
        }
    }
}

impl Read for Incoming {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        while !self.chunk.has_remaining() {
            match self.next()? {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let count = self.chunk.len().min(room.len());
        let (Some(target), Some(source)) = (room.get_mut(..count), self.chunk.get(..count)) else {
            return Ok(0);
        };
        target.copy_from_slice(source);
        self.chunk.advance(count);
        Ok(count)
    }
}

/// Feeds an operation that reads a stream.
#[derive(Debug)]
pub(crate) struct Feed<T> {
    sender: mpsc::Sender<Option<Bytes>>,
    answer: oneshot::Receiver<T>,
}

impl<T> Feed<T> {
    /// Sends a chunk; returns false when the operation wants no more.
    pub(crate) async fn send(&self, chunk: Bytes) -> bool {
        self.sender.send(Some(chunk)).await.is_ok()
    }

    /// Ends the stream and returns what the operation answers. Without this it is broken off.
    pub(crate) async fn finish(self) -> Result<T, WorkerError> {
        // An operation that has ended early says why in its answer.
        let _early = self.sender.send(None).await.is_err();
        self.answer.await.map_err(|_| WorkerError::Broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn streams_arrive_whole_and_broken_ones_are_noticed() {
        let workers = Workers::default();
        let mut chunks = workers
            .produce(|chunks: &mut Chunks<io::Error>| {
                chunks.write_all(&vec![7; 3 * CHUNK_BYTES + 5])
            })
            .unwrap();
        let mut count = 0;
        while let Some(chunk) = chunks.recv().await {
            count += chunk.unwrap().len();
        }
        assert_eq!(count, 3 * CHUNK_BYTES + 5);
        let read = |incoming: &mut Incoming| {
            let mut text = String::new();
            incoming.read_to_string(&mut text).map(|_| text)
        };
        let feed = workers.consume(read).unwrap();
        assert!(feed.send(Bytes::from_static(b"ab")).await);
        assert!(feed.send(Bytes::from_static(b"c")).await);
        assert_eq!(feed.finish().await.unwrap().unwrap(), "abc");
        let feed = workers.consume(read).unwrap();
        feed.send(Bytes::from_static(b"ab")).await;
        let Feed { sender, answer } = feed;
        drop(sender);
        assert!(answer.await.unwrap().is_err());
        assert_eq!(workers.run(|| 7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn too_many_streams_are_refused() {
        let workers = Workers::default();
        let feeds: Vec<_> = (0..STREAMS_MAX)
            .map(|_| workers.consume(|incoming| incoming.next().is_ok()).unwrap())
            .collect();
        assert!(matches!(workers.consume(|_| ()), Err(WorkerError::Busy)));
        for feed in feeds {
            feed.finish().await.unwrap();
        }
        workers.consume(|_| ()).unwrap();
    }
}
