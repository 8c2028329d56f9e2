//! The `OpenAPI` document says what the server does.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::reference::UPDATE_VARIABLE;
use crate::server::Server;

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi/pinfold.json")
}

fn document() -> Value {
    serde_json::from_str(pinfold_server::openapi_document()).unwrap()
}

/// Returns method, path and description of every operation.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().unwrap();
    let all = paths.iter().flat_map(|(path, item)| {
        let methods = item.as_object().unwrap().iter();
        methods.map(|(method, operation)| (method.to_uppercase(), path.clone(), operation.clone()))
    });
    all.collect()
}

fn with_names(path: &str) -> String {
    path.replace("{exec_id}", "x0000000000000000000")
        .split('/')
        .map(|part| {
            if part.starts_with('{') {
                "nobody"
            } else {
                part
            }
        })
        .collect::<Vec<_>>()
        .join("/")
}

#[test]
fn the_checked_in_openapi_document_is_the_servers() {
    if std::env::var_os(UPDATE_VARIABLE).is_some() {
        std::fs::write(file(), pinfold_server::openapi_document()).unwrap();
    }
    let found = std::fs::read_to_string(file()).unwrap();
    assert!(
        found == pinfold_server::openapi_document(),
        "run `cargo xtask openapi`"
    );
}

#[tokio::test]
async fn the_document_is_served_with_and_without_the_prefix() {
    let server = Server::start().await;
    for path in ["/openapi.json", "/v1/openapi.json"] {
        let answer = server.ask("GET", path).await;
        assert_eq!(answer.status, 200);
        assert!(answer.head.contains("content-type: application/json"));
        assert_eq!(answer.json(), document());
    }
    server.end().await;
}

#[test]
fn every_reference_resolves_and_every_operation_has_an_id_of_its_own() {
    let document = document();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 100);
    for reference in found {
        let place = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(place).is_some(), "{reference}");
    }
    let mut ids = HashSet::new();
    for (method, path, operation) in operations(&document) {
        let id = operation["operationId"].as_str().unwrap().to_owned();
        assert!(ids.insert(id), "{method} {path}");
        assert!(operation["summary"].is_string(), "{method} {path}");
    }
}

fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (name, inner) in map {
                match inner.as_str() {
                    Some(text) if name == "$ref" => found.push(text.to_owned()),
                    _ => references(inner, found),
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|inner| references(inner, found)),
        _ => {}
    }
}

#[tokio::test]
async fn every_operation_is_there_and_takes_the_query_that_it_names() {
    let server = Server::start().await;
    let document = document();
    let operations = operations(&document);
    assert!(operations.len() > 30);
    for (method, path, operation) in operations {
        let upgrade = if operation["responses"]["101"].is_object() {
            "connection: upgrade, close\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        } else {
            "connection: close\r\n"
        };
        let target = with_names(&path);
        let answer = server
            .raw(&format!(
                "{method} {target}?zzz=1 HTTP/1.1\r\nhost: x\r\n{upgrade}content-length: 0\r\n\r\n"
            ))
            .await;
        let message = answer.refusal(400, "invalid_argument");
        let mut known: Vec<&str> = match message.split_once("this route takes ") {
            Some((_, "none")) => Vec::new(),
            Some((_, names)) => names.split(", ").collect(),
            None => panic!("{method} {path}: {message}"),
        };
        let parameters = operation["parameters"].as_array();
        let mut named: Vec<&str> = parameters
            .into_iter()
            .flatten()
            .filter(|parameter| parameter["in"] == "query")
            .map(|parameter| parameter["name"].as_str().unwrap())
            .collect();
        known.sort_unstable();
        named.sort_unstable();
        assert_eq!(known, named, "{method} {path}");
    }
    server.end().await;
}
