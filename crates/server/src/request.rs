//! What handlers take out of a request.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::header::CONTENT_LENGTH;
use axum::http::request::Parts;
use pinfold_engine::Caller;
use pinfold_types::id::{RequestId, looks_like_id};
use pinfold_types::weaken::{Defence, is_off};
use pinfold_types::{ErrorCode, ExecId, KeyId, SandboxName};
use serde::de::DeserializeOwned;

use crate::audit::Note;
use crate::body;
use crate::error::ApiError;
use crate::router::Api;

/// Largest JSON of a request: both halves of what `execve` takes, escaped, and room for the rest.
pub(crate) const JSON_BYTES_MAX: usize = 4 << 20;

/// What a test that leaves that bound out has instead: it must not take all memory.
const JSON_BYTES_WEAKENED: usize = 1 << 30;

/// Who asks, and the id of what they ask.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) caller: Caller,
    pub(crate) request_id: RequestId,
    /// What is written of it.
    pub(crate) note: Note,
}

impl FromRequestParts<Api> for Asked {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Result<Self, ApiError> {
        let missing = || ApiError::new(ErrorCode::Internal, "a request without its caller");
        let caller = parts.extensions.get::<Caller>().ok_or_else(missing)?;
        let request_id = parts.extensions.get::<RequestId>().ok_or_else(missing)?;
        Ok(Self {
            caller: caller.clone(),
            request_id: request_id.clone(),
            note: parts.extensions.get::<Note>().cloned().unwrap_or_default(),
        })
    }
}

/// The sandbox that a path names.
#[derive(Debug)]
pub(crate) struct Target(pub(crate) String);

impl FromRequestParts<Api> for Target {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let text = path_part(parts, api, "id").await?;
        if !looks_like_id(&text) {
            text.parse::<SandboxName>()
                .map_err(|error| ApiError::invalid(error.to_string()))?;
        }
        Ok(Self(text))
    }
}

/// The exec that a path names.
#[derive(Debug)]
pub(crate) struct ExecTarget(pub(crate) ExecId);

impl FromRequestParts<Api> for ExecTarget {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let text = path_part(parts, api, "exec_id").await?;
        text.parse()
            .map(Self)
            .map_err(|error: pinfold_types::id::IdError| ApiError::invalid(error.to_string()))
    }
}

/// The template or pool that a path names.
#[derive(Debug)]
pub(crate) struct Named(pub(crate) SandboxName);

impl FromRequestParts<Api> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let text = path_part(parts, api, "name").await?;
        text.parse()
            .map(Self)
            .map_err(|error: pinfold_types::name::NameError| ApiError::invalid(error.to_string()))
    }
}

/// The key that a path names.
#[derive(Debug)]
pub(crate) struct KeyTarget(pub(crate) KeyId);

impl FromRequestParts<Api> for KeyTarget {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let text = path_part(parts, api, "key_id").await?;
        text.parse()
            .map(Self)
            .map_err(|error: pinfold_types::id::IdError| ApiError::invalid(error.to_string()))
    }
}

async fn path_part(parts: &mut Parts, api: &Api, name: &str) -> Result<String, ApiError> {
    let path = RawPathParams::from_request_parts(parts, api)
        .await
        .map_err(|_| ApiError::invalid("the path is not UTF-8"))?;
    path.iter()
        .find(|(known, _)| *known == name)
        .map(|(_, value)| value.to_owned())
        .ok_or_else(|| ApiError::new(ErrorCode::Internal, "a route without its parameter"))
}

/// A request's JSON; an empty body is `{}`.
#[derive(Debug)]
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Api> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Api) -> Result<Self, ApiError> {
        let most = if is_off(Defence::RequestBounds) {
            JSON_BYTES_WEAKENED
        } else {
            JSON_BYTES_MAX
        };
        let bytes = read_whole(request, most, api.options.body_read_max).await?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        // Structs would also be read from arrays, by the order of their fields.
        if text.trim_ascii_start().first() != Some(&b'{') {
            return Err(ApiError::invalid("the request is not a JSON object"));
        }
        serde_json::from_slice(text).map(Self).map_err(|error| {
            ApiError::invalid(format!("the request's JSON is not usable: {error}"))
                .details(serde_json::json!({ "line": error.line(), "column": error.column() }))
        })
    }
}

/// A request's bytes, as many as one frame may carry.
#[derive(Debug)]
pub(crate) struct RawBody(pub(crate) bytes::Bytes);

impl FromRequest<Api> for RawBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Api) -> Result<Self, ApiError> {
        let limit = pinfold_types::frame::FRAME_BYTES_MAX;
        read_whole(request, limit, api.options.body_read_max)
            .await
            .map(Self)
    }
}

async fn read_whole(
    request: Request,
    limit: usize,
    read_max: Duration,
) -> Result<bytes::Bytes, ApiError> {
    let announced = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let fits = announced.is_none_or(|length| usize::try_from(length).is_ok_and(|l| l <= limit));
    let mut content = request.into_body();
    let read = async {
        if fits {
            body::read(&mut content, limit).await
        } else {
            Err(ApiError::too_large("the request", limit))
        }
    };
    let read = tokio::time::timeout(read_max, read).await.map_err(|_| {
        ApiError::invalid(format!("the request did not arrive within {read_max:?}"))
    })?;
    if read.is_err() {
        body::discard(&mut content).await;
    }
    read
}
