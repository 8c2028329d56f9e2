//! What web pages may do here: nothing, unless the configuration names their origin.
//!
//! A browser sends requests for any page that it shows, to this machine's own ports too. It always
//! says whose page it is, and a page cannot lie about it.

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, HOST,
    ORIGIN, UPGRADE, VARY,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::Response;
use pinfold_types::ErrorCode;

use crate::error::ApiError;

/// Says, in every new browser, how the page that asks is related to the port.
const FETCH_SITE: &str = "sec-fetch-site";

/// Seconds that a browser may remember the answer to its question.
const PREFLIGHT_AGE_S: &str = "600";

const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE";
const REQUEST_HEADERS: &str = "authorization, content-type, accept, range, idempotency-key";
const ANSWER_HEADERS: &str = "x-request-id, retry-after, content-range";

/// Returns the origin of a request's page.
pub(super) fn of(headers: &HeaderMap) -> Option<&str> {
    headers.get(ORIGIN)?.to_str().ok()
}

/// Lets only this machine's own names and pages of this very port in.
///
/// A name that somebody else's name server maps to this machine would make their page one of this
/// port, so the host must be a name that only this machine has.
pub(super) fn check_development(headers: &HeaderMap, allowed: &[String]) -> Result<(), ApiError> {
    let host = single(headers, HOST.as_str());
    if !host.is_some_and(is_loopback_name) {
        return Err(refused(
            "this port answers only to `localhost`, `127.0.0.1` and `[::1]`",
            "use one of those names, or a key on a port without --dev",
        ));
    }
    check_origin(headers, allowed)?;
    let site = headers.get(FETCH_SITE).map(HeaderValue::as_bytes);
    let known = of(headers).is_some_and(|origin| is_allowed(origin, allowed));
    match site {
        None | Some(b"same-origin" | b"none") => Ok(()),
        Some(_) if known => Ok(()),
        Some(_) => Err(foreign_page()),
    }
}

/// Lets a page open a stream only where it could read an answer: browsers do not ask first there.
pub(super) fn check_stream(headers: &HeaderMap, allowed: &[String]) -> Result<(), ApiError> {
    if headers.contains_key(UPGRADE) {
        check_origin(headers, allowed)
    } else {
        Ok(())
    }
}

fn check_origin(headers: &HeaderMap, allowed: &[String]) -> Result<(), ApiError> {
    if !headers.contains_key(ORIGIN) {
        return Ok(());
    }
    let origin = single(headers, ORIGIN.as_str()).ok_or_else(foreign_page)?;
    let own = origin.split_once("://").map(|(_, host)| host);
    let same = own.is_some() && own == single(headers, HOST.as_str());
    if same || is_allowed(origin, allowed) {
        Ok(())
    } else {
        Err(foreign_page())
    }
}

fn single<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

fn is_loopback_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    name.eq_ignore_ascii_case("localhost") || matches!(name, "127.0.0.1" | "[::1]")
}

fn is_allowed(origin: &str, allowed: &[String]) -> bool {
    allowed.iter().any(|known| known == origin)
}

fn foreign_page() -> ApiError {
    refused(
        "a web page of another origin may not ask here",
        "name its origin in `cors_origins`",
    )
}

fn refused(message: &str, hint: &str) -> ApiError {
    ApiError::new(ErrorCode::PermissionDenied, message).hint(hint)
}

/// Answers the question before a request, when the page may ask.
pub(super) fn preflight(request: &Request, allowed: &[String]) -> Option<Response> {
    let headers = request.headers();
    let origin = of(headers).filter(|origin| is_allowed(origin, allowed))?;
    let asks =
        request.method() == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    asks.then_some(())?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let answer = response.headers_mut();
    allow(Some(origin), allowed, answer);
    for (name, value) in [
        (ACCESS_CONTROL_ALLOW_METHODS, METHODS),
        (ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS),
        (ACCESS_CONTROL_MAX_AGE, PREFLIGHT_AGE_S),
    ] {
        answer.insert(name, HeaderValue::from_static(value));
    }
    Some(response)
}

/// Lets a page of an allowed origin read an answer.
pub(super) fn allow(origin: Option<&str>, allowed: &[String], answer: &mut HeaderMap) {
    if allowed.is_empty() {
        return;
    }
    answer.append(VARY, HeaderValue::from_static("origin"));
    let origin = origin.filter(|origin| is_allowed(origin, allowed));
    if let Some(value) = origin.and_then(|origin| HeaderValue::from_str(origin).ok()) {
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, value);
        answer.insert(
            ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static(ANSWER_HEADERS),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn development_is_for_this_machines_own_names_and_pages() {
        let allowed = ["http://localhost:3000".to_owned()];
        let check = |pairs: &[_]| check_development(&headers(pairs), &allowed).is_ok();
        for host in [
            "localhost:8080",
            "LOCALHOST",
            "127.0.0.1:1",
            "[::1]:8080",
            "[::1]",
        ] {
            assert!(check(&[("host", host)]), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example:8080",
            "127.0.0.1.evil.example",
            "evil.example:8080",
            "localhost:evil",
            "127.0.0.1:80:80",
            "0.0.0.0:8080",
        ] {
            assert!(!check(&[("host", host)]), "{host}");
        }
        assert!(!check(&[]));
        assert!(!check(&[("host", "localhost"), ("host", "evil.example")]));
        let host = ("host", "localhost:8080");
        assert!(check(&[host, ("origin", "http://localhost:8080")]));
        assert!(check(&[host, ("origin", "http://localhost:3000")]));
        assert!(check(&[
            host,
            ("origin", "http://localhost:3000"),
            ("sec-fetch-site", "same-site")
        ]));
        for origin in [
            "null",
            "http://localhost:9000",
            "http://evil.example",
            "localhost:8080",
        ] {
            assert!(!check(&[host, ("origin", origin)]), "{origin}");
        }
        for (site, good) in [
            ("same-origin", true),
            ("none", true),
            ("same-site", false),
            ("cross-site", false),
        ] {
            assert_eq!(check(&[host, ("sec-fetch-site", site)]), good, "{site}");
        }
    }

    #[test]
    fn streams_open_for_programs_and_pages_of_the_same_host() {
        let allowed = ["https://app.example".to_owned()];
        let check = |pairs: &[_]| {
            let mut all = vec![("host", "api.example"), ("upgrade", "websocket")];
            all.extend_from_slice(pairs);
            check_stream(&headers(&all), &allowed).is_ok()
        };
        assert!(check(&[]));
        assert!(check(&[("origin", "https://api.example")]));
        assert!(check(&[("origin", "https://app.example")]));
        assert!(!check(&[("origin", "https://evil.example")]));
        assert!(!check(&[("origin", "null")]));
        assert!(!check(&[
            ("origin", "https://app.example"),
            ("origin", "https://evil.example")
        ]));
    }
}
