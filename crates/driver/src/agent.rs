//! The client of the guest agent: everything that is done *inside* a sandbox, over the one byte
//! stream that its driver hands out.

mod answer;
mod dial;
#[cfg(test)]
mod hostile;
mod journal;
mod refusal;
mod transport;
mod upload;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use connectrpc::ConnectError;
use connectrpc::client::ClientConfig;
use futures::stream::BoxStream;
use futures::{Stream, TryFutureExt as _, TryStreamExt as _};
use http::Uri;
use pinfold_agent_api::v1;
use pinfold_types::api::{FileInfo, Metrics};
use pinfold_types::exec::TerminalSize;
use pinfold_types::weaken::{Defence, is_off};
use pinfold_types::{ErrorCode, ExecEvent, ExecId, TRACE_SPANS};
use tracing::Instrument as _;

use self::journal::Pace;
use self::transport::Transport;
use crate::contract::{GuestStream, Instance};

/// Most bytes of one message of the agent: the largest event or chunk is far smaller.
pub const MESSAGE_BYTES_MAX: usize = 2 << 20;
/// Most bytes that one decoded message may take in memory; many tiny elements take more than the
/// bytes they came in.
const ELEMENT_BYTES_MAX: usize = 8 << 20;
/// Longest time until the agent says that it is ready.
const READY_TIME_MAX: Duration = Duration::from_secs(5);
/// Longest time for metrics: two samples of a few files.
const METRICS_TIME_MAX: Duration = Duration::from_secs(5);
/// Longest time until a process is started: loading a large program from a cold disk.
const START_TIME_MAX: Duration = Duration::from_secs(30);
/// Longest time for a call that only touches what the agent has in memory.
const CALL_TIME_MAX: Duration = Duration::from_secs(10);
/// Longest time for one operation on a file or one page of a directory.
const FILE_TIME_MAX: Duration = Duration::from_secs(30);
/// Longest time until a stream is open.
const STREAM_TIME_MAX: Duration = Duration::from_secs(15);
/// How often an agent that is at work for long is asked whether it still lives.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
/// What a test that leaves the times out has instead of them: longer than it looks on.
const WEAKENED_TIME_MAX: Duration = Duration::from_hours(1);
/// What a test that leaves the sizes out has instead of them: more than it sends.
const WEAKENED_BYTES_MAX: usize = 1 << 30;
/// Most bytes of standard input in one message.
const INPUT_PIECE_BYTES_MAX: usize = 256 << 10;

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

/// A client of one instance's agent. Clones share one connection, which is made at the first call
/// and made again, for a new call, when it has died.
///
/// Every call is bounded in time. Calls that may rightly take long (input into a full pipe,
/// uploads, removing a large tree) are bounded by asking the agent every ten seconds
/// whether it still answers. Dropping a future or a stream ends its call.
#[derive(Debug, Clone)]
pub struct AgentClient {
    transport: Transport,
    config: ClientConfig,
}

impl AgentClient {
    /// Makes a client; connects at the first call.
    pub fn new(instance: Arc<dyn Instance>) -> Self {
        let (message, elements) = if is_off(Defence::AnswerBounds) {
            (WEAKENED_BYTES_MAX, WEAKENED_BYTES_MAX)
        } else {
            (MESSAGE_BYTES_MAX, ELEMENT_BYTES_MAX)
        };
        let config = ClientConfig::new(Uri::from_static("http://agent"))
            .with_default_max_message_size(message)
            .with_default_element_memory_limit(elements);
        Self {
            transport: Transport::new(instance),
            config,
        }
    }

    /// Answers once the agent serves.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::AgentSilent`] when it does not answer in time, [`ErrorCode::InstanceGone`]
    /// when there is no instance any more.
    pub async fn ready(&self) -> Result<(), AgentError> {
        let answer = bounded(
            "ready",
            READY_TIME_MAX,
            Box::pin(async { self.system().ready(v1::ReadyRequest::default()).await }),
        )
        .await?;
        if answer.into_owned().ready {
            Ok(())
        } else {
            Err(AgentError::new(
                ErrorCode::AgentSilent,
                "the agent is not ready yet",
            ))
        }
    }

