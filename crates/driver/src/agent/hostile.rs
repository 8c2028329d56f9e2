//! Agents that lie, stall and flood, and what they achieve: an error, in bounded time and memory.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use buffa::Message as _;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use http::{Request, Response};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pinfold_types::api::Granted;
use pinfold_types::{EventKind, Resources, SandboxId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::Semaphore;

use super::*;
use crate::contract::{
    Disk, DriverError, DriverErrorKind, DriverKind, GuestPort, InstanceExit, InstanceRecord, Usage,
};
use crate::reach::HostMount;

type Parts = BoxStream<'static, io::Result<Bytes>>;
type Answer = Arc<dyn Fn(String) -> Parts + Send + Sync>;

/// More answers than any test asks for.
const FOR_EVER: u32 = 1 << 20;

/// How an agent treats a connection.
#[derive(Clone)]
enum Manner {
    /// Speaks HTTP/2 and answers each path with these bytes.
    Answers(Answer),
    /// As before, and closes the connection after one answer.
    AnswersOnce(Answer),
    /// Sends these bytes and waits.
    Says(&'static [u8]),
    /// Waits for a request and sends these bytes.
    Replies(&'static [u8]),
    /// Sends without end what no protocol is.
    Floods,
    /// Closes at once.
    Closes,
    /// The instance is gone.
    Gone,
}

struct Hostile {
    manner: Manner,
    connections: AtomicUsize,
    closed: Arc<Semaphore>,
}

impl std::fmt::Debug for Hostile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hostile")
    }
}

fn client(manner: Manner) -> (AgentClient, Arc<Hostile>) {
    let hostile = Arc::new(Hostile {
        manner,
        connections: AtomicUsize::new(0),
        closed: Arc::new(Semaphore::new(0)),
    });
    (
        AgentClient::new(Arc::clone(&hostile) as Arc<dyn Instance>),
        hostile,
    )
}

fn answering(answer: impl Fn(&str) -> Parts + Send + Sync + 'static) -> AgentClient {
    client(Manner::Answers(Arc::new(move |path: String| answer(&path)))).0
}

async fn serve(manner: Manner, stream: DuplexStream) {
    match manner {
        Manner::Answers(answer) => http2(answer, stream, FOR_EVER).await,
        Manner::AnswersOnce(answer) => http2(answer, stream, 1).await,
        Manner::Says(bytes) => serve_bytes(stream, bytes).await,
        Manner::Replies(bytes) => {
            let mut stream = stream;
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            serve_bytes(stream, bytes).await;
        }
        Manner::Floods => {
            let mut stream = stream;
            while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
        }
        Manner::Closes | Manner::Gone => {}
    }
}

async fn serve_bytes(mut stream: DuplexStream, bytes: &[u8]) {
    if stream.write_all(bytes).await.is_ok() {
        let mut rest = Vec::new();
        drop(stream.read_to_end(&mut rest).await);
    }
}

async fn http2(answer: Answer, stream: DuplexStream, most: u32) {
    let answered = Arc::new(Semaphore::new(0));
    let told = Arc::clone(&answered);
    let service = service_fn(move |request: Request<Incoming>| {
        let path = request.uri().path().to_owned();
        let unary = !(path.ends_with("/Read")
            || path.ends_with("File")
            || path.ends_with("/Watch")
            || path.ends_with("/Pack")
            || path.ends_with("/Unpack"));
        let parts = answer(path);
        told.add_permits(1);
        async move {
            // What is sent to an upload is taken, or it would never end.
            drop(http_body_util::BodyExt::collect(request.into_body()).await);
            let kind = if unary {
                "application/proto"
            } else {
                "application/connect+proto"
            };
            let body = StreamBody::new(parts.map_ok(Frame::data));
            let response = Response::builder()
                .header("content-type", kind)
                .body(body)
                .unwrap();
            Ok::<_, Infallible>(response)
        }
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // What was asked is still answered, and nothing more.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = answered.acquire_many(most) => connection.as_mut().graceful_shutdown(),
    }
    drop(connection.await);
}

#[async_trait]
impl Instance for Hostile {
    fn record(&self) -> InstanceRecord {
        InstanceRecord {
            version: 1,
            driver: DriverKind::Fake,
            id: SandboxId::new(),
            granted: Granted::default(),
            state: serde_json::Value::Null,
        }
    }

    async fn connect(&self, _to: GuestPort) -> Result<GuestStream, DriverError> {
        self.connections.fetch_add(1, Ordering::SeqCst);
        if matches!(self.manner, Manner::Gone) {
            return Err(DriverError::new(DriverErrorKind::Gone, "it is gone"));
        }
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let (manner, closed) = (self.manner.clone(), Arc::clone(&self.closed));
        tokio::spawn(async move {
            serve(manner, theirs).await;
            closed.add_permits(1);
        });
        Ok(Box::new(ours))
    }

    async fn pause(&self) -> Result<(), DriverError> {
        Ok(())
    }

    async fn resume(&self) -> Result<(), DriverError> {
        Ok(())
    }

    async fn attach(&self, _mount: &HostMount) -> Result<(), DriverError> {
        Ok(())
    }

    async fn detach(&self, _target: &str) -> Result<(), DriverError> {
        Ok(())
    }

    async fn update(&self, _resources: &Resources) -> Result<Granted, DriverError> {
        Ok(Granted::default())
    }

    async fn usage(&self) -> Result<Usage, DriverError> {
        Ok(Usage::default())
    }

    async fn wait(&self) -> InstanceExit {
        std::future::pending().await
    }

    async fn shut_down(&self, _grace: Duration, _disk: Disk) -> Result<(), DriverError> {
        Ok(())
    }
}

fn parts(parts: impl IntoIterator<Item = Bytes>) -> Parts {
    let parts: Vec<io::Result<Bytes>> = parts.into_iter().map(Ok).collect();
    stream::iter(parts).boxed()
}

fn framed(flags: u8, message: &[u8]) -> Bytes {
    let mut frame = vec![flags];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(message);
    frame.into()
}

fn end() -> Bytes {
    framed(2, b"{}")
}

fn output(sequence: u64, bytes: usize) -> Bytes {
    let output = v1::Output {
        stream: v1::StreamName::STREAM_NAME_STDOUT.into(),
        data: vec![b'x'; bytes],
        ..v1::Output::default()
    };
    let event = v1::Event {
        sequence,
        kind: Some(output.into()),
        ..v1::Event::default()
    };
    framed(0, &event.encode_to_vec())
}

fn chunk(bytes: usize) -> Bytes {
    let chunk = v1::Chunk {
        data: vec![b'x'; bytes],
        ..v1::Chunk::default()
    };
    framed(0, &chunk.encode_to_vec())
}

#[tokio::test]
async fn a_gap_in_a_journal_is_not_believed() {
    let agent = answering(|_| parts([output(1, 1), output(3, 1), end()]));
    let mut events = agent.read(&ExecId::new(), 1, true);
    assert!(events.next().await.unwrap().is_ok());
    let error = events.next().await.unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::Internal);
    assert!(error.message.contains("event 2 was expected"), "{error}");
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn a_journal_that_ends_too_early_is_an_error() {
    let agent = answering(|_| parts([output(1, 1), end()]));
    let id = ExecId::new();
    let events: Vec<_> = agent.read(&id, 1, true).collect().await;
    assert!(events[0].is_ok());
    assert_eq!(events[1].as_ref().unwrap_err().code, ErrorCode::AgentSilent);
    // Who does not follow wants only what there is.
    let events: Result<Vec<_>, _> = agent.read(&id, 1, false).try_collect().await;
    assert!(matches!(events.unwrap()[0].kind, EventKind::Output { .. }));
}

#[tokio::test]
async fn a_stream_cut_in_the_middle_is_an_error() {
    for cut in [
        parts([output(1, 1)]),
        parts([output(1, 1), output(2, 100).slice(..50)]),
        stream::iter([Ok(output(1, 1)), Err(io::Error::other("cut"))]).boxed(),
    ] {
        let cut = std::sync::Mutex::new(Some(cut));
        let agent = answering(move |_| cut.lock().unwrap().take().unwrap());
        let events: Vec<_> = agent.read(&ExecId::new(), 1, false).collect().await;
        let (last, before) = events.split_last().unwrap();
        assert!(last.is_err());
        assert!(before.len() <= 1 && before.iter().all(Result::is_ok));
    }
}

#[tokio::test]
async fn a_giant_message_is_refused_by_its_length() {
    // The length alone: nothing of it is waited for or held.
    let giant = Bytes::from_static(&[0, 0x40, 0, 0, 0]);
    let agent = answering(move |_| {
        stream::iter([Ok(giant.clone())])
            .chain(stream::pending())
            .boxed()
    });
    let error = agent
        .read(&ExecId::new(), 1, true)
        .next()
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::Internal, "{error}");
    let error = agent.read_file("/x", 0, 0).next().await.unwrap();
    assert_eq!(error.unwrap_err().code, ErrorCode::Internal);
}

#[tokio::test]
async fn an_endless_answer_is_refused() {
    let agent =
        answering(|_| stream::repeat_with(|| Ok(Bytes::from_static(&[0; 16 << 10]))).boxed());
    assert_eq!(agent.list().await.unwrap_err().code, ErrorCode::Internal);
    assert_eq!(
        agent.stat("/x", false).await.unwrap_err().code,
        ErrorCode::Internal
    );
}

#[tokio::test]
async fn many_tiny_elements_are_refused() {
    // Two bytes each on the wire, hundreds each in memory.
    let many = Bytes::from([0x0a, 0].repeat(900_000));
    let agent = answering(move |_| parts([many.clone()]));
    assert!(agent.list().await.is_err());
    assert!(agent.list_directory("/", "", 0).await.is_err());
}

#[tokio::test]
async fn more_of_a_file_than_was_asked_for_is_refused() {
    let agent = answering(|_| parts([chunk(60), chunk(41), end()]));
    let chunks: Vec<_> = agent.read_file("/x", 0, 100).collect().await;
    assert!(chunks[0].is_ok());
    assert_eq!(chunks[1].as_ref().unwrap_err().code, ErrorCode::Internal);
}

#[tokio::test]
async fn a_write_that_counts_otherwise_is_not_believed() {
    let written = v1::WriteFileResponse {
        written: 1,
        ..v1::WriteFileResponse::default()
    };
    let answer = framed(0, &written.encode_to_vec());
    let agent = answering(move |_| parts([answer.clone(), end()]));
    let content = stream::iter([Ok(Bytes::from_static(b"four"))]);
    let error = agent
        .write_file(WriteFile::default(), content)
        .await
        .unwrap_err();
    assert!(error.message.contains("4 bytes were sent"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_never_answers_is_silent() {
    let agent = answering(|_| stream::pending().boxed());
    let id = ExecId::new();
    let size = TerminalSize {
        columns: 1,
        rows: 1,
    };
    for code in [
        agent.ready().await.unwrap_err().code,
        agent.metrics().await.unwrap_err().code,
        agent.list().await.unwrap_err().code,
        agent.resize(&id, size).await.unwrap_err().code,
        agent.stat("/x", false).await.unwrap_err().code,
        // These may take as long as the agent lives; it does not say that it does.
        agent.input(&id, Bytes::new(), true).await.unwrap_err().code,
        agent.remove("/x", true, true).await.unwrap_err().code,
        agent
            .unpack("/x", "", stream::pending())
            .await
            .unwrap_err()
            .code,
        agent
            .read_file("/x", 0, 0)
            .next()
            .await
            .unwrap()
            .unwrap_err()
            .code,
    ] {
        assert_eq!(code, ErrorCode::AgentSilent);
    }
}

#[tokio::test(start_paused = true)]
async fn what_speaks_no_protocol_is_silent() {
    for manner in [
        Manner::Says(b""),
        Manner::Says(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        Manner::Says(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        Manner::Floods,
        Manner::Closes,
    ] {
        let (agent, _) = client(manner);
        let error = agent.ready().await.unwrap_err();
        assert_eq!(error.code, ErrorCode::AgentSilent, "{error}");
        assert!(error.hint.is_some());
        assert!(agent.dial(80).await.is_err());
    }
}

#[tokio::test]
async fn an_instance_that_is_gone_is_told() {
    let (agent, _) = client(Manner::Gone);
    let error = agent.ready().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InstanceGone);
    assert!(error.hint.is_some());
    let error = agent.dial(80).await.err().unwrap();
    assert_eq!(error.code, ErrorCode::InstanceGone);
}

fn ready() -> Parts {
    let ready = v1::ReadyResponse {
        ready: true,
        ..v1::ReadyResponse::default()
    };
    parts([ready.encode_to_vec().into()])
}

#[tokio::test]
async fn calls_share_a_connection_and_a_dead_one_is_made_again() {
    let (agent, hostile) = client(Manner::Answers(Arc::new(|_| ready())));
    let calls = futures::future::join_all((0..20).map(|_| agent.ready())).await;
    assert!(calls.iter().all(Result::is_ok));
    assert_eq!(hostile.connections.load(Ordering::SeqCst), 1);

    let (agent, hostile) = client(Manner::AnswersOnce(Arc::new(|_| ready())));
    for expected in 1..=3 {
        agent.ready().await.unwrap();
        assert_eq!(hostile.connections.load(Ordering::SeqCst), expected);
        hostile.closed.acquire().await.unwrap().forget();
        // The close is sent; our side of the connection is a task that has to see it.
        while agent.transport.is_connected() {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_dial_is_told_and_bounded() {
    let (agent, _) = client(Manner::Replies(
        b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 58\r\n\r\n{\"code\":\"unavailable\",\"message\":\"nothing \\u001b[31mthere\"}",
    ));
    let error = agent.dial(80).await.err().unwrap();
    assert_eq!(error.code, ErrorCode::Unavailable, "{error}");
    assert!(!error.message.contains('\x1b'), "{error}");
    let (agent, _) = client(Manner::Replies(
        b"HTTP/1.1 400 Bad Request\r\ncontent-length: 999999999\r\n\r\n{",
    ));
    assert!(agent.dial(80).await.is_err());
}
