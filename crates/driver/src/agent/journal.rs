//! Streams that the agent sends: journals of execs and bytes of files.

use std::time::Duration;

use buffa::view::{HasMessageView, MessageView};
use bytes::Bytes;
use connectrpc::client::ServerStream;
use futures::stream::{self, Stream};
use futures::{StreamExt as _, TryStreamExt as _};
use hyper::body::Incoming;
use pinfold_agent_api::v1;
use pinfold_types::exec::TerminalSize;
use pinfold_types::weaken::{Defence, is_off};
use pinfold_types::{ErrorCode, ExecEvent};

use super::answer::JournalCheck;
use super::{AgentError, AgentStart};

/// Longest time between two messages of a stream that has something to send: one chunk from a
/// disk that is overloaded.
const CHUNK_TIME_MAX: Duration = Duration::from_mins(1);

/// How fast a stream must go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// Its sender has what it sends; silence is a fault.
    Steady,
    /// It waits for something to happen, for as long as that takes.
    Any,
}

/// Reads a server's stream message by message.
pub(super) fn messages<M, V>(
    stream: ServerStream<Incoming, V>,
    pace: Pace,
) -> impl Stream<Item = Result<M, AgentError>> + Send
where
    V: MessageView<'static, Owned = M> + Send + 'static,
    M: HasMessageView<View<'static> = V> + buffa::Message + Send + 'static,
{
    stream::try_unfold(stream, move |mut stream| async move {
        let message = match pace {
            Pace::Any => stream.message().await?,
            Pace::Steady if is_off(Defence::AgentPatience) => stream.message().await?,
            Pace::Steady => tokio::time::timeout(CHUNK_TIME_MAX, stream.message())
                .await
                .map_err(|_| AgentError::silent("the next part", CHUNK_TIME_MAX))??,
        };
        Ok(message.map(|message| (message.to_owned_message(), stream)))
    })
}

/// Reads a journal; each event is checked to continue the one before.
pub(super) fn events(
    stream: ServerStream<Incoming, v1::EventView<'static>>,
    from_seq: u64,
    pace: Pace,
) -> impl Stream<Item = Result<ExecEvent, AgentError>> + Send {
    let source = Box::pin(messages(stream, pace));
    let check = JournalCheck::from_seq(from_seq);
    stream::try_unfold((source, check), move |(mut source, mut check)| async move {
        if check.ended() {
            return Ok(None);
        }
        match source.try_next().await? {
            Some(event) => {
                let event = check.accept(event)?;
                Ok(Some((event, (source, check))))
            }
            None if pace == Pace::Any => Err(AgentError::new(
                ErrorCode::AgentSilent,
                "the agent ended the journal before the process ended",
            )),
            None => Ok(None),
        }
    })
}

/// Reads bytes, and no more than `most`.
pub(super) fn chunks(
    stream: ServerStream<Incoming, v1::ChunkView<'static>>,
    most: u64,
) -> impl Stream<Item = Result<Bytes, AgentError>> + Send {
    messages(stream, Pace::Steady).scan(most, move |left, chunk| {
        let checked = chunk.and_then(|chunk: v1::Chunk| {
            let size = if is_off(Defence::ByteCounts) {
                0
            } else {
                u64::try_from(chunk.data.len()).unwrap_or(u64::MAX)
            };
            *left = left.checked_sub(size).ok_or_else(|| {
                AgentError::broken_contract(format!("more than {most} bytes were sent"))
            })?;
            Ok(Bytes::from(chunk.data))
        });
        futures::future::ready(Some(checked))
    })
}

pub(super) fn terminal_size(size: TerminalSize) -> v1::TerminalSize {
    v1::TerminalSize {
        columns: u32::from(size.columns),
        rows: u32::from(size.rows),
        ..v1::TerminalSize::default()
    }
}

pub(super) fn start_request(start: AgentStart) -> v1::StartRequest {
    v1::StartRequest {
        exec_id: start.exec_id.into(),
        arguments: start.arguments,
        environment: start
            .environment
            .into_iter()
            .map(|(name, value)| v1::EnvironmentVariable {
                name,
                value,
                ..v1::EnvironmentVariable::default()
            })
            .collect(),
        working_directory: start.working_directory,
        user: start.user,
        terminal: start
            .terminal
            .map(terminal_size)
            .map_or_else(buffa::MessageField::none, buffa::MessageField::some),
        standard_input: start.standard_input,
        timeout_ms: start.timeout_ms.unwrap_or(0),
        tag: start.tag,
        ..v1::StartRequest::default()
    }
}
