//! What the fuzz targets reach of the command line. No product has it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::config::{Config, Sources};
use crate::environment::{self, SETTINGS};
use crate::handoff::Handoff;
use crate::tarball;

/// What was unpacked: how many entries, and what was left out.
pub type Unpacked = (u64, Vec<String>);

/// Unpacks what a sandbox sent into a directory of the host, as `pinfold cp` does.
///
/// # Errors
///
/// Returns what the command line would say.
pub fn unpack(stream: impl Read, directory: &Path, name: &str) -> Result<Unpacked, String> {
    let mut handoff = Handoff::new(directory, false);
    tarball::unpack(
        stream,
        directory,
        &OsString::from(name),
        &mut handoff,
        &|_| {},
    )
    .map(|done| (done.entries, done.notes))
    .map_err(|error| error.to_string())
}

/// Packs a file or directory of the host, as `pinfold cp` does; returns what was left out.
///
/// # Errors
///
/// Returns what the command line would say.
pub fn pack(source: &Path, name: &str, to: impl Write) -> Result<Vec<String>, String> {
    tarball::pack(source, name, to, &|_| {}).map_err(|error| error.to_string())
}

/// Reads the settings of a user from a configuration file and variables.
///
/// # Errors
///
/// Returns what the command line would say.
pub fn settings(
    file: Option<PathBuf>,
    variables: Vec<(OsString, OsString)>,
) -> Result<BTreeMap<&'static str, String>, String> {
    let sources = Sources {
        config: file,
        variables,
        ..Sources::default()
    };
    let config = Config::load(&sources).map_err(|error| {
        let mut lines = vec![error.message().to_owned()];
        lines.extend(error.causes().iter().cloned());
        lines.join(": ")
    })?;
    let given = config
        .show()
        .filter_map(|(setting, value, _)| Some((setting.key, value?.to_owned())));
    Ok(given.collect())
}

/// Returns whether a setting takes a value.
///
/// # Errors
///
/// Returns what is wrong with it; for a key that is no setting, that.
pub fn check_setting(key: &str, value: &str) -> Result<(), String> {
    environment::setting(key)
        .ok_or_else(|| "no setting".to_owned())?
        .kind
        .check(value)
}

/// Returns the key and the variable of every setting.
pub fn setting_names() -> impl Iterator<Item = (&'static str, &'static str)> {
    SETTINGS
        .iter()
        .map(|setting| (setting.key, setting.variable))
}