    /// Returns what the agent measures.
    ///
    /// # Errors
    ///
    /// As [`Self::ready`], and [`ErrorCode::Internal`] when the numbers are none.
    pub async fn metrics(&self) -> Result<Metrics, AgentError> {
        let answer = bounded(
            "metrics",
            METRICS_TIME_MAX,
            Box::pin(async { self.system().metrics(v1::MetricsRequest::default()).await }),
        )
        .await?;
        answer::metrics(answer.into_owned())
    }

    /// Starts a process and returns its id inside. Idempotent for one `exec_id`.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::CommandNotFound`], [`ErrorCode::CommandNotExecutable`],
    /// [`ErrorCode::DirectoryNotFound`], [`ErrorCode::UnknownUser`],
    /// [`ErrorCode::InvalidArgument`], [`ErrorCode::LimitExceeded`], or as [`Self::ready`].
    pub async fn start(&self, start: AgentStart) -> Result<i32, AgentError> {
        let request = journal::start_request(start);
        let answer = bounded(
            "start",
            START_TIME_MAX,
            Box::pin(async { self.process().start(request).await }),
        )
        .await?;
        match answer.into_owned().pid {
            pid if pid > 0 => Ok(pid),
            _ => Err(AgentError::broken_contract("a process id is not positive")),
        }
    }

    /// Streams the journal from a sequence number on (0 and 1: from the start). With `follow` the
    /// stream ends after the exit; without, after what there is now.
    ///
    /// Events come without gaps; what is no longer kept is one [`EventKind::Dropped`] event.
    ///
    /// [`EventKind::Dropped`]: pinfold_types::EventKind::Dropped
    pub fn read(&self, exec_id: &ExecId, from_seq: u64, follow: bool) -> EventStream {
        let client = self.clone();
        let request = v1::ReadRequest {
            exec_id: exec_id.as_str().to_owned(),
            from_sequence: from_seq,
            follow,
            ..v1::ReadRequest::default()
        };
        let opened = async move {
            let stream = bounded(
                "read",
                STREAM_TIME_MAX,
                Box::pin(async { client.process().read(request).await }),
            )
            .await?;
            let pace = if follow { Pace::Any } else { Pace::Steady };
            Ok(journal::events(stream, from_seq, pace))
        };
        Box::pin(opened.try_flatten_stream())
    }

    /// Lets the agent drop events up to and including `seq`.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::NotFound`] for an unknown exec, or as [`Self::ready`].
    pub async fn acknowledge(&self, exec_id: &ExecId, seq: u64) -> Result<(), AgentError> {
        let request = v1::AcknowledgeRequest {
            exec_id: exec_id.as_str().to_owned(),
            sequence: seq,
            ..v1::AcknowledgeRequest::default()
        };
        bounded(
            "acknowledge",
            CALL_TIME_MAX,
            Box::pin(async { self.process().acknowledge(request).await }),
        )
        .await
        .map(drop)
    }

    /// Writes to standard input; returns when the pipe has taken all of it, which may be never
    /// when the process does not read. Inputs of one exec must not overlap.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::NotFound`], [`ErrorCode::IllegalState`] when the exec has no standard input
    /// (any more), or as [`Self::ready`].
    pub async fn input(&self, exec_id: &ExecId, data: Bytes, end: bool) -> Result<(), AgentError> {
        let mut rest = data;
        loop {
            let piece = rest.split_to(rest.len().min(INPUT_PIECE_BYTES_MAX));
            let last = rest.is_empty();
            let request = v1::InputRequest {
                exec_id: exec_id.as_str().to_owned(),
                data: piece.to_vec(),
                end: end && last,
                ..v1::InputRequest::default()
            };
            self.while_alive(Box::pin(async { self.process().input(request).await }))
                .await?;
            if last {
                return Ok(());
            }
        }
    }

