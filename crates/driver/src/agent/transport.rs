//! One HTTP/2 connection to the agent, made at the first call and made again when it has died.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use connectrpc::client::{ClientBody, ClientTransport};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pinfold_types::ErrorCode;

use crate::contract::{DriverErrorKind, GuestPort, Instance};

/// Longest time to open a stream to the agent. A Unix socket answers in microseconds; this is for
/// a host that swaps.
pub(super) const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// Bytes of one call's answer that may wait for a slow reader of ours. With the number of calls
/// that we make this bounds what an agent can make us hold.
const STREAM_WINDOW_BYTES: u32 = 512 << 10;

/// As large as HTTP/2 allows: the windows of the calls bound the memory, and a smaller one would
/// let readers that stand still starve every other call of the same connection.
const CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;

/// Bytes of one frame; larger ones cost fewer wake-ups on bulk data.
const FRAME_BYTES_MAX: u32 = 64 << 10;

/// Bytes of all headers of one answer.
pub(super) const HEADER_BYTES_MAX: u32 = 16 << 10;

/// Why a call did not reach the agent or lost it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(super) struct TransportError {
    pub(super) code: ErrorCode,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

type Sender = SendRequest<ClientBody>;
type Connecting = Shared<BoxFuture<'static, Result<Sender, TransportError>>>;

/// Sends requests over the one connection. Clones share it.
#[derive(Clone)]
pub(super) struct Transport {
    instance: Arc<dyn Instance>,
    // Held only to look and to replace; never while waiting.
    connection: Arc<Mutex<Option<Connecting>>>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport")
            .field("instance", &self.instance)
            .finish_non_exhaustive()
    }
}

impl Transport {
    pub(super) fn new(instance: Arc<dyn Instance>) -> Self {
        Self {
            instance,
            connection: Arc::default(),
        }
    }

    pub(super) fn instance(&self) -> &Arc<dyn Instance> {
        &self.instance
    }

    /// Returns whether there is a live connection now.
    #[cfg(test)]
    pub(super) fn is_connected(&self) -> bool {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .is_some_and(usable)
    }

    /// Returns the live connection, or the one that is being made.
    fn connection(&self) -> Connecting {
        let mut slot = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(present) = slot.as_ref().filter(|present| usable(present)) {
            return present.clone();
        }
        let instance = Arc::clone(&self.instance);
        // A task of its own, so that a caller who gives up does not leave the others with a
        // half-made connection; the time-out inside ends it.
        let task = tokio::spawn(connect(instance));
        let made = async move {
            task.await.unwrap_or_else(|error| {
                Err(broken(&format!("the connection was given up: {error}")))
            })
        }
        .boxed()
        .shared();
        *slot = Some(made.clone());
        made
    }

    async fn send(
        self,
        request: Request<ClientBody>,
    ) -> Result<Response<Incoming>, TransportError> {
        let mut sender = self.connection().await?;
        let request = match sender.try_send_request(request).await {
            Ok(response) => return Ok(response),
            // The request comes back only when nothing of it was sent.
            Err(mut refused) => match refused.take_message() {
                Some(request) => request,
                None => return Err(lost(&refused.into_error())),
            },
        };
        drop(sender);
        let mut sender = self.connection().await?;
        sender
            .send_request(request)
            .await
            .map_err(|error| lost(&error))
    }
}

impl ClientTransport for Transport {
    type ResponseBody = Incoming;
    type Error = TransportError;

    fn send(
        &self,
        mut request: Request<ClientBody>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Incoming>, TransportError>> + Send>> {
        if let Some(place) = crate::trace::present()
            && let Ok(value) = http::HeaderValue::from_str(&place.to_string())
        {
            request.headers_mut().insert("traceparent", value);
        }
        Box::pin(Self::send(self.clone(), request))
    }
}

fn usable(connecting: &Connecting) -> bool {
    match connecting.peek() {
        None => true,
        Some(Ok(sender)) => !sender.is_closed(),
        Some(Err(_)) => false,
    }
}

async fn connect(instance: Arc<dyn Instance>) -> Result<Sender, TransportError> {
    let stream = open(&*instance).await?;
    // No keep-alive pings: a suspended sandbox answers none and is not dead, and a dead one closes
    // its socket.
    let (sender, connection) = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| lost(&error))?;
    // Ends by itself when the last sender and the last answer are dropped.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = %pinfold_types::ErrorChain(&error), "the connection to an agent ended");
        }
    });
    Ok(sender)
}

/// Opens a new stream to the agent in bounded time.
pub(super) async fn open(
    instance: &dyn Instance,
) -> Result<crate::contract::GuestStream, TransportError> {
    let connecting = instance.connect(GuestPort::Agent);
    match tokio::time::timeout(CONNECT_TIME_MAX, connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => {
            let code = match error.kind {
                DriverErrorKind::ConnectionRefused => ErrorCode::AgentSilent,
                kind => kind.code(),
            };
            Err(TransportError {
                code,
                message: pinfold_types::ErrorChain(&error).to_string(),
                hint: error.hint.clone().or_else(|| hint_for(code)),
            })
        }
        Err(_) => Err(TransportError {
            code: ErrorCode::AgentSilent,
            message: format!(
                "the agent did not take a connection within {} s",
                CONNECT_TIME_MAX.as_secs()
            ),
            hint: hint_for(ErrorCode::AgentSilent),
        }),
    }
}

/// What a caller can do about a call that did not get through.
pub(super) fn hint_for(code: ErrorCode) -> Option<String> {
    match code {
        ErrorCode::AgentSilent => Some(
            "try again; when it stays silent, look at the sandbox with `pinfold status` and stop and start it"
                .to_owned(),
        ),
        ErrorCode::InstanceGone => {
            Some("start the sandbox again with `pinfold start`, or make a new one".to_owned())
        }
        _ => None,
    }
}

fn lost(error: &hyper::Error) -> TransportError {
    broken(&pinfold_types::ErrorChain(error).to_string())
}

fn broken(what: &str) -> TransportError {
    TransportError {
        code: ErrorCode::AgentSilent,
        message: format!("the connection to the agent broke: {what}"),
        hint: hint_for(ErrorCode::AgentSilent),
    }
}
