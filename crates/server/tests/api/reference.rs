//! The reference pages say what the code does.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use pinfold_types::ErrorCode;

use crate::server::Server;

/// Set to write the generated page instead of comparing it.
pub(crate) const UPDATE_VARIABLE: &str = "PINFOLD_UPDATE_REFERENCE";

pub(crate) fn page(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs/reference")
        .join(name)
}

fn errors_page() -> String {
    let mut text = String::from(
        "# Errors\n\n\
         Every refusal is one JSON object:\n\n\
         ```json\n\
         {\"error\": {\"code\": \"not_found\", \"message\": \"…\", \"details\": {}, \"hint\": \"…\", \
         \"request_id\": \"r…\"}}\n\
         ```\n\n\
         `code` is stable. `message` says what is wrong and `hint` what to do next; both are for \
         people. `details`\nholds facts for programs, where there are any. `request_id` is also in \
         the header `x-request-id` and in\nthe daemon's log. Who can mend it: `user` by another \
         request, `operator` on the host, `bug` is ours.\n\n\
         A few refusals have a status more exact than their code's, all with `invalid_argument`: \
         405 for a method\nthat a route does not take, 413 for a request larger than its limit \
         (`details.limit_bytes`), 416 for a\nrange outside a file (`details.size`), and 426 for a \
         stream without an upgrade. A head that is too\nlarge or not HTTP is answered without a \
         body.\n\n\
         This page is written by `PINFOLD_UPDATE_REFERENCE=1 cargo test -p pinfold-server \
         reference` from\n`crates/types/src/error.rs`.\n\n\
         | code | status | who mends it | a retry may help | meaning |\n\
         |---|---|---|---|---|\n",
    );
    for code in ErrorCode::ALL {
        let retry = if code.retry_helps() { "yes" } else { "no" };
        let (status, actor, meaning) = (code.http_status(), code.actor(), code.meaning());
        let actor = actor.as_str();
        writeln!(
            text,
            "| `{code}` | {status} | {actor} | {retry} | {meaning} |"
        )
        .unwrap();
    }
    text
}

#[test]
fn the_errors_page_lists_every_code() {
    let path = page("errors.md");
    if std::env::var_os(UPDATE_VARIABLE).is_some() {
        std::fs::write(&path, errors_page()).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        found,
        errors_page(),
        "run `{UPDATE_VARIABLE}=1 cargo test -p pinfold-server reference`"
    );
}

/// Returns the method and a path of every route of the page.
pub(crate) fn routes() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(page("api.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let routes = rows.filter_map(|line| line.split('`').nth(1)?.split_once(' '));
    routes
        .map(|(method, target)| {
            let method = if method == "WS" { "GET" } else { method };
            let target = target
                .replace("{id}", "nobody")
                .replace("{exec_id}", "x0000000000000000000")
                .replace("{key_id}", "k0000000000000000000");
            let target = target.split('?').next().unwrap();
            (method.to_owned(), target.to_owned())
        })
        .collect()
}

#[tokio::test]
async fn every_route_of_the_api_page_is_there() {
    let server = Server::start().await;
    let text = std::fs::read_to_string(page("api.md")).unwrap();
    let mut routes_known = 0;
    for (method, target) in routes() {
        routes_known += 1;
        let answer = server.ask(&method, &target).await;
        let missing = answer.status == 405 || {
            answer.status == 404
                && answer.json()["error"]["message"]
                    .as_str()
                    .is_some_and(|message| message.contains("no route"))
        };
        assert!(!missing, "{method} {target}: {answer:?}");
    }
    assert!(routes_known >= 30, "{routes_known}");
    for code in text.split('`').filter(|part| {
        part.contains('_') && part.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    }) {
        let fields = [
            "exec_id",
            "from_seq",
            "keep_persist",
            "key_id",
            "retry_after_ms",
            "missing_ok",
            "timeout_ms",
            "waited_ms",
            "cold_reason",
            "events_dir",
        ];
        let known = ErrorCode::ALL.iter().any(|known| known.as_str() == code);
        assert!(known || fields.contains(&code), "{code}");
    }
    server.end().await;
}
