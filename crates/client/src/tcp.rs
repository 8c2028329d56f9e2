//! Connections to a port: over TLS, or in plain text where nobody else can listen.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::endpoint::Port;
use crate::error::{Cause, ClientError};

/// Longest time to find and reach a host: two tries of a lost packet over a long way.
const CONNECT_MAX: Duration = Duration::from_secs(15);

/// Longest time for the handshake of TLS.
const HANDSHAKE_MAX: Duration = Duration::from_secs(15);

/// Most addresses of a name that are tried.
const ADDRESSES_MAX: usize = 8;

/// Largest file of trusted certificates: a distribution's whole list has a quarter of that.
const AUTHORITIES_BYTES_MAX: u64 = 1 << 20;

/// The one protocol that is spoken.
const PROTOCOL: &[u8] = b"http/1.1";

/// What hyper needs of a connection.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

/// Opens connections to one port.
#[derive(Clone)]
pub(crate) struct Dialer {
    port: Port,
    plain_anywhere: bool,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer")
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

impl Dialer {
    /// Reads what is trusted. Blocks for the files of certificates.
    pub(crate) fn new(
        port: Port,
        authorities: Option<&Path>,
        plain_anywhere: bool,
    ) -> Result<Self, ClientError> {
        let tls = if port.secure {
            let name =
                ServerName::try_from(port.host.clone()).map_err(|error| handshake(&port, error))?;
            Some((connector(&port, authorities)?, name))
        } else {
            None
        };
        Ok(Self {
            port,
            plain_anywhere,
            tls,
        })
    }

    /// Returns what the header `host` says.
    pub(crate) fn authority(&self) -> String {
        self.port.authority()
    }

    /// Connects.
    pub(crate) async fn connect(&self) -> Result<Box<dyn Connection>, ClientError> {
        let stream = tokio::time::timeout(CONNECT_MAX, self.reach())
            .await
            .map_err(|_| ClientError::TimedOut {
                waited: CONNECT_MAX,
            })??;
        // A request must not wait for the acknowledgement of the one before.
        drop(stream.set_nodelay(true));
        let Some((connector, name)) = &self.tls else {
            return Ok(Box::new(stream));
        };
        let shaken = connector.connect(name.clone(), stream);
        let stream = tokio::time::timeout(HANDSHAKE_MAX, shaken)
            .await
            .map_err(|_| ClientError::TimedOut {
                waited: HANDSHAKE_MAX,
            })?
            .map_err(|error| handshake(&self.port, error))?;
        Ok(Box::new(stream))
    }

    async fn reach(&self) -> Result<TcpStream, ClientError> {
        let unreachable = |source| ClientError::Unreachable {
            host: self.authority(),
            source,
        };
        let found = tokio::net::lookup_host((self.port.host.as_str(), self.port.port))
            .await
            .map_err(unreachable)?;
        let mut failure = None;
        for address in found.take(ADDRESSES_MAX) {
            self.check(&address)?;
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = Some(error),
            }
        }
        Err(unreachable(failure.unwrap_or_else(|| {
            std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address")
        })))
    }

    /// Refuses an address where others could read along: the address counts and not the name.
    fn check(&self, address: &SocketAddr) -> Result<(), ClientError> {
        if self.tls.is_some() || self.plain_anywhere || address.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        Err(ClientError::PlainText {
            host: self.authority(),
        })
    }
}

fn handshake(port: &Port, source: impl Into<Cause>) -> ClientError {
    ClientError::Tls {
        host: port.authority(),
        source: source.into(),
    }
}

fn connector(port: &Port, authorities: Option<&Path>) -> Result<TlsConnector, ClientError> {
    let mut roots = RootCertStore::empty();
    let path = if let Some(path) = authorities {
        for certificate in read(path)? {
            roots
                .add(certificate)
                .map_err(|error| unusable(path, error))?;
        }
        path.to_owned()
    } else {
        // One that cannot be read is left out; without any, connections say so.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        PathBuf::from("the system's certificates")
    };
    if roots.is_empty() {
        return Err(unusable(&path, "there is no certificate in it"));
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| handshake(port, error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(AUTHORITIES_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| unusable(path, error))?;
    if bytes.len() as u64 > AUTHORITIES_BYTES_MAX {
        return Err(unusable(path, "it is larger than 1 MiB"));
    }
    CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(path, error))
}

fn unusable(path: &Path, source: impl Into<Cause>) -> ClientError {
    ClientError::Authorities {
        path: path.to_owned(),
        source: source.into(),
    }
}
