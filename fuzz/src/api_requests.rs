//! Requests to the API, from the bytes of a connection down to the engine and its database.
//!
//! A sandbox is a directory here, and its agent is in this process and starts nothing; all else is as
//! in the daemon, and the agent is reached as it is there.

use std::cell::{Cell, OnceCell};
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pinfold_agent::fuzzing::Served;
use pinfold_driver::{
    Capabilities, Disk, Driver, DriverError, DriverErrorKind, DriverKind, GuestPort, GuestStream,
    HostMount, ImageRequest, Instance, InstanceExit, InstanceRecord, InstanceSpec, PreparedImage,
    Progress, StartSource, SweepReport, Usage,
};
use pinfold_engine::{Engine, EngineConfig};
use pinfold_server::ServerOptions;
use pinfold_types::api::Granted;
use pinfold_types::doctor::Finding;
use pinfold_types::{ApiErrorBody, Resources, SandboxId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use crate::input::Input;
use crate::place::Place;

/// How long the server waits for the rest of a request that does not come.
const PATIENCE: Duration = Duration::from_millis(20);

/// Longest time for a connection, which ends when the server has no more patience.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(30);

/// Most bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Most sandboxes; what is made beyond them is refused.
const SANDBOXES_MAX: usize = 8;

/// Bytes that may be under way to an agent.
const PIPE_BYTES: usize = 64 << 10;

/// Makes the sandbox that requests can name.
const MAKE: &[u8] = b"POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
    Content-Length: 12\r\n\r\n{\"name\":\"a\"}";

/// Methods of the requests that are put together here.
const METHODS: [&str; 8] = [
    "GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "CONNECT",
];

/// Status of an answer that is a fault of the daemon's own.
const INTERNAL: &str = "500";

/// Every request is answered, no answer is an internal error, and errors are of the documented form.
pub fn run(data: &[u8]) {
    thread_local! {
        static SERVER: OnceCell<Server> = const { OnceCell::new() };
    }
    let request = request(data);
    SERVER.with(|server| {
        let server = server.get_or_init(Server::start);
        let answered = server.runtime.block_on(async {
            if server.missing.get() {
                drop(server.exchange(MAKE).await);
            }
            server.exchange(&request).await
        });
        // It may have been removed, or its time may have come.
        let gone = answered.get(9..12) == Some(b"404");
        server.missing.set(gone || request.starts_with(b"DELETE"));
        answers(&answered);
    });
}

/// A request out of the engine's bytes: put together here, or the bytes themselves.
fn request(data: &[u8]) -> Vec<u8> {
    let mut input = Input::new(data);
    let choice = input.byte();
    if choice & 128 != 0 {
        return input.rest().to_vec();
    }
    let method = METHODS.get(usize::from(choice & 7)).copied();
    let target: Vec<u8> = input
        .until(b'\n')
        .iter()
        .map(|byte| if byte.is_ascii_graphic() { *byte } else { b'_' })
        .collect();
    let upgrade = if choice & 8 == 0 {
        "Connection: close\r\n"
    } else {
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    };
    let accept = if choice & 16 == 0 {
        "application/json"
    } else {
        "application/x-ndjson"
    };
    let body = input.rest();
    let mut request = format!("{} ", method.unwrap_or("GET")).into_bytes();
    request.extend_from_slice(if target.is_empty() { b"/" } else { &target });
    let head = format!(
        " HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nContent-Type: application/json\r\n\
         {upgrade}Content-Length: {}\r\n\r\n",
        body.len()
    );
    request.extend_from_slice(head.as_bytes());
    request.extend_from_slice(body);
    request
}

/// Looks at the first answer of a connection.
fn answers(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return;
    };
    let status = head.split(' ').nth(1).unwrap_or_default();
    assert_ne!(status, INTERNAL, "{text}");
    let is_error = status.starts_with(['4', '5']);
    let is_ours = head.to_ascii_lowercase().contains("x-request-id");
    let is_whole = head.to_ascii_lowercase().contains("content-length");
    if !(is_error && is_ours && is_whole) || body.is_empty() {
        return;
    }
    let mut stream = serde_json::Deserializer::from_str(body).into_iter::<ApiErrorBody>();
    match stream.next() {
        Some(Ok(error)) => assert!(!error.error.message.is_empty(), "{body}"),
        other => panic!("not the form of an error: {other:?} in {text}"),
    }
}

/// The API on a socket, in this process.
struct Server {
    runtime: Runtime,
    socket: PathBuf,
    /// Whether the sandbox that requests can name may not be there.
    missing: Cell<bool>,
    // Removed when the process ends.
    _place: Place,
}

impl Server {
    fn start() -> Self {
        let place = Place::new();
        let state = place.inside().join("state");
        let socket = place.inside().join("socket");
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime can be made");
        runtime.block_on(async {
            let config = EngineConfig {
                sandboxes_max: SANDBOXES_MAX,
                ..EngineConfig::new(&state)
            };
            let driver = Arc::new(Directories(place.inside().join("guests")));
            let engine = Engine::open(config, driver).await;
            let engine = engine.expect("an empty state can be opened");
            let listener = UnixListener::bind(&socket).expect("the directory is writable");
            let options = ServerOptions {
                header_read_max: PATIENCE,
                body_read_max: PATIENCE,
                ..ServerOptions::new(&state)
            };
            let never = CancellationToken::new();
            tokio::spawn(pinfold_server::serve(engine, listener, options, never));
        });
        Self {
            runtime,
            socket,
            missing: Cell::new(true),
            _place: place,
        }
    }

    /// Sends bytes and reads until the server closes.
    async fn exchange(&self, request: &[u8]) -> Vec<u8> {
        let exchanging = async {
            let stream = UnixStream::connect(&self.socket).await;
            let (read, mut write) = stream.expect("the server listens").into_split();
            let mut answer = Vec::new();
            let mut read = read.take(ANSWER_BYTES_MAX);
            // The server may close before it has read all.
            let (_, _) = tokio::join!(write.write_all(request), read.read_to_end(&mut answer));
            answer
        };
        let exchanged = tokio::time::timeout(CONNECTION_TIME_MAX, exchanging).await;
        exchanged.expect("a connection ends")
    }
}

/// A driver whose sandboxes are directories with an agent in this process.
#[derive(Debug)]
struct Directories(PathBuf);

#[derive(Debug)]
struct Directory {
    record: InstanceRecord,
    agent: Served,
    ended: CancellationToken,
}

fn refused() -> DriverError {
    DriverError::new(DriverErrorKind::ConnectionRefused, "nothing listens there")
}

#[async_trait]
impl Driver for Directories {
    fn kind(&self) -> DriverKind {
        DriverKind::Fake
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            pause: true,
            ..Capabilities::default()
        }
    }

    async fn probe(&self) -> Vec<Finding> {
        Vec::new()
    }

    async fn prepare(
        &self,
        image: &ImageRequest,
        _progress: &dyn Progress,
    ) -> Result<PreparedImage, DriverError> {
        Ok(PreparedImage {
            key: image.reference.clone(),
            layers: Vec::new(),
            env: BTreeMap::new(),
            workdir: None,
            user: None,
        })
    }

    async fn start(
        &self,
        id: &SandboxId,
        _source: StartSource<'_>,
        _spec: &InstanceSpec,
    ) -> Result<Arc<dyn Instance>, DriverError> {
        let failed = |error: std::io::Error| {
            DriverError::new(DriverErrorKind::ResourceExhausted, error.to_string())
        };
        let root = self.0.join(id.as_str());
        std::fs::create_dir_all(&root).map_err(failed)?;
        let record = InstanceRecord {
            version: 1,
            driver: DriverKind::Fake,
            id: id.clone(),
            granted: Granted::default(),
            state: serde_json::Value::Null,
        };
        Ok(Arc::new(Directory {
            record,
            agent: Served::beneath(&root).map_err(failed)?,
            ended: CancellationToken::new(),
        }))
    }

    async fn adopt(
        &self,
        _record: &InstanceRecord,
    ) -> Result<Option<Arc<dyn Instance>>, DriverError> {
        Ok(None)
    }

    async fn sweep(&self, _keep: &HashSet<SandboxId>) -> Result<SweepReport, DriverError> {
        Ok(SweepReport::default())
    }
}

#[async_trait]
impl Instance for Directory {
    fn record(&self) -> InstanceRecord {
        self.record.clone()
    }

    async fn connect(&self, to: GuestPort) -> Result<GuestStream, DriverError> {
        if to != GuestPort::Agent {
            return Err(refused());
        }
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let agent = self.agent.clone();
        tokio::spawn(async move { agent.connection(theirs).await });
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
        self.ended.cancelled().await;
        InstanceExit {
            reason: "it was shut down".to_owned(),
        }
    }

    async fn shut_down(&self, _grace: Duration, _disk: Disk) -> Result<(), DriverError> {
        self.ended.cancel();
        Ok(())
    }
}
