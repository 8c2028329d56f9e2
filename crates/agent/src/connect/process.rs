//! Execs.

use std::sync::Arc;

use bytes::Bytes;
use connectrpc::{
    ConnectError, ErrorCode, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use futures::stream;
use pinfold_agent_api::v1;
use pinfold_agent_api::v1::{
    AcknowledgeRequest, AcknowledgeResponse, ExecInfo, ForgetRequest, ForgetResponse, InputRequest,
    InputResponse, ListRequest, ListResponse, ProcessService, ReadRequest, ResizeRequest,
    ResizeResponse, SignalRequest, SignalResponse, StartResponse, StreamName,
};
use pinfold_types::error::{ErrorChain, ErrorCode as PublicCode};
use pinfold_types::exec::{ExecExit, OutputStream, TerminalSize};

use super::{Service, failed};
use crate::journal::{Event, EventKind, Found};
use crate::process::{Exec, ExecError, INPUT_BYTES_MAX, StartError, StartRequest};

fn start_failed(error: &StartError) -> ConnectError {
    let public = error.code();
    let code = match public {
        PublicCode::InvalidArgument => ErrorCode::InvalidArgument,
        PublicCode::UnknownUser
        | PublicCode::CommandNotFound
        | PublicCode::CommandNotExecutable
        | PublicCode::DirectoryNotFound
        | PublicCode::NeedsSubids => ErrorCode::FailedPrecondition,
        PublicCode::LimitExceeded => ErrorCode::ResourceExhausted,
        _ => ErrorCode::Internal,
    };
    // The prefix carries the public code, which Connect's own codes are too coarse for.
    ConnectError::new(code, format!("code={public}; {}", ErrorChain(error)))
}

fn exec_failed(error: &ExecError) -> ConnectError {
    let code = match error {
        ExecError::Unknown(_) => ErrorCode::NotFound,
        ExecError::Running
        | ExecError::Ended
        | ExecError::NoInput
        | ExecError::InputClosed
        | ExecError::NoTerminal => ErrorCode::FailedPrecondition,
        ExecError::InputTooLong | ExecError::NoSignal(_) | ExecError::NoSize => {
            ErrorCode::InvalidArgument
        }
        ExecError::Kernel(..) => ErrorCode::Internal,
    };
    failed(code, error)
}

/// Sizes beyond what a terminal can have are refused as a size of nothing is.
fn size(columns: u32, rows: u32) -> TerminalSize {
    TerminalSize {
        columns: u16::try_from(columns).unwrap_or(0),
        rows: u16::try_from(rows).unwrap_or(0),
    }
}

fn start_request(request: v1::StartRequest) -> StartRequest {
    let environment = request.environment.into_iter();
    let limits = request.limits.into_iter();
    StartRequest {
        id: request.exec_id,
        arguments: request.arguments,
        environment: environment
            .map(|variable| (variable.name, variable.value))
            .collect(),
        directory: request.working_directory,
        user: request.user,
        terminal: request
            .terminal
            .as_option()
            .map(|terminal| size(terminal.columns, terminal.rows)),
        input: request.standard_input,
        timeout_ms: request.timeout_ms,
        limits: limits
            .map(|limit| (limit.name, limit.soft, limit.hard))
            .collect(),
        tag: request.tag,
    }
}

impl ProcessService for Service {
    async fn start(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::StartRequest>,
    ) -> ServiceResult<StartResponse> {
        let request = start_request(request.to_owned_message());
        let started = self.0.table.start(request);
        let pid = started.map_err(|error| start_failed(&error))?;
        Response::ok(StartResponse {
            pid,
            ..StartResponse::default()
        })
    }

    async fn read(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, ReadRequest>,
    ) -> ServiceResult<ServiceStream<v1::Event>> {
        let exec = self.exec(request.exec_id)?;
        let (next, follow) = (request.from_sequence.max(1), request.follow);
        let grown = exec.journal().grown();
        let events = stream::unfold(
            (exec, next, grown),
            move |(exec, mut next, mut grown)| async move {
                loop {
                    // Seen before looking, so that what is added after looking wakes this up.
                    grown.mark_unchanged();
                    let event = match exec.journal().find(next) {
                        Found::Event(event) => {
                            next += 1;
                            message(event)
                        }
                        Found::Dropped(first) => {
                            let event = dropped(next, first);
                            next = first;
                            event
                        }
                        Found::Nothing if follow => {
                            grown.changed().await.ok()?;
                            continue;
                        }
                        Found::Nothing | Found::End => return None,
                    };
                    return Some((Ok(event), (exec, next, grown)));
                }
            },
        );
        Response::stream_ok(events)
    }

    async fn acknowledge(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, AcknowledgeRequest>,
    ) -> ServiceResult<AcknowledgeResponse> {
        self.0
            .table
            .acknowledge(request.exec_id, request.sequence)
            .map_err(|error| exec_failed(&error))?;
        Response::ok(AcknowledgeResponse::default())
    }

    async fn input(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, InputRequest>,
    ) -> ServiceResult<InputResponse> {
        let exec = self.exec(request.exec_id)?;
        if request.data.len() > INPUT_BYTES_MAX {
            return Err(exec_failed(&ExecError::InputTooLong));
        }
        let data = Bytes::copy_from_slice(request.data);
        exec.input(data, request.end)
            .await
            .map_err(|error| exec_failed(&error))?;
        Response::ok(InputResponse::default())
    }

    async fn resize(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, ResizeRequest>,
    ) -> ServiceResult<ResizeResponse> {
        let exec = self.exec(request.exec_id)?;
        let size = size(request.size.columns, request.size.rows);
        exec.resize(size.columns, size.rows)
            .map_err(|error| exec_failed(&error))?;
        Response::ok(ResizeResponse::default())
    }

    async fn signal(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, SignalRequest>,
    ) -> ServiceResult<SignalResponse> {
        let exec = self.exec(request.exec_id)?;
        let sent = if request.tree {
            exec.signal_tree(request.signal).map(drop)
        } else {
            exec.signal(request.signal)
        };
        sent.map_err(|error| exec_failed(&error))?;
        Response::ok(SignalResponse::default())
    }

    async fn list(
        &self,
        _context: RequestContext,
        _request: ServiceRequest<'_, ListRequest>,
    ) -> ServiceResult<ListResponse> {
        let execs = self.0.table.list();
        Response::ok(ListResponse {
            execs: execs.iter().map(|exec| info(exec)).collect(),
            ..ListResponse::default()
        })
    }

    async fn forget(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, ForgetRequest>,
    ) -> ServiceResult<ForgetResponse> {
        self.0
            .table
            .forget(request.exec_id)
            .map_err(|error| exec_failed(&error))?;
        Response::ok(ForgetResponse::default())
    }
}

impl Service {
    fn exec(&self, id: &str) -> Result<Arc<Exec>, ConnectError> {
        self.0.table.get(id).map_err(|error| exec_failed(&error))
    }
}

fn info(exec: &Exec) -> ExecInfo {
    let (first_sequence, last_sequence) = exec.journal().range();
    ExecInfo {
        exec_id: exec.id().to_owned(),
        tag: exec.tag().to_owned(),
        pid: exec.pid(),
        running: exec.is_running(),
        first_sequence,
        last_sequence,
        arguments: exec.arguments().to_vec(),
        ..ExecInfo::default()
    }
}

fn dropped(sequence: u64, first_kept: u64) -> v1::Event {
    let dropped = v1::Dropped {
        first_kept,
        ..v1::Dropped::default()
    };
    v1::Event {
        sequence,
        kind: dropped.into(),
        ..v1::Event::default()
    }
}

fn message(event: Event) -> v1::Event {
    v1::Event {
        sequence: event.sequence,
        time_ms: event.time_ms,
        kind: match event.kind {
            EventKind::Started(pid) => v1::Started {
                pid,
                ..v1::Started::default()
            }
            .into(),
            EventKind::Output(stream, data) => v1::Output {
                stream: match stream {
                    OutputStream::Stdout => StreamName::STREAM_NAME_STDOUT,
                    OutputStream::Stderr => StreamName::STREAM_NAME_STDERR,
                }
                .into(),
                data: data.into(),
                ..v1::Output::default()
            }
            .into(),
            EventKind::Exited(exit) => exited(&exit).into(),
        },
        ..v1::Event::default()
    }
}

fn exited(exit: &ExecExit) -> v1::Exited {
    v1::Exited {
        code: exit.code,
        signal: exit.signal,
        timed_out: exit.timed_out,
        out_of_memory: exit.out_of_memory,
        r#use: v1::ResourceUse {
            user_time_us: exit.user_time_us,
            system_time_us: exit.system_time_us,
            memory_max_bytes: exit.memory_max_bytes,
            ..v1::ResourceUse::default()
        }
        .into(),
        ..v1::Exited::default()
    }
}
