//! An agent that lies: it speaks the protocol and answers what it is told to.
//!
//! The messages are written by hand, since what is wrong in them is the point.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};

/// Bytes of an answer that does not end.
const ENDLESS_BYTES: usize = 512 << 20;

type Parts = BoxStream<'static, Result<Frame<Bytes>, Infallible>>;

/// An answer.
pub(super) enum Answer {
    /// Of a call that has one: a message.
    Message(Message),
    /// Of a call that has many.
    Stream(Vec<Message>),
    /// The same, without an end.
    Endless(Message),
    /// The archive of a copy.
    Archive(Vec<u8>),
    /// The archive of a copy, made as it is read: these bytes first, then those so often.
    LongArchive(Vec<u8>, Vec<u8>, usize),
    /// One whose length is not known, without an end.
    Bytes(&'static [u8]),
    /// An error.
    Error(&'static str, String),
    /// None, ever.
    Silence,
}

/// Answers a call by its name, or lets it be answered as an honest agent would.
pub(super) type Lies = Arc<dyn Fn(&str) -> Option<Answer> + Send + Sync>;

/// Listens at a path, in threads that end with this program.
pub(super) fn listen(path: &Path, lies: Lies) -> io::Result<()> {
    // One of an attack before may have left it.
    let _not_there = std::fs::remove_file(path);
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::spawn(move || {
        runtime.block_on(async move {
            let listener = tokio::net::UnixListener::from_std(listener)?;
            loop {
                let (stream, _) = listener.accept().await?;
                tokio::spawn(serve(stream, Arc::clone(&lies)));
            }
            #[expect(unreachable_code, reason = "names the error")]
            Ok::<(), io::Error>(())
        })
    });
    Ok(())
}

async fn serve(stream: tokio::net::UnixStream, lies: Lies) {
    let service = service_fn(move |request: Request<Incoming>| {
        let lies = Arc::clone(&lies);
        async move { Ok::<_, Infallible>(answer(request, &lies).await) }
    });
    // Whoever hangs up has heard enough.
    let _hung_up = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(request: Request<Incoming>, lies: &Lies) -> Response<StreamBody<Parts>> {
    let path = request.uri().path();
    let call = path.rsplit('/').next().unwrap_or_default().to_owned();
    // What is sent to an upload is taken, or it would never end.
    let taken = request.into_body().collect().await;
    let taken = taken.map_or(0, |body| body.to_bytes().len());
    let answer = lies(&call).unwrap_or_else(|| honest(&call, taken));
    let many = matches!(
        call.as_str(),
        "Read" | "ReadFile" | "WriteFile" | "Watch" | "Pack" | "Unpack"
    );
    let kind = match answer {
        Answer::Error(..) if !many => "application/json",
        _ if many => "application/connect+proto",
        _ => "application/proto",
    };
    let status = match answer {
        Answer::Error(..) if !many => 500,
        _ => 200,
    };
    let body = StreamBody::new(body(answer, many));
    let mut response = Response::new(body);
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or_default();
    let value = hyper::header::HeaderValue::from_static(kind);
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, value);
    response
}

fn body(answer: Answer, many: bool) -> Parts {
    const END: &[u8] = b"{}";
    let whole = |parts: Vec<Vec<u8>>| {
        stream::iter(parts.into_iter().map(|part| Ok(Frame::data(part.into())))).boxed()
    };
    match answer {
        Answer::Message(message) if many => whole(vec![framed(0, &message.0), framed(2, END)]),
        Answer::Message(message) => whole(vec![message.0]),
        Answer::Stream(messages) => {
            let messages = messages.iter().map(|message| framed(0, &message.0));
            whole(messages.chain([framed(2, END)]).collect())
        }
        Answer::Endless(message) => endless(Bytes::from(framed(0, &message.0))),
        Answer::Archive(bytes) => {
            let chunks = bytes.chunks(64 << 10);
            let messages = chunks.map(|chunk| framed(0, &Message::default().bytes(1, chunk).0));
            whole(messages.chain([framed(2, END)]).collect())
        }
        Answer::LongArchive(first, again, times) => {
            let chunk =
                |bytes: &[u8]| Bytes::from(framed(0, &Message::default().bytes(1, bytes).0));
            let (first, again) = (chunk(&first), chunk(&again));
            stream::iter([first])
                .chain(stream::iter(std::iter::repeat_n(again, times)))
                .chain(stream::iter([Bytes::from(framed(2, END))]))
                .map(|part| Ok(Frame::data(part)))
                .boxed()
        }
        Answer::Bytes(bytes) => endless(Bytes::from_static(bytes)),
        Answer::Error(code, message) => {
            let error = serde_json::json!({"code": code, "message": message});
            if many {
                let end = serde_json::json!({"error": error}).to_string();
                whole(vec![framed(2, end.as_bytes())])
            } else {
                whole(vec![error.to_string().into_bytes()])
            }
        }
        Answer::Silence => stream::pending().boxed(),
    }
}

/// What an honest agent says that has one program, which ends at once.
fn honest(call: &str, taken: usize) -> Answer {
    let message = Message::default();
    Answer::Message(match call {
        "Ready" => message.number(1, 1).text(2, "0"),
        "Start" => message.number(1, 7),
        "Metrics" => metrics("1m", "2026-01-01T00:00:00Z", 1.0),
        "Read" => {
            return Answer::Stream(vec![started(1), exited(2)]);
        }
        "Stat" => message.message(1, &Message::default().text(1, "x").number(2, 2)),
        "WriteFile" => message.number(1, taken as u64),
        "Pack" => return Answer::Archive(Vec::new()),
        _ => message,
    })
}

/// Sends a part again and again, and more than anybody should take; but not so much that this
/// machine has no memory left when somebody does.
fn endless(part: Bytes) -> Parts {
    let times = ENDLESS_BYTES / part.len().max(1);
    stream::iter(std::iter::repeat_n(part, times))
        .map(|part| Ok(Frame::data(part)))
        .chain(stream::pending())
        .boxed()
}

fn framed(flags: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut frame = vec![flags];
    frame.extend(length.to_be_bytes());
    frame.extend_from_slice(message);
    frame
}

/// A message of the protocol, field by field.
#[derive(Debug, Clone, Default)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// Adds a number.
    pub(super) fn number(mut self, field: u64, value: u64) -> Self {
        self.variable(field << 3);
        self.variable(value);
        self
    }

    /// Adds a number with a point.
    pub(super) fn double(mut self, field: u64, value: f64) -> Self {
        self.variable(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Adds bytes.
    pub(super) fn bytes(mut self, field: u64, bytes: &[u8]) -> Self {
        self.variable(field << 3 | 2);
        self.variable(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    /// Adds a text.
    pub(super) fn text(self, field: u64, text: &str) -> Self {
        self.bytes(field, text.as_bytes())
    }

    /// Adds another message.
    pub(super) fn message(self, field: u64, other: &Self) -> Self {
        self.bytes(field, &other.0)
    }

    fn variable(&mut self, mut value: u64) {
        while value > 0x7f {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push((value & 0x7f) as u8);
    }
}

/// Metrics with these texts and this share of everything.
pub(super) fn metrics(uptime: &str, time: &str, share: f64) -> Message {
    Message::default()
        .text(1, uptime)
        .number(2, 60)
        .double(3, share)
        .number(4, 10)
        .double(5, share)
        .number(6, 10)
        .double(7, share)
        .text(8, time)
        .number(9, 100)
}

/// The event that an exec begins with.
pub(super) fn started(sequence: u64) -> Message {
    let started = Message::default().number(1, 7);
    Message::default().number(1, sequence).message(3, &started)
}

/// An event of output.
pub(super) fn output(sequence: u64, text: &str) -> Message {
    let output = Message::default().number(1, 1).text(2, text);
    Message::default().number(1, sequence).message(4, &output)
}

/// The event that an exec ends with.
pub(super) fn exited(sequence: u64) -> Message {
    let exited = Message::default().number(1, 0);
    Message::default().number(1, sequence).message(5, &exited)
}

/// A part of a file.
pub(super) fn chunk(bytes: usize) -> Message {
    Message::default().bytes(1, &vec![b'x'; bytes])
}
