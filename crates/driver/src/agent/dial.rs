//! Byte streams to ports inside, through the agent.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use pinfold_types::ErrorCode;
use serde::Deserialize;

use super::AgentError;
use super::refusal::{prefixed, printable};
use super::transport::{HEADER_BYTES_MAX, open};
use crate::contract::{GuestStream, Instance};

/// Longest time until the agent has connected to the port or refused.
const DIAL_TIME_MAX: Duration = Duration::from_secs(10);
/// Most bytes of a refusal.
const REFUSAL_BYTES_MAX: usize = 16 << 10;
/// What the agent upgrades to.
const PROTOCOL: &str = "pinfold-dial";

/// What the agent says when it does not connect.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refusal {
    code: String,
    message: String,
}

pub(super) async fn dial(instance: &dyn Instance, port: u16) -> Result<GuestStream, AgentError> {
    match tokio::time::timeout(DIAL_TIME_MAX, upgrade(instance, port)).await {
        Ok(answer) => answer,
        Err(_) => Err(AgentError::silent("dial", DIAL_TIME_MAX)),
    }
}

async fn upgrade(instance: &dyn Instance, port: u16) -> Result<GuestStream, AgentError> {
    let stream = open(instance).await?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(usize::try_from(HEADER_BYTES_MAX).unwrap_or(usize::MAX))
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|error| lost(&error))?;
    // Ends with the stream that comes of it.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(error = %pinfold_types::ErrorChain(&error), "a dialled connection ended");
        }
    });
    let request = Request::get(format!("/dial?port={port}"))
        .header(header::HOST, "agent")
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, PROTOCOL)
        .body(Empty::new())
        .map_err(|error| AgentError::new(ErrorCode::Internal, error.to_string()))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| lost(&error))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(response.status(), response.into_body(), port).await);
    }
    let upgraded = hyper::upgrade::on(response)
        .await
        .map_err(|error| lost(&error))?;
    Ok(Box::new(TokioIo::new(upgraded)))
}

async fn refusal(status: StatusCode, body: Incoming, port: u16) -> AgentError {
    let body = Limited::new(body, REFUSAL_BYTES_MAX).collect().await;
    let refusal: Refusal = body
        .ok()
        .and_then(|body| serde_json::from_slice(&body.to_bytes()).ok())
        .unwrap_or_default();
    let code = prefixed(&format!("code={}; ", refusal.code))
        .map_or_else(|| code_of(status), |(code, _)| code);
    let message = if refusal.message.is_empty() {
        format!("the agent did not connect to port {port}: it answered {status}")
    } else {
        printable(&refusal.message)
    };
    let mut error = AgentError::new(code, message);
    if error.code == ErrorCode::Unavailable {
        error.hint = Some(format!(
            "start what listens on port {port} of the sandbox's loopback"
        ));
    }
    error
}

fn code_of(status: StatusCode) -> ErrorCode {
    match status {
        StatusCode::BAD_REQUEST => ErrorCode::InvalidArgument,
        StatusCode::FORBIDDEN => ErrorCode::PermissionDenied,
        StatusCode::NOT_FOUND => ErrorCode::Unsupported,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            ErrorCode::Unavailable
        }
        StatusCode::TOO_MANY_REQUESTS => ErrorCode::LimitExceeded,
        _ => ErrorCode::Internal,
    }
}

fn lost(error: &hyper::Error) -> AgentError {
    AgentError::new(
        ErrorCode::AgentSilent,
        format!(
            "the connection to the agent broke: {}",
            pinfold_types::ErrorChain(error)
        ),
    )
}
