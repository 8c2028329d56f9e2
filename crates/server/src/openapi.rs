//! The `OpenAPI` document: what the handlers say of themselves, and what is true of every route.
//!
//! Handlers describe their path, query, body and success beside their code. What every route has in
//! common is added here: parameters of the path, refusals with their codes, the request's id.

use std::collections::{BTreeMap, HashSet};
use std::sync::LazyLock;

use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use pinfold_types::api::DaemonEventKind;
use pinfold_types::{ApiErrorBody, ErrorCode};
use serde_json::{Map, Value, json};
use utoipa::openapi::{InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder};

use crate::router::{self, REQUEST_ID_HEADER};

/// Tag of routes about the daemon itself, which fail in fewer ways than those about sandboxes.
pub(crate) const DAEMON_TAG: &str = "daemon";

/// Name of the one way to prove who asks.
const SECURITY: &str = "apiKey";

/// Statuses of refusals that any route can answer with.
const ANYWHERE: &[u16] = &[400, 401, 403, 413, 429, 500, 503];

/// Methods of a path item.
const METHODS: &[&str] = &["get", "put", "post", "delete", "patch"];

static DOCUMENT: LazyLock<Value> = LazyLock::new(whole);

static TEXT: LazyLock<String> = LazyLock::new(|| {
    let mut text = serde_json::to_string_pretty(&*DOCUMENT).unwrap_or_default();
    text.push('\n');
    text
});

/// Methods and paths of the operations that take no query.
static WITHOUT_QUERY: LazyLock<HashSet<(String, String)>> = LazyLock::new(|| {
    let operations = operations(&DOCUMENT);
    let takes_none = operations.filter(|(_, _, operation)| {
        let parameters = operation["parameters"].as_array();
        !parameters.is_some_and(|all| all.iter().any(|parameter| parameter["in"] == "query"))
    });
    takes_none
        .map(|(method, path, _)| (method.to_ascii_uppercase(), path.to_owned()))
        .collect()
});

/// Returns the `OpenAPI` document of every route, as it is served.
pub fn openapi_document() -> &'static str {
    &TEXT
}

/// Returns the same document as a value.
pub(crate) fn document_value() -> &'static Value {
    &DOCUMENT
}

/// Returns whether an operation is known to take no query.
pub(crate) fn takes_no_query(method: &str, path: &str) -> bool {
    WITHOUT_QUERY.contains(&(method.to_owned(), path.to_owned()))
}

/// Returns method, path and description of every operation.
pub(crate) fn operations(document: &Value) -> impl Iterator<Item = (&'static str, &str, &Value)> {
    let paths = document["paths"].as_object().into_iter().flatten();
    paths.flat_map(|(path, item)| {
        METHODS
            .iter()
            .filter_map(move |method| Some((*method, path.as_str(), item.get(*method)?)))
    })
}

/// Answers with this document.
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = DAEMON_TAG,
    operation_id = "getOpenApi",
    responses((status = 200, description = "An OpenAPI 3.1 document", body = Object))
)]
pub(crate) async fn document() -> Response {
    let mut response = Bytes::from_static(TEXT.as_bytes()).into_response();
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// Returns the document that handlers add their own part to.
pub(crate) fn empty() -> OpenApi {
    let license = LicenseBuilder::new()
        .name(env!("CARGO_PKG_LICENSE"))
        .identifier(Some(env!("CARGO_PKG_LICENSE")));
    let info = InfoBuilder::new()
        .title("pinfold")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Sandboxes for AI agents: make them, run programs in them, move files in and out. \
             A field or a query that a route does not know is refused.",
        ))
        .license(Some(license.build()));
    let mut document = OpenApiBuilder::new().info(info).build();
    let mut schemas = Vec::new();
    <ApiErrorBody as utoipa::ToSchema>::schemas(&mut schemas);
    let name = <ApiErrorBody as utoipa::ToSchema>::name().into_owned();
    schemas.push((name, <ApiErrorBody as utoipa::PartialSchema>::schema()));
    let components = document.components.get_or_insert_default();
    components.schemas.extend(schemas);
    document
}

fn whole() -> Value {
    // It holds nothing that JSON cannot.
    let mut document = serde_json::to_value(router::described().into_openapi()).unwrap_or_default();
    if let Some(paths) = document.get_mut("paths").and_then(Value::as_object_mut) {
        let known: HashSet<String> = paths.keys().cloned().collect();
        for (path, item) in paths {
            // An operation that is there with the prefix too has another id without it.
            let bare = known.contains(&format!("/v1{path}"));
            for method in METHODS {
                if let Some(operation) = item.get_mut(*method).and_then(Value::as_object_mut) {
                    if bare {
                        rename(operation);
                    }
                    complete(path, operation);
                }
            }
        }
    }
    // The socket of the daemon's host and `serve --dev` need no key; a port does.
    document["security"] = json!([{ SECURITY: [] }]);
    let components = &mut document["components"];
    // Its names stand in a macro, where the derivation does not see them.
    components["schemas"]["DaemonEventKind"]["enum"] = json!(DaemonEventKind::ALL);
    components["securitySchemes"] = json!({
        SECURITY: {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key, as `pinfold key create` prints it. The Unix socket needs none.",
        },
    });
    components["responses"] = refusals();
    components["headers"] = json!({
        "RequestId": {
            "description": "Finds the request in the daemon's log",
            "schema": { "type": "string" },
        },
    });
    document
}

