//! Routes about files inside a sandbox; content is streamed both ways and never held whole.

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, Request, State};
use axum::http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use pinfold_engine::{AgentClient, WriteFile};
use pinfold_types::ApiErrorBody;
use pinfold_types::api::{
    FileChange, FileInfo, FileList, FileWritten, MakeDirectoryRequest, RenameRequest, Unpacked,
};
use pinfold_types::spec::check_guest_path;
use pinfold_types::weaken::{Defence, is_off};

use crate::body::{self, Upload};
use crate::error::ApiError;
use crate::query::Query;
use crate::request::{Asked, JsonBody, Target};
use crate::router::Api;
use crate::sse;

/// Permission bits of a new directory when none are given.
const DIRECTORY_MODE: u32 = 0o755;

/// What a file's kind is called when its content can be read.
const KIND_FILE: &str = "file";

/// What a file's kind is called when it can be watched.
const KIND_DIRECTORY: &str = "directory";

/// Reads a file, or the part of it that a `Range` header names.
#[utoipa::path(
    get,
    path = "/sandboxes/{id}/files",
    tag = "files",
    operation_id = "readFile",
    params(
        ("path" = String, Query, description = "Absolute path inside, without `..`", pattern = "^/", max_length = 4095),
        ("Range" = Option<String>, Header, description = "One range of bytes, as in `bytes=0-99`")
    ),
    responses(
        (status = 200, description = "The content", body = [u8], content_type = "application/octet-stream"),
        (status = 206, description = "The part", body = [u8], content_type = "application/octet-stream"),
        (status = 416, description = "The range is outside the file", body = ApiErrorBody)
    )
)]
pub(crate) async fn read(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let query = Query::read(query.as_deref(), &["path"], &[])?;
    let path = guest_path(&query)?;
    let agent = agent(&api, &asked, &target).await?;
    let info = agent.stat(path, true).await?;
    if info.kind != KIND_FILE {
        return Err(
            ApiError::invalid(format!("`{path}` is a {}, not a file", info.kind))
                .hint("GET …/files/tar packs directories"),
        );
    }
    let part = requested_part(&headers, info.size)?;
    let chunks = body::first_chunk(agent.read_file(path, part.offset, part.length)).await?;
    let content = body::download(chunks, asked.request_id);
    Ok(part.response(content, info.size))
}

/// Which part of a file an answer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    offset: u64,
    /// 0 is to the end, wherever that is: files of `/proc` say that they are empty.
    length: u64,
    /// It is less than the whole.
    partial: bool,
}

impl Part {
    fn response(self, content: Body, size: u64) -> Response {
        let mut response = Response::new(content);
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        // With a length, HTTP itself counts too.
        if self.length > 0 && !is_off(Defence::ByteCounts) {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(self.length));
        }
        if self.partial {
            let last = self.offset + self.length - 1;
            if let Ok(range) = HeaderValue::try_from(format!("bytes {}-{last}/{size}", self.offset))
            {
                headers.insert(CONTENT_RANGE, range);
            }
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        response
    }
}

/// Reads a `Range` header. What is not one range of bytes is ignored, as HTTP has it.
fn requested_part(headers: &HeaderMap, size: u64) -> Result<Part, ApiError> {
    let whole = Part {
        offset: 0,
        length: size,
        partial: false,
    };
    let range = headers
        .get(RANGE)
        .and_then(|range| range.to_str().ok()?.trim().strip_prefix("bytes="))
        .and_then(|range| range.split_once('-'));
    let Some((first, last)) = range else {
        return Ok(whole);
    };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let (offset, end) = match (first.trim().is_empty(), last.trim().is_empty()) {
        (false, true) => (number(first), Some(size)),
        (false, false) => (number(first), number(last).map(|l| l.saturating_add(1))),
        (true, false) => (number(last).map(|n| size.saturating_sub(n)), Some(size)),
        (true, true) => (None, None),
    };
    let (Some(offset), Some(end)) = (offset, end) else {
        return Ok(whole);
    };
    let end = end.min(size);
    if offset >= end {
        return Err(
            ApiError::invalid(format!("the range is outside the file's {size} bytes"))
                .status(StatusCode::RANGE_NOT_SATISFIABLE)
                .details(serde_json::json!({ "size": size })),
        );
    }
    Ok(Part {
        offset,
        length: end - offset,
        partial: true,
    })
}

