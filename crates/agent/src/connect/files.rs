//! Files.

use std::io;

use bytes::Bytes;
use connectrpc::{
    ConnectError, ErrorCode, InboundStream, RequestContext, Response, ServiceRequest,
    ServiceResult, ServiceStream, StreamMessage,
};
use futures::{StreamExt as _, stream};
use pinfold_agent_api::v1::{
    Chunk, FileInfo, FileKind, FileService, ListDirectoryRequest, ListDirectoryResponse,
    MakeDirectoryRequest, MakeDirectoryResponse, PackRequest, ReadFileRequest, RemoveRequest,
    RemoveResponse, RenameRequest, RenameResponse, StatRequest, StatResponse, UnpackRequest,
    UnpackResponse, WatchEvent, WatchRequest, WriteFileRequest, WriteFileResponse,
};
use pinfold_types::error::ErrorChain;
use rustix::fs::FileType;
use tokio::sync::mpsc;

use super::{Service, failed};
use crate::files::{FileError, Files, Info, WriteRequest};
use crate::watch::Watch;
use crate::worker::{Feed, WorkerError};

fn file_failed(error: &FileError) -> ConnectError {
    let code = match error {
        FileError::At { source, .. } => io_code(source),
        FileError::User(_) => ErrorCode::InvalidArgument,
        FileError::Worker(error) => worker_code(error),
    };
    failed(code, error)
}

fn worker_code(error: &WorkerError) -> ErrorCode {
    match error {
        WorkerError::Busy | WorkerError::NoThread(_) => ErrorCode::ResourceExhausted,
        WorkerError::Broken => ErrorCode::Internal,
    }
}

fn worker_failed(error: &WorkerError) -> ConnectError {
    ConnectError::new(worker_code(error), ErrorChain(error).to_string())
}

fn io_code(error: &io::Error) -> ErrorCode {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::NotFound => ErrorCode::NotFound,
        Kind::AlreadyExists => ErrorCode::AlreadyExists,
        Kind::PermissionDenied | Kind::ReadOnlyFilesystem => ErrorCode::PermissionDenied,
        Kind::InvalidInput | Kind::InvalidData | Kind::InvalidFilename | Kind::Unsupported => {
            ErrorCode::InvalidArgument
        }
        Kind::StorageFull
        | Kind::QuotaExceeded
        | Kind::FileTooLarge
        | Kind::OutOfMemory
        | Kind::TooManyLinks => ErrorCode::ResourceExhausted,
        Kind::UnexpectedEof | Kind::BrokenPipe => ErrorCode::Aborted,
        _ => match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::EAGAIN) => ErrorCode::ResourceExhausted,
            Some(libc::EIO) | None => ErrorCode::Internal,
            // Not a directory, is one, not empty, busy, across file systems, a loop.
            Some(_) => ErrorCode::FailedPrecondition,
        },
    }
}

fn message(info: Info) -> FileInfo {
    FileInfo {
        name: info.name,
        kind: match info.kind {
            FileType::RegularFile => FileKind::FILE_KIND_FILE,
            FileType::Directory => FileKind::FILE_KIND_DIRECTORY,
            FileType::Symlink => FileKind::FILE_KIND_SYMLINK,
            FileType::Fifo => FileKind::FILE_KIND_FIFO,
            FileType::Socket => FileKind::FILE_KIND_SOCKET,
            FileType::CharacterDevice | FileType::BlockDevice => FileKind::FILE_KIND_DEVICE,
            FileType::Unknown => FileKind::FILE_KIND_UNSPECIFIED,
        }
        .into(),
        size: info.size,
        mode: info.mode,
        uid: info.uid,
        gid: info.gid,
        modified_ms: info.modified_ms,
        link_target: info.link_target,
        ..FileInfo::default()
    }
}

type Chunks = mpsc::Receiver<Result<Bytes, FileError>>;

fn chunks(started: Result<Chunks, WorkerError>) -> ServiceResult<ServiceStream<Chunk>> {
    let receiver = started.map_err(|error| worker_failed(&error))?;
    let chunks = stream::unfold(receiver, |mut receiver| async move {
        let chunk = match receiver.recv().await? {
            Ok(data) => Ok(Chunk {
                data: data.into(),
                ..Chunk::default()
            }),
            Err(error) => Err(file_failed(&error)),
        };
        Some((chunk, receiver))
    });
    Response::stream_ok(chunks)
}

/// Feeds the data of the messages to an operation, and returns what that answers.
async fn feed<M, T>(
    feed: Feed<Result<T, FileError>>,
    (first, rest): (Bytes, InboundStream<M>),
    data: impl Fn(&StreamMessage<M>) -> Bytes,
) -> Result<T, ConnectError>
where
    M: connectrpc::HasMessageView,
{
    let mut rest = rest;
    let mut wanted = first.is_empty() || feed.send(first).await;
    while let (true, Some(message)) = (wanted, rest.next().await) {
        let chunk = data(&message?);
        wanted = chunk.is_empty() || feed.send(chunk).await;
    }
    feed.finish()
        .await
        .map_err(|error| worker_failed(&error))?
        .map_err(|error| file_failed(&error))
}

fn nothing_came() -> ConnectError {
    ConnectError::invalid_argument("the first message, which names the file, did not come")
}

