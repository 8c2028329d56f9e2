//! Streams that we send: contents of files and archives.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::{self, BoxStream, Stream, StreamExt as _};
use pinfold_agent_api::v1;
use pinfold_types::{ErrorChain, ErrorCode};
use tokio::sync::oneshot;

use super::{AgentError, WriteFile};

/// Most bytes of one message that we send: small enough that other calls get their turn.
const PIECE_BYTES_MAX: usize = 128 << 10;

/// Wraps a source so that its error is told beside it: the stream of messages itself cannot carry
/// one, and must not end as if the source were complete.
pub(super) fn guarded(
    source: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
) -> (Guarded, Failure) {
    let (failed, failure) = oneshot::channel();
    let guarded = Guarded {
        source: source.boxed(),
        failed: Some(failed),
        rest: Bytes::new(),
        sent: Arc::default(),
    };
    (guarded, Failure(failure))
}

/// A source in pieces of bounded size. After an error it stays silent and never ends.
pub(super) struct Guarded {
    source: BoxStream<'static, std::io::Result<Bytes>>,
    failed: Option<oneshot::Sender<std::io::Error>>,
    rest: Bytes,
    sent: Arc<AtomicU64>,
}

impl Guarded {
    /// Returns what counts the bytes that were handed on.
    pub(super) fn counter(&self) -> Counter {
        Counter(Arc::clone(&self.sent))
    }

    fn piece(&mut self) -> Bytes {
        let piece = self.rest.split_to(self.rest.len().min(PIECE_BYTES_MAX));
        let size = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        self.sent.fetch_add(size, Ordering::Relaxed);
        piece
    }
}

impl Stream for Guarded {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if !self.rest.is_empty() {
                return Poll::Ready(Some(self.piece()));
            }
            if self.failed.is_none() {
                return Poll::Pending;
            }
            match std::task::ready!(self.source.as_mut().poll_next(context)) {
                None => return Poll::Ready(None),
                Some(Ok(bytes)) => self.rest = bytes,
                Some(Err(error)) => {
                    if let Some(failed) = self.failed.take() {
                        // Nobody listens when the call is already over.
                        drop(failed.send(error));
                    }
                }
            }
        }
    }
}

/// Counts the bytes of an upload.
pub(super) struct Counter(Arc<AtomicU64>);

impl Counter {
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Hears of the source's error.
pub(super) struct Failure(oneshot::Receiver<std::io::Error>);

impl Failure {
    /// Waits for the source's error; for ever when it has none.
    pub(super) async fn error(&mut self) -> AgentError {
        match (&mut self.0).await {
            Ok(error) => AgentError::new(
                ErrorCode::Unavailable,
                format!(
                    "what was to be sent could not be read: {}",
                    ErrorChain(&error)
                ),
            ),
            Err(_) => std::future::pending().await,
        }
    }
}

pub(super) fn file_messages(
    file: WriteFile,
    content: Guarded,
) -> impl Stream<Item = v1::WriteFileRequest> + Send + 'static {
    let first = v1::WriteFileRequest {
        path: file.path,
        mode: file.mode,
        in_place: file.in_place,
        offset: file.offset,
        user: file.user,
        make_parents: file.make_parents,
        ..v1::WriteFileRequest::default()
    };
    stream::iter([first]).chain(content.map(|piece| v1::WriteFileRequest {
        data: piece.to_vec(),
        ..v1::WriteFileRequest::default()
    }))
}

pub(super) fn archive_messages(
    directory: String,
    user: String,
    archive: Guarded,
) -> impl Stream<Item = v1::UnpackRequest> + Send + 'static {
    let first = v1::UnpackRequest {
        directory,
        user,
        ..v1::UnpackRequest::default()
    };
    stream::iter([first]).chain(archive.map(|piece| v1::UnpackRequest {
        data: piece.to_vec(),
        ..v1::UnpackRequest::default()
    }))
}
