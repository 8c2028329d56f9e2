//! A server in this process, and what tests ask of it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pinfold_client::Client;
use pinfold_driver::fake::{FakeDriver, agent_binary};
use pinfold_engine::{Caller, Engine, EngineConfig};
use pinfold_server::{Listeners, ServerOptions, TcpDoor};
use pinfold_types::Role;
use pinfold_types::api::{CreateSandboxRequest, ExecRequest, Sandbox};
use pinfold_types::spec::IsolationTier;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest time for anything that a test waits for.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) struct Server {
    pub(crate) client: Client,
    pub(crate) socket: PathBuf,
    address: Option<SocketAddr>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<()>,
    engine: Engine,
    _directory: TempDir,
}

impl Server {
    /// Starts a server whose driver has no agent: enough for everything that needs no sandbox.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut ServerOptions)) -> Self {
        Self::run(PathBuf::from("/nonexistent"), change, None).await
    }

    /// Starts such a server that has a port too.
    pub(crate) async fn start_at(
        door: impl FnOnce(TcpListener) -> TcpDoor,
        change: impl FnOnce(&mut ServerOptions),
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::run(PathBuf::from("/nonexistent"), change, Some(door(listener))).await
    }

    /// Starts a server that can make sandboxes and has a port.
    pub(crate) async fn with_agent_at(door: impl FnOnce(TcpListener) -> TcpDoor) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::run(agent(), |_| {}, Some(door(listener))).await
    }

    /// Starts a server that can make sandboxes.
    pub(crate) async fn with_agent() -> Self {
        Self::with_agent_and(|_| {}).await
    }

    pub(crate) async fn with_agent_and(change: impl FnOnce(&mut ServerOptions)) -> Self {
        Self::run(agent(), change, None).await
    }

    async fn run(
        agent: PathBuf,
        change: impl FnOnce(&mut ServerOptions),
        tcp: Option<TcpDoor>,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::create_dir(path("driver")).unwrap();
        let driver = Arc::new(FakeDriver::new(path("driver"), agent));
        let engine = Engine::open(EngineConfig::new(path("state")), driver)
            .await
            .unwrap();
        let socket = path("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut options = ServerOptions::new(path("state"));
        change(&mut options);
        let address = tcp.as_ref().map(TcpDoor::address);
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(pinfold_server::serve(
            engine.clone(),
            Listeners {
                unix: listener,
                tcp,
            },
            options,
            shutdown.clone(),
        ));
        Self {
            client: Client::connect(&socket).await.unwrap(),
            socket,
            address,
            shutdown,
            task,
            engine,
            _directory: directory,
        }
    }

    /// Returns where its port is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address.expect("the server has a port")
    }

    /// Returns the engine behind the server.
    pub(crate) fn engine(&self) -> Engine {
        self.engine.clone()
    }

    /// Makes a sandbox.
    pub(crate) async fn sandbox(&self) -> Sandbox {
        self.client.create(&plain_sandbox()).await.unwrap()
    }

    /// Removes every sandbox and ends the server, so that no process is left behind.
    pub(crate) async fn end(self) {
        let query = pinfold_types::api::ListQuery {
            all: true,
            ..Default::default()
        };
        for sandbox in self.client.list_all(&query).await.unwrap() {
            self.client
                .remove(sandbox.id.as_str(), false)
                .await
                .unwrap();
        }
        self.shutdown.cancel();
        within(self.task).await.unwrap();
        self.engine.shut_down().await;
    }

    /// Sends a request as it is written and returns the answer.
    pub(crate) async fn raw(&self, request: &str) -> Answer {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        Answer::read(stream).await
    }

    /// Sends a request without a body.
    pub(crate) async fn ask(&self, method: &str, target: &str) -> Answer {
        self.send(method, target, "").await
    }

    /// Sends a request with further headers, each ended by a line break.
    pub(crate) async fn send_with(
        &self,
        (method, target): (&str, &str),
        headers: &str,
        body: &str,
    ) -> Answer {
        let length = body.len();
        self.raw(&format!(
            "{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\
             content-length: {length}\r\n\r\n{body}"
        ))
        .await
    }

    /// Sends a request with a body.
    pub(crate) async fn send(&self, method: &str, target: &str, body: &str) -> Answer {
        let length = body.len();
        self.raw(&format!(
            "{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n{body}"
        ))
        .await
    }
}

fn agent() -> PathBuf {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    agent_binary(scratch).expect("the agent builds")
}

/// What came back, as text.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Reads until the server closes.
    pub(crate) async fn read(mut stream: impl AsyncRead + Unpin) -> Self {
        let mut bytes = Vec::new();
        within(stream.read_to_end(&mut bytes)).await.unwrap();
        let end = bytes
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .unwrap_or_else(|| panic!("no head in {:?}", String::from_utf8_lossy(&bytes)));
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        Self {
            status: head[9..12].parse().unwrap(),
            head: head.to_ascii_lowercase(),
            body: bytes[end + 4..].to_vec(),
        }
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("not JSON: {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// Returns the body with its chunks put together.
    pub(crate) fn text(&self) -> String {
        let mut rest = &self.body[..];
        if !self.head.contains("transfer-encoding: chunked") {
            return String::from_utf8(rest.to_vec()).unwrap();
        }
        let mut whole = Vec::new();
        while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
            let length = std::str::from_utf8(&rest[..end]).unwrap();
            let length = usize::from_str_radix(length, 16).unwrap();
            whole.extend_from_slice(&rest[end + 2..end + 2 + length]);
            rest = &rest[end + 4 + length..];
        }
        String::from_utf8(whole).unwrap()
    }

    /// Asserts the status and the code and returns the message.
    pub(crate) fn refusal(&self, status: u16, code: &str) -> String {
        let body = self.json();
        assert_eq!(
            (self.status, body["error"]["code"].as_str()),
            (status, Some(code)),
            "{body}"
        );
        let id = body["error"]["request_id"].as_str().unwrap();
        assert!(self.head.contains(&format!("x-request-id: {id}")));
        body["error"]["message"].as_str().unwrap().to_owned()
    }
}

/// Returns this process as the engine sees it behind its own socket.
pub(crate) fn own_caller() -> Caller {
    Caller::of_host(
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
        Role::Admin,
    )
}

pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it takes no longer")
}

/// Returns a request that the fake driver, which isolates nothing, can serve.
pub(crate) fn plain_sandbox() -> CreateSandboxRequest {
    let mut request = CreateSandboxRequest::default();
    request.spec.isolation = IsolationTier::None;
    request
}

pub(crate) fn shell(script: &str) -> ExecRequest {
    command(&["sh", "-c", script])
}

pub(crate) fn command(words: &[&str]) -> ExecRequest {
    ExecRequest {
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        ..ExecRequest::default()
    }
}