/// Describes a server-sent event that holds a value, or says why the stream ends early.
fn event_of(value: &Value) -> Value {
    // A handler whose events are of several kinds names none.
    let value = if value["type"] == "string" {
        &json!({})
    } else {
        value
    };
    json!({
        "type": "object",
        "required": ["data"],
        "properties": {
            "id": { "type": "string" },
            "event": {
                "type": "string",
                "description": "`error` where `data` says why the stream ends early",
            },
            "data": {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": {
                    "anyOf": [value, { "$ref": "#/components/schemas/ApiErrorBody" }],
                },
            },
        },
    })
}

fn rename(operation: &mut Map<String, Value>) {
    let id = operation.get("operationId").and_then(Value::as_str);
    let id = format!("{}WithoutPrefix", id.unwrap_or_default());
    operation.insert("operationId".to_owned(), id.into());
}

/// Adds what an operation need not say itself.
fn complete(path: &str, operation: &mut Map<String, Value>) {
    let tag = operation.get("tags").and_then(|tags| tags.get(0));
    let daemon = tag.and_then(Value::as_str) == Some(DAEMON_TAG);
    let parameters = path_parameters(path);
    if !parameters.is_empty() {
        let known = operation.entry("parameters").or_insert_with(|| json!([]));
        if let Some(known) = known.as_array_mut() {
            known.splice(0..0, parameters);
        }
    }
    let responses = operation.entry("responses").or_insert_with(|| json!({}));
    let Some(responses) = responses.as_object_mut() else {
        return;
    };
    for status in statuses()
        .keys()
        .filter(|status| !daemon || ANYWHERE.contains(status))
    {
        let refusal = json!({ "$ref": format!("#/components/responses/Refused{status}") });
        responses.entry(status.to_string()).or_insert(refusal);
    }
    for response in responses.values_mut().filter_map(Value::as_object_mut) {
        if let Some(schema) = response
            .get_mut("content")
            .and_then(|content| content.get_mut("text/event-stream"))
            .and_then(|stream| stream.get_mut("schema"))
        {
            *schema = event_of(schema);
        }
        if !response.contains_key("$ref") {
            let headers = response.entry("headers").or_insert_with(|| json!({}));
            headers[REQUEST_ID_HEADER] = json!({ "$ref": "#/components/headers/RequestId" });
        }
    }
}

fn path_parameters(path: &str) -> Vec<Value> {
    let names = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names
        .map(|name| {
            let id = "[a-z][a-z0-9]{19}";
            let (description, pattern) = match name {
                "exec_id" => ("Id of an exec", format!("^{id}$")),
                "id" if path.contains("/sandboxes/") => (
                    "Id or name of a sandbox",
                    "^[a-z]([a-z0-9-]{0,40}[a-z0-9])?$".to_owned(),
                ),
                "key_id" => ("Id of an API key", format!("^{id}$")),
                "name" => (
                    "Name of a template or a pool",
                    "^[a-z]([a-z0-9-]{0,40}[a-z0-9])?$".to_owned(),
                ),
                _ => ("Id or name", "^[a-z]([a-z0-9-]{0,62}[a-z0-9])?$".to_owned()),
            };
            json!({
                "name": name,
                "in": "path",
                "required": true,
                "description": description,
                "schema": { "type": "string", "pattern": pattern },
            })
        })
        .collect()
}

/// Returns every status of a refusal with its codes.
fn statuses() -> BTreeMap<u16, Vec<ErrorCode>> {
    let mut statuses: BTreeMap<u16, Vec<ErrorCode>> = BTreeMap::new();
    for code in ErrorCode::ALL {
        statuses.entry(code.http_status()).or_default().push(*code);
    }
    statuses.insert(413, vec![ErrorCode::InvalidArgument]);
    statuses
}

fn refusals() -> Value {
    let refusal = |(status, codes): (u16, Vec<ErrorCode>)| {
        let lines: Vec<String> = codes
            .iter()
            .map(|code| format!("`{code}`: {}", code.meaning()))
            .collect();
        let description = match status {
            413 => "`invalid_argument`: The request is larger than its limit.".to_owned(),
            _ => lines.join("\n"),
        };
        let value = json!({
            "description": description,
            "headers": {
                REQUEST_ID_HEADER: { "$ref": "#/components/headers/RequestId" },
            },
            "content": { "application/json": { "schema": {
                "allOf": [
                    { "$ref": "#/components/schemas/ApiErrorBody" },
                    { "properties": { "error": { "properties": {
                        "code": { "enum": codes },
                    } } } },
                ],
            } } },
        });
        (format!("Refused{status}"), value)
    };
    Value::Object(statuses().into_iter().map(refusal).collect())
}
