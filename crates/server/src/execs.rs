//! Routes about processes inside a sandbox.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use pinfold_engine::{EventReader, ExecFilter};
use pinfold_types::api::{
    Exec, ExecList, ExecRequest, ExecResult, SignalRequest, format_time_ms, now_ms,
};
use pinfold_types::exec::{TerminalSize, encode_output};
use pinfold_types::{ErrorCode, EventKind, ExecExit, ExecId, OutputStream};

use crate::error::ApiError;
use crate::query::Query;
use crate::request::{Asked, ExecTarget, JsonBody, RawBody, Target};
use crate::router::Api;

/// Most bytes of standard output and of standard error, each, in the answer to a synchronous exec;
/// the journal has the rest.
const OUTPUT_BYTES_MAX: usize = 1 << 20;

/// Most bytes of all commands in a page of execs: each may be a megabyte and there may be a thousand.
const LIST_BYTES_MAX: usize = 4 << 20;

/// Runs a program and answers when it has ended, or at once when that was asked for.
///
/// The program goes on when the caller breaks off.
#[utoipa::path(
    post,
    path = "/sandboxes/{id}/exec",
    tag = "execs",
    operation_id = "exec",
    request_body = ExecRequest,
    responses(
        (status = 200, description = "It has ended", body = ExecResult),
        (status = 202, description = "It was started, as `async` asked", body = Exec)
    )
)]
pub(crate) async fn exec(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    JsonBody(request): JsonBody<ExecRequest>,
) -> Result<Response, ApiError> {
    let by_default = api.options.async_default;
    if request.asynchronous.unwrap_or(by_default) {
        let exec = begin(&api, asked, target, request).await?;
        return Ok((StatusCode::ACCEPTED, Json(exec)).into_response());
    }
    if request.stdin {
        return Err(
            ApiError::invalid("`stdin` needs an exec whose id is known while it runs")
                .hint("set `async`, then attach to the exec"),
        );
    }
    let exec = begin(&api, asked.clone(), target.clone(), request).await?;
    let reader = api
        .engine
        .exec_events(&asked.caller, &target, &exec.exec_id, 0, true)
        .await?;
    let gathered = tokio::select! {
        gathered = gather(reader) => gathered?,
        () = api.shutdown.cancelled() => {
            return Err(ApiError::shutting_down()
                .details(serde_json::json!({ "exec_id": exec.exec_id })));
        }
    };
    Ok(Json(gathered.result(exec)).into_response())
}

/// Starts a program and answers with its id.
#[utoipa::path(
    post,
    path = "/sandboxes/{id}/execs",
    tag = "execs",
    operation_id = "startExec",
    request_body = ExecRequest,
    responses(
        (status = 201, description = "It was started", body = Exec)
    )
)]
pub(crate) async fn start(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    JsonBody(request): JsonBody<ExecRequest>,
) -> Result<(StatusCode, Json<Exec>), ApiError> {
    let note = asked.note.clone();
    let exec = begin(&api, asked, target, request).await?;
    note.made(exec.exec_id.as_str());
    Ok((StatusCode::CREATED, Json(exec)))
}

async fn begin(
    api: &Api,
    asked: Asked,
    target: String,
    request: ExecRequest,
) -> Result<Exec, ApiError> {
    let engine = api.engine.clone();
    api.complete(async move {
        engine
            .exec_start(&asked.caller, &target, request.into())
            .await
    })
    .await
}

/// What a program has written, up to the limit.
#[derive(Debug, Default)]
struct Gathered {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    truncated: bool,
    exit: ExecExit,
    ended_ms: i64,
}

/// Reads a journal to its exit.
async fn gather(mut reader: EventReader) -> Result<Gathered, ApiError> {
    let mut gathered = Gathered::default();
    while let Some(event) = reader.next().await {
        let event = event?;
        match event.kind {
            EventKind::Start { .. } => {}
            EventKind::Output { stream, data } => gathered.take(stream, &data),
            EventKind::Dropped { .. } => gathered.truncated = true,
            EventKind::Exit(exit) => {
                gathered.exit = exit;
                gathered.ended_ms = event.time_ms;
                return Ok(gathered);
            }
        }
    }
    Err(ApiError::new(
        ErrorCode::Internal,
        "a journal ended without an exit",
    ))
}

