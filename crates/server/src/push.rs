//! Sends events to an outside collector.
//!
//! The engine says what is to be sent and remembers what was; this is the HTTP of it. Each batch is a
//! `POST` with a JSON array of events, the objects that streams consist of. It was taken when the
//! answer is a success; else it is sent again, so a collector may see an event twice and knows it by
//! `exec_id` and `seq`. Redirects are not followed: they would carry the token elsewhere.

use std::hash::{BuildHasher as _, Hasher as _};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use pinfold_engine::{BatchLimits, Engine, PushFault};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::sync::CancellationToken;

/// Batches that are sent at once: enough to keep a collector busy whose answers take long, and few
/// enough that a daemon never holds more than some MiB of events for it.
const AT_ONCE: usize = 4;

/// Bytes after which a batch takes no other event.
const BATCH_BYTES: usize = 1 << 20;

/// Longest time until the collector has accepted a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Longest time until it has answered a batch.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Most bytes of an answer that are read, so that it is read to its end when it is short.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// First wait after a collector failed.
const WAIT_MIN: Duration = Duration::from_millis(100);

/// Longest such wait.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Most bytes of a file that holds a token or certificates.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where events are sent.
#[derive(Debug, Clone)]
pub struct CollectorOptions {
    /// An `http` or `https` URL.
    pub endpoint: String,
    /// File whose content is sent as a bearer token; read again for each batch.
    pub token_file: Option<PathBuf>,
    /// Certificates that sign the collector's; the system's when absent.
    pub authorities: Option<PathBuf>,
    /// Most events of one batch.
    pub events_max: usize,
}

/// Why a collector cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// The endpoint is no URL that can be sent to.
    #[error("`{endpoint}` is not a URL such as `https://collector.example/events`")]
    Endpoint {
        /// The text, cut.
        endpoint: String,
    },
    /// The certificates cannot be used.
    #[error("failed to read the certificates of {}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// TLS cannot be set up.
    #[error("failed to set up TLS")]
    Tls(#[source] tokio_rustls::rustls::Error),
}

/// A collector that can be sent to.
pub struct Collector {
    uri: Uri,
    host: String,
    port: u16,
    tls: Option<TlsConnector>,
    token_file: Option<PathBuf>,
    events_max: usize,
}

impl std::fmt::Debug for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collector")
            .field("uri", &self.uri)
            .finish_non_exhaustive()
    }
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
enum PushError {
    #[error("the token cannot be read")]
    Token(#[source] std::io::Error),
    #[error("the collector was not reached")]
    Connect(#[source] std::io::Error),
    #[error("the collector broke off")]
    Exchange(#[source] hyper::Error),
    #[error("the collector did not answer in time")]
    Late,
    #[error("the collector answered {0}")]
    Status(StatusCode),
}

impl PushError {
    /// Whether any other batch would have failed too.
    fn fault(&self) -> PushFault {
        match self {
            // What is missing or asked too often is the collector's state, not the batch's.
            Self::Status(status)
                if status.is_client_error()
                    && !matches!(status.as_u16(), 401 | 403 | 404 | 408 | 425 | 429) =>
            {
                PushFault::Batch
            }
            Self::Status(_)
            | Self::Token(_)
            | Self::Connect(_)
            | Self::Exchange(_)
            | Self::Late => PushFault::Collector,
        }
    }
}

impl Collector {
    /// Reads where to send and touches nothing but the certificates.
    ///
    /// # Errors
    ///
    /// Says what cannot be used.
    pub fn new(options: &CollectorOptions) -> Result<Self, CollectorError> {
        let (uri, secure) = endpoint(&options.endpoint)?;
        let host = uri.host().unwrap_or_default();
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let tls = secure.then(|| connector(options.authorities.as_deref()));
        Ok(Self {
            host,
            port,
            tls: tls.transpose()?,
            uri,
            token_file: options.token_file.clone(),
            events_max: options.events_max.max(1),
        })
    }

    /// Checks an endpoint without using it.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn check_endpoint(text: &str) -> Result<(), CollectorError> {
        endpoint(text).map(drop)
    }

    async fn send(&self, body: Bytes) -> Result<(), PushError> {
        let request = self.request(body).await.map_err(PushError::Token)?;
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        let stream = match timeout(CONNECT_MAX, connecting).await {
            Err(_) => return Err(PushError::Late),
            Ok(stream) => stream.map_err(PushError::Connect)?,
        };
        let Some(tls) = &self.tls else {
            return exchange(stream, request).await;
        };
        let name = ServerName::try_from(self.host.clone())
            .map_err(|error| PushError::Connect(std::io::Error::other(error)))?;
        match timeout(CONNECT_MAX, tls.connect(name, stream)).await {
            Err(_) => Err(PushError::Late),
            Ok(stream) => exchange(stream.map_err(PushError::Connect)?, request).await,
        }
    }

    async fn request(&self, body: Bytes) -> std::io::Result<Request<Full<Bytes>>> {
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let authority = self
            .uri
            .authority()
            .map_or("", |authority| authority.as_str());
        let mut request = Request::post(path)
            .header(HOST, authority)
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("pinfold/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &self.token_file {
            let token = token(path.clone()).await?;
            request = request.header(AUTHORIZATION, token);
        }
        request
            .body(Full::new(body))
            .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidInput, error))
    }
}

