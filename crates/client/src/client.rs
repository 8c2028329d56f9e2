//! One method for each route, but for those of files and streams, which have modules of their own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::Method;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use pinfold_types::ExecId;
use pinfold_types::api::{
    CreateLine, CreateSandboxRequest, DoctorReport, Exec, ExecList, ExecRequest, ExecResult,
    Health, ListQuery, Metrics, Removed, Report, Sandbox, SandboxList, SignalRequest, StopRequest,
    UpdateSandboxRequest, Version,
};
use pinfold_types::exec::TerminalSize;
use pinfold_types::frame::FRAME_BYTES_MAX;

use crate::endpoint::{ApiKey, Port};
use crate::error::ClientError;
use crate::query::Target;
use crate::transport::{Call, Transport, accept_lines, decode, whole};

type Result<T, E = ClientError> = std::result::Result<T, E>;

/// Longest time without a line while a sandbox is made: the daemon sends one every few seconds.
const CREATE_LINE_MAX: Duration = Duration::from_mins(1);

/// Longest line of a creation's progress.
const CREATE_LINE_BYTES_MAX: usize = 4 << 20;

/// Longest time for a step of a sandbox's life beside a stop's own grace.
const LIFECYCLE_MAX: Duration = Duration::from_mins(3);

/// Most pages that [`Client::list_all`] reads, so that a lying daemon cannot keep it for ever.
const LIST_PAGES_MAX: usize = 1000;

/// A daemon's port, and what is shown and trusted there.
#[derive(Debug, Clone)]
pub struct Remote {
    /// The port.
    pub port: Port,
    /// The key; a port for development needs none.
    pub key: Option<ApiKey>,
    /// The only certificates that are trusted, in PEM; the system's when absent.
    pub authorities: Option<PathBuf>,
    /// Speak without TLS to hosts other than this one, where others read the key and everything else.
    pub plain_anywhere: bool,
}

/// Speaks to one daemon. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) transport: Transport,
}

