//! A daemon that is named by `--host`: how it is reached, and what cannot be meant there.
//!
//! Such a daemon is never started from here.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use pinfold_client::{ApiKey, Client, Endpoint, Remote};

use crate::arguments::SandboxOptions;
use crate::config::{Config, Origin};
use crate::context::api_error;
use crate::environment;
use crate::error::CliError;
use crate::printer::Printer;

/// Most bytes of a file with a key: keys are shorter than a hundred, and this leaves room for mistakes
/// that are then told.
const KEY_FILE_BYTES_MAX: u64 = 4096;

/// Makes a client of a named daemon.
///
/// # Errors
///
/// Fails when the key or the certificates cannot be used, or nobody answers at a socket.
pub(crate) async fn open(
    config: &Config,
    endpoint: &Endpoint,
    printer: Printer,
) -> Result<Client, CliError> {
    let port = match endpoint {
        Endpoint::Unix(path) => return Client::connect(path).await.map_err(api_error),
        Endpoint::Tcp(port) => port.clone(),
    };
    let plain_anywhere = config.text(environment::INSECURE_HTTP) == Some("true");
    if plain_anywhere && !port.secure {
        printer.warn("others on the way can read the API key and everything else");
    }
    let remote = Remote {
        port,
        key: key(config, printer)?,
        authorities: config.text(environment::CA_FILE).map(PathBuf::from),
        plain_anywhere,
    };
    Client::remote(remote).map_err(api_error)
}

/// Finds the key: a file that a flag names, the variable, a file that is configured.
fn key(config: &Config, printer: Printer) -> Result<Option<ApiKey>, CliError> {
    let file = config.text(environment::KEY_FILE).map(PathBuf::from);
    let by_flag = config.origin(environment::KEY_FILE) == Some(&Origin::Flag);
    let variable = std::env::var_os(environment::API_KEY_VARIABLE)
        .filter(|value| !value.is_empty() && !by_flag);
    let (text, place) = match (variable, file) {
        (Some(value), _) => {
            let text = value.to_string_lossy().into_owned();
            (text, environment::API_KEY_VARIABLE.to_owned())
        }
        (None, Some(path)) => (read(&path, printer)?, path.display().to_string()),
        (None, None) => return Ok(None),
    };
    // What is wrong with it must not be shown: it may be a key with a slip in it.
    ApiKey::new(&text).map(Some).map_err(|error| {
        CliError::new(format!("{place} holds no API key"))
            .caused_by(&error)
            .hint("`pinfold key create NAME` on the daemon's host prints one")
    })
}

fn read(path: &Path, printer: Printer) -> Result<String, CliError> {
    let failed = || CliError::new(format!("failed to read the API key in {}", path.display()));
    let file = std::fs::File::open(path).map_err(|error| failed().caused_by(&error))?;
    let metadata = file
        .metadata()
        .map_err(|error| failed().caused_by(&error))?;
    if metadata.is_file() && metadata.permissions().mode() & 0o077 != 0 {
        printer.warn(&format!(
            "other users may read the API key; `chmod 600 {}` keeps them out",
            path.display()
        ));
    }
    let mut text = String::new();
    file.take(KEY_FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|error| failed().caused_by(&error))?;
    Ok(text)
}

/// Refuses what means a directory or an image of this host, where the daemon is on another.
///
/// # Errors
///
/// Says what to do instead.
pub(crate) fn check(options: &SandboxOptions) -> Result<(), CliError> {
    let named = [("--in", &options.input), ("--out", &options.output)];
    for (flag, directory) in named {
        if let Some(directory) = directory {
            return Err(nowhere(&format!("{flag} {}", directory.display())));
        }
    }
    let mounts = options.mount.iter().map(|mount| mount.source.as_str());
    for source in mounts {
        if !source.starts_with('/') {
            return Err(nowhere(&format!("--mount {source}")));
        }
    }
    let image = options.image.as_deref().unwrap_or_default();
    if image.starts_with('.') {
        return Err(CliError::new(format!(
            "the image {image} is of this host, and the daemon of --host does not see it"
        ))
        .hint("name an image of the daemon's host by its absolute path"));
    }
    Ok(())
}

fn nowhere(what: &str) -> CliError {
    CliError::new(format!(
        "{what} shows a directory of this host, which the daemon of --host does not see"
    ))
    .hint(
        "copy it: `pinfold create`, `pinfold cp DIR NAME:/workspace`, `pinfold exec`, and \
         `pinfold cp` for what comes out",
    )
}
