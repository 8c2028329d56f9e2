//! Routes about the life of sandboxes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use pinfold_engine::{Caller, Engine, EngineError, ListFilter, OnceKey, OnceKeyError, Outcome};
use pinfold_types::api::{
    CreateLine, CreateSandboxRequest, Metrics, Removed, Sandbox, SandboxList, StopRequest,
    UpdateSandboxRequest,
};
use pinfold_types::state::StateError;
use pinfold_types::{SandboxId, SandboxState, spec};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Interval;
use tracing::Instrument as _;

use crate::error::ApiError;
use crate::query::Query;
use crate::request::{Asked, JsonBody, Target};
use crate::router::Api;

/// What a caller accepts that wants to see a creation's progress.
const LINES_TYPE: &str = "application/x-ndjson";

/// Name of the header that makes a creation one that is made once.
const KEY_HEADER: &str = "idempotency-key";

/// Name of the header that says that an earlier request made the sandbox.
const REPLAYED_HEADER: &str = "idempotency-replayed";

/// Most lines of progress that a slow reader leaves waiting.
const PROGRESS_LINES_MAX: usize = 64;

/// Time between the empty lines that say that a creation still goes on.
const STILL_THERE: Duration = Duration::from_secs(10);

/// Largest page of a list: specs may be long, and a page of a thousand long ones would be a
/// gigabyte.
const PAGE_BYTES_MAX: usize = 16 << 20;

/// Makes a sandbox and answers when its agent has answered.
///
/// With `Accept: application/x-ndjson` the answer is 200 and one JSON object per line: any number of
/// `progress`, then `sandbox` or `error`; an empty line now and then says that it goes on.
///
/// With the header `Idempotency-Key` the same request makes one sandbox within a day, however often
/// it is sent; a repetition is answered with the header `Idempotency-Replayed: true`.
#[utoipa::path(
    post,
    path = "/sandboxes",
    tag = "sandboxes",
    operation_id = "createSandbox",
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 printable characters without spaces, of your own making", pattern = "^[!-~]{1,255}$")),
    request_body = CreateSandboxRequest,
    responses(
        (status = 201, description = "It runs", body = Sandbox),
        (status = 200, description = "What is being done, line by line", body = CreateLine, content_type = "application/x-ndjson")
    )
)]
pub(crate) async fn create(
    State(api): State<Api>,
    asked: Asked,
    headers: HeaderMap,
    JsonBody(request): JsonBody<CreateSandboxRequest>,
) -> Result<Response, ApiError> {
    let wants_lines = headers
        .get_all(ACCEPT)
        .iter()
        .any(|accept| accept.to_str().is_ok_and(|text| text.contains(LINES_TYPE)));
    let wanted = Wanted {
        key: once_key(&headers)?,
        request,
    };
    if wants_lines {
        return Ok(create_in_lines(api, asked, wanted));
    }
    let (engine, note) = (api.engine.clone(), asked.note.clone());
    let outcome = api
        .complete(async move { wanted.make(&engine, &asked.caller, None).await })
        .await?;
    note.made(outcome.sandbox.id.as_str());
    let mut response = (StatusCode::CREATED, Json(outcome.sandbox)).into_response();
    if outcome.replayed {
        let value = HeaderValue::from_static("true");
        response.headers_mut().insert(REPLAYED_HEADER, value);
    }
    Ok(response)
}

fn once_key(headers: &HeaderMap) -> Result<Option<OnceKey>, ApiError> {
    let mut keys = headers.get_all(KEY_HEADER).iter();
    let Some(key) = keys.next() else {
        return Ok(None);
    };
    if keys.next().is_some() {
        return Err(ApiError::invalid("`Idempotency-Key` stands twice"));
    }
    let refused = |error: OnceKeyError| ApiError::invalid(error.to_string());
    key.to_str()
        .unwrap_or_default()
        .parse()
        .map(Some)
        .map_err(refused)
}

/// A sandbox to make, perhaps once only.
struct Wanted {
    key: Option<OnceKey>,
    request: CreateSandboxRequest,
}

