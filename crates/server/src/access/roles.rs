//! What each route needs. Every route is in this one list; one that is not answers nobody.

use axum::http::Method;
use pinfold_types::{ErrorCode, Role};

use crate::error::ApiError;

/// What a route needs of its caller, beside that the sandbox is theirs.
type Need = Role;

const READ: Need = Role::Viewer;
const CHANGE: Need = Role::User;

/// Each method and path of the router with what it needs.
///
/// Files need more than a viewer: reading one wakes a sandbox, and may show secrets.
const ROUTES: &[(&str, &str, Need)] = &[
    ("GET", "/v1/health", READ),
    ("GET", "/v1/ready", READ),
    ("GET", "/v1/openapi.json", READ),
    ("GET", "/v1/version", READ),
    ("GET", "/v1/doctor", READ),
    ("GET", "/v1/report", READ),
    ("GET", "/v1/events", READ),
    ("GET", "/v1/keys", READ),
    ("POST", "/v1/keys", CHANGE),
    ("DELETE", "/v1/keys/{key_id}", CHANGE),
    ("GET", "/v1/templates", READ),
    ("GET", "/v1/templates/{name}", READ),
    ("PUT", "/v1/templates/{name}", CHANGE),
    ("DELETE", "/v1/templates/{name}", CHANGE),
    ("GET", "/v1/pools", READ),
    ("POST", "/v1/pools", CHANGE),
    ("GET", "/v1/pools/{name}", READ),
    ("PATCH", "/v1/pools/{name}", CHANGE),
    ("DELETE", "/v1/pools/{name}", CHANGE),
    ("POST", "/v1/claims", CHANGE),
    ("GET", "/v1/sandboxes", READ),
    ("POST", "/v1/sandboxes", CHANGE),
    ("GET", "/v1/sandboxes/{id}", READ),
    ("PATCH", "/v1/sandboxes/{id}", CHANGE),
    ("DELETE", "/v1/sandboxes/{id}", CHANGE),
    ("POST", "/v1/sandboxes/{id}/start", CHANGE),
    ("POST", "/v1/sandboxes/{id}/stop", CHANGE),
    ("POST", "/v1/sandboxes/{id}/pause", CHANGE),
    ("POST", "/v1/sandboxes/{id}/resume", CHANGE),
    ("GET", "/v1/sandboxes/{id}/metrics", READ),
    ("POST", "/v1/sandboxes/{id}/exec", CHANGE),
    ("POST", "/v1/sandboxes/{id}/execs", CHANGE),
    ("GET", "/v1/sandboxes/{id}/execs", READ),
    ("GET", "/v1/sandboxes/{id}/execs/{exec_id}", READ),
    ("DELETE", "/v1/sandboxes/{id}/execs/{exec_id}", CHANGE),
    ("POST", "/v1/sandboxes/{id}/execs/{exec_id}/input", CHANGE),
    ("POST", "/v1/sandboxes/{id}/execs/{exec_id}/resize", CHANGE),
    ("POST", "/v1/sandboxes/{id}/execs/{exec_id}/signal", CHANGE),
    ("GET", "/v1/sandboxes/{id}/stream", READ),
    ("GET", "/v1/sandboxes/{id}/attach", CHANGE),
    ("GET", "/v1/sandboxes/{id}/files", CHANGE),
    ("PUT", "/v1/sandboxes/{id}/files", CHANGE),
    ("DELETE", "/v1/sandboxes/{id}/files", CHANGE),
    ("GET", "/v1/sandboxes/{id}/files/stat", CHANGE),
    ("GET", "/v1/sandboxes/{id}/files/list", CHANGE),
    ("GET", "/v1/sandboxes/{id}/files/watch", CHANGE),
    ("POST", "/v1/sandboxes/{id}/files/mkdir", CHANGE),
    ("POST", "/v1/sandboxes/{id}/files/rename", CHANGE),
    ("GET", "/v1/sandboxes/{id}/files/tar", CHANGE),
    ("PUT", "/v1/sandboxes/{id}/files/tar", CHANGE),
    ("POST", "/sandboxes", CHANGE),
    ("DELETE", "/sandboxes/{id}", CHANGE),
    ("POST", "/sandboxes/{id}/exec", CHANGE),
    ("GET", "/sandboxes/{id}/stream", READ),
    ("GET", "/openapi.json", READ),
    ("GET", "/metrics", READ),
    ("GET", "/docs", READ),
    ("GET", "/docs/style.css", READ),
];

/// Returns the template of a route, out of the list, so that there are as many as are in it.
pub(crate) fn template(path: &str) -> Option<&'static str> {
    ROUTES
        .iter()
        .map(|(_, known, _)| *known)
        .find(|known| *known == path)
}

/// Lets a role pass, or says what is missing.
pub(super) fn check(method: &Method, path: &str, role: Role) -> Result<(), ApiError> {
    let path = match path.trim_end_matches('/') {
        "" => "/",
        path => path,
    };
    let need = need(method, path).ok_or_else(|| {
        ApiError::new(
            ErrorCode::Internal,
            format!("the route {method} {path} has no role"),
        )
    })?;
    if role >= need {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::PermissionDenied,
        format!("this needs the role {need}, and yours is {role}"),
    )
    .details(serde_json::json!({ "role": role, "needs": need }))
    .hint("ask whoever runs the daemon for a key of that role"))
}

fn need(method: &Method, path: &str) -> Option<Need> {
    let method = if method == Method::HEAD {
        &Method::GET
    } else {
        method
    };
    let of_path = || ROUTES.iter().filter(|(_, known, _)| *known == path);
    let exact = of_path().find(|(known, ..)| *known == method.as_str());
    match exact {
        Some((.., need)) => Some(*need),
        // The router refuses the method; whoever could not use the path at all is told no more.
        None => of_path().map(|(.., need)| *need).max(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_listed_once() {
        let mut seen = std::collections::HashSet::new();
        for (method, path, _) in ROUTES {
            assert!(seen.insert((method, path)), "{method} {path}");
        }
    }

    #[test]
    fn a_viewer_changes_nothing_on_any_route() {
        for (method, path, need) in ROUTES {
            let method: Method = method.parse().unwrap();
            let reads = method == Method::GET;
            assert!(reads || *need >= CHANGE, "{method} {path}");
            for role in Role::ALL {
                let passes = check(&method, path, *role).is_ok();
                assert_eq!(passes, role >= need, "{method} {path} {role}");
            }
        }
    }

    #[test]
    fn an_unknown_route_answers_nobody() {
        assert!(check(&Method::GET, "/v1/new", Role::Admin).is_err());
        assert!(check(&Method::PATCH, "/v1/keys", Role::Viewer).is_err());
        assert!(check(&Method::HEAD, "/v1/keys", Role::Viewer).is_ok());
        assert!(check(&Method::GET, "/v1/sandboxes/{id}/", Role::Viewer).is_ok());
    }
}
