//! Which daemon is meant when it is not this machine's, and what it is shown.

use clap::{Args, ValueHint};

use crate::environment;

/// Options of every verb about a daemon elsewhere.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct HostOptions {
    /// Talk to the daemon at this URL, as in `https://host:8443`; none is started
    #[arg(long, global = true, value_name = "URL", value_hint = ValueHint::Url,
          conflicts_with_all = ["socket", "state_dir"])]
    pub(crate) host: Option<String>,
    /// Show the API key in this file to the host; `PINFOLD_API_KEY` holds one too
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) key_file: Option<String>,
    /// Trust these certificates of the host, instead of the system's
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) ca_file: Option<String>,
    /// Let others on the way to the host read the key and everything else
    #[arg(long, global = true)]
    pub(crate) insecure_http: bool,
}

impl HostOptions {
    /// Returns the settings that were given as flags.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings: Vec<(&'static str, String)> = [
            (environment::HOST, &self.host),
            (environment::KEY_FILE, &self.key_file),
            (environment::CA_FILE, &self.ca_file),
        ]
        .into_iter()
        .filter_map(|(key, value)| value.clone().map(|value| (key, value)))
        .collect();
        if self.insecure_http {
            settings.push((environment::INSECURE_HTTP, "true".to_owned()));
        }
        settings
    }
}