    /// Changes a terminal's size.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::NotFound`], [`ErrorCode::IllegalState`] when the exec has no terminal, or as
    /// [`Self::ready`].
    pub async fn resize(&self, exec_id: &ExecId, size: TerminalSize) -> Result<(), AgentError> {
        let request = v1::ResizeRequest {
            exec_id: exec_id.as_str().to_owned(),
            size: buffa::MessageField::some(journal::terminal_size(size)),
            ..v1::ResizeRequest::default()
        };
        bounded(
            "resize",
            CALL_TIME_MAX,
            Box::pin(async { self.process().resize(request).await }),
        )
        .await
        .map(drop)
    }

    /// Signals the process group, or with `tree` every process that descends from the exec.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::NotFound`], [`ErrorCode::InvalidArgument`] for a signal that there is not, or
    /// as [`Self::ready`].
    pub async fn signal(
        &self,
        exec_id: &ExecId,
        signal: i32,
        tree: bool,
    ) -> Result<(), AgentError> {
        let request = v1::SignalRequest {
            exec_id: exec_id.as_str().to_owned(),
            signal,
            tree,
            ..v1::SignalRequest::default()
        };
        bounded(
            "signal",
            CALL_TIME_MAX,
            Box::pin(async { self.process().signal(request).await }),
        )
        .await
        .map(drop)
    }

    /// Lists the execs that the agent knows.
    ///
    /// # Errors
    ///
    /// As [`Self::ready`].
    pub async fn list(&self) -> Result<Vec<AgentExec>, AgentError> {
        let answer = bounded(
            "list",
            CALL_TIME_MAX,
            Box::pin(async { self.process().list(v1::ListRequest::default()).await }),
        )
        .await?;
        answer::execs(answer.into_owned())
    }

    /// Forgets an ended exec and its journal.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::NotFound`], [`ErrorCode::IllegalState`] while it runs, or as [`Self::ready`].
    pub async fn forget(&self, exec_id: &ExecId) -> Result<(), AgentError> {
        let request = v1::ForgetRequest {
            exec_id: exec_id.as_str().to_owned(),
            ..v1::ForgetRequest::default()
        };
        bounded(
            "forget",
            CALL_TIME_MAX,
            Box::pin(async { self.process().forget(request).await }),
        )
        .await
        .map(drop)
    }

    /// Looks at a path; with `follow` at what a final symbolic link points to.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::NotFound`], [`ErrorCode::InvalidArgument`], [`ErrorCode::PermissionDenied`],
    /// or as [`Self::ready`].
    pub async fn stat(&self, path: &str, follow: bool) -> Result<FileInfo, AgentError> {
        let request = v1::StatRequest {
            path: path.to_owned(),
            follow,
            ..v1::StatRequest::default()
        };
        let answer = bounded(
            "stat",
            FILE_TIME_MAX,
            Box::pin(async { self.file().stat(request).await }),
        )
        .await?;
        match answer.into_owned().info.into_option() {
            Some(info) => answer::file(info),
            None => Err(AgentError::broken_contract("it says nothing of the file")),
        }
    }

    /// Lists one page of a directory in name order, names after `after`; 0 is the largest page.
    /// The flag says that more follow.
    ///
    /// # Errors
    ///
    /// As [`Self::stat`].
    pub async fn list_directory(
        &self,
        path: &str,
        after: &str,
        limit: u32,
    ) -> Result<(Vec<FileInfo>, bool), AgentError> {
        let request = v1::ListDirectoryRequest {
            path: path.to_owned(),
            after: after.to_owned(),
            limit: answer::page_limit(limit),
            ..v1::ListDirectoryRequest::default()
        };
        let answer = bounded(
            "list directory",
            FILE_TIME_MAX,
            Box::pin(async { self.file().list_directory(request).await }),
        )
        .await?;
        answer::page(answer.into_owned(), after, limit)
    }

