//! `update`.

use std::collections::BTreeMap;

use pinfold_types::Resources;
use pinfold_types::api::{DeadlinesUpdate, UpdateSandboxRequest};

use super::lifecycle::each;
use crate::arguments::UpdateArguments;
use crate::context::Context;
use crate::error::CliError;

/// Changes one, several or all sandboxes.
pub(super) async fn update(context: &Context, arguments: &UpdateArguments) -> Result<u8, CliError> {
    let request = request(arguments);
    if request == UpdateSandboxRequest::default() {
        return Err(CliError::new("nothing to change is named")
            .hint("see `pinfold update --help` for what can be changed"));
    }
    let names = context.targets(&arguments.targets, &[]).await?;
    let request = &request;
    each(context, names, async |target| {
        context.client.update(&target.key, request).await.map(Some)
    })
    .await
}

fn request(arguments: &UpdateArguments) -> UpdateSandboxRequest {
    UpdateSandboxRequest {
        labels: changes(&arguments.label, &arguments.remove_label),
        env: changes(&arguments.env, &arguments.remove_env),
        deadlines: DeadlinesUpdate {
            lifetime_ms: arguments.lifetime,
            lifetime_action: arguments.lifetime_action,
            idle_ms: arguments.idle,
            idle_action: arguments.idle_action,
        },
        resources: Resources {
            cpus: arguments.cpus,
            memory: arguments.memory,
            pids: arguments.pids,
            ..Resources::default()
        },
    }
}

fn changes(set: &[(String, String)], removed: &[String]) -> BTreeMap<String, Option<String>> {
    let set = set
        .iter()
        .map(|(name, value)| (name.clone(), Some(value.clone())));
    let removed = removed.iter().map(|name| (name.clone(), None));
    set.chain(removed).collect()
}
