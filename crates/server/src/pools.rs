//! Routes of templates, pools and claims.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use pinfold_types::api::{
    Claim, ClaimRequest, CreatePoolRequest, Pool, PoolList, ScalePoolRequest, Template,
    TemplateList, TemplateRequest,
};

use crate::error::ApiError;
use crate::request::{Asked, JsonBody, Named};
use crate::router::Api;

/// Makes a template, or a new version of it.
#[utoipa::path(
    put,
    path = "/templates/{name}",
    tag = "templates",
    operation_id = "putTemplate",
    request_body = TemplateRequest,
    responses(
        (status = 200, description = "The template as it is now", body = Template)
    )
)]
pub(crate) async fn put_template(
    State(api): State<Api>,
    asked: Asked,
    Named(name): Named,
    JsonBody(request): JsonBody<TemplateRequest>,
) -> Result<Json<Template>, ApiError> {
    let engine = api.engine.clone();
    api.complete(async move { engine.put_template(&asked.caller, &name, request).await })
        .await
        .map(Json)
}

/// Shows a template: the caller's own, else one that is shared.
#[utoipa::path(
    get,
    path = "/templates/{name}",
    tag = "templates",
    operation_id = "getTemplate",
    responses(
        (status = 200, description = "The template", body = Template)
    )
)]
pub(crate) async fn get_template(
    State(api): State<Api>,
    asked: Asked,
    Named(name): Named,
) -> Result<Json<Template>, ApiError> {
    let template = api.engine.template(&asked.caller, name.as_str()).await?;
    Ok(Json(template))
}

/// Lists the templates that the caller may use.
#[utoipa::path(
    get,
    path = "/templates",
    tag = "templates",
    operation_id = "listTemplates",
    responses(
        (status = 200, description = "All of them", body = TemplateList)
    )
)]
pub(crate) async fn list_templates(State(api): State<Api>, asked: Asked) -> Json<TemplateList> {
    Json(api.engine.templates(&asked.caller).await)
}

/// Removes a template that no pool is of.
#[utoipa::path(
    delete,
    path = "/templates/{name}",
    tag = "templates",
    operation_id = "removeTemplate",
    responses(
        (status = 204, description = "It is gone")
    )
)]
pub(crate) async fn remove_template(
    State(api): State<Api>,
    asked: Asked,
    Named(name): Named,
) -> Result<StatusCode, ApiError> {
    let engine = api.engine.clone();
    let removed = async move { engine.remove_template(&asked.caller, name.as_str()).await };
    api.complete(removed).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a pool of warm sandboxes and begins to fill it.
#[utoipa::path(
    post,
    path = "/pools",
    tag = "pools",
    operation_id = "createPool",
    request_body = CreatePoolRequest,
    responses(
        (status = 201, description = "It is being filled", body = Pool)
    )
)]
pub(crate) async fn create_pool(
    State(api): State<Api>,
    asked: Asked,
    JsonBody(request): JsonBody<CreatePoolRequest>,
) -> Result<(StatusCode, Json<Pool>), ApiError> {
    let engine = api.engine.clone();
    let made = async move { engine.create_pool(&asked.caller, request).await };
    let pool = api.complete(made).await?;
    Ok((StatusCode::CREATED, Json(pool)))
}

/// Lists the pools that the caller may claim from.
#[utoipa::path(
    get,
    path = "/pools",
    tag = "pools",
    operation_id = "listPools",
    responses(
        (status = 200, description = "All of them", body = PoolList)
    )
)]
pub(crate) async fn list_pools(State(api): State<Api>, asked: Asked) -> Json<PoolList> {
    Json(api.engine.pools(&asked.caller).await)
}

/// Shows a pool.
#[utoipa::path(
    get,
    path = "/pools/{name}",
    tag = "pools",
    operation_id = "getPool",
    responses(
        (status = 200, description = "The pool", body = Pool)
    )
)]
pub(crate) async fn get_pool(
    State(api): State<Api>,
    asked: Asked,
    Named(name): Named,
) -> Result<Json<Pool>, ApiError> {
    Ok(Json(api.engine.pool(&asked.caller, name.as_str()).await?))
}

/// Changes the size of a pool.
#[utoipa::path(
    patch,
    path = "/pools/{name}",
    tag = "pools",
    operation_id = "scalePool",
    request_body = ScalePoolRequest,
    responses(
        (status = 200, description = "The pool as it is now", body = Pool)
    )
)]
pub(crate) async fn scale_pool(
    State(api): State<Api>,
    asked: Asked,
    Named(name): Named,
    JsonBody(request): JsonBody<ScalePoolRequest>,
) -> Result<Json<Pool>, ApiError> {
    let engine = api.engine.clone();
    let scaled = async move {
        engine
            .scale_pool(&asked.caller, name.as_str(), request)
            .await
    };
    api.complete(scaled).await.map(Json)
}

/// Removes a pool with its warm sandboxes; claimed ones stay.
#[utoipa::path(
    delete,
    path = "/pools/{name}",
    tag = "pools",
    operation_id = "removePool",
    responses(
        (status = 204, description = "It serves nobody any more")
    )
)]
pub(crate) async fn remove_pool(
    State(api): State<Api>,
    asked: Asked,
    Named(name): Named,
) -> Result<StatusCode, ApiError> {
    let engine = api.engine.clone();
    let removed = async move { engine.remove_pool(&asked.caller, name.as_str()).await };
    api.complete(removed).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Gives the caller a sandbox of a template: a warm one, or one that is started for it.
#[utoipa::path(
    post,
    path = "/claims",
    tag = "pools",
    operation_id = "claim",
    request_body = ClaimRequest,
    responses(
        (status = 201, description = "It runs", body = Claim)
    )
)]
pub(crate) async fn claim(
    State(api): State<Api>,
    asked: Asked,
    JsonBody(request): JsonBody<ClaimRequest>,
) -> Result<(StatusCode, Json<Claim>), ApiError> {
    let (engine, note) = (api.engine.clone(), asked.note.clone());
    let claimed = async move { engine.claim(&asked.caller, request).await };
    let claim = api.complete(claimed).await?;
    note.made(claim.sandbox.id.as_str());
    Ok((StatusCode::CREATED, Json(claim)))
}
