//! The plain HTTP dialect: readiness and metrics as JSON, and the port dial.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Serialize;

use crate::Agent;
use crate::dial::{self, DialError};

/// What a dial upgrades to.
const DIAL_PROTOCOL: &str = "pinfold-dial";

#[derive(Serialize)]
struct Ready {
    ready: bool,
    version: &'static str,
}

#[derive(Serialize)]
struct Refusal<'a> {
    code: &'a str,
    message: String,
}

/// Answers what belongs to this dialect; gives everything else back.
pub(crate) async fn route(
    agent: &Arc<Agent>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Request<Incoming>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/ready" | "/metrics") => Ok(route_public(agent, &request).await),
        (&Method::GET, "/dial") => Ok(dial(agent, request).await),
        _ => Err(request),
    }
}

/// Answers readiness and metrics and nothing else.
pub(crate) async fn route_public<B>(
    agent: &Arc<Agent>,
    request: &Request<B>,
) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/ready") => json(
            StatusCode::OK,
            &Ready {
                ready: true,
                version: crate::VERSION,
            },
        ),
        (&Method::GET, "/metrics") => json(StatusCode::OK, &agent.usage.metrics().await),
        _ => refuse(
            StatusCode::NOT_FOUND,
            "not_found",
            "there are only GET /ready and GET /metrics here".to_owned(),
        ),
    }
}

fn json(status: StatusCode, body: &impl Serialize) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn refuse(status: StatusCode, code: &str, message: String) -> Response<Full<Bytes>> {
    json(status, &Refusal { code, message })
}

async fn dial(agent: &Arc<Agent>, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    let port = request.uri().query().and_then(|query| {
        let port = query.strip_prefix("port=")?.parse::<u16>().ok()?;
        (port != 0).then_some(port)
    });
    let Some(port) = port else {
        return refuse(
            StatusCode::BAD_REQUEST,
            "invalid_argument",
            "say which port, as in /dial?port=8080".to_owned(),
        );
    };
    if !upgrades(request.headers()) {
        return refuse(
            StatusCode::UPGRADE_REQUIRED,
            "invalid_argument",
            format!("a dial upgrades the connection to `{DIAL_PROTOCOL}`"),
        );
    }
    let connection = match agent.dials.connect(port).await {
        Ok(connection) => connection,
        Err(error) => return refuse_dial(&error),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(stream) = upgrade.await {
            dial::join(TokioIo::new(stream), connection).await;
        }
    });
    let mut response = Response::new(Full::new(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(DIAL_PROTOCOL));
    response
}

fn upgrades(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|value| {
        value
            .as_bytes()
            .eq_ignore_ascii_case(DIAL_PROTOCOL.as_bytes())
    })
}

fn refuse_dial(error: &DialError) -> Response<Full<Bytes>> {
    let (status, code) = match error {
        DialError::Refused { .. } => (StatusCode::BAD_GATEWAY, "not_found"),
        DialError::Silent { .. } => (StatusCode::GATEWAY_TIMEOUT, "unavailable"),
        DialError::Busy => (StatusCode::TOO_MANY_REQUESTS, "limit_exceeded"),
    };
    refuse(
        status,
        code,
        pinfold_types::error::ErrorChain(error).to_string(),
    )
}