impl Gathered {
    fn take(&mut self, stream: OutputStream, data: &[u8]) {
        let kept = match stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        };
        let room = OUTPUT_BYTES_MAX - kept.len();
        let fitting = data.get(..room).unwrap_or(data);
        kept.extend_from_slice(fitting);
        self.truncated |= fitting.len() < data.len();
    }

    fn result(mut self, exec: Exec) -> ExecResult {
        if self.truncated {
            cut_character(&mut self.stdout);
            cut_character(&mut self.stderr);
        }
        let (stdout, stdout_encoding) = encode_output(&self.stdout);
        let (stderr, stderr_encoding) = encode_output(&self.stderr);
        let ended_ms = if self.ended_ms == 0 {
            now_ms()
        } else {
            self.ended_ms
        };
        ExecResult {
            exec_id: exec.exec_id,
            exit_code: self.exit.shell_code(),
            exit: self.exit,
            stdout,
            stdout_encoding,
            stderr,
            stderr_encoding,
            truncated: self.truncated,
            started_at: exec.started_at,
            ended_at: format_time_ms(ended_ms),
        }
    }
}

/// Takes away the part of a character that truncation left at the end, so that text stays text.
fn cut_character(bytes: &mut Vec<u8>) {
    if let Err(error) = std::str::from_utf8(bytes)
        && error.error_len().is_none()
    {
        bytes.truncate(error.valid_up_to());
    }
}

/// Lists the execs of a sandbox, oldest first.
#[utoipa::path(
    get,
    path = "/sandboxes/{id}/execs",
    tag = "execs",
    operation_id = "listExecs",
    params(
        ("running" = Option<bool>, Query, description = "Only those that run, or only those that have ended"),
        ("after" = Option<ExecId>, Query, description = "The `next` of the page before"),
        ("limit" = Option<u64>, Query, description = "Most entries of the page", minimum = 1, maximum = 1000)
    ),
    responses(
        (status = 200, description = "One page", body = ExecList)
    )
)]
pub(crate) async fn list(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    RawQuery(query): RawQuery,
) -> Result<Json<ExecList>, ApiError> {
    let query = Query::read(query.as_deref(), &["running", "after", "limit"], &[])?;
    let filter = ExecFilter {
        running: query.flag("running")?,
        after: query.parsed("after")?,
        limit: query.page_limit()?,
    };
    let list = api
        .engine
        .exec_page(&asked.caller, &target, &filter)
        .await?;
    Ok(Json(bounded(list)))
}

/// Ends a page before it grows too large; the first entry is always there.
fn bounded(mut list: ExecList) -> ExecList {
    let mut size = 0usize;
    let fitting = list
        .execs
        .iter()
        .take_while(|exec| {
            let words = exec.command.iter().map(|word| word.len() + 8);
            size = size.saturating_add(words.sum());
            size <= LIST_BYTES_MAX
        })
        .count()
        .max(1);
    if fitting < list.execs.len() {
        list.execs.truncate(fitting);
        list.next = list.execs.last().map(|exec| exec.exec_id.clone());
    }
    list
}

/// Forgets an exec with its output; kills it first when it runs.
#[utoipa::path(
    delete,
    path = "/sandboxes/{id}/execs/{exec_id}",
    tag = "execs",
    operation_id = "removeExec",
    responses((status = 204, description = "Nothing of it is left"))
)]
pub(crate) async fn remove(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    ExecTarget(exec_id): ExecTarget,
) -> Result<StatusCode, ApiError> {
    let engine = api.engine.clone();
    api.complete(async move { engine.exec_remove(&asked.caller, &target, &exec_id).await })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Shows an exec.
#[utoipa::path(
    get,
    path = "/sandboxes/{id}/execs/{exec_id}",
    tag = "execs",
    operation_id = "getExec",
    responses(
        (status = 200, description = "The exec", body = Exec)
    )
)]
pub(crate) async fn get(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    ExecTarget(exec_id): ExecTarget,
) -> Result<Json<Exec>, ApiError> {
    let exec = api
        .engine
        .exec_get(&asked.caller, &target, &exec_id)
        .await?;
    Ok(Json(exec))
}

