//! One request, on a connection of its own or on one that waited.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use pinfold_types::ApiErrorBody;
use pinfold_types::weaken::{Defence, is_off};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::client::Remote;
use crate::error::{Cause, ClientError};
use crate::idle::Idle;
use crate::peer;
use crate::query::Target;
use crate::tcp::{Connection, Dialer};

/// Largest answer that is held in memory: a page of a thousand sandboxes, or the output of an exec
/// with every byte escaped, several times over.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Largest error answer that is read.
const ERROR_BYTES_MAX: usize = 1 << 20;

/// Longest time for an answer that needs no work inside a sandbox or little of it.
pub(crate) const ANSWER_MAX: Duration = Duration::from_mins(1);

/// Largest WebSocket message: the largest frame with its header, or its JSON with every byte
/// escaped.
const MESSAGE_BYTES_MAX: usize = 8 * pinfold_types::frame::FRAME_BYTES_MAX;

pub(crate) type Body = UnsyncBoxBody<Bytes, Cause>;
pub(crate) type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// A request before it is sent.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) target: &'a Target,
    pub(crate) body: Body,
    /// Longest time until the answer's head; none when a program decides how long it takes.
    pub(crate) answer_max: Option<Duration>,
    /// Further headers.
    pub(crate) headers: Vec<(http::HeaderName, String)>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(method: Method, target: &'a Target) -> Self {
        Self {
            method,
            target,
            body: empty(),
            answer_max: (!is_off(Defence::AgentPatience)).then_some(ANSWER_MAX),
            headers: Vec::new(),
        }
    }

    pub(crate) fn json(mut self, value: &impl Serialize) -> Result<Self, ClientError> {
        let bytes = serde_json::to_vec(value)
            .map_err(|error| ClientError::protocol(format!("not JSON: {error}")))?;
        self.headers
            .push((CONTENT_TYPE, "application/json".to_owned()));
        self.body = whole(Bytes::from(bytes));
        Ok(self)
    }

    pub(crate) fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    pub(crate) fn header(mut self, name: http::HeaderName, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub(crate) fn patient(mut self) -> Self {
        self.answer_max = None;
        self
    }

    pub(crate) fn within(mut self, answer_max: Duration) -> Self {
        self.answer_max = Some(answer_max);
        self
    }
}

/// Sends requests to one daemon.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    way: Way,
    /// What the header `host` says.
    host: HeaderValue,
    key: Option<HeaderValue>,
}

/// How the daemon is reached.
#[derive(Debug, Clone)]
enum Way {
    Socket { path: PathBuf, own_uid: u32 },
    Port { dialer: Dialer, idle: Idle },
}

impl Transport {
    /// Speaks to a Unix socket whose listener is `own_uid` or root.
    pub(crate) fn local(socket: &Path, own_uid: u32) -> Self {
        Self {
            way: Way::Socket {
                path: socket.to_owned(),
                own_uid,
            },
            host: HeaderValue::from_static("pinfold"),
            key: None,
        }
    }

    /// Speaks to a port.
    pub(crate) fn remote(remote: Remote) -> Result<Self, ClientError> {
        let authorities = remote.authorities.as_deref();
        let dialer = Dialer::new(remote.port, authorities, remote.plain_anywhere)?;
        let host = HeaderValue::from_str(&dialer.authority())
            .map_err(|error| ClientError::protocol(format!("unusable host: {error}")))?;
        Ok(Self {
            way: Way::Port {
                dialer,
                idle: Idle::default(),
            },
            host,
            key: remote.key.map(|key| key.header()),
        })
    }

    /// Sends a request and returns its answer, or the error that the answer says.
    pub(crate) async fn send(&self, call: Call<'_>) -> Result<Response<Incoming>, ClientError> {
        let answer_max = call.answer_max;
        let exchange = self.exchange(call);
        let response = match answer_max {
            None => exchange.await?,
            Some(waited) => tokio::time::timeout(waited, exchange)
                .await
                .map_err(|_| ClientError::TimedOut { waited })??,
        };
        let status = response.status();
        if status.is_client_error() || status.is_server_error() {
            return Err(refusal(response).await);
        }
        if status.is_redirection() {
            return Err(ClientError::Redirected {
                status: status.as_u16(),
            });
        }
        Ok(response)
    }

    /// Sends a request and reads its JSON answer.
    pub(crate) async fn fetch<T: DeserializeOwned>(
        &self,
        call: Call<'_>,
    ) -> Result<T, ClientError> {
        let answer_max = call.answer_max;
        let response = self.send(call).await?;
        let body = collect(response.into_body(), ANSWER_BYTES_MAX);
        let bytes = match answer_max {
            None => body.await?,
            Some(waited) => tokio::time::timeout(waited, body)
                .await
                .map_err(|_| ClientError::TimedOut { waited })??,
        };
        decode(&bytes)
    }

