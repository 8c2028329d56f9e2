//! Requests to the API, from the bytes of a connection down to the engine and its database.
//!
//! The driver refuses to make anything, so nothing is started, and everything before that is as in
//! the daemon.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pinfold_driver::{
    Capabilities, Driver, DriverError, DriverErrorKind, DriverKind, ImageRequest, Instance,
    InstanceRecord, InstanceSpec, PreparedImage, Progress, StartSource, SweepReport,
};
use pinfold_engine::{Engine, EngineConfig};
use pinfold_server::ServerOptions;
use pinfold_types::doctor::Finding;
use pinfold_types::{ApiErrorBody, SandboxId};
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
        let answered = server.runtime.block_on(server.exchange(&request));
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
    socket: std::path::PathBuf,
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
            let config = EngineConfig::new(&state);
            let engine = Engine::open(config, Arc::new(Refusing)).await;
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

/// A driver that makes nothing.
#[derive(Debug)]
struct Refusing;

fn refused() -> DriverError {
    DriverError::new(DriverErrorKind::InvalidImage, "nothing is made here")
}

#[async_trait]
impl Driver for Refusing {
    fn kind(&self) -> DriverKind {
        DriverKind::Fake
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    async fn probe(&self) -> Vec<Finding> {
        Vec::new()
    }

    async fn prepare(
        &self,
        _image: &ImageRequest,
        _progress: &dyn Progress,
    ) -> Result<PreparedImage, DriverError> {
        Err(refused())
    }

    async fn start(
        &self,
        _id: &SandboxId,
        _source: StartSource<'_>,
        _spec: &InstanceSpec,
    ) -> Result<Arc<dyn Instance>, DriverError> {
        Err(refused())
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
