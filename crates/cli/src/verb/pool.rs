//! `template` and `pool`.

use std::io::Read as _;
use std::path::Path;

use pinfold_types::SandboxSpec;
use pinfold_types::api::{
    CreatePoolRequest, Pool, PoolSize, ScalePoolRequest, Template, TemplateRequest,
};

use crate::arguments::{PoolVerb, SizeOptions, TemplateCreateArguments, TemplateVerb};
use crate::context::{Context, api_error};
use crate::error::CliError;
use crate::printer::table_width;
use crate::request;
use crate::table::{Column, render};

/// Most bytes of a template's file: an environment may hold one MiB, and the rest is little.
const FILE_BYTES_MAX: u64 = 2 << 20;

/// `template`.
pub(super) async fn template(context: &Context, verb: &TemplateVerb) -> Result<u8, CliError> {
    match verb {
        TemplateVerb::Create(arguments) => create_template(context, arguments).await?,
        TemplateVerb::List => {
            let list = context.client.templates().await.map_err(api_error)?;
            if context.printer.json {
                context.printer.value(&list.templates)?;
            } else {
                context.printer.data(&templates(&list.templates))?;
            }
        }
        TemplateVerb::Show { name } => {
            let template = context.client.template(name).await.map_err(api_error)?;
            context.printer.value(&template)?;
        }
        TemplateVerb::Rm { names } => {
            for name in names {
                let removed = context.client.remove_template(name).await;
                removed.map_err(api_error)?;
            }
        }
    }
    Ok(0)
}

async fn create_template(
    context: &Context,
    arguments: &TemplateCreateArguments,
) -> Result<(), CliError> {
    if arguments.sandbox.name.is_some() {
        return Err(CliError::new("a template has one name, and no --name")
            .hint("name its sandboxes when you create them")
            .exit(2));
    }
    request::check_places(&context.config, &arguments.sandbox)?;
    let built = request::build(
        None,
        &arguments.sandbox,
        &arguments.place,
        arguments.language,
    )?;
    let spec = match &arguments.file {
        None => built.spec,
        Some(_) if built.spec != SandboxSpec::default() => {
            return Err(CliError::new(
                "--file holds the whole template, so no other option of it fits",
            )
            .hint("write the options into the file")
            .exit(2));
        }
        Some(path) => read_spec(path)?,
    };
    let request = TemplateRequest {
        spec,
        shared: arguments.shared,
    };
    let put = context.client.put_template(&arguments.template, &request);
    let template = put.await.map_err(api_error)?;
    if context.printer.json {
        context.printer.value(&template)
    } else {
        context
            .printer
            .line(&format!("{} {}", template.name, template.version))
    }
}

fn read_spec(path: &Path) -> Result<SandboxSpec, CliError> {
    let failed = || CliError::new(format!("failed to read the template {}", path.display()));
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(|error| failed().caused_by(&error))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(failed().caused_by(&CliError::new("it is larger than 2 MiB")));
    }
    let spec: SandboxSpec =
        serde_yaml_ng::from_str(&text).map_err(|error| failed().caused_by(&error))?;
    spec.check().map_err(|error| failed().caused_by(&error))?;
    Ok(spec)
}

fn templates(templates: &[Template]) -> String {
    const COLUMNS: &[Column] = &[
        Column::cut("NAME"),
        Column::right("VERSION"),
        Column::left("SHARED"),
        Column::left("OWNER"),
        Column::cut("IMAGE"),
    ];
    let rows: Vec<Vec<String>> = templates
        .iter()
        .map(|template| {
            vec![
                template.name.to_string(),
                template.version.to_string(),
                if template.shared { "yes" } else { "no" }.to_owned(),
                template.owner.to_string(),
                template.spec.image.clone(),
            ]
        })
        .collect();
    render(COLUMNS, &rows, table_width())
}

/// `pool`.
pub(super) async fn pool(context: &Context, verb: &PoolVerb) -> Result<u8, CliError> {
    let client = &context.client;
    match verb {
        PoolVerb::Create(arguments) => {
            let SizeOptions { size, min, max } = arguments.size;
            let request = CreatePoolRequest {
                name: arguments.name.clone(),
                template: arguments.template.clone(),
                size,
                min,
                max,
            };
            let pool = client.create_pool(&request).await.map_err(api_error)?;
            tell(context, &pool)?;
        }
        PoolVerb::List => {
            let list = client.pools().await.map_err(api_error)?;
            if context.printer.json {
                context.printer.value(&list.pools)?;
            } else {
                context.printer.data(&pools(&list.pools))?;
            }
        }
        PoolVerb::Scale { name, size } => {
            let SizeOptions { size, min, max } = *size;
            let size = ScalePoolRequest { size, min, max };
            let pool = client.scale_pool(name, size).await.map_err(api_error)?;
            tell(context, &pool)?;
        }
        PoolVerb::Rm { names } => {
            for name in names {
                client.remove_pool(name).await.map_err(api_error)?;
            }
        }
    }
    Ok(0)
}

fn tell(context: &Context, pool: &Pool) -> Result<(), CliError> {
    if context.printer.json {
        context.printer.value(pool)
    } else {
        context.printer.line(pool.name.as_str())
    }
}

fn pools(pools: &[Pool]) -> String {
    const COLUMNS: &[Column] = &[
        Column::cut("NAME"),
        Column::cut("TEMPLATE"),
        Column::right("SIZE"),
        Column::right("WARM"),
        Column::right("STARTING"),
        Column::right("CLAIMS"),
        Column::right("HITS"),
        Column::cut("STATE"),
    ];
    let rows: Vec<Vec<String>> = pools
        .iter()
        .map(|pool| {
            let size = PoolSize::read(pool.size, pool.min, pool.max);
            let metrics = &pool.metrics;
            let hits = metrics
                .hit_rate
                .map_or_else(|| "-".to_owned(), |rate| format!("{:.0}%", rate * 100.0));
            let state = match &pool.error {
                _ if pool.draining => "draining",
                Some(error) => error,
                None if metrics.depth < pool.target => "filling",
                None => "full",
            };
            vec![
                pool.name.to_string(),
                format!("{}@{}", pool.template, pool.template_version),
                size.map_or_else(|_| "?".to_owned(), |size| size.to_string()),
                metrics.depth.to_string(),
                pool.starting.to_string(),
                (metrics.claims_warm + metrics.claims_cold).to_string(),
                hits,
                state.to_owned(),
            ]
        })
        .collect();
    render(COLUMNS, &rows, table_width())
}