/// Writes a file from the body. It is replaced once all has arrived; with `offset` it is written in place.
#[utoipa::path(
    put,
    path = "/sandboxes/{id}/files",
    tag = "files",
    operation_id = "writeFile",
    params(
        ("path" = String, Query, description = "Absolute path inside, without `..`", pattern = "^/", max_length = 4095),
        ("mode" = Option<String>, Query, description = "Permission bits, octal", pattern = "^[0-7]{1,4}$"),
        ("user" = Option<String>, Query, description = "User inside who owns it; root when absent"),
        ("parents" = Option<bool>, Query, description = "Make missing directories above it"),
        ("offset" = Option<u64>, Query, description = "Where to write, in place")
    ),
    request_body(content = [u8], content_type = "application/octet-stream"),
    responses(
        (status = 200, description = "All of it is written", body = FileWritten)
    )
)]
pub(crate) async fn write(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Json<FileWritten>, ApiError> {
    let mut body = request.into_body();
    let prepared = async {
        let file = file_to_write(query.as_deref())?;
        Ok::<_, ApiError>((file, agent(&api, &asked, &target).await?))
    };
    let (file, agent) = match prepared.await {
        Ok(prepared) => prepared,
        Err(error) => {
            body::discard(&mut body).await;
            return Err(error);
        }
    };
    let (upload, content) = Upload::new(body);
    let (written, ()) = tokio::join!(agent.write_file(file, content), upload.pump());
    Ok(Json(FileWritten { bytes: written? }))
}

fn file_to_write(query: Option<&str>) -> Result<WriteFile, ApiError> {
    let known = ["path", "mode", "user", "parents", "offset"];
    let query = Query::read(query, &known, &[])?;
    let offset: Option<u64> = query.parsed("offset")?;
    Ok(WriteFile {
        path: guest_path(&query)?.to_owned(),
        mode: query.octal("mode")?.unwrap_or(0),
        in_place: offset.is_some(),
        offset: offset.unwrap_or(0),
        user: query.get("user").unwrap_or_default().to_owned(),
        make_parents: query.flag("parents")?.unwrap_or(false),
    })
}

/// Removes a file or a directory.
#[utoipa::path(
    delete,
    path = "/sandboxes/{id}/files",
    tag = "files",
    operation_id = "removeFile",
    params(
        ("path" = String, Query, description = "Absolute path inside, without `..`", pattern = "^/", max_length = 4095),
        ("recursive" = Option<bool>, Query, description = "With all that is in it"),
        ("missing_ok" = Option<bool>, Query, description = "It need not be there")
    ),
    responses(
        (status = 204, description = "It is gone")
    )
)]
pub(crate) async fn remove(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    RawQuery(query): RawQuery,
) -> Result<StatusCode, ApiError> {
    let query = Query::read(query.as_deref(), &["path", "recursive", "missing_ok"], &[])?;
    let path = guest_path(&query)?;
    let recursive = query.flag("recursive")?.unwrap_or(false);
    let missing_ok = query.flag("missing_ok")?.unwrap_or(false);
    let agent = agent(&api, &asked, &target).await?;
    agent.remove(path, recursive, missing_ok).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tells what a path is.
#[utoipa::path(
    get,
    path = "/sandboxes/{id}/files/stat",
    tag = "files",
    operation_id = "statFile",
    params(
        ("path" = String, Query, description = "Absolute path inside, without `..`", pattern = "^/", max_length = 4095),
        ("follow" = Option<bool>, Query, description = "Follow a symbolic link")
    ),
    responses(
        (status = 200, description = "What it is", body = FileInfo)
    )
)]
pub(crate) async fn stat(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    RawQuery(query): RawQuery,
) -> Result<Json<FileInfo>, ApiError> {
    let query = Query::read(query.as_deref(), &["path", "follow"], &[])?;
    let path = guest_path(&query)?;
    let follow = query.flag("follow")?.unwrap_or(false);
    let agent = agent(&api, &asked, &target).await?;
    Ok(Json(agent.stat(path, follow).await?))
}

