//! Accepting connections, bounding them, and ending.
//!
//! The socket and the port have places of their own, so that no crowd at the port keeps the host's
//! users out. Both are served by the same router.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use pinfold_engine::{Caller, Engine};
use pinfold_types::{ErrorChain, Principal, Role};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::leash::Leash;
use crate::listeners::{Entry, Listeners, TcpDoor};
use crate::options::ServerOptions;
use crate::peer::{self, Connections, Door, Peer};
use crate::router::{self, Api};
use crate::tls::Tls;

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
    listeners: impl Into<Listeners>,
    options: ServerOptions,
    shutdown: CancellationToken,
) {
    let listeners = listeners.into();
    let drain_max = options.drain_max;
    let api = Api::new(engine, options, shutdown.clone());
    let acceptor = Acceptor {
        service: TowerToHyperService::new(router::router(api.clone())),
        users: Connections::default(),
        addresses: Connections::default(),
        api,
    };
    let port = async {
        if let Some(door) = listeners.tcp {
            acceptor.accept_remote(door).await;
        }
    };
    tokio::join!(acceptor.accept_local(listeners.unix), port);
    let tasks = acceptor.api.tasks;
    tasks.close();
    if tokio::time::timeout(drain_max, tasks.wait()).await.is_err() {
        tracing::warn!(left = tasks.len(), "requests did not end in time");
    }
    acceptor.api.abort.cancel();
}

struct Acceptor {
    service: TowerToHyperService<axum::Router>,
    users: Connections<Principal>,
    addresses: Connections<IpAddr>,
    api: Api,
}

impl Acceptor {
    async fn accept_local(&self, listener: UnixListener) {
        let places = Arc::new(Semaphore::new(self.api.options.connections_max));
        while let Some((permit, accepted)) = self.next(&places, || listener.accept()).await {
            if let Some((stream, _)) = accepted {
                self.take_local(stream, permit);
            }
        }
    }

    async fn accept_remote(&self, door: TcpDoor) {
        if let Some(tls) = &door.tls {
            let watched = tls.clone().watch(self.api.shutdown.clone());
            self.api.tasks.spawn(watched);
        }
        let places = Arc::new(Semaphore::new(self.api.options.tcp_connections_max));
        while let Some((permit, accepted)) = self.next(&places, || door.listener.accept()).await {
            if let Some(accepted) = accepted {
                self.take_remote(accepted, permit, &door);
            }
        }
    }

    /// Waits for a place and a connection; nothing when the server ends.
    async fn next<T, F>(
        &self,
        places: &Arc<Semaphore>,
        accept: impl FnOnce() -> F,
    ) -> Option<(OwnedSemaphorePermit, Option<T>)>
    where
        F: Future<Output = std::io::Result<T>>,
    {
        let next = async {
            let permit = places.clone().acquire_owned().await.ok()?;
            match accept().await {
                Ok(accepted) => Some((permit, Some(accepted))),
                Err(error) => {
                    tracing::warn!(chain = %ErrorChain(&error), "failed to accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    Some((permit, None))
                }
            }
        };
        tokio::select! {
            () = self.api.shutdown.cancelled() => None,
            next = next => next,
        }
    }

    /// Serves one connection of this host in a task of its own.
    fn take_local(&self, stream: UnixStream, permit: OwnedSemaphorePermit) {
        let options = &self.api.options;
        let (principal, mut peer) = match peer::identify(&stream, options) {
            Ok(identified) => identified,
            Err(error) => {
                tracing::warn!(chain = %ErrorChain(&error), "a peer without credentials");
                return;
            }
        };
        let place = self.users.enter(principal);
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

    /// Serves one connection of the port in a task of its own.
    fn take_remote(
        &self,
        (stream, address): (TcpStream, SocketAddr),
        permit: OwnedSemaphorePermit,
        door: &TcpDoor,
    ) {
        let place = self.addresses.enter(address.ip());
        if place.number > self.api.options.tcp_connections_per_address_max {
            // An answer would cost more than the flood deserves.
            tracing::debug!(%address, "too many connections of one address");
            return;
        }
        // Small answers must not wait for the acknowledgement of the ones before.
        drop(stream.set_nodelay(true));
        let acceptor = self.clone_for_task();
        let (entry, tls) = (door.entry, door.tls.clone());
        self.api.tasks.spawn(async move {
            acceptor.serve_remote((stream, address), entry, tls).await;
            drop((place, permit));
        });
    }

    fn clone_for_task(&self) -> Self {
        Self {
            service: self.service.clone(),
            users: self.users.clone(),
            addresses: self.addresses.clone(),
            api: self.api.clone(),
        }
    }

    async fn serve_remote(
        self,
        (stream, address): (TcpStream, SocketAddr),
        entry: Entry,
        tls: Option<Tls>,
    ) {
        match (entry, tls) {
            (Entry::Development, _) => {
                let own = &self.api.options;
                let caller = Caller::of_host(own.own_uid, own.own_gid, Role::Admin);
                let peer = Peer::new(Door::Development { caller }, address);
                self.serve_one(stream, peer).await;
            }
            (Entry::Keys, None) => self.serve_keyed(stream, address).await,
            (Entry::Keys, Some(tls)) => {
                let most = self.api.options.header_read_max;
                let shaken = tls.acceptor().accept(stream);
                let shaken = tokio::select! {
                    () = self.api.shutdown.cancelled() => return,
                    shaken = tokio::time::timeout(most, shaken) => shaken,
                };
                match shaken {
                    Ok(Ok(stream)) => self.serve_keyed(stream, address).await,
                    Ok(Err(error)) => {
                        tracing::debug!(chain = %ErrorChain(&error), "no TLS connection");
                    }
                    Err(_) => tracing::debug!("the TLS handshake did not end in time"),
                }
            }
        }
    }

    async fn serve_keyed<T>(&self, stream: T, address: SocketAddr)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (leash, stream) = Leash::around(stream, self.api.tasks.clone());
        self.serve_one(stream, Peer::new(Door::Keys { leash }, address))
            .await;
    }

    fn serve_one<T>(&self, stream: T, peer: Peer) -> impl Future<Output = ()> + Send + 'static
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
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
