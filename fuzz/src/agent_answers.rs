//! What a guest agent answers: it may be anybody, and the daemon must believe nothing.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pinfold_driver::agent::{AgentClient, AgentError, AgentStart, ByteChunks, WriteFile};
use pinfold_driver::{
    Disk, DriverError, DriverKind, GuestPort, GuestStream, HostMount, Instance, InstanceExit,
    InstanceRecord, Usage,
};
use pinfold_types::api::{FileInfo, Granted};
use pinfold_types::exec::TerminalSize;
use pinfold_types::{EventKind, ExecId, Resources, SandboxId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::runtime::Builder;

use crate::input::Input;

/// Longest time for one call, on a clock that jumps: longer than every time-out of the client.
const CALL_TIME_MAX: Duration = Duration::from_hours(1);

/// Bytes that may be under way on a connection.
const PIPE_BYTES: usize = 256 << 10;

/// Most characters of an error that the client makes of an answer.
const MESSAGE_CHARACTERS_MAX: usize = 1024;

/// Bytes and entries that are asked for.
const LENGTH: u64 = 1000;
const ENTRIES: u32 = 5;

/// Whatever is answered, every call ends, and what it returns holds what its callers rely on.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.byte();
    let script = Script::read(&mut input);
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.expect("a runtime can be made").block_on(async {
        let client = AgentClient::new(Arc::new(Answering(script)));
        let called = tokio::time::timeout(CALL_TIME_MAX, call(&client, choice)).await;
        match called.expect("a call ends") {
            Ok(()) => {}
            Err(error) => {
                let length = error.message.chars().count();
                assert!(length <= MESSAGE_CHARACTERS_MAX, "{error}");
                assert!(!error.message.contains(char::is_control), "{error:?}");
            }
        }
    });
}

/// What the agent says.
#[derive(Debug, Clone)]
struct Script {
    /// Bytes of no known protocol instead of HTTP/2.
    raw: bool,
    status: u8,
    form: u8,
    content: Bytes,
}

impl Script {
    fn read(input: &mut Input<'_>) -> Self {
        let form = input.byte();
        let status = input.byte();
        let mut content = Vec::new();
        if form & 2 == 0 {
            content.extend_from_slice(input.rest());
        } else {
            // Messages of a stream, framed, and then its end.
            while !input.is_empty() {
                envelope(0, input.part(), &mut content);
            }
            envelope(2, b"{}", &mut content);
        }
        Self {
            raw: form & 1 != 0,
            status,
            form,
            content: content.into(),
        }
    }

