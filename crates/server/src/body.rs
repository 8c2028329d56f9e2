//! Bodies: read whole with a limit, streamed in, streamed out, and thrown away politely.

use std::io;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use http_body_util::BodyExt as _;
use pinfold_engine::{AgentError, ByteChunks};
use pinfold_types::ErrorChain;
use pinfold_types::id::RequestId;
use tokio::sync::mpsc;

use crate::error::ApiError;

/// Most bytes of a refused request that are read and thrown away.
///
/// A caller that is still sending sees a broken connection, not our answer, when we close first.
const DISCARD_BYTES_MAX: usize = 64 << 20;

/// Longest time for that.
const DISCARD_MAX: Duration = Duration::from_secs(5);

/// Longest time that a caller may send nothing meanwhile: who waits for our answer, having announced too
/// much, need not be read to the end.
const DISCARD_STALL_MAX: Duration = Duration::from_millis(500);

/// Most chunks of an upload between the caller and the agent; a chunk is what one read gave.
const UPLOAD_CHUNKS_MAX: usize = 4;

/// Longest time between two chunks of an upload: a person may be typing it.
const UPLOAD_STALL_MAX: Duration = Duration::from_mins(15);

/// Reads a body of at most `limit` bytes.
pub(crate) async fn read(body: &mut Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| ApiError::invalid("the request broke off").caused_by(error))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if whole.len() + data.len() > limit {
            return Err(ApiError::too_large("the request", limit));
        }
        whole.extend_from_slice(&data);
    }
    Ok(Bytes::from(whole))
}

/// Reads what is left of a refused request, within bounds, so that the caller reads our answer.
pub(crate) async fn discard(body: &mut Body) {
    let read = async {
        let mut left = DISCARD_BYTES_MAX;
        while let Ok(Some(Ok(frame))) = tokio::time::timeout(DISCARD_STALL_MAX, body.frame()).await
        {
            let length = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(length) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    // What does not end in time is cut off.
    drop(tokio::time::timeout(DISCARD_MAX, read).await);
}

/// The two ends of an upload: a stream for the agent, and what fills it.
pub(crate) struct Upload {
    body: Body,
    sender: mpsc::Sender<io::Result<Bytes>>,
}

impl Upload {
    /// Splits a body.
    pub(crate) fn new(
        body: Body,
    ) -> (Self, impl Stream<Item = io::Result<Bytes>> + Send + 'static) {
        let (sender, receiver) = mpsc::channel(UPLOAD_CHUNKS_MAX);
        let stream = futures::stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|item| (item, receiver))
        });
        (Self { body, sender }, stream)
    }

    /// Moves the body into the stream; throws the rest away once nobody takes it.
    ///
    /// A caller that breaks off or stalls becomes an error item, so that the agent undoes the call.
    pub(crate) async fn pump(mut self) {
        loop {
            let frame = tokio::select! {
                () = self.sender.closed() => break,
                frame = tokio::time::timeout(UPLOAD_STALL_MAX, self.body.frame()) => frame,
            };
            let item = match frame {
                Ok(None) => return,
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => Ok(data),
                    Err(_) => continue,
                },
                Ok(Some(Err(error))) => Err(io::Error::other(error)),
                Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut)),
            };
            let broken = item.is_err();
            if self.sender.send(item).await.is_err() {
                break;
            }
            if broken {
                return;
            }
        }
        discard(&mut self.body).await;
    }
}

/// Waits for the first chunk of a download, so that a refusal is still an answer of its own.
pub(crate) async fn first_chunk(
    mut chunks: ByteChunks,
) -> Result<BoxStream<'static, Result<Bytes, AgentError>>, ApiError> {
    match chunks.next().await {
        None => Ok(futures::stream::empty().boxed()),
        Some(Err(error)) => Err(error.into()),
        Some(Ok(chunk)) => Ok(futures::stream::once(async { Ok(chunk) })
            .chain(chunks)
            .boxed()),
    }
}

/// Streams content out. A later error breaks the connection, so that nobody takes a part for all.
pub(crate) fn download(
    chunks: BoxStream<'static, Result<Bytes, AgentError>>,
    request_id: RequestId,
) -> Body {
    Body::from_stream(chunks.map(move |chunk| {
        chunk.inspect_err(|error| {
            let chain = ErrorChain(error);
            tracing::warn!(%request_id, %chain, "a download broke off");
        })
    }))
}
