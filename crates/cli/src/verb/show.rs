//! `list`, `status`, `report` and `metrics`.

use pinfold_types::api::ListQuery;

use crate::arguments::{ListArguments, MetricsArguments, OptionalTargets};
use crate::config::Config;
use crate::context::{Context, api_error};
use crate::error::{CliError, exit_code};
use crate::printer::{Printer, table_width};
use crate::view;

/// `list`.
pub(super) async fn list(context: &Context, arguments: &ListArguments) -> Result<u8, CliError> {
    let query = ListQuery {
        states: arguments.state.clone(),
        all: arguments.all,
        warm: arguments.warm,
        labels: arguments.label.iter().cloned().collect(),
        ..ListQuery::default()
    };
    let sandboxes = context.client.list_all(&query).await.map_err(api_error)?;
    if context.printer.json {
        context.printer.value(&sandboxes)?;
    } else {
        context
            .printer
            .data(&view::sandboxes(&sandboxes, table_width()))?;
    }
    Ok(0)
}

/// `status`.
pub(super) async fn status(context: &Context, targets: &OptionalTargets) -> Result<u8, CliError> {
    if targets.is_empty() {
        return daemon(context).await;
    }
    let mut sandboxes = Vec::new();
    if targets.all {
        sandboxes = context.all(&[]).await?;
    }
    for name in &targets.names {
        sandboxes.push(context.client.get(name).await.map_err(api_error)?);
    }
    if context.printer.json {
        match sandboxes.as_slice() {
            [one] if !targets.all => context.printer.value(one)?,
            several => context.printer.value(&several)?,
        }
        return Ok(0);
    }
    let shown: Vec<String> = sandboxes.iter().map(view::sandbox).collect();
    context.printer.data(&shown.join("\n"))?;
    Ok(0)
}

async fn daemon(context: &Context) -> Result<u8, CliError> {
    let version = context.client.version().await.map_err(api_error)?;
    let (what, place) = match context.config.host() {
        Some(host) => ("host", host.to_string()),
        None => ("socket", context.config.socket().display().to_string()),
    };
    if context.printer.json {
        let mut value = serde_json::json!({
            "running": true,
            "version": version.version,
            "pid": version.pid,
            "state_dir": version.state_dir,
        });
        value[what] = place.into();
        context.printer.value(&value)?;
    } else {
        context.printer.data(&format!(
            "daemon:     running\nversion:    {}\npid:        {}\nstate_dir:  {}\n{:<12}{place}\n",
            version.version,
            version.pid,
            version.state_dir,
            format!("{what}:"),
        ))?;
    }
    Ok(0)
}

/// `status` where no daemon runs and none may be started.
pub(super) fn no_daemon(config: &Config, printer: Printer) -> Result<u8, CliError> {
    let socket = config.socket();
    if printer.json {
        printer.value(&serde_json::json!({ "running": false, "socket": socket }))?;
    } else {
        printer.data(&format!(
            "daemon:     not running\nsocket:     {}\n",
            socket.display()
        ))?;
    }
    Ok(exit_code::NO)
}

/// `report`.
pub(super) async fn report(context: &Context) -> Result<u8, CliError> {
    let report = context.client.report().await.map_err(api_error)?;
    if context.printer.json {
        context.printer.value(&report)?;
    } else {
        context
            .printer
            .data(&view::report(&report.sandboxes, table_width()))?;
    }
    Ok(0)
}

/// `metrics`.
pub(super) async fn metrics(
    context: &Context,
    arguments: &MetricsArguments,
) -> Result<u8, CliError> {
    let calls = arguments
        .names
        .iter()
        .map(|name| context.client.metrics(name));
    let mut shown = Vec::new();
    for (name, result) in arguments
        .names
        .iter()
        .zip(futures::future::join_all(calls).await)
    {
        let metrics = result.map_err(|error| api_error(error).within(name))?;
        shown.push(metrics);
    }
    match shown.as_slice() {
        [one] => context.printer.value(one)?,
        several => {
            let named: serde_json::Map<String, serde_json::Value> = arguments
                .names
                .iter()
                .zip(several)
                .map(|(name, metrics)| (name.clone(), serde_json::json!(metrics)))
                .collect();
            context.printer.value(&named)?;
        }
    }
    Ok(0)
}