impl Wanted {
    async fn make(
        self,
        engine: &Engine,
        caller: &Caller,
        progress: Option<mpsc::Sender<String>>,
    ) -> Result<Outcome, EngineError> {
        if let Some(key) = &self.key {
            return engine
                .create_once(caller, key, self.request, progress)
                .await;
        }
        let sandbox = engine.create(caller, self.request, progress).await?;
        Ok(Outcome {
            sandbox,
            replayed: false,
        })
    }
}

fn create_in_lines(api: Api, asked: Asked, wanted: Wanted) -> Response {
    let (sender, receiver) = mpsc::channel(PROGRESS_LINES_MAX);
    let note = asked.note.clone();
    note.defer();
    let creation = async move {
        let engine = api.engine.clone();
        let created = api
            .complete(async move { wanted.make(&engine, &asked.caller, Some(sender)).await })
            .await;
        match created {
            Ok(outcome) => {
                note.made(outcome.sandbox.id.as_str());
                note.end(None).await;
                CreateLine::Sandbox(Box::new(outcome.sandbox))
            }
            Err(error) => {
                note.end(Some(error.code())).await;
                CreateLine::Error(Box::new(error.detail(&asked.request_id)))
            }
        }
    };
    let work = tokio::spawn(creation.in_current_span());
    let mut still_there = tokio::time::interval(STILL_THERE);
    still_there.reset();
    let creation = Creation {
        receiver,
        work,
        still_there,
    };
    let lines = futures::stream::unfold(Some(creation), |creation| async {
        let (line, creation) = creation?.next_line().await;
        Some((Ok::<_, Infallible>(line), creation))
    });
    ([(CONTENT_TYPE, LINES_TYPE)], Body::from_stream(lines)).into_response()
}

/// A creation that goes on.
struct Creation {
    receiver: mpsc::Receiver<String>,
    work: JoinHandle<CreateLine>,
    still_there: Interval,
}

impl Creation {
    /// Returns the next line, and itself unless that was the last.
    async fn next_line(mut self) -> (Bytes, Option<Self>) {
        tokio::select! {
            // What was said before the end comes before the end.
            biased;
            Some(text) = self.receiver.recv() => (line(&CreateLine::Progress(text)), Some(self)),
            last = &mut self.work => {
                // The task cannot panic, and nobody aborts it.
                (last.map_or_else(|_| Bytes::new(), |last| line(&last)), None)
            }
            _ = self.still_there.tick() => (Bytes::from_static(b"\n"), Some(self)),
        }
    }
}

fn line(line: &CreateLine) -> Bytes {
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    Bytes::from(text)
}

/// Lists sandboxes, oldest first.
#[utoipa::path(
    get,
    path = "/sandboxes",
    tag = "sandboxes",
    operation_id = "listSandboxes",
    params(
        ("state" = Option<Vec<SandboxState>>, Query, description = "Only these states; may stand several times"),
        ("label" = Option<Vec<String>>, Query, description = "Only those with this label, as NAME=VALUE; may stand several times"),
        ("all" = Option<bool>, Query, description = "Stopped ones too"),
        ("warm" = Option<bool>, Query, description = "Those that wait in pools instead, for admins"),
        ("after" = Option<SandboxId>, Query, description = "The `next` of the page before"),
        ("limit" = Option<u64>, Query, description = "Most entries of the page", minimum = 1, maximum = 1000)
    ),
    responses(
        (status = 200, description = "One page", body = SandboxList)
    )
)]
pub(crate) async fn list(
    State(api): State<Api>,
    asked: Asked,
    RawQuery(query): RawQuery,
) -> Result<Json<SandboxList>, ApiError> {
    let filter = list_filter(query.as_deref())?;
    let page = api.engine.list(&asked.caller, &filter).await?;
    Ok(Json(bounded(page)))
}

