//! Listens: everything on the inherited socket, only readiness and metrics on TCP.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use connectrpc::{ConnectRpcBody, ConnectRpcService};
use http::{Request, Response};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Semaphore;

use crate::Agent;
use crate::{connect, json};

/// Port of [`serve_tcp`].
pub(crate) const TCP_PORT: u16 = 8888;
/// Most TCP connections at once: programs inside may open as many as they like.
const TCP_CONNECTIONS_MAX: usize = 32;
/// How long one TCP connection may last; an answer takes a tenth of a second.
const TCP_CONNECTION_TIME: Duration = Duration::from_secs(10);
/// Most bytes of a TCP request's head.
const TCP_HEAD_BYTES_MAX: usize = 16 << 10;
/// Most bytes of the headers of a request on the inherited socket.
const HEADER_BYTES_MAX: u32 = 64 << 10;
/// Most calls at once on one connection: each running exec has a reader, and others beside.
const STREAMS_MAX: u32 = 4096;
/// Bytes that may be under way to us, of one call and of all of a connection.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// How long a listener rests when no descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

type Body = Either<ConnectRpcBody, Full<Bytes>>;

/// Serves everything on the inherited socket, for ever.
pub(crate) async fn serve(agent: Arc<Agent>, listener: UnixListener) {
    let calls = TowerToHyperService::new(connect::service(&agent));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let connection = serve_stream(Arc::clone(&agent), calls.clone(), stream);
                tokio::spawn(connection);
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Serves one connection until it ends.
pub(crate) async fn serve_stream<S>(
    agent: Arc<Agent>,
    calls: TowerToHyperService<ConnectRpcService>,
    stream: S,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let (agent, calls) = (Arc::clone(&agent), calls.clone());
        async move {
            let response = match json::route(&agent, request).await {
                Ok(response) => response.map(Either::Right),
                Err(request) => match calls.call(request).await {
                    Ok(response) => response.map(Either::Left),
                    Err(never) => match never {},
                },
            };
            Ok::<Response<Body>, Infallible>(response)
        }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    server.http1().timer(TokioTimer::new());
    // A connection that breaks concerns only its peer, who knows.
    drop(
        server
            .serve_connection_with_upgrades(TokioIo::new(stream), service)
            .await,
    );
}

/// Serves readiness and metrics to whoever connects, for ever.
pub(crate) async fn serve_tcp(agent: Arc<Agent>, listener: TcpListener, free: Arc<Semaphore>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else {
            return;
        };
        let connection = serve_tcp_stream(Arc::clone(&agent), stream);
        tokio::spawn(async move {
            drop(tokio::time::timeout(TCP_CONNECTION_TIME, connection).await);
            drop(permit);
        });
    }
}

/// Returns the permits that both TCP listeners share.
pub(crate) fn tcp_permits() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(TCP_CONNECTIONS_MAX))
}

async fn serve_tcp_stream(agent: Arc<Agent>, stream: TcpStream) {
    let service = service_fn(move |request: Request<Incoming>| {
        let agent = Arc::clone(&agent);
        async move { Ok::<_, Infallible>(json::route_public(&agent, &request).await) }
    });
    let server = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(TCP_CONNECTION_TIME)
        .keep_alive(false)
        .max_buf_size(TCP_HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    drop(server.await);
}