/// Writes to the standard input of an exec.
#[utoipa::path(
    post,
    path = "/sandboxes/{id}/execs/{exec_id}/input",
    tag = "execs",
    operation_id = "writeExecInput",
    params(
        ("end" = Option<bool>, Query, description = "Close it afterwards")
    ),
    request_body(content = [u8], content_type = "application/octet-stream", description = "At most 1 MiB"),
    responses(
        (status = 204, description = "All of it was taken")
    )
)]
#[expect(
    clippy::too_many_arguments,
    reason = "one for each part of the request"
)]
pub(crate) async fn input(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    ExecTarget(exec_id): ExecTarget,
    RawQuery(query): RawQuery,
    RawBody(data): RawBody,
) -> Result<StatusCode, ApiError> {
    let query = Query::read(query.as_deref(), &["end"], &[])?;
    let end = query.flag("end")?.unwrap_or(false);
    api.engine
        .exec_input(&asked.caller, &target, &exec_id, data, end)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tells the terminal of an exec its size.
#[utoipa::path(
    post,
    path = "/sandboxes/{id}/execs/{exec_id}/resize",
    tag = "execs",
    operation_id = "resizeExec",
    request_body = TerminalSize,
    responses(
        (status = 204, description = "It knows")
    )
)]
pub(crate) async fn resize(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    ExecTarget(exec_id): ExecTarget,
    JsonBody(size): JsonBody<TerminalSize>,
) -> Result<StatusCode, ApiError> {
    api.engine
        .exec_resize(&asked.caller, &target, &exec_id, size)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Signals an exec.
#[utoipa::path(
    post,
    path = "/sandboxes/{id}/execs/{exec_id}/signal",
    tag = "execs",
    operation_id = "signalExec",
    request_body = SignalRequest,
    responses(
        (status = 204, description = "It was sent")
    )
)]
pub(crate) async fn signal(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    ExecTarget(exec_id): ExecTarget,
    JsonBody(request): JsonBody<SignalRequest>,
) -> Result<StatusCode, ApiError> {
    api.engine
        .exec_signal(&asked.caller, &target, &exec_id, request)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_before_it_is_too_large() {
        let exec = |length: usize| Exec {
            exec_id: ExecId::new(),
            sandbox_id: pinfold_types::SandboxId::new(),
            command: vec!["x".repeat(length)],
            started_at: String::new(),
            ended_at: None,
            exit: None,
            last_seq: 0,
        };
        let page = |lengths: &[usize]| {
            let execs = lengths.iter().map(|length| exec(*length)).collect();
            bounded(ExecList { execs, next: None })
        };
        let cut = page(&[1, 2, LIST_BYTES_MAX, 3]);
        assert_eq!(cut.execs.len(), 2);
        assert_eq!(cut.next.as_ref(), Some(&cut.execs[1].exec_id));
        assert_eq!(page(&[LIST_BYTES_MAX + 1, 1]).execs.len(), 1);
        let whole = page(&[1, 2]);
        assert_eq!((whole.execs.len(), whole.next), (2, None));
        assert!(page(&[]).execs.is_empty());
    }

    #[test]
    fn output_is_cut_at_its_limit_and_between_characters() {
        let mut gathered = Gathered::default();
        gathered.take(OutputStream::Stdout, &vec![b'a'; OUTPUT_BYTES_MAX - 1]);
        assert!(!gathered.truncated);
        gathered.take(OutputStream::Stdout, "äb".as_bytes());
        gathered.take(OutputStream::Stdout, b"more");
        assert!(gathered.truncated);
        assert_eq!(gathered.stdout.len(), OUTPUT_BYTES_MAX);
        cut_character(&mut gathered.stdout);
        assert_eq!(gathered.stdout.len(), OUTPUT_BYTES_MAX - 1);
        let mut binary = vec![0xff, b'a'];
        cut_character(&mut binary);
        assert_eq!(binary.len(), 2);
    }
}
