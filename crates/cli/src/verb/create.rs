//! `create`, and what `run` shares with it.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream;
use indicatif::{ProgressBar, ProgressStyle};
use pinfold_types::api::{CreateSandboxRequest, Sandbox};

use crate::arguments::CreateArguments;
use crate::context::{Context, api_error};
use crate::error::CliError;
use crate::printer::{Printer, printable};
use crate::request;
use crate::terminal;

/// Sandboxes that are created at once.
const CONCURRENT: usize = 8;

/// Time between two pictures of a spinner.
const SPINNER_TICK: Duration = Duration::from_millis(120);

/// `create`. When one of several fails, those that were made stay and are printed.
pub(super) async fn create(context: &Context, arguments: &CreateArguments) -> Result<u8, CliError> {
    let request = request::of_template(
        &context.config,
        arguments.template.as_ref(),
        &arguments.sandbox,
        (&arguments.place, arguments.language),
    )?;
    let requests = numbered(request, arguments.count)?;
    let mut made = stream::iter(requests)
        .map(|request| async move { one(context, &request).await })
        .buffered(CONCURRENT);
    let mut sandboxes = Vec::new();
    let mut failed = None;
    while let Some(result) = made.next().await {
        match result {
            Ok(sandbox) => {
                if !context.printer.json {
                    context.printer.line(sandbox.name.as_str())?;
                }
                sandboxes.push(sandbox);
            }
            Err(error) => {
                if let Some(earlier) = failed.replace(error) {
                    context.printer.error(&earlier);
                }
            }
        }
    }
    if context.printer.json {
        match (arguments.count, sandboxes.as_slice()) {
            (None, [one]) => context.printer.value(one)?,
            (None, _) => {}
            (Some(_), several) => context.printer.value(&several)?,
        }
    }
    failed.map_or(Ok(0), Err)
}

/// Tells the members of `--count N` apart by numbers behind the name.
fn numbered(
    request: CreateSandboxRequest,
    count: Option<u32>,
) -> Result<Vec<CreateSandboxRequest>, CliError> {
    let (Some(name), Some(count)) = (request.name.clone(), count) else {
        let count = usize::try_from(count.unwrap_or(1)).unwrap_or(1);
        return Ok(vec![request; count]);
    };
    (1..=count)
        .map(|number| {
            let name = name.numbered(number).map_err(|error| {
                CliError::new(error.to_string()).hint("choose a shorter --name")
            })?;
            Ok(CreateSandboxRequest {
                name: Some(name),
                ..request.clone()
            })
        })
        .collect()
}

/// Creates one sandbox, and shows what is being done where people look.
pub(super) async fn one(
    context: &Context,
    request: &CreateSandboxRequest,
) -> Result<Sandbox, CliError> {
    let spinner = spinner(context.printer);
    let result = context
        .client
        .create_with_progress(request, |text| spinner.set_message(printable(text)))
        .await
        .map_err(api_error);
    spinner.finish_and_clear();
    result
}

/// A spinner on a terminal, and nothing elsewhere.
fn spinner(printer: Printer) -> ProgressBar {
    if printer.quiet || !terminal::progress_helps() {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner();
    let style = ProgressStyle::with_template("{spinner} {msg}");
    if let Ok(style) = style {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(SPINNER_TICK);
    spinner
}
