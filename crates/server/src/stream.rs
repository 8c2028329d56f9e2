//! The two streams of an exec: its events as JSON, over WebSocket or as server-sent events, and
//! frames both ways over WebSocket.
//!
//! A reader that is slow waits in its own socket: the engine tells it with a `dropped` event what it
//! has missed. The exec goes on when its readers leave.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use pinfold_engine::{EngineError, EventReader};
use pinfold_types::api::SignalRequest;
use pinfold_types::exec::EventMessage;
use pinfold_types::frame::{FRAME_BYTES_MAX, InputFrame, OutputFrame};
use pinfold_types::{ApiErrorBody, ErrorCode, EventKind, ExecEvent, ExecId, SandboxId};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::error::ApiError;
use crate::meters::{OpenStream, StreamKind};
use crate::query::Query;
use crate::request::{Asked, Target};
use crate::router::Api;
use crate::sse;

/// Longest message from a caller: a frame with its kind byte, and some room.
const MESSAGE_BYTES_MAX: usize = FRAME_BYTES_MAX + 64;

/// Longest time to wait for the caller's half of the closing.
const CLOSE_MAX: Duration = Duration::from_secs(10);

/// Frames of input that wait while a program does not read; the caller waits with the next.
const INPUT_FRAMES_MAX: usize = 8;

/// Refusals of input that wait to be told.
const REFUSALS_MAX: usize = 8;

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// Streams an exec's events.
///
/// Over WebSocket each text message is one JSON object (`EventMessage`). With the header
/// `Accept: text/event-stream` they are server-sent events whose `id` is the event's number;
/// `Last-Event-ID` goes on behind it, and 204 says that there is nothing more.
#[utoipa::path(
    get,
    path = "/sandboxes/{id}/stream",
    tag = "execs",
    operation_id = "streamEvents",
    params(
        ("exec_id" = Option<String>, Query, description = "The exec; `events`, or nothing, for what programs drop in the sandbox's directory of events"),
        ("from_seq" = Option<u64>, Query, description = "Where to begin; the first event has number 1"),
        ("follow" = Option<bool>, Query, description = "Go on with what comes later; true when absent")
    ),
    responses(
        (status = 101, description = "The WebSocket begins"),
        (status = 200, description = "The events, as asked by `Accept`", body = EventMessage, content_type = "text/event-stream"),
        (status = 204, description = "The exec has ended, and the reader has seen all"),
        (status = 426, description = "There was no upgrade", body = ApiErrorBody)
    )
)]
#[expect(
    clippy::too_many_arguments,
    reason = "one for each part of the request"
)]
pub(crate) async fn events(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    upgrade: Upgrade,
) -> Result<Response, ApiError> {
    if sse::wanted(&headers) {
        let seen = sse::last_event(&headers)?;
        return server_sent(Stream::open(api, asked, target, (query.as_deref(), seen)).await?)
            .await;
    }
    let upgrade = upgraded(upgrade)?;
    let stream = Stream::open(api, asked, target, (query.as_deref(), None)).await?;
    let sandbox = stream
        .api
        .engine
        .get(&stream.asked.caller, &stream.target)
        .await?;
    let form = Form::Json {
        sandbox_id: sandbox.id,
        exec_id: stream.exec_id.clone(),
    };
    Ok(accept(upgrade, stream, form))
}

async fn server_sent(stream: Stream) -> Result<Response, ApiError> {
    let Stream {
        api,
        asked,
        target,
        exec_id,
        reader,
        beyond,
    } = stream;
    let engine = &api.engine;
    let sandbox = engine.get(&asked.caller, &target).await?;
    if let Some(seen) = beyond
        && !exec_id.is_events()
    {
        let exec = engine.exec_get(&asked.caller, &target, &exec_id).await?;
        if exec.exit.is_some() && seen >= exec.last_seq {
            return Ok(sse::nothing_more());
        }
    }
    Ok(sse::journal(
        &api,
        asked.request_id,
        (sandbox.id, exec_id),
        reader,
    ))
}

