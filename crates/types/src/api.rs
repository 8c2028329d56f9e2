//! Requests and responses of the public API under `/v1`.

mod events;
pub mod keys;
mod pools;
mod push;
mod ready;
mod update;
mod watch;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::doctor::Finding;
use crate::exec::{ExecExit, ExecSpec};
use crate::id::{ExecId, SandboxId};
use crate::name::SandboxName;
use crate::principal::Principal;
use crate::spec::{IsolationTier, SandboxSpec};
use crate::state::SandboxState;

pub use events::{
    DAEMON_EVENTS_KEPT_MAX, DaemonEvent, DaemonEventKind, DaemonEventKindError, DaemonEventList,
    DaemonEventQuery,
};
pub use pools::{
    Claim, ClaimRequest, CreatePoolRequest, Given, Origin, POOL_SIZE_MAX, Pool, PoolList,
    PoolMetrics, PoolSize, PoolSizeError, ScalePoolRequest, Template, TemplateList,
    TemplateRequest, TemplateUse,
};
pub use push::PushReport;
pub use ready::Readiness;
pub use update::{DeadlinesUpdate, UpdateSandboxRequest};
pub use watch::{FileChange, FileChangeKind};

/// Most entries of one page of a list.
pub const PAGE_ENTRIES_MAX: usize = 1000;

/// `POST /v1/sandboxes`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(
    deny_unknown_fields,
    default,
    try_from = "pools::CreateBody",
    into = "pools::CreateBody"
)]
pub struct CreateSandboxRequest {
    /// The name; one is made when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<SandboxName>,
    /// The template that it is made from; what `spec` gives is put over the template's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<SandboxName>,
    /// What it is made from.
    pub spec: SandboxSpec,
    /// What was given of `spec`; with a template this counts, and not `spec`.
    #[serde(skip)]
    pub given: Given,
}

/// One sandbox as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// Its name.
    pub name: SandboxName,
    /// Who owns it: whoever made it.
    pub owner: Principal,
    /// Where it is in its life.
    pub state: SandboxState,
    /// Why it failed, when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What it was made from.
    pub spec: SandboxSpec,
    /// What the host gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted: Option<Granted>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339, of the last change of state.
    pub changed_at: String,
    /// Whether it was made for its owner or ran already.
    #[serde(default)]
    pub origin: Origin,
    /// The template that it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<TemplateUse>,
    /// Why no warm one was taken, when one was looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cold_reason: Option<String>,
}

/// What a sandbox really got, so that nothing is silently weaker than it looks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Granted {
    /// The driver.
    pub driver: String,
    /// The isolation tier.
    pub isolation: IsolationTier,
    /// `range BASE+COUNT`, `shared` or `single`.
    pub ids: String,
    /// Each limit and how it is held, for instance `memory` → `256MiB (cgroup v1)`.
    pub limits: BTreeMap<String, String>,
    /// What is weaker than on the best host, one line each.
    pub notes: Vec<String>,
}

/// `GET /v1/sandboxes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SandboxList {
    /// One page, oldest first.
    pub sandboxes: Vec<Sandbox>,
    /// Pass as `after` for the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<SandboxId>,
}

/// Answer of `DELETE /v1/sandboxes/{id}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Removed {
    /// Where the persist directory is kept on the host, when it was asked for and there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persist: Option<String>,
}

/// `POST /v1/sandboxes/{id}/stop`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct StopRequest {
    /// Milliseconds between the polite and the final signal; 10 s when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
}

/// `POST /v1/sandboxes/{id}/exec` and `/execs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Added to the sandbox's environment.
    pub env: BTreeMap<String, String>,
    /// Directory to start in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// User to run as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Size of the terminal; absent is no terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminal: Option<crate::exec::TerminalSize>,
    /// Keep standard input open.
    pub stdin: bool,
    /// Milliseconds until the process tree is killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Slow the process to its attached reader.
    pub back_pressure: bool,
    /// Answer at once with the exec's id; the daemon's setting when absent.
    #[serde(rename = "async", skip_serializing_if = "Option::is_none")]
    pub asynchronous: Option<bool>,
}

impl From<ExecRequest> for ExecSpec {
    fn from(request: ExecRequest) -> Self {
        Self {
            command: request.command,
            env: request.env,
            workdir: request.workdir,
            user: request.user,
            terminal: request.terminal,
            stdin: request.stdin,
            timeout_ms: request.timeout_ms,
            back_pressure: request.back_pressure,
        }
    }
}

/// One exec as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Exec {
    /// Its id.
    pub exec_id: ExecId,
    /// The sandbox it runs in.
    pub sandbox_id: SandboxId,
    /// Program and arguments.
    pub command: Vec<String>,
    /// RFC 3339.
    pub started_at: String,
    /// RFC 3339, when it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExecExit>,
    /// Sequence number of the last event.
    pub last_seq: u64,
}

/// `GET /v1/sandboxes/{id}/execs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExecList {
    /// One page, oldest first.
    pub execs: Vec<Exec>,
    /// Pass as `after` for the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<ExecId>,
}