fn endpoint(text: &str) -> Result<(Uri, bool), CollectorError> {
    let wrong = || CollectorError::Endpoint {
        // A password in it must not be repeated, so only what is in front of one is.
        endpoint: text
            .split('@')
            .next()
            .unwrap_or_default()
            .chars()
            .take(200)
            .collect(),
    };
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    let secure = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(wrong()),
    };
    let authority = uri.authority().ok_or_else(wrong)?;
    if authority.host().is_empty() || authority.as_str().contains('@') {
        return Err(wrong());
    }
    Ok((uri, secure))
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<(), PushError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let exchanged = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(PushError::Exchange)?;
        let answer = async {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            // Its text is nobody's; a long one is cut off with the connection.
            drop(
                Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
                    .collect()
                    .await,
            );
            Ok(status)
        };
        tokio::pin!(connection, answer);
        // The connection drives the answer, and is over with it.
        let status = tokio::select! {
            biased;
            answer = &mut answer => answer,
            ended = &mut connection => match ended {
                Err(error) => Err(error),
                Ok(()) => (&mut answer).await,
            },
        };
        status.map_err(PushError::Exchange)
    };
    match timeout(ANSWER_MAX, exchanged).await {
        Err(_) => Err(PushError::Late),
        Ok(status) => match status? {
            status if status.is_success() => Ok(()),
            status => Err(PushError::Status(status)),
        },
    }
}

async fn token(path: PathBuf) -> std::io::Result<HeaderValue> {
    let read = move || {
        let text = read_file(&path)?;
        let text = String::from_utf8_lossy(&text);
        let invalid = |error| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
        let mut value =
            HeaderValue::from_str(&format!("Bearer {}", text.trim())).map_err(invalid)?;
        value.set_sensitive(true);
        Ok(value)
    };
    tokio::task::spawn_blocking(read)
        .await
        .map_err(std::io::Error::other)?
}

fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(FILE_BYTES_MAX)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn connector(authorities: Option<&Path>) -> Result<TlsConnector, CollectorError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = authorities {
        let failed = |source| CollectorError::Authorities {
            path: path.to_owned(),
            source,
        };
        let bytes = read_file(path).map_err(failed)?;
        for certificate in CertificateDer::pem_slice_iter(&bytes) {
            let certificate = certificate.map_err(|error| failed(std::io::Error::other(error)))?;
            roots
                .add(certificate)
                .map_err(|error| failed(std::io::Error::other(error)))?;
        }
        if roots.is_empty() {
            let none = std::io::Error::other("there is no certificate in it");
            return Err(failed(none));
        }
    } else {
        // One that cannot be read is left out; without any, no collector is believed.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(CollectorError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// When the collector is tried again: all that send wait for the same.
#[derive(Debug, Default)]
struct Patience(Mutex<(u32, Option<Instant>)>);

impl Patience {
    fn until(&self) -> Option<Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    fn succeeded(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (0, None);
    }

    fn failed(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        // Those that were on their way when the first one failed are no failures of their own.
        if state.1.is_some_and(|until| until > now) {
            return;
        }
        let wait = WAIT_MIN
            .saturating_mul(2u32.saturating_pow(state.0))
            .min(WAIT_MAX);
        *state = (state.0.saturating_add(1), Some(now + jittered(wait)));
    }
}

/// Half of a time and a random part of the other half, so that daemons do not come all at once.
fn jittered(time: Duration) -> Duration {
    let random = std::hash::RandomState::new().build_hasher().finish() % 1000;
    let half = time / 2;
    half + half.mul_f64(f64::from(u16::try_from(random).unwrap_or(0)) / 1000.0)
}

/// Sends events until it is stopped or the engine ends. What was not sent by then is sent by the next
/// daemon.
pub async fn push(engine: Engine, collector: Collector, stop: CancellationToken) {
    let (collector, patience) = (Arc::new(collector), Arc::new(Patience::default()));
    let mut senders = JoinSet::new();
    for _ in 0..AT_ONCE {
        let sender = sender(
            engine.clone(),
            Arc::clone(&collector),
            Arc::clone(&patience),
        );
        let stop = stop.clone();
        senders.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = sender => {}
            }
        });
    }
    while senders.join_next().await.is_some() {}
}

async fn sender(engine: Engine, collector: Arc<Collector>, patience: Arc<Patience>) {
    let limits = BatchLimits {
        events: collector.events_max,
        bytes: BATCH_BYTES,
    };
    loop {
        if let Some(until) = patience.until() {
            tokio::time::sleep_until(until).await;
        }
        let Some(batch) = engine.push_next(limits).await else {
            return;
        };
        let body = serde_json::to_vec(&batch.events).unwrap_or_default();
        match collector.send(Bytes::from(body)).await {
            Ok(()) => {
                patience.succeeded();
                engine.push_taken(batch).await;
            }
            Err(error) => {
                let fault = error.fault();
                if fault == PushFault::Collector {
                    patience.failed();
                }
                let text = pinfold_types::ErrorChain(&error).to_string();
                tracing::warn!(error = text, "the collector has not taken events");
                engine.push_failed(&batch, fault, &text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_plain_urls() {
        for good in [
            "http://127.0.0.1:9000/events?a=b",
            "https://collector.example",
            "http://[::1]:80/x",
        ] {
            assert!(Collector::check_endpoint(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "collector.example",
            "ftp://a",
            "http://",
            "/x",
            "http://u:secret@h/",
        ] {
            let error = Collector::check_endpoint(bad).unwrap_err();
            assert!(!error.to_string().contains("@h"), "{bad}");
        }
    }

    #[test]
    fn the_collector_is_told_from_the_batch() {
        let fault = |status: u16| PushError::Status(StatusCode::from_u16(status).unwrap()).fault();
        for status in [301, 401, 403, 404, 408, 429, 500, 503] {
            assert_eq!(fault(status), PushFault::Collector, "{status}");
        }
        for status in [400, 413, 422] {
            assert_eq!(fault(status), PushFault::Batch, "{status}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waits_grow_to_a_bound_and_begin_anew() {
        let patience = Patience::default();
        let mut longest = Duration::ZERO;
        for _ in 0..40 {
            patience.failed();
            let wait = patience.until().unwrap() - Instant::now();
            assert!(wait >= WAIT_MIN / 2 && wait <= WAIT_MAX, "{wait:?}");
            longest = longest.max(wait);
            // A second one at the same time changes nothing.
            let before = patience.until();
            patience.failed();
            assert_eq!(patience.until(), before);
            tokio::time::advance(wait).await;
        }
        assert!(longest >= WAIT_MAX / 2);
        patience.succeeded();
        assert!(patience.until().is_none());
    }
}
