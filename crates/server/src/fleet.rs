//! Routes about the daemon, its host and all sandboxes at once.

use axum::Json;
use axum::extract::State;
use pinfold_types::api::{DoctorReport, Health, Report, Version};

use crate::error::ApiError;
use crate::request::Asked;
use crate::router::Api;

pub(crate) async fn health() -> Json<Health> {
    Json(Health {
        status: "ok".to_owned(),
    })
}

pub(crate) async fn version(State(api): State<Api>) -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        state_dir: api.options.state_dir.display().to_string(),
    })
}

pub(crate) async fn doctor(State(api): State<Api>) -> Json<DoctorReport> {
    Json(api.engine.doctor().await)
}

pub(crate) async fn report(State(api): State<Api>, asked: Asked) -> Result<Json<Report>, ApiError> {
    Ok(Json(api.engine.report(&asked.caller).await?))
}
