//! Routes of API keys.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::IntoResponse;
use pinfold_types::api::keys::{CreateKeyRequest, KeyList, RevokedKeys};

use crate::error::ApiError;
use crate::request::{Asked, JsonBody, KeyTarget};
use crate::router::Api;

pub(crate) async fn create(
    State(api): State<Api>,
    asked: Asked,
    JsonBody(request): JsonBody<CreateKeyRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let engine = api.engine.clone();
    let created = api
        .complete(async move { engine.key_create(&asked.caller, request).await })
        .await?;
    // What stands in between must not keep the one answer that holds the secret.
    Ok((
        StatusCode::CREATED,
        [(CACHE_CONTROL, "no-store")],
        Json(created),
    ))
}

pub(crate) async fn list(State(api): State<Api>, asked: Asked) -> Json<KeyList> {
    Json(api.engine.key_list(&asked.caller))
}

pub(crate) async fn revoke(
    State(api): State<Api>,
    asked: Asked,
    KeyTarget(id): KeyTarget,
) -> Result<Json<RevokedKeys>, ApiError> {
    let engine = api.engine.clone();
    let revoked = api
        .complete(async move { engine.key_revoke(&asked.caller, &id).await })
        .await?;
    Ok(Json(revoked))
}
