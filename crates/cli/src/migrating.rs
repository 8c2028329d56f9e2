//! Holds `docs/migrating.md` to the truth: what it says of ours is tried.

use clap::Parser as _;

use crate::arguments::Arguments;
use crate::environment;

/// The page.
const PAGE: &str = include_str!("../../../docs/migrating.md");

/// The API as it is.
const OPENAPI: &str = include_str!("../../../openapi/pinfold.json");

/// The subjects that rows may wait for.
const LATER: &[&str] = &[
    "Images and templates",
    "Kubernetes",
    "Network",
    "Other languages",
    "Ports",
    "Sessions and workspaces",
    "Virtual machines",
];

/// Everything that the five descriptions list as a setting or an option.
const THEIR_SETTINGS: &[&str] = &[
    "SANDBOX_IMAGE",
    "SANDBOX_VOLUME_MODE",
    "SANDBOX_CACHE_MODE",
    "SANDBOX_CACHE_HOSTPATH",
    "SANDBOX_CACHE_PVC_SIZE",
    "SANDBOX_CACHE_PVC_STORAGE_CLASS",
    "SANDBOX_CACHE_PVC_ACCESS_MODE",
    "SANDBOX_WARM_POOL_SIZE",
    "SANDBOX_WARM_POOL_AUTOSIZE",
    "SANDBOX_WARM_POOL_MIN",
    "SANDBOX_WARM_POOL_MAX",
    "SANDBOX_IDLE_TTL",
    "SANDBOX_WARM_CONTROL_NAMESPACE",
    "SANDBOX_CPU_REQUEST",
    "SANDBOX_MEM_REQUEST",
    "SANDBOX_CPU_LIMIT",
    "SANDBOX_MEM_LIMIT",
    "SANDBOX_ALLOWED_HOSTS",
    "SANDBOX_DISALLOWED_HOSTS",
    "SANDBOX_ENV_*",
    "SANDBOX_CONFIG",
    "SANDBOX_USE_ASYNC_EXEC",
    "SANDBOX_STREAM_EVENTS_DIR",
    "SANDBOX_STREAM_MODE",
    "SANDBOX_STREAM_SIDECAR_IMAGE",
    "SANDBOX_STREAM_ENDPOINT",
    "SANDBOX_STREAM_BUFFER",
    "AGENT_STATE_DIR",
    "AGENT_LOG_LEVEL",
    "AGENT_LOG_FILE",
    "AGENT_ENABLE_GUEST_VOLUMES",
    "KRUNVM_DATA_DIR",
    "CONTAINERS_STORAGE_CONF",
    "CONTAINERS_POLICY",
    "CONTAINERS_REGISTRIES_CONF",
    "keystone.agent.enable",
    "sandbox.memory",
    "sandbox.vcpus",
    "sandbox.nestedVirtualization",
    "sandbox.network",
    "sandbox.syncMode",
    "sandbox.persist",
    "backend.type",
    "backend.microvm.hypervisor",
    "backend.microvm.shareType",
    "backend.kubernetes.*",
    "proxy.enable",
    "proxy.domain",
    "proxy.port",
    "guest.packages",
    "guest.agents.claudeCode.enable",
    "guest.agents.claudeCode.autoAccept",
    "guest.agents.geminiCli.enable",
    "guest.agents.codex.enable",
    "resources.requests.ephemeral-storage",
    "resources.limits.ephemeral-storage",
];

/// One row of a table.
struct Row {
    theirs: String,
    ours: String,
    example: String,
    note: String,
}