/// Lists a directory by name.
#[utoipa::path(
    get,
    path = "/sandboxes/{id}/files/list",
    tag = "files",
    operation_id = "listFiles",
    params(
        ("path" = String, Query, description = "Absolute path inside, without `..`", pattern = "^/", max_length = 4095),
        ("after" = Option<String>, Query, description = "The `next` of the page before"),
        ("limit" = Option<u64>, Query, description = "Most entries of the page", minimum = 1, maximum = 1000)
    ),
    responses(
        (status = 200, description = "One page", body = FileList)
    )
)]
pub(crate) async fn list(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    RawQuery(query): RawQuery,
) -> Result<Json<FileList>, ApiError> {
    let query = Query::read(query.as_deref(), &["path", "after", "limit"], &[])?;
    let path = guest_path(&query)?;
    let limit = u32::try_from(query.page_limit()?).unwrap_or(u32::MAX);
    let agent = agent(&api, &asked, &target).await?;
    let after = query.get("after").unwrap_or_default();
    let (entries, more) = agent.list_directory(path, after, limit).await?;
    let next = match entries.last() {
        Some(last) if more => Some(last.name.clone()),
        _ => None,
    };
    Ok(Json(FileList { entries, next }))
}

/// Makes a directory.
#[utoipa::path(
    post,
    path = "/sandboxes/{id}/files/mkdir",
    tag = "files",
    operation_id = "makeDirectory",
    request_body = MakeDirectoryRequest,
    responses(
        (status = 204, description = "It is there")
    )
)]
pub(crate) async fn make_directory(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    JsonBody(request): JsonBody<MakeDirectoryRequest>,
) -> Result<StatusCode, ApiError> {
    check(&request.path)?;
    let agent = agent(&api, &asked, &target).await?;
    let mode = request.mode.unwrap_or(DIRECTORY_MODE);
    agent
        .make_directory(&request.path, mode, request.parents)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Moves a file or a directory.
#[utoipa::path(
    post,
    path = "/sandboxes/{id}/files/rename",
    tag = "files",
    operation_id = "renameFile",
    request_body = RenameRequest,
    responses(
        (status = 204, description = "It has moved")
    )
)]
pub(crate) async fn rename(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    JsonBody(request): JsonBody<RenameRequest>,
) -> Result<StatusCode, ApiError> {
    check(&request.from)?;
    check(&request.to)?;
    let agent = agent(&api, &asked, &target).await?;
    agent.rename(&request.from, &request.to).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Packs a path as a tar archive.
#[utoipa::path(
    get,
    path = "/sandboxes/{id}/files/tar",
    tag = "files",
    operation_id = "packFiles",
    params(
        ("path" = String, Query, description = "Absolute path inside, without `..`", pattern = "^/", max_length = 4095)
    ),
    responses(
        (status = 200, description = "The archive", body = [u8], content_type = "application/x-tar")
    )
)]
pub(crate) async fn pack(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let query = Query::read(query.as_deref(), &["path"], &[])?;
    let path = guest_path(&query)?;
    let agent = agent(&api, &asked, &target).await?;
    let chunks = body::first_chunk(agent.pack(path)).await?;
    let mut response = Response::new(body::download(chunks, asked.request_id));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    Ok(response)
}

