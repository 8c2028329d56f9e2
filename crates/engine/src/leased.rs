//! An instance that counts as used as long as somebody holds it or a stream into it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use pinfold_driver::{
    Disk, DriverError, GuestPort, GuestStream, HostMount, Instance, InstanceExit, InstanceRecord,
    Usage,
};
use pinfold_types::Resources;
use pinfold_types::api::Granted;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::activity::Lease;

/// Hands everything on to another instance.
#[derive(Debug)]
pub(crate) struct LeasedInstance {
    inner: Arc<dyn Instance>,
    lease: Arc<Lease>,
}

impl LeasedInstance {
    pub(crate) fn new(inner: Arc<dyn Instance>, lease: Lease) -> Self {
        Self {
            inner,
            lease: Arc::new(lease),
        }
    }
}

#[async_trait]
impl Instance for LeasedInstance {
    fn record(&self) -> InstanceRecord {
        self.inner.record()
    }

    async fn connect(&self, to: GuestPort) -> Result<GuestStream, DriverError> {
        let inner = self.inner.connect(to).await?;
        Ok(Box::new(LeasedStream {
            inner,
            _lease: Arc::clone(&self.lease),
        }))
    }

    async fn pause(&self) -> Result<(), DriverError> {
        self.inner.pause().await
    }

    async fn resume(&self) -> Result<(), DriverError> {
        self.inner.resume().await
    }

    async fn attach(&self, mount: &HostMount) -> Result<(), DriverError> {
        self.inner.attach(mount).await
    }

    async fn detach(&self, target: &str) -> Result<(), DriverError> {
        self.inner.detach(target).await
    }

    async fn update(&self, resources: &Resources) -> Result<Granted, DriverError> {
        self.inner.update(resources).await
    }

    async fn usage(&self) -> Result<Usage, DriverError> {
        self.inner.usage().await
    }

    async fn wait(&self) -> InstanceExit {
        self.inner.wait().await
    }

    async fn shut_down(&self, grace: Duration, disk: Disk) -> Result<(), DriverError> {
        self.inner.shut_down(grace, disk).await
    }
}

struct LeasedStream {
    inner: GuestStream,
    _lease: Arc<Lease>,
}

impl AsyncRead for LeasedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl AsyncWrite for LeasedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
