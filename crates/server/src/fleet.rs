//! Routes about the daemon, its host and all sandboxes at once.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use pinfold_types::api::{DoctorReport, Health, Readiness, Report, Version};

use crate::error::ApiError;
use crate::request::Asked;
use crate::router::Api;

/// Answers whenever the daemon does.
#[utoipa::path(
    get,
    path = "/health",
    tag = "daemon",
    operation_id = "getHealth",
    responses(
        (status = 200, description = "It answers", body = Health)
    )
)]
pub(crate) async fn health() -> Json<Health> {
    Json(Health {
        status: "ok".to_owned(),
    })
}

/// Tells whether sandboxes can be made.
#[utoipa::path(
    get,
    path = "/ready",
    tag = "daemon",
    operation_id = "getReady",
    responses(
        (status = 200, description = "They can", body = Readiness),
        (status = 503, description = "They cannot, for these reasons", body = Readiness)
    )
)]
pub(crate) async fn ready(State(api): State<Api>) -> (StatusCode, Json<Readiness>) {
    let readiness = api.engine.ready().await;
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(readiness))
}

/// Tells the version of the daemon.
#[utoipa::path(
    get,
    path = "/version",
    tag = "daemon",
    operation_id = "getVersion",
    responses(
        (status = 200, description = "The version", body = Version)
    )
)]
pub(crate) async fn version(State(api): State<Api>) -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        state_dir: api.options.state_dir.display().to_string(),
    })
}

/// Looks at every prerequisite of the host.
#[utoipa::path(
    get,
    path = "/doctor",
    tag = "daemon",
    operation_id = "getDoctor",
    responses(
        (status = 200, description = "What was found", body = DoctorReport)
    )
)]
pub(crate) async fn doctor(State(api): State<Api>) -> Json<DoctorReport> {
    Json(api.engine.doctor().await)
}

/// Asks every agent at once.
#[utoipa::path(
    get,
    path = "/report",
    tag = "sandboxes",
    operation_id = "getReport",
    responses(
        (status = 200, description = "One line for each sandbox that is not stopped", body = Report)
    )
)]
pub(crate) async fn report(State(api): State<Api>, asked: Asked) -> Result<Json<Report>, ApiError> {
    Ok(Json(api.engine.report(&asked.caller).await?))
}
