//! The client of the guest agent: everything that is done *inside* a sandbox, over the one byte
//! stream that its driver hands out.

use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use futures::stream::BoxStream;
use pinfold_types::api::{FileInfo, Metrics};
use pinfold_types::exec::TerminalSize;
use pinfold_types::{ErrorCode, ExecEvent, ExecId};

use crate::contract::{GuestStream, Instance};

/// Events of one exec; dropping it ends the call.
pub type EventStream = BoxStream<'static, Result<ExecEvent, AgentError>>;
/// Content of a file or an archive; dropping it ends the call.
pub type ByteChunks = BoxStream<'static, Result<Bytes, AgentError>>;
/// Changes of files; dropping it ends the call.
pub type WatchStream = BoxStream<'static, Result<WatchEvent, AgentError>>;

/// Why the agent did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AgentError {
    /// Stable code, as the API answers it.
    pub code: ErrorCode,
    /// Lower-case fragment for people.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

/// What [`AgentClient::start`] starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentStart {
    /// Id of the exec; a second start of a known one answers what the first did.
    pub exec_id: ExecId,
    /// Program and arguments.
    pub arguments: Vec<String>,
    /// The whole environment.
    pub environment: Vec<(String, String)>,
    /// Directory to start in.
    pub working_directory: String,
    /// User to run as; empty is root.
    pub user: String,
    /// Size of the terminal; absent is no terminal.
    pub terminal: Option<TerminalSize>,
    /// Keep standard input open for [`AgentClient::input`].
    pub standard_input: bool,
    /// Milliseconds until the process tree is killed.
    pub timeout_ms: Option<u64>,
    /// Free label that [`AgentClient::list`] answers.
    pub tag: String,
}

/// One exec that the agent knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentExec {
    /// Its id.
    pub exec_id: ExecId,
    /// The label it was started with.
    pub tag: String,
    /// Process id inside.
    pub pid: i32,
    /// Whether its exit was not recorded yet.
    pub running: bool,
    /// First event kept; one past `last_seq` when nothing is kept.
    pub first_seq: u64,
    /// Last event.
    pub last_seq: u64,
    /// Program and arguments.
    pub arguments: Vec<String>,
}

/// Where and how [`AgentClient::write_file`] writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteFile {
    /// Absolute path inside.
    pub path: String,
    /// Permission bits of a new file; 0 is 0644.
    pub mode: u32,
    /// Write into the present file instead of replacing its content.
    pub in_place: bool,
    /// Where to start, in place.
    pub offset: u64,
    /// Who owns a new file; empty is root.
    pub user: String,
    /// Make missing parent directories.
    pub make_parents: bool,
}

/// One change that a watch saw, exactly as the kernel told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchEvent {
    /// The watched directory.
    pub directory: String,
    /// The entry in it; empty for the directory itself.
    pub name: String,
    /// `inotify(7)` mask.
    pub mask: u32,
    /// Joins the two halves of a rename.
    pub cookie: u32,
}

/// A client of one instance's agent. Clones share one connection.
#[derive(Debug, Clone)]
pub struct AgentClient {
    instance: Arc<dyn Instance>,
}

fn unfinished() -> AgentError {
    AgentError {
        code: ErrorCode::Unsupported,
        message: "the agent client is not there yet".to_owned(),
        hint: None,
    }
}

fn unfinished_stream<T: Send + 'static>() -> BoxStream<'static, Result<T, AgentError>> {
    Box::pin(futures::stream::once(async { Err(unfinished()) }))
}

#[expect(
    clippy::unused_async,
    clippy::missing_errors_doc,
    unused_variables,
    reason = "the bodies follow"
)]
impl AgentClient {
    /// Makes a client; connects at the first call.
    pub fn new(instance: Arc<dyn Instance>) -> Self {
        Self { instance }
    }

    /// Answers once the agent serves.
    pub async fn ready(&self) -> Result<(), AgentError> {
        let _ = &self.instance;
        Err(unfinished())
    }

    /// Returns what the agent measures.
    pub async fn metrics(&self) -> Result<Metrics, AgentError> {
        Err(unfinished())
    }

    /// Starts a process and returns its id inside.
    pub async fn start(&self, start: AgentStart) -> Result<i32, AgentError> {
        Err(unfinished())
    }

    /// Streams the journal from a sequence number on.
    pub fn read(&self, exec_id: &ExecId, from_seq: u64, follow: bool) -> EventStream {
        unfinished_stream()
    }

    /// Lets the agent drop events up to and including `seq`.
    pub async fn acknowledge(&self, exec_id: &ExecId, seq: u64) -> Result<(), AgentError> {
        Err(unfinished())
    }

    /// Writes to standard input; returns when all of it was taken.
    pub async fn input(&self, exec_id: &ExecId, data: Bytes, end: bool) -> Result<(), AgentError> {
        Err(unfinished())
    }

    /// Changes a terminal's size.
    pub async fn resize(&self, exec_id: &ExecId, size: TerminalSize) -> Result<(), AgentError> {
        Err(unfinished())
    }

    /// Signals the process group, or every descendant.
    pub async fn signal(
        &self,
        exec_id: &ExecId,
        signal: i32,
        tree: bool,
    ) -> Result<(), AgentError> {
        Err(unfinished())
    }

    /// Lists the execs that the agent knows.
    pub async fn list(&self) -> Result<Vec<AgentExec>, AgentError> {
        Err(unfinished())
    }

    /// Forgets an ended exec.
    pub async fn forget(&self, exec_id: &ExecId) -> Result<(), AgentError> {
        Err(unfinished())
    }

    /// Looks at a path.
    pub async fn stat(&self, path: &str, follow: bool) -> Result<FileInfo, AgentError> {
        Err(unfinished())
    }

    /// Lists one page of a directory, names after `after`; the flag says that more follow.
    pub async fn list_directory(
        &self,
        path: &str,
        after: &str,
        limit: u32,
    ) -> Result<(Vec<FileInfo>, bool), AgentError> {
        Err(unfinished())
    }

    /// Streams a file's content; length 0 is to the end.
    pub fn read_file(&self, path: &str, offset: u64, length: u64) -> ByteChunks {
        unfinished_stream()
    }

    /// Writes a file; an error item of `content` leaves the call undone.
    pub async fn write_file(
        &self,
        file: WriteFile,
        content: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<u64, AgentError> {
        Err(unfinished())
    }

    /// Makes a directory.
    pub async fn make_directory(
        &self,
        path: &str,
        mode: u32,
        parents: bool,
    ) -> Result<(), AgentError> {
        Err(unfinished())
    }

    /// Renames a file or directory.
    pub async fn rename(&self, from: &str, to: &str) -> Result<(), AgentError> {
        Err(unfinished())
    }

    /// Removes a file or directory.
    pub async fn remove(
        &self,
        path: &str,
        recursive: bool,
        missing_ok: bool,
    ) -> Result<(), AgentError> {
        Err(unfinished())
    }

    /// Watches a directory.
    pub fn watch(&self, path: &str, recursive: bool) -> WatchStream {
        unfinished_stream()
    }

    /// Streams a tar archive of a path.
    pub fn pack(&self, path: &str) -> ByteChunks {
        unfinished_stream()
    }

    /// Unpacks a tar archive beneath a directory; returns the number of entries.
    pub async fn unpack(
        &self,
        directory: &str,
        user: &str,
        archive: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<u64, AgentError> {
        Err(unfinished())
    }

    /// Opens a byte stream to a TCP port on the sandbox's loopback, through the agent.
    pub async fn dial(&self, port: u16) -> Result<GuestStream, AgentError> {
        Err(unfinished())
    }
}
