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

pub(crate) async fn get_template(
    State(api): State<Api>,
    asked: Asked,
    Named(name): Named,
) -> Result<Json<Template>, ApiError> {
    let template = api.engine.template(&asked.caller, name.as_str()).await?;
    Ok(Json(template))
}

pub(crate) async fn list_templates(State(api): State<Api>, asked: Asked) -> Json<TemplateList> {
    Json(api.engine.templates(&asked.caller).await)
}

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

pub(crate) async fn list_pools(State(api): State<Api>, asked: Asked) -> Json<PoolList> {
    Json(api.engine.pools(&asked.caller).await)
}

pub(crate) async fn get_pool(
    State(api): State<Api>,
    asked: Asked,
    Named(name): Named,
) -> Result<Json<Pool>, ApiError> {
    Ok(Json(api.engine.pool(&asked.caller, name.as_str()).await?))
}

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

pub(crate) async fn claim(
    State(api): State<Api>,
    asked: Asked,
    JsonBody(request): JsonBody<ClaimRequest>,
) -> Result<(StatusCode, Json<Claim>), ApiError> {
    let engine = api.engine.clone();
    let claimed = async move { engine.claim(&asked.caller, request).await };
    let claim = api.complete(claimed).await?;
    Ok((StatusCode::CREATED, Json(claim)))
}
