//! What cuts a connection when the key that it was opened with is no longer valid.
//!
//! A connection of HTTP/1.1 does one thing at a time, so it is held by the key of its last request.
//! The cut is in the bytes below, so it ends whatever runs above, streams of every kind included.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use pinfold_engine::Grant;
use pinfold_types::api::now_ms;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

/// Holds one connection.
#[derive(Debug, Clone)]
pub(crate) struct Leash {
    grant: Arc<watch::Sender<Option<Grant>>>,
    cut: CancellationToken,
    closed: CancellationToken,
    tasks: TaskTracker,
}

impl Leash {
    /// Puts a connection on a leash.
    pub(crate) fn around<T>(io: T, tasks: TaskTracker) -> (Self, Leashed<T>) {
        let leash = Self {
            grant: Arc::new(watch::Sender::new(None)),
            cut: CancellationToken::new(),
            closed: CancellationToken::new(),
            tasks,
        };
        let leashed = Leashed {
            io,
            read: Box::pin(leash.cut.clone().cancelled_owned()),
            write: Box::pin(leash.cut.clone().cancelled_owned()),
            _closed: leash.closed.clone().drop_guard(),
        };
        (leash, leashed)
    }

    /// Lets a grant hold the connection in the place of the one before.
    pub(crate) fn hold(&self, grant: Grant) {
        let before = self.grant.send_replace(Some(grant));
        if before.is_none() {
            let (leash, grants) = (self.clone(), self.grant.subscribe());
            self.tasks.spawn(async move { leash.watch(grants).await });
        }
    }

    async fn watch(&self, mut grants: watch::Receiver<Option<Grant>>) {
        loop {
            let Some(grant) = grants.borrow_and_update().clone() else {
                return;
            };
            tokio::select! {
                () = self.closed.cancelled() => return,
                changed = grants.changed() => if changed.is_err() { return },
                () = grant.revoked.cancelled() => break,
                () = expiry(&grant) => break,
            }
        }
        self.cut.cancel();
    }
}

async fn expiry(grant: &Grant) {
    match grant.expires_ms {
        None => std::future::pending().await,
        Some(expires_ms) => {
            let left = u64::try_from(expires_ms.saturating_sub(now_ms())).unwrap_or(0);
            tokio::time::sleep(Duration::from_millis(left)).await;
        }
    }
}

/// A connection on a leash.
#[derive(Debug)]
pub(crate) struct Leashed<T> {
    io: T,
    // Each side may be polled by a task of its own, and a future wakes only the last.
    read: Pin<Box<WaitForCancellationFutureOwned>>,
    write: Pin<Box<WaitForCancellationFutureOwned>>,
    _closed: DropGuard,
}

fn cut() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the key is no longer valid",
    )
}

impl<T: AsyncRead + Unpin> AsyncRead for Leashed<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(cut()));
        }
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Leashed<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.write.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(cut()));
        }
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
