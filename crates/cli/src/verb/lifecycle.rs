//! `start`, `stop`, `rm`, `pause` and `resume` over one, several or all sandboxes.

use futures::StreamExt as _;
use futures::stream;
use pinfold_client::ClientError;
use pinfold_types::api::{Removed, Sandbox, StopRequest};
use pinfold_types::{ErrorCode, SandboxState};

use crate::arguments::{RmArguments, StopArguments, Targets};
use crate::context::{Context, Target, api_error};
use crate::error::{CliError, exit_code};

/// Sandboxes that are worked on at once: enough to keep the daemon busy, few enough to be fair.
const CONCURRENT: usize = 16;

/// `start`.
pub(super) async fn start(context: &Context, targets: &Targets) -> Result<u8, CliError> {
    let names = context.targets(targets, &[SandboxState::Stopped]).await?;
    each(context, names, async |target| {
        context.client.start(&target.key).await.map(Some)
    })
    .await
}

/// `stop`.
pub(super) async fn stop(context: &Context, arguments: &StopArguments) -> Result<u8, CliError> {
    let states = [SandboxState::Running, SandboxState::Paused];
    let names = context.targets(&arguments.targets, &states).await?;
    let request = StopRequest {
        grace_ms: arguments.grace,
    };
    each(context, names, async |target| {
        context.client.stop(&target.key, request).await.map(Some)
    })
    .await
}

/// `pause`.
pub(super) async fn pause(context: &Context, targets: &Targets) -> Result<u8, CliError> {
    let names = context.targets(targets, &[SandboxState::Running]).await?;
    each(context, names, async |target| {
        context.client.pause(&target.key).await.map(Some)
    })
    .await
}

/// `resume`.
pub(super) async fn resume(context: &Context, targets: &Targets) -> Result<u8, CliError> {
    let names = context.targets(targets, &[SandboxState::Paused]).await?;
    each(context, names, async |target| {
        context.client.resume(&target.key).await.map(Some)
    })
    .await
}

/// `rm`.
pub(super) async fn remove(context: &Context, arguments: &RmArguments) -> Result<u8, CliError> {
    let names = context.targets(&arguments.targets, &[]).await?;
    // Somebody else may have removed what `--all` found.
    let lenient = arguments.force || arguments.targets.all;
    each(context, names, async |target| {
        match context
            .client
            .remove(&target.key, arguments.keep_persist)
            .await
        {
            Err(error) if lenient && error.code() == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(removed) => {
                tell_where(context, &target.shown, &removed);
                Ok(None)
            }
        }
    })
    .await
}

/// Says where a kept `/persist` is.
pub(super) fn tell_where(context: &Context, name: &str, removed: &Removed) {
    if let Some(path) = &removed.persist {
        context
            .printer
            .note(&format!("what {name} had in /persist is kept in {path}"));
    }
}

/// Does something to each, tells what failed, and ends with whether anything did.
pub(super) async fn each<F>(context: &Context, targets: Vec<Target>, act: F) -> Result<u8, CliError>
where
    F: AsyncFn(Target) -> Result<Option<Sandbox>, ClientError>,
{
    let act = &act;
    let several = targets.len() > 1;
    let mut results = stream::iter(targets)
        .map(|target| async move {
            let result = act(target.clone()).await;
            (target.shown, result)
        })
        .buffered(CONCURRENT);
    let mut done = Vec::new();
    let mut code = 0;
    while let Some((name, result)) = results.next().await {
        match result {
            Ok(sandbox) if context.printer.json => {
                done.push(match sandbox {
                    Some(sandbox) => serde_json::json!(sandbox),
                    None => serde_json::json!({ "removed": name }),
                });
            }
            Ok(Some(sandbox)) => context.printer.line(sandbox.name.as_str())?,
            Ok(None) => context.printer.line(&name)?,
            Err(error) => {
                let mut told = api_error(error);
                if several {
                    told = told.within(&name);
                }
                context.printer.error(&told);
                code = exit_code::FAILURE;
            }
        }
    }
    if context.printer.json {
        context.printer.value(&done)?;
    }
    Ok(code)
}