fn list_filter(query: Option<&str>) -> Result<ListFilter, ApiError> {
    let query = Query::read(
        query,
        &["all", "after", "limit", "warm"],
        &["state", "label"],
    )?;
    let states: Result<Vec<SandboxState>, StateError> =
        query.all("state").map(str::parse).collect();
    let mut labels = BTreeMap::new();
    for label in query.all("label") {
        let (name, value) = label
            .split_once('=')
            .ok_or_else(|| ApiError::invalid("a label of the query is not NAME=VALUE"))?;
        labels.insert(name.to_owned(), value.to_owned());
    }
    if labels.len() > spec::LABELS_MAX {
        return Err(ApiError::invalid(format!(
            "the query has more than {} labels",
            spec::LABELS_MAX
        )));
    }
    Ok(ListFilter {
        states: states.map_err(|error| ApiError::invalid(error.to_string()))?,
        all: query.flag("all")?.unwrap_or(false),
        warm: query.flag("warm")?.unwrap_or(false),
        labels,
        after: query.parsed("after")?,
        limit: query.page_limit()?,
    })
}

/// Ends a page before it grows too large; the first entry is always there.
fn bounded(mut page: SandboxList) -> SandboxList {
    let mut size = Size(0);
    let fitting = page
        .sandboxes
        .iter()
        .take_while(|sandbox| {
            // Counting cannot fail.
            drop(serde_json::to_writer(&mut size, sandbox));
            size.0 <= PAGE_BYTES_MAX
        })
        .count()
        .max(1);
    if fitting < page.sandboxes.len() {
        page.sandboxes.truncate(fitting);
        page.next = page.sandboxes.last().map(|sandbox| sandbox.id.clone());
    }
    page
}

/// Counts what is written to it.
struct Size(usize);

impl std::io::Write for Size {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 = self.0.saturating_add(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Shows a sandbox.
#[utoipa::path(
    get,
    path = "/sandboxes/{id}",
    tag = "sandboxes",
    operation_id = "getSandbox",
    responses(
        (status = 200, description = "The sandbox", body = Sandbox)
    )
)]
pub(crate) async fn get(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
) -> Result<Json<Sandbox>, ApiError> {
    Ok(Json(api.engine.get(&asked.caller, &target).await?))
}

/// Changes labels, environment, deadlines and limits of a sandbox in any state.
#[utoipa::path(
    patch,
    path = "/sandboxes/{id}",
    tag = "sandboxes",
    operation_id = "updateSandbox",
    request_body = UpdateSandboxRequest,
    responses((status = 200, description = "It is changed", body = Sandbox))
)]
pub(crate) async fn update(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    JsonBody(request): JsonBody<UpdateSandboxRequest>,
) -> Result<Json<Sandbox>, ApiError> {
    let engine = api.engine.clone();
    api.complete(async move { engine.update(&asked.caller, &target, request).await })
        .await
        .map(Json)
}

/// Removes a sandbox with everything of it.
#[utoipa::path(
    delete,
    path = "/sandboxes/{id}",
    tag = "sandboxes",
    operation_id = "removeSandbox",
    params(
        ("keep_persist" = Option<bool>, Query, description = "Keep its persist directory on the host")
    ),
    responses(
        (status = 200, description = "Nothing is left but what was asked to be kept", body = Removed)
    )
)]
pub(crate) async fn remove(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    RawQuery(query): RawQuery,
) -> Result<Json<Removed>, ApiError> {
    let query = Query::read(query.as_deref(), &["keep_persist"], &[])?;
    let keep_persist = query.flag("keep_persist")?.unwrap_or(false);
    let engine = api.engine.clone();
    let kept = api
        .complete(async move { engine.remove(&asked.caller, &target, keep_persist).await })
        .await?;
    Ok(Json(Removed {
        persist: kept.map(|path| path.display().to_string()),
    }))
}

/// Starts a stopped or failed sandbox from its disk.
#[utoipa::path(
    post,
    path = "/sandboxes/{id}/start",
    tag = "sandboxes",
    operation_id = "startSandbox",
    responses(
        (status = 200, description = "It runs", body = Sandbox)
    )
)]
pub(crate) async fn start(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
) -> Result<Json<Sandbox>, ApiError> {
    let engine = api.engine.clone();
    api.complete(async move { engine.start(&asked.caller, &target).await })
        .await
        .map(Json)
}