/// Streams an exec's events as binary frames and takes its input, size and signals, over WebSocket.
#[utoipa::path(
    get,
    path = "/sandboxes/{id}/attach",
    tag = "execs",
    operation_id = "attach",
    params(
        ("exec_id" = ExecId, Query, description = "The exec"),
        ("from_seq" = Option<u64>, Query, description = "Where to begin; the first event has number 1"),
        ("follow" = Option<bool>, Query, description = "Go on with what comes later; true when absent")
    ),
    responses(
        (status = 101, description = "The stream begins"),
        (status = 426, description = "There was no upgrade", body = ApiErrorBody)
    )
)]
pub(crate) async fn attach(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    RawQuery(query): RawQuery,
    upgrade: Upgrade,
) -> Result<Response, ApiError> {
    let upgrade = upgraded(upgrade)?;
    let stream = Stream::open(api, asked, target, (query.as_deref(), None)).await?;
    if stream.exec_id.is_events() {
        return Err(ApiError::invalid("events of a sandbox have no terminal")
            .hint("name an exec with `exec_id`, or read events with `stream`"));
    }
    Ok(accept(upgrade, stream, Form::Frames))
}

fn upgraded(upgrade: Upgrade) -> Result<WebSocketUpgrade, ApiError> {
    upgrade.map_err(|rejection| {
        ApiError::invalid("this route is a WebSocket: ask for an upgrade")
            .hint("events are also there with `Accept: text/event-stream`")
            .status(StatusCode::UPGRADE_REQUIRED)
            .caused_by(rejection)
    })
}

fn accept(upgrade: WebSocketUpgrade, stream: Stream, form: Form) -> Response {
    // The task belongs to the server's: the upgrade alone would not be waited for.
    let token = stream.api.tasks.token();
    upgrade
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX)
        .on_upgrade(move |socket| async move {
            let abort = stream.api.abort.clone();
            tokio::select! {
                () = stream.run(socket, form) => {}
                () = abort.cancelled() => {}
            }
            drop(token);
        })
}

/// How events are written, and whether anything is read.
#[derive(Debug)]
enum Form {
    Json {
        sandbox_id: SandboxId,
        exec_id: ExecId,
    },
    Frames,
}

impl Form {
    const fn kind(&self) -> StreamKind {
        match self {
            Self::Json { .. } => StreamKind::Events,
            Self::Frames => StreamKind::Attach,
        }
    }

    fn write(&self, event: ExecEvent) -> Message {
        match self {
            Self::Json {
                sandbox_id,
                exec_id,
            } => {
                let message = EventMessage::new(sandbox_id, exec_id, &event);
                Message::text(serde_json::to_string(&message).unwrap_or_default())
            }
            Self::Frames => Message::binary(OutputFrame(event).encode()),
        }
    }
}

fn length(message: &Message) -> usize {
    match message {
        Message::Text(text) => text.len(),
        Message::Binary(bytes) | Message::Ping(bytes) | Message::Pong(bytes) => bytes.len(),
        Message::Close(_) => 0,
    }
}

/// One reader of an exec.
struct Stream {
    api: Api,
    asked: Asked,
    target: String,
    exec_id: ExecId,
    reader: EventReader,
    /// The event that the reader saw last, when it comes back.
    beyond: Option<u64>,
}

/// Why a stream has ended.
enum Ended {
    /// The last event was sent.
    Complete,
    /// The caller has gone or broke the rules.
    Gone,
    /// It failed, or the server ends.
    Failed(Box<ApiError>),
}

impl Stream {
    /// Opens the journal before the upgrade, so that a refusal is an ordinary answer.
    async fn open(
        api: Api,
        asked: Asked,
        target: String,
        (query, beyond): (Option<&str>, Option<u64>),
    ) -> Result<Self, ApiError> {
        let query = Query::read(query, &["exec_id", "from_seq", "follow"], &[])?;
        let exec_id = match query.parsed::<String>("exec_id")? {
            None => ExecId::events(),
            Some(text) => ExecId::of_stream(&text)
                .map_err(|error| ApiError::invalid("`exec_id` is not usable").caused_by(error))?,
        };
        let named = query.parsed("from_seq")?.unwrap_or(0);
        let from_seq = beyond.map_or(named, |seen| seen.saturating_add(1));
        let follow = query.flag("follow")?.unwrap_or(true);
        let reader = api
            .engine
            .exec_events(&asked.caller, &target, &exec_id, from_seq, follow)
            .await?;
        Ok(Self {
            api,
            asked,
            target,
            exec_id,
            reader,
            beyond,
        })
    }

