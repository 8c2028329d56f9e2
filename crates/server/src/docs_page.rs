//! The `OpenAPI` document for people: one page without scripts and without anything from outside.

use std::fmt::Write as _;
use std::sync::LazyLock;

use axum::http::HeaderValue;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use serde_json::Value;

use crate::openapi;

/// Nothing is loaded and nothing runs, but for our own style sheet.
const POLICY: &str = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

const STYLE: &str = "\
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h2 { border-bottom: 1px solid var(--line); margin-top: 3rem; }
nav a { margin-right: 1rem; }
code, .path { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; }
summary { cursor: pointer; padding: .5rem; }
details > div { padding: 0 1rem 1rem; border-top: 1px solid var(--line); }
.method { display: inline-block; min-width: 4.5rem; font-weight: bold; }
.what { opacity: .8; margin-left: .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .25rem .5rem; border-top: 1px solid var(--line); }
th { background: var(--soft); }
pre { white-space: pre-wrap; font: inherit; margin: .5rem 0; }
";

static PAGE: LazyLock<String> = LazyLock::new(|| page(openapi::document_value()));

/// Shows this API to people.
#[utoipa::path(
    get,
    path = "/docs",
    tag = openapi::DAEMON_TAG,
    operation_id = "getDocs",
    responses((status = 200, description = "A page that needs nothing else but its style", body = String, content_type = "text/html"))
)]
pub(crate) async fn docs() -> Response {
    fixed(PAGE.as_bytes(), "text/html; charset=utf-8")
}

/// Answers with the style of that page.
#[utoipa::path(
    get,
    path = "/docs/style.css",
    tag = openapi::DAEMON_TAG,
    operation_id = "getDocsStyle",
    responses((status = 200, description = "A style sheet", body = String, content_type = "text/css"))
)]
pub(crate) async fn style() -> Response {
    fixed(STYLE.as_bytes(), "text/css; charset=utf-8")
}

fn fixed(content: &'static [u8], kind: &'static str) -> Response {
    let headers = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    let headers = headers.map(|(name, value)| (name, HeaderValue::from_static(value)));
    (headers, Bytes::from_static(content)).into_response()
}