    /// Streams a file's content; length 0 is to the end.
    pub fn read_file(&self, path: &str, offset: u64, length: u64) -> ByteChunks {
        let client = self.clone();
        let request = v1::ReadFileRequest {
            path: path.to_owned(),
            offset,
            length,
            ..v1::ReadFileRequest::default()
        };
        let opened = async move {
            let stream = bounded(
                "read file",
                STREAM_TIME_MAX,
                Box::pin(async { client.file().read_file(request).await }),
            )
            .await?;
            let most = if length == 0 { u64::MAX } else { length };
            Ok(journal::chunks(stream, most))
        };
        Box::pin(opened.try_flatten_stream())
    }

    /// Writes a file and returns how many bytes were written. An error item of `content` ends the
    /// call, so that nobody takes half a file for a whole one.
    ///
    /// # Errors
    ///
    /// As [`Self::stat`], and [`ErrorCode::ResourceExhausted`] when the disk is full,
    /// [`ErrorCode::Unavailable`] when `content` failed.
    pub async fn write_file(
        &self,
        file: WriteFile,
        content: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<u64, AgentError> {
        let (content, mut failed) = upload::guarded(content);
        let sent = content.counter();
        let messages = upload::file_messages(file, content);
        let call = self.while_alive(Box::pin(async { self.file().write_file(messages).await }));
        let answer = tokio::select! {
            // A failed source ends the stream of messages too; its error must win.
            biased;
            error = failed.error() => return Err(error),
            answer = call => answer?,
        };
        let written = answer.into_owned().written;
        let sent = sent.bytes();
        if written == sent {
            Ok(written)
        } else {
            Err(AgentError::broken_contract(format!(
                "{sent} bytes were sent and {written} written"
            )))
        }
    }

    /// Makes a directory; with `parents` also those above it, and one that is there is no error.
    ///
    /// # Errors
    ///
    /// As [`Self::stat`], and [`ErrorCode::AlreadyExists`].
    pub async fn make_directory(
        &self,
        path: &str,
        mode: u32,
        parents: bool,
    ) -> Result<(), AgentError> {
        let request = v1::MakeDirectoryRequest {
            path: path.to_owned(),
            mode,
            parents,
            ..v1::MakeDirectoryRequest::default()
        };
        bounded(
            "make directory",
            FILE_TIME_MAX,
            Box::pin(async { self.file().make_directory(request).await }),
        )
        .await
        .map(drop)
    }

    /// Renames a file or directory.
    ///
    /// # Errors
    ///
    /// As [`Self::stat`].
    pub async fn rename(&self, from: &str, to: &str) -> Result<(), AgentError> {
        let request = v1::RenameRequest {
            from: from.to_owned(),
            to: to.to_owned(),
            ..v1::RenameRequest::default()
        };
        bounded(
            "rename",
            FILE_TIME_MAX,
            Box::pin(async { self.file().rename(request).await }),
        )
        .await
        .map(drop)
    }

    /// Removes a file or directory; with `recursive` also what is in it.
    ///
    /// # Errors
    ///
    /// As [`Self::stat`], and [`ErrorCode::IllegalState`] for a directory that is not empty.
    pub async fn remove(
        &self,
        path: &str,
        recursive: bool,
        missing_ok: bool,
    ) -> Result<(), AgentError> {
        let request = v1::RemoveRequest {
            path: path.to_owned(),
            recursive,
            missing_ok,
            ..v1::RemoveRequest::default()
        };
        self.while_alive(Box::pin(async { self.file().remove(request).await }))
            .await
            .map(drop)
    }

    /// Watches a directory. What changes after the stream was opened is seen; open it by polling.
    pub fn watch(&self, path: &str, recursive: bool) -> WatchStream {
        let (client, path) = (self.clone(), path.to_owned());
        let opened = async move { client.open_watch(&path, recursive).await };
        Box::pin(opened.try_flatten_stream())
    }

    /// Watches a directory. What changes after this has returned is seen.
    ///
    /// # Errors
    ///
    /// Returns [`AgentError`] when the agent does not answer; what it refuses, such as a directory
    /// that is not there, may also be the stream's first item.
    pub async fn open_watch(&self, path: &str, recursive: bool) -> Result<WatchStream, AgentError> {
        let request = v1::WatchRequest {
            path: path.to_owned(),
            recursive,
            ..v1::WatchRequest::default()
        };
        let stream = bounded(
            "watch",
            STREAM_TIME_MAX,
            Box::pin(async { self.file().watch(request).await }),
        )
        .await?;
        let events = journal::messages(stream, Pace::Any)
            .and_then(|event: v1::WatchEvent| futures::future::ready(answer::watch(event)));
        Ok(Box::pin(events))
    }

    /// Streams a tar archive of a path.
    pub fn pack(&self, path: &str) -> ByteChunks {
        let client = self.clone();
        let request = v1::PackRequest {
            path: path.to_owned(),
            ..v1::PackRequest::default()
        };
        let opened = async move {
            let stream = bounded(
                "pack",
                STREAM_TIME_MAX,
                Box::pin(async { client.file().pack(request).await }),
            )
            .await?;
            Ok(journal::chunks(stream, u64::MAX))
        };
        Box::pin(opened.try_flatten_stream())
    }

    /// Unpacks a tar archive beneath a directory; returns the number of entries.
    ///
    /// # Errors
    ///
    /// As [`Self::write_file`].
    pub async fn unpack(
        &self,
        directory: &str,
        user: &str,
        archive: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<u64, AgentError> {
        let (archive, mut failed) = upload::guarded(archive);
        let messages = upload::archive_messages(directory.to_owned(), user.to_owned(), archive);
        let call = self.while_alive(Box::pin(async { self.file().unpack(messages).await }));
        tokio::select! {
            biased;
            error = failed.error() => Err(error),
            answer = call => Ok(answer?.into_owned().entries),
        }
    }

    /// Opens a byte stream to a TCP port on the sandbox's loopback, through the agent.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::Unavailable`] when nothing listens there, or as [`Self::ready`].
    pub async fn dial(&self, port: u16) -> Result<GuestStream, AgentError> {
        dial::dial(&**self.transport.instance(), port).await
    }

    fn process(&self) -> v1::ProcessServiceClient<Transport> {
        v1::ProcessServiceClient::new(self.transport.clone(), self.config.clone())
    }

    fn file(&self) -> v1::FileServiceClient<Transport> {
        v1::FileServiceClient::new(self.transport.clone(), self.config.clone())
    }

    fn system(&self) -> v1::SystemServiceClient<Transport> {
        v1::SystemServiceClient::new(self.transport.clone(), self.config.clone())
    }

    /// Waits for a call that may rightly take long, as long as the agent answers something else.
    async fn while_alive<T>(
        &self,
        mut call: Pin<Box<dyn Future<Output = Result<T, ConnectError>> + Send + '_>>,
    ) -> Result<T, AgentError> {
        loop {
            match tokio::time::timeout(PROBE_INTERVAL, &mut call).await {
                Ok(answer) => return Ok(answer?),
                Err(_) => self.ready().await?,
            }
        }
    }
}

/// Waits for an answer no longer than its named time. Calls are boxed: their futures are large, and
/// would make every future of our callers so.
async fn bounded<T>(
    what: &'static str,
    most: Duration,
    call: Pin<Box<dyn Future<Output = Result<T, ConnectError>> + Send + '_>>,
) -> Result<T, AgentError> {
    let waited = if is_off(Defence::AgentPatience) {
        WEAKENED_TIME_MAX
    } else {
        most
    };
    let span = tracing::info_span!(
        target: TRACE_SPANS,
        "agent",
        otel.name = format_args!("agent {what}"),
        otel.kind = "client",
        failed = tracing::field::Empty,
    );
    let answer = match tokio::time::timeout(waited, call)
        .instrument(span.clone())
        .await
    {
        Ok(answer) => answer.map_err(AgentError::from),
        Err(_) => Err(AgentError::silent(what, most)),
    };
    span.record("failed", answer.is_err());
    answer
}