    async fn run(self, socket: WebSocket, form: Form) {
        let Self {
            api,
            asked,
            target,
            exec_id,
            reader,
            beyond: _,
        } = self;
        let (sink, mut stream) = socket.split();
        let (refusals, refused) = mpsc::channel(REFUSALS_MAX);
        let mut output = Output {
            sink,
            reader,
            refused,
            open: api.meters.stream(form.kind()),
            form,
            ping_every: api.options.heartbeat,
        };
        let heard = AtomicBool::new(true);
        let input = Input {
            api: &api,
            asked: &asked,
            target: &target,
            exec_id: &exec_id,
            refusals,
            heard: &heard,
        };
        let takes_input = matches!(output.form, Form::Frames);
        let ended = tokio::select! {
            ended = output.run() => ended,
            () = input.run(&mut stream, takes_input) => Ended::Gone,
            () = silence(&heard, api.options.silence_max) => Ended::Gone,
            () = api.shutdown.cancelled() => Ended::Failed(Box::new(ApiError::shutting_down())),
        };
        let (code, last) = match ended {
            Ended::Gone => return,
            Ended::Complete => (close_code::NORMAL, None),
            Ended::Failed(error) => {
                let code = match error.code() {
                    ErrorCode::Unavailable => close_code::AWAY,
                    _ => close_code::ERROR,
                };
                (code, Some(error_message(*error, &asked)))
            }
        };
        close(output.sink, stream, code, last).await;
    }
}

/// Waits until the other end has been silent, pongs included, for a whole interval.
async fn silence(heard: &AtomicBool, silence_max: Duration) {
    let mut interval = tokio::time::interval(silence_max);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval.reset();
    loop {
        interval.tick().await;
        if !heard.swap(false, Ordering::Relaxed) {
            return;
        }
    }
}

/// Says the last word and waits for the caller's, so that it reads all that was sent before.
async fn close(
    mut sink: SplitSink<WebSocket, Message>,
    mut stream: SplitStream<WebSocket>,
    code: u16,
    last: Option<Message>,
) {
    let goodbye = Message::Close(Some(CloseFrame {
        code,
        reason: "".into(),
    }));
    let closing = async {
        // A caller that has gone does not hear it.
        for message in last.into_iter().chain([goodbye]) {
            if sink.send(message).await.is_err() {
                return;
            }
        }
        while let Some(Ok(_)) = stream.next().await {}
    };
    drop(tokio::time::timeout(CLOSE_MAX, closing).await);
}

fn error_message(error: ApiError, asked: &Asked) -> Message {
    let body = ApiErrorBody {
        error: error.detail(&asked.request_id),
    };
    Message::text(serde_json::to_string(&body).unwrap_or_default())
}

/// What goes to the caller.
struct Output {
    sink: SplitSink<WebSocket, Message>,
    reader: EventReader,
    refused: mpsc::Receiver<Message>,
    form: Form,
    open: OpenStream,
    ping_every: Duration,
}

impl Output {
    /// Sends events until the last, and what input was refused in between.
    async fn run(&mut self) -> Ended {
        let mut ping = tokio::time::interval(self.ping_every);
        ping.reset();
        loop {
            // Events that are there already share one write.
            if let Some(next) = self.reader.next().now_or_never() {
                if let Some(ended) = self.feed(next).await {
                    return ended;
                }
                continue;
            }
            if self.sink.flush().await.is_err() {
                return Ended::Gone;
            }
            let ended = tokio::select! {
                next = self.reader.next() => self.feed(next).await,
                Some(message) = self.refused.recv() => self.send(message).await,
                _ = ping.tick() => self.send(Message::Ping(Bytes::new())).await,
            };
            if let Some(ended) = ended {
                return ended;
            }
        }
    }

