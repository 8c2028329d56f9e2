//! `config` and `completion`: no daemon is needed.

use clap::CommandFactory as _;

use crate::arguments::{Arguments, CompletionArguments, ConfigVerb};
use crate::config::Config;
use crate::environment;
use crate::error::CliError;
use crate::printer::Printer;
use crate::table::{Column, render};

/// `config`.
pub(super) fn config(verb: &ConfigVerb, config: &Config, printer: Printer) -> Result<u8, CliError> {
    match verb {
        ConfigVerb::Reference => printer.data(&environment::reference())?,
        ConfigVerb::Show { origin } if printer.json => {
            let settings: Vec<serde_json::Value> = config
                .show()
                .map(|(setting, value, from)| {
                    let mut shown = serde_json::json!({ "key": setting.key, "value": value });
                    if let (true, Some(fields)) = (*origin, shown.as_object_mut()) {
                        fields.insert("origin".to_owned(), from.to_string().into());
                    }
                    shown
                })
                .collect();
            printer.value(&settings)?;
        }
        ConfigVerb::Show { origin } => printer.data(&table(config, *origin))?,
    }
    Ok(0)
}

fn table(config: &Config, origin: bool) -> String {
    const COLUMNS: &[Column] = &[
        Column::left("KEY"),
        Column::left("VALUE"),
        Column::left("ORIGIN"),
    ];
    let columns = COLUMNS.get(..if origin { 3 } else { 2 }).unwrap_or(COLUMNS);
    let rows: Vec<Vec<String>> = config
        .show()
        .map(|(setting, value, from)| {
            let mut row = vec![setting.key.to_owned(), value.unwrap_or("-").to_owned()];
            if origin {
                row.push(from.to_string());
            }
            row
        })
        .collect();
    // A path is never cut: people copy it.
    render(columns, &rows, None)
}

/// `completion`.
pub(super) fn completion(
    arguments: &CompletionArguments,
    printer: Printer,
) -> Result<u8, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(
        arguments.shell,
        &mut Arguments::command(),
        "pinfold",
        &mut script,
    );
    printer.data(&String::from_utf8_lossy(&script))?;
    Ok(0)
}
