//! TLS from two files that are looked at again and again.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use pinfold_types::ErrorChain;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_util::sync::CancellationToken;

/// Time between two looks at the files: a new certificate is there hours before the old one ends.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Largest file: a chain of certificates has some KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The one protocol that is spoken.
const PROTOCOL: &[u8] = b"http/1.1";

/// Why certificate and key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("failed to read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file is larger than any of its kind.
    #[error("`{}` is larger than {FILE_BYTES_MAX} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A file is not what it should be.
    #[error("`{}` holds no usable {what} in PEM", path.display())]
    Pem {
        /// What should be in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: pem::Error,
    },
    /// The two do not belong together or are not supported.
    #[error("certificate and key cannot be used together")]
    Pair(#[source] rustls::Error),
}

/// What tells a file from what was there before.
type Stamp = Option<(u64, u64, i64, i64)>;

struct State {
    config: Arc<ServerConfig>,
    stamps: [Stamp; 2],
}

/// Certificate and key, read again when they change. Clones are handles to the same.
#[derive(Clone)]
pub struct Tls {
    certificate: Arc<Path>,
    key: Arc<Path>,
    state: Arc<RwLock<State>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads a chain of certificates and the key of its first. Blocks for two small files.
    ///
    /// # Errors
    ///
    /// Returns [`TlsError`] which names the file.
    pub fn open(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let stamps = [stamp(certificate), stamp(key)];
        let config = Arc::new(load(certificate, key)?);
        Ok(Self {
            certificate: certificate.into(),
            key: key.into(),
            state: Arc::new(RwLock::new(State { config, stamps })),
        })
    }

    /// Returns what the next connection is accepted with.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&state.config))
    }

    /// Looks at the files until the server ends.
    pub(crate) async fn watch(self, shutdown: CancellationToken) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = look.tick() => {}
            }
            let tls = self.clone();
            // A panic of the look is told by the runtime; the files in use stay.
            drop(tokio::task::spawn_blocking(move || tls.look()).await);
        }
    }

    /// Reads the files again when they changed. Files that cannot be used leave the old ones in use
    /// and are told of once.
    fn look(&self) {
        let stamps = [stamp(&self.certificate), stamp(&self.key)];
        let known = self
            .state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .stamps;
        if known == stamps {
            return;
        }
        let loaded = load(&self.certificate, &self.key);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.stamps = stamps;
        match loaded {
            Ok(config) => {
                state.config = Arc::new(config);
                tracing::info!(certificate = %self.certificate.display(), "certificate read again");
            }
            Err(error) => tracing::error!(
                chain = %ErrorChain(&error),
                "the new certificate cannot be used; the old one stays in use"
            ),
        }
    }
}

fn stamp(path: &Path) -> Stamp {
    let file = std::fs::metadata(path).ok()?;
    Some((file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
}

fn load(certificate: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let wrong = |what, path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Pem { what, path, source }
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(certificate)?)
        .collect::<Result<_, _>>()
        .map_err(wrong("certificate", certificate))?;
    let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(wrong("private key", key))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Pair)?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(TlsError::Pair)?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    use std::io::Read as _;
    let failed = |source| TlsError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(TlsError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(bytes)
}