    async fn feed(&mut self, next: Option<Result<ExecEvent, EngineError>>) -> Option<Ended> {
        match next {
            None => Some(match self.sink.flush().await {
                Ok(()) => Ended::Complete,
                Err(_) => Ended::Gone,
            }),
            Some(Err(error)) => Some(Ended::Failed(Box::new(error.into()))),
            Some(Ok(event)) => {
                if matches!(event.kind, EventKind::Dropped { .. }) {
                    self.open.dropped();
                }
                let message = self.form.write(event);
                self.open.sent(length(&message));
                self.sink.feed(message).await.err().map(|_| Ended::Gone)
            }
        }
    }

    async fn send(&mut self, message: Message) -> Option<Ended> {
        self.sink.send(message).await.err().map(|_| Ended::Gone)
    }
}

/// What comes from the caller.
struct Input<'a> {
    api: &'a Api,
    asked: &'a Asked,
    target: &'a str,
    exec_id: &'a ExecId,
    refusals: mpsc::Sender<Message>,
    /// Set whenever something comes in.
    heard: &'a AtomicBool,
}

impl Input<'_> {
    /// Takes messages until the caller closes.
    async fn run(&self, stream: &mut SplitStream<WebSocket>, takes_input: bool) {
        let (sender, receiver) = mpsc::channel(INPUT_FRAMES_MAX);
        tokio::select! {
            () = self.sort(stream, sender, takes_input) => {}
            () = self.write(receiver) => {}
        }
    }

    /// Queues bytes and does everything else at once, so that a size or a signal need not wait for
    /// a program that does not read.
    async fn sort(
        &self,
        stream: &mut SplitStream<WebSocket>,
        sender: mpsc::Sender<InputFrame>,
        takes_input: bool,
    ) {
        while let Some(Ok(message)) = stream.next().await {
            self.heard.store(true, Ordering::Relaxed);
            let bytes = match message {
                Message::Binary(bytes) if takes_input => bytes,
                Message::Close(_) => return,
                Message::Ping(_) | Message::Pong(_) => continue,
                Message::Binary(_) | Message::Text(_) => {
                    self.refuse(ApiError::invalid("this stream takes no such messages"))
                        .await;
                    continue;
                }
            };
            match InputFrame::decode(&bytes) {
                Ok(frame @ (InputFrame::Data(_) | InputFrame::End)) => {
                    if sender.send(frame).await.is_err() {
                        return;
                    }
                }
                Ok(frame) => self.control(frame).await,
                Err(error) => self.refuse(ApiError::invalid(error.to_string())).await,
            }
        }
    }

    async fn control(&self, frame: InputFrame) {
        let engine = &self.api.engine;
        let (caller, target, exec_id) = (&self.asked.caller, self.target, self.exec_id);
        let done = match frame {
            InputFrame::Resize(size) => engine.exec_resize(caller, target, exec_id, size).await,
            InputFrame::Signal(signal) => {
                let request = SignalRequest {
                    signal,
                    tree: false,
                };
                engine.exec_signal(caller, target, exec_id, request).await
            }
            InputFrame::Data(_) | InputFrame::End => return,
        };
        if let Err(error) = done {
            self.refuse(error.into()).await;
        }
    }

    /// Writes queued bytes in order, for as long as the program takes.
    async fn write(&self, mut receiver: mpsc::Receiver<InputFrame>) {
        while let Some(frame) = receiver.recv().await {
            let (data, end) = match frame {
                InputFrame::Data(data) => (Bytes::from(data), false),
                _ => (Bytes::new(), true),
            };
            let engine = &self.api.engine;
            let written = engine
                .exec_input(&self.asked.caller, self.target, self.exec_id, data, end)
                .await;
            if let Err(error) = written {
                self.refuse(error.into()).await;
            }
        }
        // The queue ends with the stream, and `sort` says when.
        std::future::pending::<()>().await;
    }

    /// Tells the caller what was refused, but for what came after the end: a program that ends
    /// before it has read all is no error, as with a pipe.
    async fn refuse(&self, error: ApiError) {
        if error.code() != ErrorCode::IllegalState {
            // The receiver lives as long as the stream.
            drop(self.refusals.send(error_message(error, self.asked)).await);
        }
    }
}