fn page(document: &Value) -> String {
    let mut tags: Vec<&str> = Vec::new();
    for (_, _, operation) in openapi::operations(document) {
        let tag = tag_of(operation);
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    tags.sort_unstable();
    let mut html = String::from(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>pinfold API</title>\n<link rel=\"stylesheet\" href=\"/docs/style.css\">\n",
    );
    let info = &document["info"];
    put(
        &mut html,
        format_args!(
            "<h1>pinfold API <small>{}</small></h1>\n",
            safe(&info["version"])
        ),
    );
    put(
        &mut html,
        format_args!("<p>{}</p>\n", safe(&info["description"])),
    );
    html.push_str(
        "<p>For programs: <a href=\"/openapi.json\"><code>/openapi.json</code></a></p>\n<nav>",
    );
    for tag in &tags {
        put(&mut html, format_args!("<a href=\"#{tag}\">{tag}</a>"));
    }
    html.push_str("<a href=\"#types\">types</a></nav>\n");
    for tag in &tags {
        put(&mut html, format_args!("<h2 id=\"{tag}\">{tag}</h2>\n"));
        for (method, path, operation) in openapi::operations(document) {
            if tag_of(operation) == *tag {
                put_operation(&mut html, (method, path), operation, document);
            }
        }
    }
    html.push_str("<h2 id=\"types\">types</h2>\n");
    for (name, schema) in document["components"]["schemas"]
        .as_object()
        .into_iter()
        .flatten()
    {
        put_type(&mut html, name, schema);
    }
    html.push_str("</html>\n");
    html
}

/// Writing to a String cannot fail.
fn put(html: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = html.write_fmt(text);
}

fn tag_of(operation: &Value) -> &str {
    operation["tags"][0].as_str().unwrap_or("other")
}

fn put_operation(
    html: &mut String,
    (method, path): (&str, &str),
    operation: &Value,
    document: &Value,
) {
    let (id, summary) = (safe(&operation["operationId"]), safe(&operation["summary"]));
    let method = method.to_ascii_uppercase();
    put(
        html,
        format_args!(
            "<details id=\"{id}\"><summary><span class=\"method\">{method}</span>\
         <span class=\"path\">{}</span><span class=\"what\">{summary}</span></summary><div>\n",
            escaped(path)
        ),
    );
    if operation["description"].is_string() {
        put(
            html,
            format_args!("<pre>{}</pre>\n", safe(&operation["description"])),
        );
    }
    let parameters = operation["parameters"].as_array();
    if let Some(parameters) = parameters.filter(|all| !all.is_empty()) {
        html.push_str("<div class=\"scroll\"><table><tr><th>parameter<th>in<th>type<th>meaning\n");
        for parameter in parameters {
            let required = parameter["required"] == true;
            put(
                html,
                format_args!(
                    "<tr><td><code>{}</code>{}<td>{}<td>{}<td>{}\n",
                    safe(&parameter["name"]),
                    if required { "" } else { " (optional)" },
                    safe(&parameter["in"]),
                    type_of(&parameter["schema"]),
                    safe(&parameter["description"])
                ),
            );
        }
        html.push_str("</table></div>\n");
    }
    if let Some(content) = operation["requestBody"]["content"].as_object() {
        put(html, format_args!("<p>Body: {}</p>\n", content_of(content)));
    }
    html.push_str("<div class=\"scroll\"><table><tr><th>status<th>content<th>meaning\n");
    for (status, response) in operation["responses"].as_object().into_iter().flatten() {
        let response = resolved(response, document);
        let content = response["content"].as_object().map(content_of);
        put(
            html,
            format_args!(
                "<tr><td>{}<td>{}<td><pre>{}</pre>\n",
                escaped(status),
                content.unwrap_or_default(),
                safe(&response["description"])
            ),
        );
    }
    html.push_str("</table></div></div></details>\n");
}

fn resolved<'a>(value: &'a Value, document: &'a Value) -> &'a Value {
    let place = value["$ref"]
        .as_str()
        .and_then(|text| text.strip_prefix('#'));
    place
        .and_then(|place| document.pointer(place))
        .unwrap_or(value)
}

fn content_of(content: &serde_json::Map<String, Value>) -> String {
    let kinds = content.iter().map(|(kind, value)| {
        format!(
            "{} <code>{}</code>",
            type_of(&value["schema"]),
            escaped(kind)
        )
    });
    kinds.collect::<Vec<_>>().join(", ")
}

fn put_type(html: &mut String, name: &str, schema: &Value) {
    let name = escaped(name);
    put(
        html,
        format_args!(
            "<details id=\"type-{name}\"><summary><code>{name}</code><span class=\"what\">{}</span>\
         </summary><div>\n",
            safe(&schema["description"])
        ),
    );
    match schema["properties"].as_object() {
        Some(properties) => {
            html.push_str("<div class=\"scroll\"><table><tr><th>field<th>type<th>meaning\n");
            let required = schema["required"].as_array();
            for (field, of) in properties {
                let needed = required.is_some_and(|all| all.iter().any(|name| name == field));
                put(
                    html,
                    format_args!(
                        "<tr><td><code>{}</code>{}<td>{}<td>{}\n",
                        escaped(field),
                        if needed { "" } else { " (optional)" },
                        type_of(of),
                        safe(&of["description"])
                    ),
                );
            }
            html.push_str("</table></div>\n");
        }
        None => put(html, format_args!("<p>{}</p>\n", type_of(schema))),
    }
    html.push_str("</div></details>\n");
}

/// Describes a schema in few words, with links to named types.
fn type_of(schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = escaped(reference.rsplit('/').next().unwrap_or_default());
        return format!("<a href=\"#type-{name}\">{name}</a>");
    }
    for several in ["oneOf", "anyOf", "allOf"] {
        if let Some(all) = schema[several].as_array() {
            return all.iter().map(type_of).collect::<Vec<_>>().join(" or ");
        }
    }
    if let Some(values) = schema["enum"].as_array() {
        let values = values
            .iter()
            .map(|value| format!("<code>{}</code>", safe(value)));
        return values.collect::<Vec<_>>().join(" or ");
    }
    if schema["items"].is_object() {
        return format!("list of {}", type_of(&schema["items"]));
    }
    if let Some(properties) = schema["properties"].as_object() {
        let fields = properties
            .iter()
            .map(|(name, of)| format!("{}: {}", escaped(name), type_of(of)));
        return format!("{{{}}}", fields.collect::<Vec<_>>().join(", "));
    }
    if schema["additionalProperties"].is_object() {
        return format!("map of {}", type_of(&schema["additionalProperties"]));
    }
    let kinds = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        Value::String(kind) => vec![kind.as_str()],
        _ => vec!["anything"],
    };
    let mut text = kinds.join(" or ");
    if let Some(pattern) = schema["pattern"].as_str() {
        text = format!("{text} <code>{}</code>", escaped(pattern));
    }
    text
}

fn safe(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => escaped(text),
        other => escaped(&other.to_string()),
    }
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_and_type_is_on_the_page_and_every_link_leads_somewhere() {
        let document = openapi::document_value();
        for (_, path, operation) in openapi::operations(document) {
            assert!(
                PAGE.contains(&format!(">{}</span>", escaped(path))),
                "{path}"
            );
            let id = operation["operationId"].as_str().unwrap();
            assert!(PAGE.contains(&format!("<details id=\"{id}\">")), "{id}");
        }
        for link in PAGE.split("href=\"#").skip(1) {
            let target = link.split('"').next().unwrap();
            assert!(PAGE.contains(&format!("id=\"{target}\"")), "{target}");
        }
        for active in ["<script", "http://", "https://", " on", "style="] {
            let found = PAGE.match_indices(active);
            let inside = found.filter(|(place, _)| {
                let before = &PAGE[..*place];
                before.rfind('<') > before.rfind('>') || active.starts_with('<')
            });
            assert_eq!(inside.count(), 0, "{active}");
        }
    }

    #[test]
    fn text_is_no_markup() {
        assert_eq!(
            escaped("<a href=\"x\">&"),
            "&lt;a href=&quot;x&quot;&gt;&amp;"
        );
    }
}