    /// Opens a WebSocket.
    pub(crate) async fn upgrade(&self, target: &Target) -> Result<Socket, ClientError> {
        let key = generate_key();
        let mut call = Call::new(Method::GET, target)
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket");
        for (name, value) in [
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", key.as_str()),
        ] {
            call = call.header(http::HeaderName::from_static(name), value);
        }
        let response = self.send(call).await?;
        let accepted = response
            .headers()
            .get("sec-websocket-accept")
            .is_some_and(|accept| {
                accept.as_bytes() == derive_accept_key(key.as_bytes()).as_bytes()
            });
        if response.status() != StatusCode::SWITCHING_PROTOCOLS || !accepted {
            return Err(ClientError::protocol("it did not open a WebSocket"));
        }
        let upgraded = hyper::upgrade::on(response)
            .await
            .map_err(ClientError::transport)?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let stream = TokioIo::new(upgraded);
        Ok(WebSocketStream::from_raw_socket(stream, Role::Client, Some(config)).await)
    }

    async fn exchange(&self, call: Call<'_>) -> Result<Response<Incoming>, ClientError> {
        let request = self.request(call)?;
        match &self.way {
            Way::Socket { path, own_uid } => {
                let stream = peer::connect(path, *own_uid).await?;
                let mut sender = shake(TokioIo::new(Box::new(stream))).await?;
                sender.send_request(request).await.map_err(broken)
            }
            Way::Port { dialer, idle } => {
                let mut request = request;
                if let Some(mut sender) = idle.take().await {
                    match sender.try_send_request(request).await {
                        Ok(response) => {
                            idle.keep(sender);
                            return Ok(response);
                        }
                        // It had ended meanwhile, and nothing of the request was sent.
                        Err(mut error) => match error.take_message() {
                            Some(unsent) => request = unsent,
                            None => return Err(broken(error.into_error())),
                        },
                    }
                }
                let mut sender = shake(TokioIo::new(dialer.connect().await?)).await?;
                let response = sender.send_request(request).await.map_err(broken)?;
                idle.keep(sender);
                Ok(response)
            }
        }
    }

    fn request(&self, call: Call<'_>) -> Result<Request<Body>, ClientError> {
        let mut request = Request::builder()
            .method(call.method)
            .uri(call.target.as_str())
            .header(HOST, self.host.clone());
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, key.clone());
        }
        for (name, value) in call.headers {
            request = request.header(name, value);
        }
        request
            .body(call.body)
            .map_err(|error| ClientError::protocol(format!("unusable request: {error}")))
    }
}

async fn shake(stream: TokioIo<Box<dyn Connection>>) -> Result<SendRequest<Body>, ClientError> {
    let (sender, connection) = http1::handshake(stream)
        .await
        .map_err(ClientError::transport)?;
    // The task ends with the connection, and the connection ends when the answer was read or is
    // dropped, or after it has waited. Its error also reaches whoever waits for the answer.
    drop(tokio::spawn(connection.with_upgrades()));
    Ok(sender)
}

fn broken(error: hyper::Error) -> ClientError {
    if error.is_user() {
        ClientError::Upload {
            source: error.into(),
        }
    } else {
        ClientError::transport(error)
    }
}

/// Returns a body without content.
pub(crate) fn empty() -> Body {
    whole(Bytes::new())
}

/// Returns a body of known content.
pub(crate) fn whole(bytes: Bytes) -> Body {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Returns what a caller accepts instead of plain JSON.
pub(crate) fn accept_lines(call: Call<'_>) -> Call<'_> {
    call.header(ACCEPT, "application/x-ndjson")
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes).map_err(|error| ClientError::protocol(error.to_string()))
}

async fn collect(body: Incoming, limit: usize) -> Result<Bytes, ClientError> {
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(ClientError::TooLarge { limit })
        }
        Err(error) => Err(ClientError::transport(error)),
    }
}

async fn refusal(response: Response<Incoming>) -> ClientError {
    let status = response.status();
    let body = match tokio::time::timeout(
        ANSWER_MAX,
        collect(response.into_body(), ERROR_BYTES_MAX),
    )
    .await
    {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => return error,
        Err(_) => return ClientError::TimedOut { waited: ANSWER_MAX },
    };
    match serde_json::from_slice::<ApiErrorBody>(&body) {
        Ok(body) => ClientError::Api(Box::new(body.error)),
        Err(_) => ClientError::protocol(format!("status {status} without an error body")),
    }
}
