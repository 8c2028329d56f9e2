//! What happened: `GET /v1/events`, in pages and as server-sent events.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use pinfold_types::api::{
    DaemonEventKind, DaemonEventKindError, DaemonEventList, DaemonEventQuery,
};

use crate::error::ApiError;
use crate::query::Query;
use crate::request::Asked;
use crate::router::Api;
use crate::sse;

/// Longest name that the query may hold: the longest of a sandbox, and more than an id.
const SANDBOX_BYTES_MAX: usize = 64;

/// Lists what happened to what the caller may see, oldest first.
///
/// With the header `Accept: text/event-stream` they are server-sent events that go on with what
/// happens later; each `id` is the event's number, and `Last-Event-ID` goes on behind it. An event
/// named `dropped` says that those before `first_kept` are no longer there.
#[utoipa::path(
    get,
    path = "/events",
    tag = crate::openapi::DAEMON_TAG,
    operation_id = "listEvents",
    params(
        ("after" = Option<u64>, Query, description = "Only events with a larger number"),
        ("sandbox" = Option<String>, Query, description = "Only those of this sandbox, by its id or name, also when it is gone", max_length = 64),
        ("type" = Option<Vec<DaemonEventKind>>, Query, description = "Only these types; may stand several times"),
        ("limit" = Option<u64>, Query, description = "Most entries of the page", minimum = 1, maximum = 1000)
    ),
    responses(
        (status = 200, description = "One page, or the events as asked by `Accept`", content(
            (DaemonEventList = "application/json"),
            (String = "text/event-stream")
        ))
    )
)]
pub(crate) async fn list(
    State(api): State<Api>,
    asked: Asked,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let mut wanted = read(query.as_deref())?;
    if !sse::wanted(&headers) {
        let page: DaemonEventList = api.engine.events(&asked.caller, &wanted).await?;
        return Ok(Json(page).into_response());
    }
    if let Some(seen) = sse::last_event(&headers)? {
        wanted.after = seen;
    }
    let follower = api.engine.follow_events(&asked.caller, &wanted);
    Ok(sse::daemon_events(&api, asked.request_id, follower))
}

fn read(query: Option<&str>) -> Result<DaemonEventQuery, ApiError> {
    let query = Query::read(query, &["after", "sandbox", "limit"], &["type"])?;
    let kinds: Result<Vec<DaemonEventKind>, DaemonEventKindError> =
        query.all("type").map(str::parse).collect();
    let sandbox = query.get("sandbox").map(str::to_owned);
    if sandbox
        .as_ref()
        .is_some_and(|name| name.len() > SANDBOX_BYTES_MAX)
    {
        return Err(ApiError::too_large("the sandbox's name", SANDBOX_BYTES_MAX));
    }
    let mut kinds = kinds.map_err(|error| ApiError::invalid(error.to_string()))?;
    kinds.sort_by_key(|kind| kind.as_str());
    kinds.dedup();
    Ok(DaemonEventQuery {
        after: query.parsed("after")?.unwrap_or(0),
        sandbox,
        kinds,
        limit: query.page_limit()?,
    })
}