/// Answer of a synchronous exec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExecResult {
    /// The exec.
    pub exec_id: ExecId,
    /// Exit code as a shell shows it.
    pub exit_code: i32,
    /// How it ended.
    pub exit: ExecExit,
    /// Standard output, text or base64 as `stdout_encoding` says.
    pub stdout: String,
    /// `base64` when standard output is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout_encoding: Option<String>,
    /// Standard error.
    pub stderr: String,
    /// `base64` when standard error is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_encoding: Option<String>,
    /// Output was longer than the answer holds; read the rest from the stream.
    #[serde(default)]
    pub truncated: bool,
    /// RFC 3339.
    pub started_at: String,
    /// RFC 3339.
    pub ended_at: String,
}

/// `POST /v1/sandboxes/{id}/execs/{exec_id}/signal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SignalRequest {
    /// Signal number.
    pub signal: i32,
    /// Every descendant instead of the process group.
    #[serde(default)]
    pub tree: bool,
}

/// What the agent says of its sandbox, with the field names of its `/metrics`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Metrics {
    /// For people, as in `2m 34s`.
    pub uptime: String,
    /// Seconds since the agent started.
    pub uptime_seconds: u64,
    /// CPU use between two samples in percent of the sandbox's own limit.
    pub cpu_percent: f64,
    /// Memory in use, MiB.
    pub memory_mb: u64,
    /// Memory in use in percent of the limit.
    pub memory_percent: f64,
    /// Free space, MiB.
    pub disk_free_mb: u64,
    /// Used space in percent.
    pub disk_percent: f64,
    /// RFC 3339.
    pub timestamp: String,
    /// The memory limit that the percentage is of, MiB.
    #[serde(default)]
    pub memory_limit_mb: u64,
}

/// One line of the fleet report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReportLine {
    /// The sandbox.
    pub id: SandboxId,
    /// Its name.
    pub name: SandboxName,
    /// Its state.
    pub state: SandboxState,
    /// What its agent said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// Why there are no metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// `GET /v1/report`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Report {
    /// One line for each sandbox that is not stopped.
    pub sandboxes: Vec<ReportLine>,
    /// How pushing to the collector goes; for admins, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<PushReport>,
}

/// `GET /v1/doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DoctorReport {
    /// Everything that was looked at.
    pub findings: Vec<Finding>,
    /// Isolation tiers that this host can give.
    pub tiers: Vec<IsolationTier>,
}

/// `GET /v1/version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Version {
    /// Version of the daemon.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Its state directory.
    pub state_dir: String,
}

/// Metadata of a file inside, as `…/files/stat` and `…/files/list` answer it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileInfo {
    /// Last component.
    pub name: String,
    /// `file`, `directory`, `symlink`, `fifo`, `socket` or `device`.
    pub kind: String,
    /// Bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner inside.
    pub uid: u32,
    /// Group inside.
    pub gid: u32,
    /// Milliseconds since the Unix epoch.
    pub modified_ms: i64,
    /// Where a symbolic link points.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub link_target: String,
}

/// `GET /v1/health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Health {
    /// `ok` whenever there is an answer.
    pub status: String,
}

/// What `GET /v1/sandboxes` is narrowed to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListQuery {
    /// Only these states; empty is every state but `stopped`, or with `all` every state.
    pub states: Vec<SandboxState>,
    /// Stopped sandboxes too.
    pub all: bool,
    /// Instead of these, those that wait in pools; for admins.
    pub warm: bool,
    /// Only sandboxes that carry every one of these labels.
    pub labels: BTreeMap<String, String>,
    /// Only sandboxes after this one: the `next` of the page before.
    pub after: Option<SandboxId>,
    /// Most entries of the page; [`PAGE_ENTRIES_MAX`] when absent.
    pub limit: Option<usize>,
}

/// One line of the answer to a creation that asked for `application/x-ndjson`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum CreateLine {
    /// What is being done, for people.
    Progress(String),
    /// The last line of a creation that succeeded.
    Sandbox(Box<Sandbox>),
    /// The last line of one that failed.
    Error(Box<crate::error::ApiErrorDetail>),
}

/// `GET /v1/sandboxes/{id}/files/list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileList {
    /// One page, by name.
    pub entries: Vec<FileInfo>,
    /// Pass as `after` for the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Answer of `PUT /v1/sandboxes/{id}/files`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileWritten {
    /// Bytes written.
    pub bytes: u64,
}

/// Answer of `PUT /v1/sandboxes/{id}/files/tar`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Unpacked {
    /// Entries unpacked.
    pub entries: u64,
}

/// `POST /v1/sandboxes/{id}/files/mkdir`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MakeDirectoryRequest {
    /// Absolute path inside.
    pub path: String,
    /// Permission bits; 0755 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Make missing parents too, and take one that is there.
    #[serde(default)]
    pub parents: bool,
}

/// `POST /v1/sandboxes/{id}/files/rename`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RenameRequest {
    /// Absolute path inside.
    pub from: String,
    /// Absolute path inside.
    pub to: String,
}

/// Writes a time in milliseconds since the Unix epoch as RFC 3339 in UTC.
pub fn format_time_ms(time_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(time_ms).map_or_else(
        |_| "1970-01-01T00:00:00Z".to_owned(),
        |time| time.to_string(),
    )
}

/// Reads an RFC 3339 time as milliseconds since the Unix epoch.
pub fn parse_time_ms(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>()
        .ok()
        .map(jiff::Timestamp::as_millisecond)
}

/// Returns the present time in milliseconds since the Unix epoch.
pub fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
