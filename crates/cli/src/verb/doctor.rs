//! `doctor`: through the daemon, or by ourselves where none can start.

use pinfold_client::Client;
use pinfold_types::api::DoctorReport;
use pinfold_types::doctor::{Finding, FindingStatus};

use crate::autostart;
use crate::config::Config;
use crate::context::{Context, api_error};
use crate::daemon;
use crate::error::{CliError, exit_code};
use crate::printer::{Printer, table_width};
use crate::view;

/// `doctor`. Ends with 1 when something is missing that every sandbox needs.
pub(super) async fn doctor(config: Config, printer: Printer) -> Result<u8, CliError> {
    if config.host().is_some() {
        let context = Context::connect(config, printer).await?;
        return tell(&context.client.doctor().await.map_err(api_error)?, printer);
    }
    let report = match autostart::ensure(&config) {
        Ok(()) => {
            let client = Client::connect(&config.socket()).await.map_err(api_error)?;
            client.doctor().await.map_err(api_error)?
        }
        Err(error) => {
            let mut report = daemon::probe(&config).await?;
            let causes: Vec<&str> = std::iter::once(error.message())
                .chain(error.causes().iter().map(String::as_str))
                .collect();
            report.findings.push(Finding {
                name: "daemon".to_owned(),
                status: FindingStatus::Missing,
                detail: causes.join(": "),
                fix: error.hint_text().map(str::to_owned),
            });
            report
        }
    };
    tell(&report, printer)
}

fn tell(report: &DoctorReport, printer: Printer) -> Result<u8, CliError> {
    if printer.json {
        printer.value(report)?;
    } else {
        printer.data(&view::doctor(report, table_width()))?;
    }
    let missing = |finding: &Finding| finding.status == FindingStatus::Missing;
    Ok(if report.findings.iter().any(missing) {
        exit_code::NO
    } else {
        0
    })
}
