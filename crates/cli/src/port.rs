//! The daemon's port: whether there is one, who may come in by it, and its limits.

use std::net::{SocketAddr, TcpListener};

use pinfold_server::{ServerOptions, TcpDoor, Tls};
use pinfold_types::api::keys::Quotas;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::arguments::ServeArguments;
use crate::config::Config;
use crate::environment;
use crate::error::CliError;

/// Where development listens when nobody says where.
const DEVELOPMENT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);

/// Descriptors that are not for the port: journals, agents, launches and the socket's callers.
const DESCRIPTORS_KEPT: u64 = 4096;

/// Most descriptors that are asked for; some hosts would give a thousand million, and tables for
/// them.
const DESCRIPTORS_MAX: u64 = 1 << 17;

/// A port that the configuration wants.
#[derive(Debug)]
pub(crate) struct Plan {
    address: SocketAddr,
    development: bool,
    tls: Option<Tls>,
}

impl Plan {
    /// Reads everything about the port and touches nothing but the certificate's files.
    ///
    /// # Errors
    ///
    /// Says what would let in whom nobody wanted.
    pub(crate) fn of(
        config: &Config,
        arguments: &ServeArguments,
    ) -> Result<Option<Self>, CliError> {
        let named: Option<SocketAddr> = config.parsed(environment::LISTEN);
        // A daemon that starts by itself must not open a port that nobody asked it for.
        if arguments.detached {
            return Ok(None);
        }
        let address = match named {
            Some(address) => address,
            None if arguments.dev => DEVELOPMENT,
            None => return Ok(None),
        };
        let tls = tls(config)?;
        let plain = config.text(environment::ALLOW_PLAIN_TCP) == Some("true");
        let local = address.ip().is_loopback();
        if arguments.dev && !local {
            return Err(CliError::new(format!(
                "{address} can be reached from other machines, and --dev needs no key"
            ))
            .hint("leave out --dev, or listen on 127.0.0.1"));
        }
        if arguments.dev && tls.is_some() {
            return Err(CliError::new("--dev serves without TLS")
                .hint("leave out --dev, or `tls_cert` and `tls_key`"));
        }
        if !local && tls.is_none() && !plain {
            return Err(CliError::new(format!(
                "{address} can be reached from other machines, and without TLS they could read keys"
            ))
            .hint(
                "set `tls_cert` and `tls_key`, or `allow_plain_tcp: true` where something in front \
                 of the daemon does TLS",
            ));
        }
        Ok(Some(Self {
            address,
            development: arguments.dev,
            tls,
        }))
    }

    /// Opens the port; answers it and its URL.
    ///
    /// # Errors
    ///
    /// Fails when somebody else has the port.
    pub(crate) fn open(self) -> Result<(TcpDoor, String), CliError> {
        let address = self.address;
        let failed = |error: &std::io::Error| {
            CliError::new(format!("failed to listen on {address}"))
                .caused_by(error)
                .hint("name another address with --listen")
        };
        let listener = TcpListener::bind(address).map_err(|error| failed(&error))?;
        listener
            .set_nonblocking(true)
            .map_err(|error| failed(&error))?;
        let listener =
            tokio::net::TcpListener::from_std(listener).map_err(|error| failed(&error))?;
        let bound = listener.local_addr().map_err(|error| failed(&error))?;
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let door = if self.development {
            TcpDoor::for_development(listener)
                .map_err(|error| CliError::new("failed to open the port").caused_by(&error))?
        } else {
            TcpDoor::with_keys(listener, self.tls)
        };
        Ok((door, format!("{scheme}://{bound}")))
    }

    /// Returns whether everybody on this machine may come in.
    pub(crate) const fn is_development(&self) -> bool {
        self.development
    }
}

fn tls(config: &Config) -> Result<Option<Tls>, CliError> {
    let file = |key| config.text(key).map(std::path::PathBuf::from);
    match (file(environment::TLS_CERT), file(environment::TLS_KEY)) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Tls::open(&certificate, &key)
            .map(Some)
            .map_err(|error| CliError::new("failed to set up TLS").caused_by(&error)),
        _ => Err(CliError::new("TLS needs a certificate and its key")
            .hint("set both `tls_cert` and `tls_key`")),
    }
}

/// Returns what the server is started with.
pub(crate) fn options(config: &Config) -> ServerOptions {
    let mut options = ServerOptions::new(config.state_dir());
    let origins = config.text(environment::CORS_ORIGINS).unwrap_or_default();
    options.cors_origins = origins
        .split(',')
        .map(str::trim)
        .filter(|origin| !origin.is_empty())
        .map(str::to_owned)
        .collect();
    options.metrics_open = config.text(environment::METRICS_OPEN) == Some("true");
    options.async_default = config.text(environment::ASYNC_DEFAULT) == Some("true");
    let descriptors = raise_descriptors();
    let room = usize::try_from(descriptors.saturating_sub(DESCRIPTORS_KEPT)).unwrap_or(usize::MAX);
    // Where there are few descriptors the port gets half of them.
    let half = usize::try_from(descriptors / 2).unwrap_or(usize::MAX);
    let fits = room.max(half);
    let per_address = options.tcp_connections_per_address_max;
    options.tcp_connections_max = options.tcp_connections_max.min(fits);
    options.tcp_connections_per_address_max = per_address.min(fits.div_ceil(4) * 3);
    options
}

/// Lets this process have as many descriptors as it may ask for itself; returns how many.
fn raise_descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let before = limit.current.unwrap_or(DESCRIPTORS_MAX);
    let wanted = limit
        .maximum
        .unwrap_or(DESCRIPTORS_MAX)
        .min(DESCRIPTORS_MAX);
    if wanted <= before {
        return before;
    }
    let raised = Rlimit {
        current: Some(wanted),
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => wanted,
        Err(error) => {
            tracing::warn!(%error, "the limit of descriptors stays");
            before
        }
    }
}

/// Returns the quotas of principals whose keys name none.
pub(crate) fn quotas(config: &Config) -> Quotas {
    Quotas {
        sandboxes: config.parsed(environment::QUOTA_SANDBOXES),
        cpus: config.parsed(environment::QUOTA_CPUS),
        memory: config.parsed(environment::QUOTA_MEMORY),
        execs: config.parsed(environment::QUOTA_EXECS),
        creations: config.parsed(environment::QUOTA_CREATIONS),
    }
}
