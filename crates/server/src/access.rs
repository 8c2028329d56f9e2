//! Who asks, and whether they may: the one gate that every request passes.
//!
//! On the Unix socket the kernel says who it is. A port asks for an API key, or under development
//! for nothing but that no web page of somebody else is behind the request. [`roles`] says what each
//! route needs.

mod origin;
mod roles;

pub(crate) use roles::template;

use axum::extract::{MatchedPath, Request};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::response::Response;
use pinfold_engine::Caller;
use pinfold_types::{ErrorCode, Role};

use crate::error::ApiError;
use crate::peer::{Door, Peer};
use crate::router::Api;

/// Longest header with a key that is looked at.
const AUTHORIZATION_BYTES_MAX: usize = 256;

/// The one route that the setting `metrics_open` is about.
const METRICS: &str = "/metrics";

/// Proves who asks and lets the request on, with its [`Caller`], or says why not.
pub(crate) fn admit(api: &Api, request: &mut Request) -> Result<Caller, ApiError> {
    let missing = || ApiError::new(ErrorCode::Internal, "a request without its peer");
    let peer = request.extensions().get::<Peer>().ok_or_else(missing)?;
    if let Some(refused) = &peer.refused {
        return Err(refused.clone());
    }
    let allowed = &api.options.cors_origins;
    let caller = match &peer.door {
        Door::Local { caller, .. } => caller.clone(),
        Door::Development { caller } => {
            origin::check_development(request.headers(), allowed)?;
            caller.clone()
        }
        Door::Keys { .. } if may_scrape(api, peer, request) => {
            origin::check_development(request.headers(), allowed)?;
            let own = &api.options;
            Caller::of_host(own.own_uid, own.own_gid, Role::Viewer)
        }
        Door::Keys { leash } => {
            origin::check_stream(request.headers(), allowed)?;
            let grant = api.engine.authenticate(token(request.headers())?)?;
            let caller = grant.caller.clone();
            leash.hold(grant);
            caller
        }
    };
    // Also whoever may not do this is somebody.
    request.extensions_mut().insert(caller.clone());
    if let Some(path) = request.extensions().get::<MatchedPath>() {
        roles::check(request.method(), path.as_str(), caller.role)?;
    }
    Ok(caller)
}

/// Returns whether this is a program of the same machine that asks for metrics, which the setting
/// gives to everybody there. One that shows a key is known by its key.
fn may_scrape(api: &Api, peer: &Peer, request: &Request) -> bool {
    let path = request.extensions().get::<MatchedPath>();
    api.options.metrics_open
        && peer
            .address
            .is_some_and(|address| address.ip().is_loopback())
        && path.is_some_and(|path| path.as_str() == METRICS)
        && !request.headers().contains_key(AUTHORIZATION)
}

/// Answers a browser that asks whether it may ask, when it may.
pub(crate) fn preflight(api: &Api, request: &Request) -> Option<Response> {
    let peer = request.extensions().get::<Peer>()?;
    if matches!(peer.door, Door::Local { .. }) || peer.refused.is_some() {
        return None;
    }
    origin::preflight(request, &api.options.cors_origins)
}

/// Tells a browser that a page of an allowed origin may read the answer.
pub(crate) fn allow_origin(api: &Api, asked: Option<&str>, response: &mut Response) {
    origin::allow(asked, &api.options.cors_origins, response.headers_mut());
}

/// Returns a request's origin.
pub(crate) fn origin(headers: &HeaderMap) -> Option<String> {
    origin::of(headers).map(str::to_owned)
}

fn token(headers: &HeaderMap) -> Result<&str, ApiError> {
    let refused = |message: &str| {
        ApiError::new(ErrorCode::Unauthenticated, message).hint(
            "send `Authorization: Bearer KEY`; make a key with `pinfold key create NAME` on the \
             daemon's host",
        )
    };
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(refused("this port needs an API key"));
    };
    let text = value.to_str().ok();
    let text = text.filter(|text| text.len() <= AUTHORIZATION_BYTES_MAX);
    text.and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(|| refused("the header `authorization` holds no bearer token"))
}
