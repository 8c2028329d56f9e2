//! Accepting connections, bounding them, and ending.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use pinfold_engine::Engine;
use pinfold_types::ErrorChain;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::options::ServerOptions;
use crate::peer::{self, Connections, Peer};
use crate::router::{self, Api};

/// Largest head of a request: the longest query, and room for headers.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Most bytes of a connection that are read ahead: two heads, or a chunk of a body.
const BUFFER_BYTES_MAX: usize = 128 << 10;

/// Most headers of a request.
const HEADERS_MAX: usize = 64;

/// Pause after a failed accept, which is mostly a lack of descriptors that time mends.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Answers requests until `shutdown`, then lets running ones end within the options' time.
///
/// Streams and waiting requests are told and end at once; sandboxes and execs live on. The engine
/// is not shut down.
pub async fn serve(
    engine: Engine,
    listener: UnixListener,
    options: ServerOptions,
    shutdown: CancellationToken,
) {
    let drain_max = options.drain_max;
    let places = Arc::new(Semaphore::new(options.connections_max));
    let api = Api::new(engine, options, shutdown.clone());
    let acceptor = Acceptor {
        service: TowerToHyperService::new(router::router(api.clone())),
        connections: Connections::default(),
        api,
    };
    while let Some(permit) = free_place(&places, &shutdown).await {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => acceptor.take(stream, permit),
            Err(error) => {
                tracing::warn!(chain = %ErrorChain(&error), "failed to accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop(listener);
    let tasks = acceptor.api.tasks;
    tasks.close();
    if tokio::time::timeout(drain_max, tasks.wait()).await.is_err() {
        tracing::warn!(left = tasks.len(), "requests did not end in time");
    }
    acceptor.api.abort.cancel();
}

async fn free_place(
    places: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) -> Option<OwnedSemaphorePermit> {
    tokio::select! {
        () = shutdown.cancelled() => None,
        permit = places.clone().acquire_owned() => permit.ok(),
    }
}

struct Acceptor {
    service: TowerToHyperService<axum::Router>,
    connections: Connections,
    api: Api,
}

impl Acceptor {
    /// Serves one connection in a task of its own.
    fn take(&self, stream: UnixStream, permit: OwnedSemaphorePermit) {
        let options = &self.api.options;
        let mut peer = match peer::identify(&stream, options) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(chain = %ErrorChain(&error), "a peer without credentials");
                return;
            }
        };
        let place = self.connections.enter(peer.caller.principal.clone());
        let limit = options.connections_per_user_max;
        if peer.refused.is_none() && place.number > limit {
            peer.refused = Some(peer::too_many_connections(limit));
        }
        let served = self.serve_one(stream, peer);
        self.api.tasks.spawn(async move {
            served.await;
            drop((place, permit));
        });
    }

    fn serve_one(
        &self,
        stream: UnixStream,
        peer: Peer,
    ) -> impl Future<Output = ()> + Send + 'static {
        let service = self.service.clone();
        let refused = peer.refused.is_some();
        let with_peer = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            service.call(request)
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.api.options.header_read_max)
            .max_header_size(HEAD_BYTES_MAX)
            .max_buf_size(BUFFER_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .keep_alive(!refused)
            .serve_connection(TokioIo::new(stream), with_peer)
            .with_upgrades();
        let shutdown = self.api.shutdown.clone();
        let abort = self.api.abort.clone();
        async move {
            let mut connection = pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        ended = connection.as_mut() => ended,
                        () = abort.cancelled() => return,
                    }
                }
            };
            if let Err(error) = ended {
                // A caller that goes away is no fault.
                tracing::debug!(chain = %ErrorChain(&error), "a connection broke");
            }
        }
    }
}