    fn response(&self, stream: bool) -> Response<Chunks> {
        let status = match self.status {
            0..160 => StatusCode::OK,
            other => StatusCode::from_u16(200 + u16::from(other - 160) * 4).unwrap_or_default(),
        };
        let kind = match (stream, self.form & 4 != 0) {
            (_, true) => "application/json",
            (true, false) => "application/connect+proto",
            (false, false) => "application/proto",
        };
        let mut response = Response::builder().status(status);
        response = response.header(header::CONTENT_TYPE, kind);
        if self.form & 8 != 0 {
            response = response.header("connect-content-encoding", "gzip");
        }
        let size = 1 + usize::from(self.form >> 4) * 37;
        let mut parts: Vec<io::Result<Frame<Bytes>>> = self
            .content
            .chunks(if self.form >> 4 == 0 { 1 << 20 } else { size })
            .map(|part| Ok(Frame::data(Bytes::copy_from_slice(part))))
            .collect();
        if self.status & 31 == 31 {
            parts.push(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let body = StreamBody::new(stream::iter(parts));
        response.body(body).expect("its parts are fixed")
    }
}

type Chunks = StreamBody<stream::Iter<std::vec::IntoIter<io::Result<Frame<Bytes>>>>>;

fn envelope(flags: u8, message: &[u8], to: &mut Vec<u8>) {
    to.push(flags);
    to.extend_from_slice(&u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    to.extend_from_slice(message);
}

/// An instance whose agent answers by a script.
#[derive(Debug)]
struct Answering(Script);

async fn serve(script: Script, mut stream: DuplexStream) {
    if script.raw {
        // Whoever is to be answered has asked, or never will.
        let mut asked = [0; 64];
        drop(stream.read(&mut asked).await);
        drop(stream.write_all(&script.content).await);
        return;
    }
    let service = service_fn(move |request: Request<Incoming>| {
        let path = request.uri().path().to_owned();
        let ends = ["/Read", "File", "/Watch", "/Pack", "/Unpack"];
        let stream = ends.iter().any(|end| path.ends_with(end));
        let response = script.response(stream);
        async move {
            // What is sent to an upload is taken, or it would never end.
            drop(request.into_body().collect().await);
            Ok::<_, Infallible>(response)
        }
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service);
    drop(connection.await);
}

#[async_trait]
impl Instance for Answering {
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
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        tokio::spawn(serve(self.0.clone(), theirs));
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

async fn call(client: &AgentClient, choice: u8) -> Result<(), AgentError> {
    let exec_id: ExecId = "x0000000000000000000".parse().expect("it is an id");
    match choice % 22 {
        0 => client.ready().await,
        1 => {
            let metrics = client.metrics().await?;
            assert!(metrics.cpu_percent.is_finite() && metrics.memory_percent >= 0.0);
            assert!(!metrics.uptime.contains(char::is_control));
            Ok(())
        }
        2 => {
            let pid = client.start(start(exec_id)).await?;
            assert!(pid > 0, "{pid}");
            Ok(())
        }
        3 => journal(client, &exec_id, true).await,
        4 => journal(client, &exec_id, false).await,
        5 => client.acknowledge(&exec_id, 7).await,
        6 => {
            client
                .input(&exec_id, Bytes::from_static(b"in"), true)
                .await
        }
        7 => {
            let size = TerminalSize {
                columns: 80,
                rows: 24,
            };
            client.resize(&exec_id, size).await
        }
        8 => client.signal(&exec_id, 15, true).await,
        9 => client.list().await.map(|execs| {
            let late = |exec: &&_| {
                let exec: &pinfold_driver::agent::AgentExec = exec;
                exec.first_seq > exec.last_seq.saturating_add(1)
            };
            assert!(!execs.iter().any(|exec| late(&exec)), "{execs:?}");
        }),
        10 => client.forget(&exec_id).await,
        choice => files(client, choice).await,
    }
}

fn start(exec_id: ExecId) -> AgentStart {
    AgentStart {
        exec_id,
        arguments: vec!["true".to_owned()],
        environment: Vec::new(),
        working_directory: "/".to_owned(),
        user: String::new(),
        terminal: None,
        standard_input: false,
        timeout_ms: None,
        tag: String::new(),
    }
}

/// Events continue one another, and nothing follows the end.
async fn journal(client: &AgentClient, exec_id: &ExecId, follow: bool) -> Result<(), AgentError> {
    let mut events = client.read(exec_id, 3, follow);
    let mut next = 3;
    let mut ended = false;
    while let Some(event) = events.next().await {
        let event = event?;
        assert!(!ended, "after the end: {event:?}");
        assert_eq!(event.seq, next, "{event:?}");
        next = match event.kind {
            EventKind::Dropped { first_kept } => {
                assert!(first_kept > next);
                first_kept
            }
            EventKind::Start { .. } | EventKind::Output { .. } | EventKind::Exit(_) => next + 1,
        };
        ended = matches!(event.kind, EventKind::Exit(_));
    }
    Ok(())
}

async fn files(client: &AgentClient, choice: u8) -> Result<(), AgentError> {
    match choice {
        11 => client.stat("/a", true).await.map(|info| plain(&info)),
        12 => {
            let (entries, more) = client.list_directory("/a", "b", ENTRIES).await?;
            assert!(entries.len() <= ENTRIES as usize && !(more && entries.is_empty()));
            let mut before = "b";
            for entry in &entries {
                plain(entry);
                assert!(entry.name.as_str() > before && !entry.name.contains('/'));
                assert!(!matches!(entry.name.as_str(), "" | "." | ".."));
                before = &entry.name;
            }
            Ok(())
        }
        13 => length(client.read_file("/a", 0, LENGTH), LENGTH).await,
        14 => {
            let file = WriteFile {
                path: "/a".to_owned(),
                ..WriteFile::default()
            };
            let content = stream::iter([Ok(Bytes::from_static(b"content"))]);
            let written = client.write_file(file, content).await?;
            assert_eq!(written, 7);
            Ok(())
        }
        15 => client.make_directory("/a", 0o755, true).await,
        16 => client.rename("/a", "/b").await,
        17 => client.remove("/a", true, true).await,
        18 => {
            let mut changes = client.watch("/a", true);
            while let Some(change) = changes.next().await {
                assert!(change?.name.len() <= 3 * 255);
            }
            Ok(())
        }
        19 => length(client.pack("/a"), u64::MAX).await,
        20 => {
            let archive = stream::iter([Ok(Bytes::from_static(b"archive"))]);
            client.unpack("/a", "", archive).await.map(drop)
        }
        _ => {
            let mut dialled = client.dial(80).await?;
            let mut content = Vec::new();
            drop(dialled.read_to_end(&mut content).await);
            Ok(())
        }
    }
}

fn plain(info: &FileInfo) {
    assert!(info.name.len() <= 3 * 255 && !info.name.contains('\0'));
    assert!(info.mode <= 0o7777, "{info:?}");
    assert!(info.link_target.len() <= 3 * 4096);
}

async fn length(mut chunks: ByteChunks, most: u64) -> Result<(), AgentError> {
    let mut length = 0;
    while let Some(chunk) = chunks.next().await {
        length += chunk?.len() as u64;
        assert!(length <= most, "{length} bytes");
    }
    Ok(())
}
