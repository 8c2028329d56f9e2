//! Which route is answered by what, and what every request goes through.

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use pinfold_engine::{Caller, Engine};
use pinfold_types::id::RequestId;
use pinfold_types::{ErrorCode, TRACE_SPANS};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::audit::{Asking, Note};
use crate::body;
use crate::error::{self, ApiError};
use crate::meters::Meters;
use crate::options::ServerOptions;
use crate::peer::Peer;
use crate::query::Query;
use crate::{
    access, docs_page, events, execs, files, fleet, keys, meters, openapi, pools, sandboxes, stream,
};

/// Name of the span around each request, for filters of log lines.
pub const REQUEST_SPAN: &str = "pinfold-request";

/// Name of the header that tells an answer's request id, and that a caller may bring one in.
pub(crate) const REQUEST_ID_HEADER: &str = "x-request-id";

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
    pub(crate) meters: Arc<Meters>,
}

impl Api {
    pub(crate) fn new(engine: Engine, options: ServerOptions, shutdown: CancellationToken) -> Self {
        Self {
            meters: Arc::new(Meters::new(&engine)),
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
        match self.tasks.spawn(work.in_current_span()).await {
            Ok(result) => result.map_err(Into::into),
            Err(error) => {
                Err(ApiError::new(ErrorCode::Internal, "a request's task died").caused_by(error))
            }
        }
    }
}

/// Returns the service that answers every request.
pub(crate) fn router(api: Api) -> Router {
    Router::from(described())
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        // Every route has a limit of its own.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(api.clone(), each_request))
        .with_state(api)
}

/// Returns every route with what its handler says of it.
///
/// A handler names its whole path in `#[utoipa::path]`, and here is nothing but a list of them.
pub(crate) fn described() -> OpenApiRouter<Api> {
    let v1 = OpenApiRouter::default()
        .routes(routes!(sandboxes::create, sandboxes::list))
        .routes(routes!(
            sandboxes::get,
            sandboxes::update,
            sandboxes::remove
        ))
        .routes(routes!(sandboxes::start))
        .routes(routes!(sandboxes::stop))
        .routes(routes!(sandboxes::pause))
        .routes(routes!(sandboxes::resume))
        .routes(routes!(sandboxes::metrics))
        .routes(routes!(execs::exec))
        .routes(routes!(execs::start, execs::list))
        .routes(routes!(execs::get, execs::remove))
        .routes(routes!(execs::input))
        .routes(routes!(execs::resize))
        .routes(routes!(execs::signal))
        .routes(routes!(stream::events))
        .routes(routes!(stream::attach))
        .routes(routes!(files::read, files::write, files::remove))
        .routes(routes!(files::stat))
        .routes(routes!(files::list))
        .routes(routes!(files::watch))
        .routes(routes!(files::make_directory))
        .routes(routes!(files::rename))
        .routes(routes!(files::pack, files::unpack))
        .routes(routes!(pools::list_templates))
        .routes(routes!(
            pools::put_template,
            pools::get_template,
            pools::remove_template
        ))
        .routes(routes!(pools::create_pool, pools::list_pools))
        .routes(routes!(
            pools::get_pool,
            pools::scale_pool,
            pools::remove_pool
        ))
        .routes(routes!(pools::claim))
        .routes(routes!(keys::create, keys::list))
        .routes(routes!(keys::revoke))
        .routes(routes!(events::list))
        .routes(routes!(fleet::report))
        .routes(routes!(fleet::doctor))
        .routes(routes!(fleet::version))
        .routes(routes!(fleet::health))
        .routes(routes!(fleet::ready))
        .routes(routes!(openapi::document));
    // Four routes also without the prefix, for programs that were written for them.
    let bare = OpenApiRouter::default()
        .routes(routes!(sandboxes::create))
        .routes(routes!(sandboxes::remove))
        .routes(routes!(execs::exec))
        .routes(routes!(stream::events))
        .routes(routes!(openapi::document))
        .routes(routes!(meters::show))
        .routes(routes!(docs_page::docs))
        .routes(routes!(docs_page::style));
    OpenApiRouter::with_openapi(openapi::empty())
        .nest("/v1", v1)
        .merge(bare)
}

/// Gives a request its id, asks the gate, finishes errors, and writes the log.
async fn each_request(State(api): State<Api>, request: Request, next: Next) -> Response {
    let request_id = brought_id(&request).unwrap_or_else(RequestId::new);
    // An error's level, so that no filter of lines takes the id from those that are left.
    let span = tracing::error_span!(target: REQUEST_SPAN, "request", %request_id);
    one_request(api, request, next, request_id)
        .instrument(span)
        .await
}

/// Returns the span that a request is in a trace, which its caller may have begun.
fn trace(request: &Request, route: Option<&'static str>, id: &RequestId) -> tracing::Span {
    let traceparent = request.headers().get("traceparent");
    let method = request.method().as_str();
    tracing::info_span!(
        target: TRACE_SPANS,
        "request",
        otel.name = format_args!("{method} {}", route.unwrap_or("(none)")),
        otel.kind = "server",
        traceparent = traceparent.and_then(|value| value.to_str().ok()),
        http.request.method = method,
        http.route = route,
        http.response.status_code = tracing::field::Empty,
        failed = tracing::field::Empty,
        request_id = id.as_str(),
    )
}

/// Returns the id that a caller brings, when it is one that can stand in any line.
fn brought_id(request: &Request) -> Option<RequestId> {
    let mut brought = request.headers().get_all(REQUEST_ID_HEADER).iter();
    let (Some(id), None) = (brought.next(), brought.next()) else {
        return None;
    };
    id.to_str().ok()?.parse().ok()
}

async fn one_request(
    api: Api,
    mut request: Request,
    next: Next,
    request_id: RequestId,
) -> Response {
    let in_flight = api.meters.request();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let matched = request.extensions().get::<MatchedPath>();
    let route = matched.and_then(|path| access::template(path.as_str()));
    let peer = request.extensions().get::<Peer>().cloned();
    let origin = access::origin(request.headers());
    request.extensions_mut().insert(request_id.clone());
    let asking = Asking {
        method: &method,
        route,
        path: &path,
        request_id: &request_id,
        peer: peer.as_ref(),
    };
    let span = trace(&request, route, &request_id);
    let note = Note::begin(api.options.audit.as_ref(), &asking);
    request.extensions_mut().insert(note.clone());
    let admitted = access::admit(&api, &mut request).and_then(|_| note.check(&asking));
    let caller = request.extensions().get::<Caller>().cloned();
    if let Some(caller) = &caller {
        note.of(caller);
    }
    let response = match (access::preflight(&api, &request), admitted) {
        (Some(answer), _) => answer,
        (None, Err(error)) => error.into_response(),
        (None, Ok(())) => match unknown_query(&mut request).await {
            Some(error) => error.into_response(),
            None => next.run(request).instrument(span.clone()).await,
        },
    };
    let code = response.extensions().get::<ApiError>().map(ApiError::code);
    let mut response = error::finish(response, &request_id);
    note.answered(response.status(), code).await;
    span.record("http.response.status_code", response.status().as_u16());
    span.record("failed", response.status().is_server_error());
    access::allow_origin(&api, origin.as_deref(), &mut response);
    if let Ok(value) = HeaderValue::from_str(request_id.as_str()) {
        response.headers_mut().insert(REQUEST_ID_HEADER, value);
    }
    in_flight.answered(&method, route, response.status());
    tracing::debug!(
        %request_id,
        %method,
        path,
        status = response.status().as_u16(),
        principal = caller.as_ref().map(|caller| tracing::field::display(&caller.principal)),
        key = caller.as_ref().and_then(|caller| caller.key.as_ref()).map(tracing::field::display),
        pid = peer.as_ref().and_then(Peer::pid),
        elapsed_us = u64::try_from(in_flight.elapsed().as_micros()).unwrap_or(u64::MAX),
        "request"
    );
    response
}

/// Refuses a query of a route that takes none; the others look at theirs themselves.
async fn unknown_query(request: &mut Request) -> Option<ApiError> {
    let query = request.uri().query().filter(|query| !query.is_empty())?;
    let path = request.extensions().get::<MatchedPath>()?;
    let method = match *request.method() {
        Method::HEAD => &Method::GET,
        ref method => method,
    };
    if !openapi::takes_no_query(method.as_str(), path.as_str()) {
        return None;
    }
    let refusal = Query::read(Some(query), &[], &[]).err()?;
    body::discard(request.body_mut()).await;
    Some(refusal)
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