impl Service {
    async fn on_files<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Files) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, ConnectError> {
        let files = self.0.files.clone();
        let done = self.0.workers.run(move || work(&files)).await;
        done.map_err(|error| worker_failed(&error))?
            .map_err(|error| file_failed(&error))
    }
}

impl FileService for Service {
    async fn stat(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, StatRequest>,
    ) -> ServiceResult<StatResponse> {
        let (path, follow) = (request.path.to_owned(), request.follow);
        let info = self
            .on_files(move |files| files.stat(&path, follow))
            .await?;
        Response::ok(StatResponse {
            info: message(info).into(),
            ..StatResponse::default()
        })
    }

    async fn list_directory(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, ListDirectoryRequest>,
    ) -> ServiceResult<ListDirectoryResponse> {
        let (path, after) = (request.path.to_owned(), request.after.to_owned());
        let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
        let page = self
            .on_files(move |files| files.list(&path, &after, limit))
            .await?;
        Response::ok(ListDirectoryResponse {
            entries: page.entries.into_iter().map(message).collect(),
            more: page.more,
            ..ListDirectoryResponse::default()
        })
    }

    async fn read_file(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, ReadFileRequest>,
    ) -> ServiceResult<ServiceStream<Chunk>> {
        let (files, path) = (self.0.files.clone(), request.path.to_owned());
        let range = (request.offset, request.length);
        chunks(
            self.0
                .workers
                .produce(move |output| files.read(&path, range, output)),
        )
    }

    async fn write_file(
        &self,
        _context: RequestContext,
        requests: InboundStream<WriteFileRequest>,
    ) -> ServiceResult<WriteFileResponse> {
        let mut requests = requests;
        let first = requests.next().await.ok_or_else(nothing_came)??;
        let view = first.view();
        let request = WriteRequest {
            path: view.path.to_owned(),
            mode: view.mode,
            in_place: view.in_place,
            offset: view.offset,
            user: view.user.to_owned(),
            make_parents: view.make_parents,
        };
        let data =
            |message: &StreamMessage<WriteFileRequest>| Bytes::copy_from_slice(message.view().data);
        let files = self.0.files.clone();
        let writer = self
            .0
            .workers
            .consume(move |incoming| files.write(&request, || incoming.next()))
            .map_err(|error| worker_failed(&error))?;
        let written = feed(writer, (data(&first), requests), data).await?;
        Response::ok(WriteFileResponse {
            written,
            ..WriteFileResponse::default()
        })
    }

    async fn make_directory(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, MakeDirectoryRequest>,
    ) -> ServiceResult<MakeDirectoryResponse> {
        let path = request.path.to_owned();
        let (mode, parents) = (request.mode, request.parents);
        self.on_files(move |files| files.make_directory(&path, mode, parents))
            .await?;
        Response::ok(MakeDirectoryResponse::default())
    }

    async fn rename(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, RenameRequest>,
    ) -> ServiceResult<RenameResponse> {
        let (from, to) = (request.from.to_owned(), request.to.to_owned());
        self.on_files(move |files| files.rename(&from, &to)).await?;
        Response::ok(RenameResponse::default())
    }

    async fn remove(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, RemoveRequest>,
    ) -> ServiceResult<RemoveResponse> {
        let path = request.path.to_owned();
        let (recursive, missing_ok) = (request.recursive, request.missing_ok);
        self.on_files(move |files| files.remove(&path, recursive, missing_ok))
            .await?;
        Response::ok(RemoveResponse::default())
    }

    async fn watch(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, WatchRequest>,
    ) -> ServiceResult<ServiceStream<WatchEvent>> {
        let watch = Watch::new(&self.0.files, request.path, request.recursive)
            .map_err(|error| file_failed(&error))?;
        let events = stream::unfold(watch, |mut watch| async move {
            let event = match watch.next().await {
                Ok(event) => Ok(WatchEvent {
                    directory: event.directory,
                    name: event.name,
                    mask: event.mask,
                    cookie: event.cookie,
                    ..WatchEvent::default()
                }),
                Err(error) => Err(failed(io_code(&error), &error)),
            };
            Some((event, watch))
        });
        Response::stream_ok(events)
    }

    async fn pack(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, PackRequest>,
    ) -> ServiceResult<ServiceStream<Chunk>> {
        let (files, path) = (self.0.files.clone(), request.path.to_owned());
        chunks(
            self.0
                .workers
                .produce(move |output| files.pack(&path, output)),
        )
    }

    async fn unpack(
        &self,
        _context: RequestContext,
        requests: InboundStream<UnpackRequest>,
    ) -> ServiceResult<UnpackResponse> {
        let mut requests = requests;
        let first = requests.next().await.ok_or_else(nothing_came)??;
        let view = first.view();
        let (directory, user) = (view.directory.to_owned(), view.user.to_owned());
        let data =
            |message: &StreamMessage<UnpackRequest>| Bytes::copy_from_slice(message.view().data);
        let files = self.0.files.clone();
        let unpacker = self
            .0
            .workers
            .consume(move |incoming| files.unpack(&directory, &user, incoming))
            .map_err(|error| worker_failed(&error))?;
        let entries = feed(unpacker, (data(&first), requests), data).await?;
        Response::ok(UnpackResponse {
            entries,
            ..UnpackResponse::default()
        })
    }
}
