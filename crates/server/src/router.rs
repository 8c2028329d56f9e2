//! Which route is answered by what, and what every request goes through.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, delete, get, post, put};
use pinfold_engine::Engine;
use pinfold_types::ErrorCode;
use pinfold_types::id::RequestId;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{self, ApiError};
use crate::options::ServerOptions;
use crate::peer::Peer;
use crate::{access, execs, files, fleet, keys, pools, sandboxes, stream};

/// Name of the header that tells an answer's request id.
const REQUEST_ID_HEADER: &str = "x-request-id";

/// What handlers share.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub(crate) engine: Engine,
    pub(crate) options: Arc<ServerOptions>,
    /// The server ends: streams and waiting requests end.
    pub(crate) shutdown: CancellationToken,
    /// The time for that is over.
    pub(crate) abort: CancellationToken,
    /// Connections, streams, and work that must not stop half done because its caller has gone.
    pub(crate) tasks: TaskTracker,
}

impl Api {
    pub(crate) fn new(engine: Engine, options: ServerOptions, shutdown: CancellationToken) -> Self {
        Self {
            engine,
            options: Arc::new(options),
            shutdown,
            abort: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Does work to its end, also when the caller breaks off meanwhile.
    pub(crate) async fn complete<T, E>(
        &self,
        work: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, ApiError>
    where
        T: Send + 'static,
        E: Into<ApiError> + Send + 'static,
    {
        match self.tasks.spawn(work).await {
            Ok(result) => result.map_err(Into::into),
            Err(error) => {
                Err(ApiError::new(ErrorCode::Internal, "a request's task died").caused_by(error))
            }
        }
    }
}

/// Returns the service that answers every request.
pub(crate) fn router(api: Api) -> Router {
    let sandbox = Router::new()
        .route("/", get(sandboxes::get).delete(sandboxes::remove))
        .route("/start", post(sandboxes::start))
        .route("/stop", post(sandboxes::stop))
        .route("/pause", post(sandboxes::pause))
        .route("/resume", post(sandboxes::resume))
        .route("/metrics", get(sandboxes::metrics))
        .route("/exec", post(execs::exec))
        .route("/execs", post(execs::start).get(execs::list))
        .route("/execs/{exec_id}", get(execs::get))
        .route("/execs/{exec_id}/input", post(execs::input))
        .route("/execs/{exec_id}/resize", post(execs::resize))
        .route("/execs/{exec_id}/signal", post(execs::signal))
        .route("/stream", any(stream::events))
        .route("/attach", any(stream::attach))
        .route(
            "/files",
            get(files::read).put(files::write).delete(files::remove),
        )
        .route("/files/stat", get(files::stat))
        .route("/files/list", get(files::list))
        .route("/files/mkdir", post(files::make_directory))
        .route("/files/rename", post(files::rename))
        .route("/files/tar", get(files::pack).put(files::unpack));
    let v1 = Router::new()
        .route("/sandboxes", post(sandboxes::create).get(sandboxes::list))
        .nest("/sandboxes/{id}", sandbox)
        .route("/templates", get(pools::list_templates))
        .route(
            "/templates/{name}",
            put(pools::put_template)
                .get(pools::get_template)
                .delete(pools::remove_template),
        )
        .route("/pools", post(pools::create_pool).get(pools::list_pools))
        .route(
            "/pools/{name}",
            get(pools::get_pool)
                .patch(pools::scale_pool)
                .delete(pools::remove_pool),
        )
        .route("/claims", post(pools::claim))
        .route("/keys", post(keys::create).get(keys::list))
        .route("/keys/{key_id}", delete(keys::revoke))
        .route("/report", get(fleet::report))
        .route("/doctor", get(fleet::doctor))
        .route("/version", get(fleet::version))
        .route("/health", get(fleet::health));
    // Four routes also without the prefix, for programs that were written for them.
    let bare = Router::new()
        .route("/sandboxes", post(sandboxes::create))
        .route("/sandboxes/{id}", delete(sandboxes::remove))
        .route("/sandboxes/{id}/exec", post(execs::exec))
        .route("/sandboxes/{id}/stream", any(stream::events));
    Router::new()
        .nest("/v1", v1)
        .merge(bare)
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        // Every route has a limit of its own.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(api.clone(), each_request))
        .with_state(api)
}

/// Gives a request its id, asks the gate, finishes errors, and writes the log.
async fn each_request(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let request_id = RequestId::new();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let peer = request.extensions().get::<Peer>().cloned();
    let origin = access::origin(request.headers());
    request.extensions_mut().insert(request_id.clone());
    let admitted = access::admit(&api, &mut request);
    let caller = admitted.as_ref().ok().cloned();
    let response = match (access::preflight(&api, &request), admitted) {
        (Some(answer), _) => answer,
        (None, Err(error)) => error.into_response(),
        (None, Ok(_)) => next.run(request).await,
    };
    let mut response = error::finish(response, &request_id);
    access::allow_origin(&api, origin.as_deref(), &mut response);
    if let Ok(value) = HeaderValue::from_str(request_id.as_str()) {
        response.headers_mut().insert(REQUEST_ID_HEADER, value);
    }
    tracing::debug!(
        %request_id,
        %method,
        path,
        status = response.status().as_u16(),
        principal = caller.as_ref().map(|caller| tracing::field::display(&caller.principal)),
        key = caller.as_ref().and_then(|caller| caller.key.as_ref()).map(tracing::field::display),
        pid = peer.as_ref().and_then(Peer::pid),
        elapsed_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
        "request"
    );
    response
}

async fn unknown_route(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(256).collect();
    ApiError::new(ErrorCode::NotFound, format!("there is no route `{path}`"))
        .hint("every route is in docs/reference/api.md and begins with /v1")
}

async fn wrong_method(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(256).collect();
    ApiError::invalid(format!("`{path}` does not take {}", request.method()))
        .status(StatusCode::METHOD_NOT_ALLOWED)
}
