//! `key`.

use pinfold_types::KeyId;
use pinfold_types::api::keys::{CreateKeyRequest, Key};

use crate::arguments::{KeyCreateArguments, KeyRevokeArguments, KeyVerb};
use crate::context::{Context, api_error};
use crate::error::CliError;
use crate::printer::table_width;
use crate::table::{Column, render};

/// `key`.
pub(super) async fn key(context: &Context, verb: &KeyVerb) -> Result<u8, CliError> {
    match verb {
        KeyVerb::Create(arguments) => create(context, arguments).await,
        KeyVerb::List => list(context).await,
        KeyVerb::Revoke(arguments) => revoke(context, arguments).await,
    }
}

/// The key is all of standard output, so that a script takes it without looking.
async fn create(context: &Context, arguments: &KeyCreateArguments) -> Result<u8, CliError> {
    let request = CreateKeyRequest {
        name: arguments.name.clone(),
        principal: arguments.principal.clone(),
        role: arguments.role,
        expires_ms: arguments.expires,
        quotas: arguments.quotas(),
    };
    let created = context
        .client
        .key_create(&request)
        .await
        .map_err(api_error)?;
    if context.printer.json {
        context.printer.value(&created)?;
        return Ok(0);
    }
    context.printer.line(created.token.reveal())?;
    context.printer.note(&format!(
        "this is the key {} of {}, role {}; it is not shown again",
        created.key.id, created.key.principal, created.key.role
    ));
    Ok(0)
}

async fn list(context: &Context) -> Result<u8, CliError> {
    const COLUMNS: &[Column] = &[
        Column::cut("NAME"),
        Column::left("ID"),
        Column::left("PRINCIPAL"),
        Column::left("ROLE"),
        Column::left("EXPIRES"),
        Column::left("LAST USED"),
    ];
    let list = context.client.key_list().await.map_err(api_error)?;
    if context.printer.json {
        context.printer.value(&list.keys)?;
        return Ok(0);
    }
    let or = |time: Option<String>, other: &str| time.unwrap_or_else(|| other.to_owned());
    let rows: Vec<Vec<String>> = list
        .keys
        .into_iter()
        .map(|key| {
            vec![
                key.name.to_string(),
                key.id.to_string(),
                key.principal.to_string(),
                key.role.to_string(),
                or(key.expires_at, "never"),
                or(key.last_used_at, "never"),
            ]
        })
        .collect();
    context
        .printer
        .data(&render(COLUMNS, &rows, table_width()))?;
    Ok(0)
}

async fn revoke(context: &Context, arguments: &KeyRevokeArguments) -> Result<u8, CliError> {
    let list = context.client.key_list().await.map_err(api_error)?;
    // All are found before the first is revoked.
    let ids = arguments
        .keys
        .iter()
        .map(|named| find(&list.keys, named))
        .collect::<Result<Vec<_>, _>>()?;
    let mut revoked = Vec::new();
    for id in ids {
        // An earlier one may have taken this one with it.
        if revoked.contains(&id) {
            continue;
        }
        let more = context.client.key_revoke(&id).await.map_err(api_error)?;
        revoked.extend(more.revoked);
    }
    if context.printer.json {
        context.printer.value(&revoked)?;
        return Ok(0);
    }
    for id in &revoked {
        context.printer.line(id.as_str())?;
    }
    Ok(0)
}

fn find(keys: &[Key], named: &str) -> Result<KeyId, CliError> {
    let mut found = keys
        .iter()
        .filter(|key| key.id.as_str() == named || key.name.as_str() == named);
    match (found.next(), found.next()) {
        (Some(key), None) => Ok(key.id.clone()),
        (None, _) => Err(CliError::new(format!("there is no key `{named}`"))
            .hint("see all of them with `pinfold key list`")),
        (Some(_), Some(_)) => Err(CliError::new(format!(
            "several principals have a key `{named}`"
        ))
        .hint("name it by its id; `pinfold key list` shows ids")),
    }
}