/// Stops a sandbox and keeps its disk.
#[utoipa::path(
    post,
    path = "/sandboxes/{id}/stop",
    tag = "sandboxes",
    operation_id = "stopSandbox",
    request_body(content = Option<StopRequest>, content_type = "application/json"),
    responses(
        (status = 200, description = "It is stopped", body = Sandbox)
    )
)]
pub(crate) async fn stop(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
    JsonBody(request): JsonBody<StopRequest>,
) -> Result<Json<Sandbox>, ApiError> {
    let engine = api.engine.clone();
    api.complete(async move { engine.stop(&asked.caller, &target, request).await })
        .await
        .map(Json)
}

/// Freezes a sandbox in memory.
#[utoipa::path(
    post,
    path = "/sandboxes/{id}/pause",
    tag = "sandboxes",
    operation_id = "pauseSandbox",
    responses(
        (status = 200, description = "It is frozen", body = Sandbox)
    )
)]
pub(crate) async fn pause(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
) -> Result<Json<Sandbox>, ApiError> {
    let engine = api.engine.clone();
    api.complete(async move { engine.pause(&asked.caller, &target).await })
        .await
        .map(Json)
}

/// Lets a frozen sandbox go on.
#[utoipa::path(
    post,
    path = "/sandboxes/{id}/resume",
    tag = "sandboxes",
    operation_id = "resumeSandbox",
    responses(
        (status = 200, description = "It runs", body = Sandbox)
    )
)]
pub(crate) async fn resume(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
) -> Result<Json<Sandbox>, ApiError> {
    let engine = api.engine.clone();
    api.complete(async move { engine.resume(&asked.caller, &target).await })
        .await
        .map(Json)
}

/// Asks the agent of a sandbox what it uses.
#[utoipa::path(
    get,
    path = "/sandboxes/{id}/metrics",
    tag = "sandboxes",
    operation_id = "getSandboxMetrics",
    responses(
        (status = 200, description = "What the agent says", body = Metrics)
    )
)]
pub(crate) async fn metrics(
    State(api): State<Api>,
    asked: Asked,
    Target(target): Target,
) -> Result<Json<Metrics>, ApiError> {
    Ok(Json(api.engine.metrics(&asked.caller, &target).await?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinfold_types::{SandboxId, SandboxSpec};

    fn sandbox(padding: usize) -> Sandbox {
        Sandbox {
            id: SandboxId::new(),
            name: pinfold_types::SandboxName::generate("a"),
            owner: pinfold_types::Principal::User(0),
            state: SandboxState::Running,
            reason: None,
            spec: SandboxSpec {
                labels: BTreeMap::from([("a".to_owned(), "x".repeat(padding))]),
                ..SandboxSpec::default()
            },
            granted: None,
            created_at: String::new(),
            changed_at: String::new(),
            origin: pinfold_types::api::Origin::Cold,
            template: None,
            cold_reason: None,
        }
    }

    #[test]
    fn a_page_ends_before_it_is_too_large() {
        let page = |padding: usize, count: usize| {
            bounded(SandboxList {
                sandboxes: (0..count).map(|_| sandbox(padding)).collect(),
                next: None,
            })
        };
        let cut = page(PAGE_BYTES_MAX / 2, 3);
        assert_eq!(cut.sandboxes.len(), 1);
        assert_eq!(cut.next.as_ref(), Some(&cut.sandboxes[0].id));
        assert_eq!(page(PAGE_BYTES_MAX, 1).sandboxes.len(), 1);
        let whole = page(1, 3);
        assert_eq!((whole.sandboxes.len(), whole.next), (3, None));
    }

    #[test]
    fn filters_are_checked() {
        let good = list_filter(Some("state=running&state=paused&label=a=b=c&limit=5&all=1"));
        let good = good.unwrap();
        assert_eq!(good.states.len(), 2);
        assert_eq!(good.labels["a"], "b=c");
        assert_eq!((good.limit, good.all), (5, true));
        for bad in [
            "state=up",
            "label=a",
            "limit=0",
            "limit=1001",
            "after=x",
            "x=1",
        ] {
            assert!(list_filter(Some(bad)).is_err(), "{bad}");
        }
    }
}
