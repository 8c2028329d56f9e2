//! A plain agent in a directory of its own, and clients of its services.

use std::io::{Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use connectrpc::ConnectError;
use connectrpc::client::{ClientConfig, Http2Connection, SharedHttp2Connection};
use pinfold_agent_api::v1::{
    AcknowledgeRequest, Event, EventView, ExecInfo, Exited, FileServiceClient, InputRequest,
    ListRequest, ProcessServiceClient, ReadRequest, SignalRequest, StartRequest,
    SystemServiceClient, event::Kind,
};

/// How long anything in a test may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Calls that may wait on one connection.
const CALLS: usize = 64;
/// Puts its standard input on descriptor 3 and its standard output on 4, as the agent wants them.
const SCRIPT: &str = r#"exec "$0" init test 3<&0 4<&1 0</dev/null 1>/dev/null"#;
/// The same as process 1.
const SCRIPT_FIRST: &str = r#"exec unshare --pid --fork --mount-proc --kill-child "$0" init test \
    3<&0 4<&1 0</dev/null 1>/dev/null"#;

pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) process: ProcessServiceClient<SharedHttp2Connection>,
    pub(crate) file: FileServiceClient<SharedHttp2Connection>,
    pub(crate) system: SystemServiceClient<SharedHttp2Connection>,
    child: Child,
    first: bool,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with_boot("")
    }

    /// Starts an agent whose boot record has more members.
    pub(crate) fn with_boot(more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let plain = directory.path().join("root").display().to_string();
        Self::start_agent(directory, SCRIPT, &format!(r#","plain":"{plain}"{more}"#))
    }

    /// Starts an agent as process 1 of a namespace, with the whole file system.
    pub(crate) fn first() -> Self {
        Self::start_agent(tempfile::tempdir().unwrap(), SCRIPT_FIRST, "")
    }

    fn start_agent(directory: tempfile::TempDir, script: &str, members: &str) -> Self {
        let root = directory.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut boot = tempfile::tempfile().unwrap();
        write!(boot, r#"{{"version":1{members}}}"#).unwrap();
        boot.rewind().unwrap();
        let child = Command::new("/bin/sh")
            .args(["-c", script, env!("CARGO_BIN_EXE_pinfold-agent")])
            .stdin(OwnedFd::from(listener))
            .stdout(OwnedFd::from(boot))
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .spawn()
            .unwrap();
        let connection =
            Http2Connection::lazy_unix(&socket, "http://agent".parse().unwrap()).shared(CALLS);
        let config =
            || ClientConfig::new("http://agent".parse().unwrap()).with_default_timeout(PATIENCE);
        Self {
            directory,
            process: ProcessServiceClient::new(connection.clone(), config()),
            file: FileServiceClient::new(connection.clone(), config()),
            system: SystemServiceClient::new(connection, config()),
            child,
            first: script == SCRIPT_FIRST,
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// The directory that the agent takes for the root.
    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// Sends the agent, which is process 1 of a namespace, what its driver sends.
    pub(crate) fn tell_to_end(&self) {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let agent = rustix::process::Pid::from_raw(children.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(agent, rustix::process::Signal::TERM).unwrap();
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child
            .try_wait()
            .unwrap()
            .is_some_and(|status| status.success())
    }

    pub(crate) fn agent_pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Starts a shell script.
    pub(crate) async fn shell(&self, id: &str, script: &str) -> i32 {
        self.start(command(id, &["sh", "-c", script]))
            .await
            .unwrap()
    }

    pub(crate) async fn start(&self, request: StartRequest) -> Result<i32, ConnectError> {
        let response = self.process.start(request).await?;
        Ok(response.view().pid)
    }

    /// Reads to the end, or with `follow` to the exit.
    pub(crate) async fn read(&self, id: &str, from: u64, follow: bool) -> Vec<Event> {
        let mut stream = self.events(id, from, follow).await;
        let mut events = Vec::new();
        while let Some(event) = stream.message().await.unwrap() {
            events.push(event.to_owned_message());
        }
        assert!(stream.error().is_none(), "{:?}", stream.error());
        events
    }

    pub(crate) async fn events(
        &self,
        id: &str,
        from: u64,
        follow: bool,
    ) -> connectrpc::client::ServerStream<hyper::body::Incoming, EventView<'static>> {
        let request = ReadRequest {
            exec_id: id.to_owned(),
            from_sequence: from,
            follow,
            ..ReadRequest::default()
        };
        self.process.read(request).await.unwrap()
    }

    pub(crate) async fn acknowledge(&self, id: &str, sequence: u64) {
        let request = AcknowledgeRequest {
            exec_id: id.to_owned(),
            sequence,
            ..AcknowledgeRequest::default()
        };
        self.process.acknowledge(request).await.unwrap();
    }

    pub(crate) async fn input(&self, id: &str, data: &[u8], end: bool) -> Result<(), ConnectError> {
        let request = InputRequest {
            exec_id: id.to_owned(),
            data: data.to_vec(),
            end,
            ..InputRequest::default()
        };
        self.process.input(request).await.map(drop)
    }

    pub(crate) async fn signal(
        &self,
        id: &str,
        signal: i32,
        tree: bool,
    ) -> Result<(), ConnectError> {
        let request = SignalRequest {
            exec_id: id.to_owned(),
            signal,
            tree,
            ..SignalRequest::default()
        };
        self.process.signal(request).await.map(drop)
    }

    pub(crate) async fn list(&self) -> Vec<ExecInfo> {
        let response = self.process.list(ListRequest::default()).await.unwrap();
        response.into_owned().execs
    }

    /// Runs a script and returns what it wrote and how it ended.
    pub(crate) async fn run(&self, id: &str, script: &str) -> (String, Exited) {
        self.shell(id, script).await;
        let events = self.read(id, 1, true).await;
        (text(&events), exit(&events))
    }

    /// Reads until the output so far satisfies a condition.
    pub(crate) async fn until(&self, id: &str, done: impl Fn(&str) -> bool) -> String {
        let mut stream = self.events(id, 1, true).await;
        let mut events = Vec::new();
        while let Some(event) = stream.message().await.unwrap() {
            events.push(event.to_owned_message());
            let text = text(&events);
            if done(&text) {
                return text;
            }
        }
        panic!("ended with {:?}", text(&events));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM).is_err();
        let deadline = Instant::now() + PATIENCE;
        // Who stands before process 1 takes only the signal that cannot be ignored, and passes it on.
        while !self.first && Instant::now() < deadline {
            if self.child.try_wait().unwrap().is_some() {
                return;
            }
            std::thread::yield_now();
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(crate) fn command(id: &str, arguments: &[&str]) -> StartRequest {
    StartRequest {
        exec_id: id.to_owned(),
        arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
        ..StartRequest::default()
    }
}

pub(crate) fn text(events: &[Event]) -> String {
    let mut bytes = Vec::new();
    for event in events {
        if let Some(Kind::Output(output)) = &event.kind {
            bytes.extend_from_slice(&output.data);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(crate) fn exit(events: &[Event]) -> Exited {
    match events.last().map(|event| &event.kind) {
        Some(Some(Kind::Exited(exit))) => (**exit).clone(),
        other => panic!("no exit at the end but {other:?}"),
    }
}

/// Asks until a condition holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process runs and is no zombie.
pub(crate) fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().starts_with(" Z"))
}