/// What of ours a cell names.
enum Named<'a> {
    Setting(&'a str),
    Command(&'a str),
    Route(&'a str, &'a str),
}

fn rows() -> Vec<Row> {
    let cells = |line: &str| -> Option<Row> {
        let inner = line.strip_prefix('|')?.strip_suffix('|')?;
        let mut cells = inner.split('|').map(|cell| cell.trim().to_owned());
        let row = Row {
            theirs: cells.next()?,
            ours: cells.next()?,
            example: cells.next()?,
            note: cells.next()?,
        };
        assert!(cells.next().is_none(), "more than four cells: {line}");
        Some(row)
    };
    let mut rows = Vec::new();
    for line in PAGE.lines().filter(|line| line.starts_with('|')) {
        let row = cells(line).unwrap_or_else(|| panic!("not four cells: {line}"));
        if row.theirs != "Theirs" && !row.theirs.starts_with("---") {
            rows.push(row);
        }
    }
    rows
}

fn code(cell: &str) -> Option<&str> {
    cell.strip_prefix('`')?.strip_suffix('`')
}

fn named(text: &str) -> Named<'_> {
    if text.starts_with("pinfold ") {
        return Named::Command(text);
    }
    match text.split_once(' ') {
        Some((method, path)) if path.starts_with('/') => Named::Route(method, path),
        _ => Named::Setting(text),
    }
}

/// Splits a command line as a shell does that knows single quotes alone.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in line.split('\'').enumerate() {
        if index % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

fn parses(line: &str) -> Result<(), String> {
    Arguments::try_parse_from(words(line))
        .map(drop)
        .map_err(|error| error.to_string())
}

fn has_route(method: &str, path: &str) -> bool {
    let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
    let method = method.to_ascii_lowercase();
    document["paths"][path][method.as_str()].is_object()
}

/// Says what is wrong with a row, if anything is.
fn check(row: &Row) -> Result<(), String> {
    match row.ours.as_str() {
        "*none*" if row.note.len() < 10 => Err("it does not say why".to_owned()),
        "*none*" => Ok(()),
        "*later*" => {
            if !LATER.contains(&row.note.as_str()) {
                return Err(format!("`{}` is no subject", row.note));
            }
            let will_be = code(&row.example).ok_or("it does not say what it will be called")?;
            let is_there = match named(will_be) {
                Named::Setting(key) => environment::setting(key).is_some(),
                Named::Command(line) => parses(line).is_ok(),
                Named::Route(method, path) => has_route(method, path),
            };
            if is_there {
                return Err(format!("`{will_be}` is there by now"));
            }
            Ok(())
        }
        ours => match named(code(ours).ok_or("what is ours is no code")?) {
            Named::Command(line) => parses(line),
            Named::Route(method, path) if has_route(method, path) => Ok(()),
            Named::Route(..) => Err("there is no such route".to_owned()),
            Named::Setting(key) => {
                let setting = environment::setting(key).ok_or("there is no such setting")?;
                let example = code(&row.example).ok_or("it has no example")?;
                setting.kind.check(example)
            }
        },
    }
}

#[test]
fn every_row_is_true() {
    let rows = rows();
    assert!(rows.len() > 100, "{}", rows.len());
    let wrong: Vec<String> = rows
        .iter()
        .filter_map(|row| {
            let error = check(row).err()?;
            Some(format!("{}: {error}", row.theirs))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_setting_that_was_listed_has_a_row() {
    let rows = rows();
    for name in THEIR_SETTINGS {
        let found = rows.iter().any(|row| code(&row.theirs) == Some(name));
        assert!(found, "{name} has no row");
    }
}

#[test]
fn what_is_not_true_is_seen() {
    let wrong = |ours: &str, example: &str, note: &str| {
        let row = Row {
            theirs: String::new(),
            ours: ours.to_owned(),
            example: example.to_owned(),
            note: note.to_owned(),
        };
        assert!(check(&row).is_err(), "{ours}");
    };
    wrong("`memroy`", "`1g`", "");
    wrong("`memory`", "`lots`", "");
    wrong("`pinfold create --no-such`", "", "");
    wrong("`GET /v1/no-such`", "", "");
    wrong("*none*", "", "");
    wrong("*later*", "`memory`", "Network");
    wrong("*later*", "`pinfold list`", "Network");
    wrong("*later*", "`GET /v1/health`", "Network");
    wrong("*later*", "`no_such`", "Someday");
}
