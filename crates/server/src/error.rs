//! What callers are told when a request fails, and what the log keeps.
//!
//! Handlers return an [`ApiError`]; [`finish`] alone makes it an answer, with the id of its request,
//! and writes the internal chain to the log.

use std::error::Error;
use std::sync::Arc;

use axum::Json;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use pinfold_engine::{AgentError, EngineError};
use pinfold_types::error::{Actor, ApiErrorDetail};
use pinfold_types::id::RequestId;
use pinfold_types::{ApiErrorBody, ErrorChain, ErrorCode};

/// Why a request failed.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    code: ErrorCode,
    /// Where HTTP has a status of its own, which is more exact than the code's.
    status: Option<StatusCode>,
    message: String,
    details: serde_json::Value,
    hint: Option<String>,
    /// For the log only.
    cause: Option<Arc<dyn Error + Send + Sync>>,
}

impl ApiError {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            status: None,
            message: message.into(),
            details: serde_json::Value::Null,
            hint: None,
            cause: None,
        }
    }

    /// Returns an error for a request that is not understood.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// Returns the error for something larger than its limit.
    pub(crate) fn too_large(what: &str, limit: usize) -> Self {
        Self::invalid(format!("{what} is larger than the limit of {limit} bytes"))
            .status(StatusCode::PAYLOAD_TOO_LARGE)
            .details(serde_json::json!({ "limit_bytes": limit }))
    }

    /// Returns the error for whoever waits while the daemon ends.
    pub(crate) fn shutting_down() -> Self {
        Self::new(ErrorCode::Unavailable, "the daemon is shutting down")
            .hint("sandboxes and execs live on; ask again when a daemon runs")
    }

    pub(crate) fn status(mut self, status: StatusCode) -> Self {
        self.status = Some(status);
        self
    }

    pub(crate) fn details(mut self, details: serde_json::Value) -> Self {
        self.details = details;
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn caused_by(mut self, cause: impl Error + Send + Sync + 'static) -> Self {
        self.cause = Some(Arc::new(cause));
        self
    }

    pub(crate) const fn code(&self) -> ErrorCode {
        self.code
    }

    /// Writes the log's side and returns the caller's.
    pub(crate) fn detail(self, request_id: &RequestId) -> ApiErrorDetail {
        self.log(request_id);
        let (message, hint) = match self.code.actor() {
            Actor::User | Actor::Operator => (self.message, self.hint),
            // What went wrong inside is for the log: the caller can do nothing about it.
            Actor::Bug => (
                "the daemon failed to do this".to_owned(),
                Some(format!("look for {request_id} in the daemon's log")),
            ),
        };
        ApiErrorDetail {
            code: self.code,
            message,
            details: self.details,
            hint,
            request_id: request_id.to_string(),
        }
    }

    fn log(&self, request_id: &RequestId) {
        let chain = match &self.cause {
            Some(cause) => ErrorChain(cause.as_ref()).to_string(),
            None => self.message.clone(),
        };
        match self.code.actor() {
            Actor::User => tracing::debug!(%request_id, code = %self.code, chain, "refused"),
            Actor::Operator => tracing::warn!(%request_id, code = %self.code, chain, "refused"),
            Actor::Bug => tracing::error!(%request_id, code = %self.code, chain, "failed"),
        }
    }

    fn http_status(&self) -> StatusCode {
        self.status.unwrap_or_else(|| {
            StatusCode::from_u16(self.code.http_status())
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
        })
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        Self {
            code: error.code,
            status: None,
            message: error.message.clone(),
            details: error.details.clone(),
            hint: error.hint.clone(),
            cause: Some(Arc::new(error)),
        }
    }
}

impl From<AgentError> for ApiError {
    fn from(error: AgentError) -> Self {
        Self {
            code: error.code,
            status: None,
            message: error.message.clone(),
            details: serde_json::Value::Null,
            hint: error.hint.clone(),
            cause: Some(Arc::new(error)),
        }
    }
}

impl IntoResponse for ApiError {
    /// Returns a placeholder that [`finish`] makes an answer of.
    fn into_response(self) -> Response {
        let mut response = self.http_status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Makes an answer of what a handler returned.
pub(crate) fn finish(mut response: Response, request_id: &RequestId) -> Response {
    let Some(error) = response.extensions_mut().remove::<ApiError>() else {
        return response;
    };
    let body = ApiErrorBody {
        error: error.detail(request_id),
    };
    let (code, details) = (body.error.code, &body.error.details);
    if code == ErrorCode::Unauthenticated {
        let scheme = HeaderValue::from_static("Bearer");
        response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
    }
    if let Some(wait_ms) = details["retry_after_ms"].as_u64() {
        // Whole seconds only, and never too early.
        let value = HeaderValue::from(wait_ms.div_ceil(1000));
        response.headers_mut().insert(RETRY_AFTER, value);
    }
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(axum::http::header::CONTENT_LENGTH);
    let mut answer = Json(body).into_response();
    *answer.status_mut() = parts.status;
    for (name, value) in &parts.headers {
        answer.headers_mut().entry(name).or_insert(value.clone());
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internal_text_stays_in_the_log() {
        let id = RequestId::new();
        let secret = || EngineError::new(ErrorCode::Internal, "row 7 is torn");
        let detail = ApiError::from(secret()).detail(&id);
        assert!(!detail.message.contains("row 7"), "{detail:?}");
        assert!(detail.hint.unwrap().contains(id.as_str()));
        let told =
            ApiError::from(EngineError::new(ErrorCode::NotFound, "no sandbox `a`").hint("h"))
                .detail(&id);
        assert_eq!(told.message, "no sandbox `a`");
        assert_eq!(told.hint.as_deref(), Some("h"));
    }

    #[test]
    fn every_code_has_a_status() {
        for code in ErrorCode::ALL {
            let response = ApiError::new(*code, "x").into_response();
            assert_eq!(response.status().as_u16(), code.http_status());
        }
    }
}
