//! Routes of API keys.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::IntoResponse;
use pinfold_types::api::keys::{CreateKeyRequest, CreatedKey, KeyList, RevokedKeys};

use crate::error::ApiError;
use crate::request::{Asked, JsonBody, KeyTarget};
use crate::router::Api;

/// Makes a key; its text is answered this once.
#[utoipa::path(
    post,
    path = "/keys",
    tag = "keys",
    operation_id = "createKey",
    request_body = CreateKeyRequest,
    responses(
        (status = 201, description = "The key with its text", body = CreatedKey)
    )
)]
pub(crate) async fn create(
    State(api): State<Api>,
    asked: Asked,
    JsonBody(request): JsonBody<CreateKeyRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let (engine, note) = (api.engine.clone(), asked.note.clone());
    let created = api
        .complete(async move { engine.key_create(&asked.caller, request).await })
        .await?;
    note.made(created.key.id.as_str());
    // What stands in between must not keep the one answer that holds the secret.
    Ok((
        StatusCode::CREATED,
        [(CACHE_CONTROL, "no-store")],
        Json(created),
    ))
}

/// Lists the keys that the caller may see.
#[utoipa::path(
    get,
    path = "/keys",
    tag = "keys",
    operation_id = "listKeys",
    responses(
        (status = 200, description = "All of them, without their texts", body = KeyList)
    )
)]
pub(crate) async fn list(State(api): State<Api>, asked: Asked) -> Json<KeyList> {
    Json(api.engine.key_list(&asked.caller))
}

/// Revokes a key with those that were made with it.
#[utoipa::path(
    delete,
    path = "/keys/{key_id}",
    tag = "keys",
    operation_id = "revokeKey",
    responses(
        (status = 200, description = "What is revoked", body = RevokedKeys)
    )
)]
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
