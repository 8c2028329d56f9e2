//! The two streams over WebSocket: events as JSON, and frames both ways.

use futures::stream::{BoxStream, SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use pinfold_types::ApiErrorBody;
use pinfold_types::exec::{EventMessage, TerminalSize};
use pinfold_types::frame::{FRAME_BYTES_MAX, InputFrame, OutputFrame};
use pinfold_types::{ExecEvent, ExecId};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

use crate::client::Client;
use crate::error::ClientError;
use crate::query::Target;
use crate::transport::{Socket, decode};

type Result<T, E = ClientError> = std::result::Result<T, E>;

/// Events of an exec as JSON objects; ends after the last. Dropping it does not end the exec.
pub type EventStream = BoxStream<'static, Result<EventMessage>>;

/// Which events of an exec are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventRange {
    /// The first; 0 and 1 are the beginning.
    pub from_seq: u64,
    /// Go on until the exec ends, rather than until the last event that there is now.
    pub follow: bool,
}

impl EventRange {
    /// All events until the exec ends.
    pub const ALL: Self = Self {
        from_seq: 0,
        follow: true,
    };

    /// All events that there are now.
    pub const PRESENT: Self = Self {
        from_seq: 0,
        follow: false,
    };
}

impl Client {
    /// Streams the events of an exec.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn stream_events(
        &self,
        sandbox: &str,
        exec_id: &ExecId,
        range: EventRange,
    ) -> Result<EventStream> {
        let socket = self
            .transport
            .upgrade(&stream_target(sandbox, "/stream", exec_id, range))
            .await?;
        let events = futures::stream::unfold(Some(socket), |socket| async {
            let mut socket = socket?;
            match next_message(&mut socket).await? {
                Ok(Message::Text(text)) => Some((event_or_error(&text), Some(socket))),
                Ok(_) => Some((Err(ClientError::protocol("a binary event")), None)),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(events.boxed())
    }

    /// Attaches to an exec: its events from a sequence number on, and its input, size and signals.
    ///
    /// Dropping both halves does not end the exec.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn attach(
        &self,
        sandbox: &str,
        exec_id: &ExecId,
        from_seq: u64,
    ) -> Result<(FrameSender, FrameReceiver)> {
        let range = EventRange {
            from_seq,
            follow: true,
        };
        let socket = self
            .transport
            .upgrade(&stream_target(sandbox, "/attach", exec_id, range))
            .await?;
        let (sink, stream) = socket.split();
        Ok((FrameSender { sink }, FrameReceiver { stream }))
    }
}

/// The way into an attached exec.
#[derive(Debug)]
pub struct FrameSender {
    sink: SplitSink<Socket, Message>,
}

impl FrameSender {
    /// Sends a frame; waits while the exec does not take its input.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError::Transport`] when the connection is gone, which it is once the exec
    /// has ended.
    pub async fn send(&mut self, frame: &InputFrame) -> Result<()> {
        let message = Message::Binary(frame.encode().into());
        self.sink
            .send(message)
            .await
            .map_err(ClientError::transport)
    }

    /// Sends bytes for standard input, in as many frames as they need.
    ///
    /// # Errors
    ///
    /// As [`FrameSender::send`].
    pub async fn input(&mut self, data: &[u8]) -> Result<()> {
        for part in data.chunks(FRAME_BYTES_MAX) {
            self.send(&InputFrame::Data(part.to_vec())).await?;
        }
        Ok(())
    }

    /// Ends standard input.
    ///
    /// # Errors
    ///
    /// As [`FrameSender::send`].
    pub async fn end(&mut self) -> Result<()> {
        self.send(&InputFrame::End).await
    }

    /// Tells the terminal its size.
    ///
    /// # Errors
    ///
    /// As [`FrameSender::send`].
    pub async fn resize(&mut self, size: TerminalSize) -> Result<()> {
        self.send(&InputFrame::Resize(size)).await
    }

    /// Signals the exec's process group.
    ///
    /// # Errors
    ///
    /// As [`FrameSender::send`].
    pub async fn signal(&mut self, signal: i32) -> Result<()> {
        self.send(&InputFrame::Signal(signal)).await
    }
}

/// The way out of an attached exec.
#[derive(Debug)]
pub struct FrameReceiver {
    stream: SplitStream<Socket>,
}

impl FrameReceiver {
    /// Returns the next event, or `None` after the last.
    ///
    /// A [`ClientError::Api`] may say that some input was refused; events can follow it. Safe to
    /// cancel.
    pub async fn next(&mut self) -> Option<Result<ExecEvent>> {
        let event = match next_message(&mut self.stream).await? {
            Ok(Message::Binary(bytes)) => OutputFrame::decode(&bytes)
                .map(|frame| frame.0)
                .map_err(|error| ClientError::protocol(error.to_string())),
            Ok(Message::Text(text)) => Err(api_error(&text)),
            Ok(_) => Err(ClientError::protocol("a message of no known kind")),
            Err(error) => Err(error),
        };
        Some(event)
    }
}

fn stream_target(sandbox: &str, below: &str, exec_id: &ExecId, range: EventRange) -> Target {
    let target = Target::sandbox(sandbox, below).with("exec_id", exec_id.as_str());
    let target = target.with("from_seq", &range.from_seq.to_string());
    if range.follow {
        target
    } else {
        target.with("follow", "false")
    }
}

/// Returns the next text or binary message, `None` after the daemon closed the socket.
async fn next_message<S>(socket: &mut S) -> Option<Result<Message>>
where
    S: futures::Stream<Item = Result<Message, SocketError>> + Unpin,
{
    loop {
        return match socket.next().await? {
            Ok(Message::Ping(_) | Message::Pong(_)) => continue,
            Ok(Message::Close(_)) | Err(SocketError::ConnectionClosed) => None,
            Ok(message) => Some(Ok(message)),
            Err(error) => Some(Err(ClientError::transport(error))),
        };
    }
}

fn event_or_error(text: &str) -> Result<EventMessage> {
    serde_json::from_str(text).map_err(|_| api_error(text))
}

fn api_error(text: &str) -> ClientError {
    match decode::<ApiErrorBody>(text.as_bytes()) {
        Ok(body) => ClientError::Api(Box::new(body.error)),
        Err(error) => error,
    }
}