impl Client {
    /// Makes a client once a daemon that may be trusted accepts a connection on the socket.
    ///
    /// # Errors
    ///
    /// [`ClientError::NoDaemon`] when nothing listens, [`ClientError::ForeignSocket`] when the
    /// socket or its listener belongs to neither this user nor root.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let own_uid = rustix::process::geteuid().as_raw();
        drop(crate::peer::connect(socket, own_uid).await?);
        Ok(Self {
            transport: Transport::local(socket, own_uid),
        })
    }

    /// Makes a client of a port, which is first asked by the first request. Blocks for the files of
    /// certificates.
    ///
    /// # Errors
    ///
    /// [`ClientError::Authorities`] when the certificates cannot be used, [`ClientError::Tls`] when
    /// the host's name can stand in no certificate.
    pub fn remote(remote: Remote) -> Result<Self> {
        Ok(Self {
            transport: Transport::remote(remote)?,
        })
    }

    /// Asks whether the daemon serves.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`] when it does not.
    pub async fn health(&self) -> Result<Health> {
        self.get_json(&Target::new("/health")).await
    }

    /// Returns the daemon's version, process id and state directory.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn version(&self) -> Result<Version> {
        self.get_json(&Target::new("/version")).await
    }

    /// Returns what the daemon's host can and cannot do.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn doctor(&self) -> Result<DoctorReport> {
        self.get_json(&Target::new("/doctor")).await
    }

    /// Returns one line for each sandbox that is not stopped.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn report(&self) -> Result<Report> {
        self.get_json(&Target::new("/report")).await
    }

    /// Makes a sandbox; returns when its agent has answered.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn create(&self, request: &CreateSandboxRequest) -> Result<Sandbox> {
        self.create_with_progress(request, |_| {}).await
    }

    /// Makes a sandbox and tells, line by line, what is being done.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn create_with_progress(
        &self,
        request: &CreateSandboxRequest,
        mut progress: impl FnMut(&str) + Send,
    ) -> Result<Sandbox> {
        let target = Target::new("/sandboxes");
        let call = accept_lines(Call::new(Method::POST, &target).json(request)?);
        let mut lines = Lines::new(self.transport.send(call).await?.into_body());
        while let Some(line) = lines.next().await? {
            match decode(&line)? {
                CreateLine::Progress(text) => progress(&text),
                CreateLine::Sandbox(sandbox) => return Ok(*sandbox),
                CreateLine::Error(detail) => return Err(ClientError::Api(detail)),
            }
        }
        Err(ClientError::protocol("the creation's answer has no end"))
    }

    /// Returns one page of sandboxes, oldest first.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn list(&self, query: &ListQuery) -> Result<SandboxList> {
        let mut target = Target::new("/sandboxes")
            .flag("all", query.all)
            .flag("warm", query.warm);
        for state in &query.states {
            target = target.with("state", state.as_str());
        }
        for (name, value) in &query.labels {
            target = target.with("label", &format!("{name}={value}"));
        }
        if let Some(after) = &query.after {
            target = target.with("after", after.as_str());
        }
        if let Some(limit) = query.limit {
            target = target.with("limit", &limit.to_string());
        }
        self.get_json(&target).await
    }

    /// Returns every page's sandboxes, oldest first.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn list_all(&self, query: &ListQuery) -> Result<Vec<Sandbox>> {
        let mut query = query.clone();
        let mut sandboxes = Vec::new();
        for _ in 0..LIST_PAGES_MAX {
            let mut page = self.list(&query).await?;
            sandboxes.append(&mut page.sandboxes);
            match page.next {
                None => return Ok(sandboxes),
                next => query.after = next,
            }
        }
        Err(ClientError::protocol("the list has no end"))
    }

    /// Returns a sandbox by its id or name.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn get(&self, sandbox: &str) -> Result<Sandbox> {
        self.get_json(&Target::sandbox(sandbox, "")).await
    }

    /// Starts a stopped or failed sandbox from its disk.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn start(&self, sandbox: &str) -> Result<Sandbox> {
        self.step(sandbox, "/start").await
    }

    /// Stops a sandbox and keeps its disk.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn stop(&self, sandbox: &str, request: StopRequest) -> Result<Sandbox> {
        let target = Target::sandbox(sandbox, "/stop");
        let grace = Duration::from_millis(request.grace_ms.unwrap_or(0));
        let call = Call::new(Method::POST, &target)
            .json(&request)?
            .within(LIFECYCLE_MAX.saturating_add(grace));
        self.transport.fetch(call).await
    }

    /// Changes labels, environment, deadlines and limits of a sandbox.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn update(&self, sandbox: &str, request: &UpdateSandboxRequest) -> Result<Sandbox> {
        let target = Target::sandbox(sandbox, "");
        let call = Call::new(Method::PATCH, &target)
            .json(request)?
            .within(LIFECYCLE_MAX);
        self.transport.fetch(call).await
    }

    /// Freezes a sandbox in memory.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn pause(&self, sandbox: &str) -> Result<Sandbox> {
        self.step(sandbox, "/pause").await
    }

    /// Lets a frozen sandbox go on.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn resume(&self, sandbox: &str) -> Result<Sandbox> {
        self.step(sandbox, "/resume").await
    }

    /// Removes a sandbox; with `keep_persist` its persist directory stays.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn remove(&self, sandbox: &str, keep_persist: bool) -> Result<Removed> {
        let target = Target::sandbox(sandbox, "").flag("keep_persist", keep_persist);
        let call = Call::new(Method::DELETE, &target).within(LIFECYCLE_MAX);
        self.transport.fetch(call).await
    }

    /// Returns what the agent of a sandbox says of it.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn metrics(&self, sandbox: &str) -> Result<Metrics> {
        self.get_json(&Target::sandbox(sandbox, "/metrics")).await
    }

    /// Runs a program and waits for its end, however long that takes.
    ///
    /// Dropping the future does not end the program.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn exec(&self, sandbox: &str, request: &ExecRequest) -> Result<ExecResult> {
        let target = Target::sandbox(sandbox, "/exec");
        let request = ExecRequest {
            asynchronous: Some(false),
            ..request.clone()
        };
        let call = Call::new(Method::POST, &target).json(&request)?.patient();
        self.transport.fetch(call).await
    }

    /// Starts a program and returns at once.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn exec_start(&self, sandbox: &str, request: &ExecRequest) -> Result<Exec> {
        let target = Target::sandbox(sandbox, "/execs");
        let call = Call::new(Method::POST, &target).json(request)?;
        self.transport.fetch(call).await
    }

    /// Lists every exec of a sandbox, newest last.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn execs(&self, sandbox: &str) -> Result<ExecList> {
        let mut all = ExecList {
            execs: Vec::new(),
            next: None,
        };
        for _ in 0..LIST_PAGES_MAX {
            let mut target = Target::sandbox(sandbox, "/execs");
            if let Some(after) = &all.next {
                target = target.with("after", after.as_str());
            }
            let mut page: ExecList = self.get_json(&target).await?;
            all.execs.append(&mut page.execs);
            all.next = page.next;
            if all.next.is_none() {
                return Ok(all);
            }
        }
        Err(ClientError::protocol("the list has no end"))
    }

    /// Forgets an exec with its output; kills it first when it runs.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn exec_remove(&self, sandbox: &str, exec_id: &ExecId) -> Result<()> {
        let target = exec_target(sandbox, exec_id, "");
        let call = Call::new(Method::DELETE, &target);
        self.transport.send(call).await.map(drop)
    }

    /// Returns an exec.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn exec_get(&self, sandbox: &str, exec_id: &ExecId) -> Result<Exec> {
        self.get_json(&exec_target(sandbox, exec_id, "")).await
    }

    /// Writes to the standard input of an exec, in as many requests as that needs; with `end`
    /// closes it afterwards.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn exec_input(
        &self,
        sandbox: &str,
        exec_id: &ExecId,
        mut data: Bytes,
        end: bool,
    ) -> Result<()> {
        loop {
            let part = data.split_to(data.len().min(FRAME_BYTES_MAX));
            let last = data.is_empty();
            let target = exec_target(sandbox, exec_id, "/input").flag("end", end && last);
            // A program that does not read its input decides how long this takes.
            let call = Call::new(Method::POST, &target).body(whole(part)).patient();
            self.transport.send(call).await.map(drop)?;
            if last {
                return Ok(());
            }
        }
    }

    /// Tells the terminal of an exec its size.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn exec_resize(
        &self,
        sandbox: &str,
        exec_id: &ExecId,
        size: TerminalSize,
    ) -> Result<()> {
        let target = exec_target(sandbox, exec_id, "/resize");
        let call = Call::new(Method::POST, &target).json(&size)?;
        self.transport.send(call).await.map(drop)
    }

    /// Signals an exec.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn exec_signal(
        &self,
        sandbox: &str,
        exec_id: &ExecId,
        request: SignalRequest,
    ) -> Result<()> {
        let target = exec_target(sandbox, exec_id, "/signal");
        let call = Call::new(Method::POST, &target).json(&request)?;
        self.transport.send(call).await.map(drop)
    }

    pub(crate) async fn get_json<T: serde::de::DeserializeOwned>(
        &self,
        target: &Target,
    ) -> Result<T> {
        self.transport.fetch(Call::new(Method::GET, target)).await
    }

    async fn step(&self, sandbox: &str, below: &str) -> Result<Sandbox> {
        let target = Target::sandbox(sandbox, below);
        let call = Call::new(Method::POST, &target).within(LIFECYCLE_MAX);
        self.transport.fetch(call).await
    }
}

fn exec_target(sandbox: &str, exec_id: &ExecId, below: &str) -> Target {
    Target::sandbox(sandbox, &format!("/execs/{exec_id}{below}"))
}

/// The lines of an answer, without the empty ones that only say that the daemon is still there.
pub(crate) struct Lines {
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    pub(crate) fn new(body: Incoming) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
        }
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end).freeze();
                self.buffer.advance(1);
                if line.is_empty() {
                    continue;
                }
                return Ok(Some(line));
            }
            if self.buffer.len() > CREATE_LINE_BYTES_MAX {
                return Err(ClientError::TooLarge {
                    limit: CREATE_LINE_BYTES_MAX,
                });
            }
            let frame = tokio::time::timeout(CREATE_LINE_MAX, self.body.frame())
                .await
                .map_err(|_| ClientError::TimedOut {
                    waited: CREATE_LINE_MAX,
                })?;
            match frame {
                None => return Ok(None),
                Some(frame) => {
                    let frame = frame.map_err(ClientError::transport)?;
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
            }
        }
    }
}