/// Unpacks a tar archive beneath a directory.
#[utoipa::path(
    put,
    path = "/sandboxes/{id}/files/tar",
    tag = "files",
    operation_id = "unpackFiles",
    params(
        ("path" = String, Query, description = "Absolute path inside, without `..`", pattern = "^/", max_length = 4095),
        ("user" = Option<String>, Query, description = "User inside who owns it; root when absent")
    ),
    request_body(content = [u8], content_type = "application/x-tar"),
    responses(
        (status = 200, description = "It is unpacked", body = Unpacked)
    )
)]
pub(crate) async fn unpack(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Json<Unpacked>, ApiError> {
    let mut body = request.into_body();
    let prepared = async {
        let query = Query::read(query.as_deref(), &["path", "user"], &[])?;
        let directory = guest_path(&query)?.to_owned();
        let user = query.get("user").unwrap_or_default().to_owned();
        let agent = agent(&api, &asked, &target).await?;
        Ok::<_, ApiError>((directory, user, agent))
    };
    let (directory, user, agent) = match prepared.await {
        Ok(prepared) => prepared,
        Err(error) => {
            body::discard(&mut body).await;
            return Err(error);
        }
    };
    let (upload, archive) = Upload::new(body);
    let (entries, ()) = tokio::join!(agent.unpack(&directory, &user, archive), upload.pump());
    Ok(Json(Unpacked { entries: entries? }))
}

/// Tells changes to a directory as server-sent events, as the kernel tells them.
///
/// What changes after the answer has begun is seen.
#[utoipa::path(
    get,
    path = "/sandboxes/{id}/files/watch",
    tag = "files",
    operation_id = "watchFiles",
    params(
        ("path" = String, Query, description = "Absolute path inside, without `..`", pattern = "^/", max_length = 4095),
        ("recursive" = Option<bool>, Query, description = "What is beneath it too")
    ),
    responses((status = 200, description = "Changes until the reader leaves", body = FileChange, content_type = "text/event-stream"))
)]
pub(crate) async fn watch(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let query = Query::read(query.as_deref(), &["path", "recursive"], &[])?;
    let path = guest_path(&query)?;
    let recursive = query.flag("recursive")?.unwrap_or(false);
    let agent = agent(&api, &asked, &target).await?;
    let info = agent.stat(path, true).await?;
    if info.kind != KIND_DIRECTORY {
        return Err(
            ApiError::invalid(format!("`{path}` is a {}, not a directory", info.kind))
                .hint("watch the directory that it is in"),
        );
    }
    let changes = agent.open_watch(path, recursive).await?;
    Ok(sse::watch(&api, asked.request_id, changes))
}

async fn agent(api: &Api, asked: &Asked, target: &str) -> Result<AgentClient, ApiError> {
    Ok(api.engine.files(&asked.caller, target).await?)
}

fn guest_path(query: &Query) -> Result<&str, ApiError> {
    let path = query.required("path")?;
    check(path)?;
    Ok(path)
}

fn check(path: &str) -> Result<(), ApiError> {
    check_guest_path(path).map_err(ApiError::invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(range: &str, size: u64) -> Result<Part, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, HeaderValue::try_from(range).unwrap());
        requested_part(&headers, size)
    }

    #[test]
    fn ranges_name_a_part_of_the_file() {
        for (range, offset, length) in [
            ("bytes=0-0", 0, 1),
            ("bytes=2-", 2, 8),
            ("bytes=2-4", 2, 3),
            ("bytes=2-99", 2, 8),
            ("bytes=-3", 7, 3),
            ("bytes=-99", 0, 10),
            ("bytes=0-18446744073709551615", 0, 10),
        ] {
            let found = part(range, 10).unwrap();
            assert_eq!((found.offset, found.length), (offset, length), "{range}");
            assert!(found.partial);
        }
    }

    #[test]
    fn what_is_no_range_is_ignored_and_what_is_outside_refused() {
        for range in ["lines=1-2", "bytes=a-b", "bytes=-", "bytes=0-1,3-4", "x"] {
            let found = part(range, 10).unwrap();
            assert!(!found.partial && found.length == 10, "{range}");
        }
        for (range, size) in [
            ("bytes=10-", 10),
            ("bytes=5-4", 10),
            ("bytes=-0", 10),
            ("bytes=0-", 0),
        ] {
            assert!(part(range, size).is_err(), "{range}");
        }
    }

    #[test]
    fn hostile_paths_never_reach_the_agent() {
        for bad in [
            "path=a",
            "path=/a/../b",
            "path=/%00",
            "path=",
            "mode=8&path=/a",
        ] {
            assert!(file_to_write(Some(bad)).is_err(), "{bad}");
        }
        let file = file_to_write(Some("path=/a&mode=755&offset=0")).unwrap();
        assert_eq!((file.mode, file.in_place), (0o755, true));
    }
}
