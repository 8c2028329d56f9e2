//! `events`.

use pinfold_types::api::{DaemonEvent, DaemonEventQuery};
use pinfold_types::{ExecId, KeyId, SandboxId};

use crate::arguments::EventsArguments;
use crate::context::{Context, api_error};
use crate::error::CliError;
use crate::printer::printable;

/// Most pages that are read: more than the daemon keeps, so that a lying one cannot keep us.
const PAGES_MAX: usize = 100;

/// `events`.
pub(super) async fn events(context: &Context, arguments: &EventsArguments) -> Result<u8, CliError> {
    let mut query = DaemonEventQuery {
        after: arguments.after,
        sandbox: arguments.name.clone(),
        kinds: arguments.kind.clone(),
        limit: 0,
    };
    if arguments.follow {
        return follow(context, &query).await;
    }
    for _ in 0..PAGES_MAX {
        let page = context.client.events(&query).await.map_err(api_error)?;
        for event in &page.events {
            show(context, event)?;
        }
        match page.next {
            Some(next) => query.after = next,
            None => return Ok(0),
        }
    }
    Err(CliError::new("the list has no end"))
}

async fn follow(context: &Context, query: &DaemonEventQuery) -> Result<u8, CliError> {
    let mut events = context
        .client
        .follow_events(query)
        .await
        .map_err(api_error)?;
    while let Some(event) = events.next().await.map_err(api_error)? {
        show(context, &event)?;
    }
    Ok(0)
}

/// One line for each event: with `--json` an object.
fn show(context: &Context, event: &DaemonEvent) -> Result<(), CliError> {
    if context.printer.json {
        let text = serde_json::to_string(event)
            .map_err(|error| CliError::new("failed to write JSON").caused_by(&error))?;
        return context.printer.line(&text);
    }
    context.printer.line(&line(event))
}

fn line(event: &DaemonEvent) -> String {
    let mut line = format!("{}  {:<16}", event.time, event.kind);
    let mut add = |word: &str, text: Option<&str>| {
        if let Some(text) = text {
            line.push_str("  ");
            line.push_str(word);
            line.push_str(text);
        }
    };
    let sandbox = event.sandbox_id.as_ref().map(SandboxId::as_str);
    add("", event.name.as_deref().or(sandbox));
    add("exec=", event.exec_id.as_ref().map(ExecId::as_str));
    add("key=", event.key_id.as_ref().map(KeyId::as_str));
    add("pool=", event.pool.as_deref());
    let ended = event
        .exit
        .as_ref()
        .map(|exit| exit.shell_code().to_string());
    add("exit=", ended.as_deref());
    add("", event.reason.as_deref());
    printable(line.trim_end()).replace('\n', " ")
}
