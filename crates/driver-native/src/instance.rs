//! One live sandbox.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pinfold_driver::{
    Disk, DriverError, DriverErrorKind, GuestPort, GuestStream, HostMount, Instance, InstanceExit,
    InstanceRecord, Usage,
};
use pinfold_linux::cgroup::{Controller, Group};
use pinfold_types::api::Granted;
use pinfold_types::{Resources, SandboxId};
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpStream, UnixStream};

use crate::claims::{Claims, Home};
use crate::driver::Inner;
use crate::start::{describe_cgroup, socket_in};
use crate::{blocking, process, teardown};

/// Longest time that connections to the agent may queue before one more is refused.
const QUEUE_FULL_MAX: Duration = Duration::from_secs(5);
/// Longest time for a program inside to take a connection from its queue.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Time between two looks at what cannot be waited for.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A sandbox whose process 1 was started by this daemon or an earlier one.
pub(crate) struct Live {
    pub(crate) inner: Arc<Inner>,
    pub(crate) id: SandboxId,
    pub(crate) home: Home,
    claims: Mutex<Claims>,
    pub(crate) process: OwnedFd,
    /// Why it ended, once somebody knows better than that it did.
    ended_by: Mutex<Option<String>>,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Live {
    pub(crate) fn new(inner: Arc<Inner>, claims: Claims, process: OwnedFd) -> Self {
        Self {
            id: claims.id.clone(),
            home: Home::new(&inner.native, &claims.id),
            inner,
            claims: Mutex::new(claims),
            process,
            ended_by: Mutex::new(None),
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        process::has_ended(&self.process)
    }

    pub(crate) fn claims(&self) -> Claims {
        let claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        claims.clone()
    }

    pub(crate) fn set_claims(&self, new: Claims) {
        *self.claims.lock().unwrap_or_else(PoisonError::into_inner) = new;
    }

    fn group(&self) -> Option<Group> {
        self.claims().group
    }

    pub(crate) fn gone(&self) -> DriverError {
        let message = format!("the sandbox {} has ended", self.id);
        DriverError::new(DriverErrorKind::Gone, message)
    }

    fn unsupported(what: &str) -> DriverError {
        let message = format!("this host's native driver cannot {what}");
        DriverError::new(DriverErrorKind::Unsupported, message)
    }

    /// Returns the group if it can do something; a host without it lacks the capability bit.
    fn group_for(&self, what: &str, controllers: &[Controller]) -> Result<Group, DriverError> {
        let can = |controller: &Controller| self.inner.host.cgroups.version(*controller).is_some();
        if !controllers.iter().any(can) {
            return Err(Self::unsupported(what));
        }
        if self.has_ended() {
            return Err(self.gone());
        }
        self.group().ok_or_else(|| {
            let message = format!("the sandbox {} was made without a cgroup", self.id);
            DriverError::new(DriverErrorKind::NeedsCgroup, message)
                .hint("stop it and start it again")
        })
    }

    async fn connect_agent(&self) -> Result<GuestStream, DriverError> {
        let failed = |source: io::Error| {
            let message = format!("failed to reach the agent of {}", self.id);
            match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => self.gone(),
                _ => DriverError::new(DriverErrorKind::Internal, message).caused_by(source),
            }
        };
        if self.has_ended() {
            return Err(self.gone());
        }
        let directory = fs::File::open(self.home.agent()).map_err(failed)?;
        let path = socket_in(directory.as_fd());
        let deadline = Instant::now() + QUEUE_FULL_MAX;
        loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => return Ok(Box::new(stream)),
                // The agent has more connections waiting than it may have; it takes them in turn.
                Err(source)
                    if source.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline =>
                {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Err(source) => return Err(failed(source)),
            }
        }
    }

    async fn connect_tcp(&self, port: u16) -> Result<GuestStream, DriverError> {
        if self.has_ended() {
            return Err(self.gone());
        }
        let process = self.duplicate()?;
        let inner = Arc::clone(&self.inner);
        let socket = blocking::run("connect to a port", move || {
            inner
                .launchers
                .ask(|launcher| launcher.connect_port(process.as_fd(), port))
        })
        .await?;
        let stream = std::net::TcpStream::from(socket);
        let stream = stream
            .set_nonblocking(true)
            .and_then(|()| TcpStream::from_std(stream))
            .map_err(|source| self.broken("take the connection", source))?;
        self.connected(&stream, port).await?;
        Ok(Box::new(stream))
    }

    /// Waits until a connection that may still be under way is made.
    async fn connected(&self, stream: &TcpStream, port: u16) -> Result<(), DriverError> {
        let made = async {
            stream.writable().await?;
            stream.take_error()?.map_or(Ok(()), Err)
        };
        let done = tokio::time::timeout(CONNECT_MAX, made).await;
        done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| {
                let message = format!("nothing takes connections on port {port} of {}", self.id);
                DriverError::new(DriverErrorKind::ConnectionRefused, message)
                    .hint("start the program that listens there, on 127.0.0.1 or all addresses")
                    .caused_by(source)
            })
    }

    fn duplicate(&self) -> Result<OwnedFd, DriverError> {
        let again = self.process.try_clone();
        again.map_err(|source| self.broken("hold the process", source))
    }

    fn broken(&self, what: &str, source: io::Error) -> DriverError {
        let message = format!("failed to {what} of {}", self.id);
        DriverError::new(DriverErrorKind::Internal, message).caused_by(source)
    }

    /// Waits for the end of process 1.
    async fn end(&self) {
        #[expect(
            deprecated,
            reason = "unsound for types that may change their descriptor, which an owned one never does"
        )]
        let watched = self
            .process
            .try_clone()
            .and_then(|process| AsyncFd::with_interest(process, Interest::READABLE));
        if let Ok(watched) = watched {
            let _ended = watched.readable().await;
        }
        // Also the way out when this process has no descriptor left to wait with.
        while !self.has_ended() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn say_why(&self, reason: &str) {
        let mut ended_by = self.ended_by.lock().unwrap_or_else(PoisonError::into_inner);
        ended_by.get_or_insert_with(|| reason.to_owned());
    }

    /// Takes everything away; a newer instance of the same id is left alone. Blocks.
    fn finish(&self, disk: Disk) -> Result<(), DriverError> {
        let slot = self.inner.slot(&self.id);
        let mut live = slot.lock();
        let another = |other: &Arc<Self>| !std::ptr::eq(Arc::as_ptr(other), self);
        if live.as_ref().is_some_and(another) {
            return Ok(());
        }
        let mut claims = self.claims();
        let left = teardown::take_away(&self.inner, &mut claims, disk);
        self.set_claims(claims);
        if left.is_empty() {
            *live = None;
        }
        drop(live);
        drop(slot);
        self.inner.forget_empty_slots();
        teardown::first_failure(left)
    }

    /// Changes limits; on an error the former ones hold. Blocks.
    fn change(&self, resources: &Resources) -> Result<Granted, DriverError> {
        let controllers = [Controller::Cpu, Controller::Memory, Controller::Pids];
        let group = self.group_for("change limits", &controllers)?;
        let mut claims = self.claims();
        let before = claims.resources;
        if (before.disk, before.inodes) != (resources.disk, resources.inodes) {
            let message = "the disk limits of a live sandbox cannot be changed";
            return Err(DriverError::new(DriverErrorKind::NeedsDiskLimit, message)
                .hint("create another sandbox with the limits that are wanted"));
        }
        let former = self.inner.host.grant(&before)?;
        let mut grant = self.inner.host.grant(resources)?;
        if grant.pid_max != former.pid_max {
            let pids = resources.pids.unwrap_or_default().to_string();
            return Err(self
                .inner
                .host
                .needs_cgroup("pids", &pids, Controller::Pids));
        }
        if let Err(error) = group.set(&grant.limits) {
            if let Err(error) = group.set(&former.limits) {
                let error = pinfold_types::ErrorChain(&error).to_string();
                tracing::error!(id = %self.id, error, "failed to restore the former limits");
            }
            let kind = DriverErrorKind::ResourceExhausted;
            return Err(DriverError::new(kind, "failed to change the limits")
                .hint("a memory limit cannot be less than what is in use")
                .caused_by(error));
        }
        grant.keep_disk_of(&claims.granted);
        claims.granted = grant.shown(claims.ids);
        claims.resources = *resources;
        self.home.store(&claims)?;
        let granted = claims.granted.clone();
        self.set_claims(claims);
        Ok(granted)
    }
}

/// The sandbox as the engine holds it.
#[derive(Debug)]
pub(crate) struct NativeInstance {
    live: Arc<Live>,
}

impl NativeInstance {
    pub(crate) fn new(live: Arc<Live>) -> Self {
        Self { live }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Live) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let live = Arc::clone(&self.live);
        blocking::run(what, move || work(&live)).await
    }
}

#[async_trait]
impl Instance for NativeInstance {
    fn record(&self) -> InstanceRecord {
        self.live.claims().record()
    }

    async fn connect(&self, to: GuestPort) -> Result<GuestStream, DriverError> {
        match to {
            GuestPort::Agent => self.live.connect_agent().await,
            GuestPort::Tcp(port) => self.live.connect_tcp(port).await,
        }
    }

    async fn pause(&self) -> Result<(), DriverError> {
        self.blocking("pause", |live| {
            let group = live.group_for("pause", &[Controller::Freezer])?;
            group.freeze().map_err(describe_cgroup)
        })
        .await
    }

    async fn resume(&self) -> Result<(), DriverError> {
        self.blocking("resume", |live| {
            let group = live.group_for("resume", &[Controller::Freezer])?;
            group.thaw().map_err(describe_cgroup)
        })
        .await
    }

    async fn attach(&self, mount: &HostMount) -> Result<(), DriverError> {
        let mount = mount.clone();
        self.blocking("mount in a sandbox", move |live| live.attach(&mount))
            .await
    }

    async fn detach(&self, target: &str) -> Result<(), DriverError> {
        let target = target.to_owned();
        self.blocking("unmount in a sandbox", move |live| live.detach(&target))
            .await
    }

    async fn update(&self, resources: &Resources) -> Result<Granted, DriverError> {
        let resources = *resources;
        self.blocking("change limits", move |live| live.change(&resources))
            .await
    }

    async fn usage(&self) -> Result<Usage, DriverError> {
        if self.live.has_ended() {
            return Err(self.live.gone());
        }
        let usage = self.live.group().map(|group| group.usage());
        let usage = usage.unwrap_or_default();
        Ok(Usage {
            cpu_us: usage.cpu_us,
            memory_bytes: usage.memory_bytes,
            pids: usage.pids,
            out_of_memory: usage.out_of_memory,
        })
    }

    async fn wait(&self) -> InstanceExit {
        self.live.end().await;
        // Read after the end, and before somebody removes what counts.
        if let Some(killed) = self
            .live
            .group()
            .and_then(|group| group.usage().out_of_memory)
            && killed > 0
        {
            self.live
                .say_why("the agent ended after the memory limit was reached");
        }
        self.live.say_why("the agent ended");
        let ended_by = self.live.ended_by.lock();
        let reason = ended_by.unwrap_or_else(PoisonError::into_inner).clone();
        InstanceExit {
            reason: reason.unwrap_or_default(),
        }
    }

    async fn shut_down(&self, grace: Duration, disk: Disk) -> Result<(), DriverError> {
        if !self.live.has_ended() {
            self.live.say_why("it was stopped as asked");
            self.blocking("ask a sandbox to end", |live| {
                // A suspended process hears nothing.
                if let Some(group) = live.group().filter(Group::is_frozen) {
                    group.thaw().map_err(describe_cgroup)?;
                }
                process::signal(&live.process, Signal::TERM)
                    .map_err(|source| live.broken("end the agent", source))
            })
            .await?;
            let _too_slow = tokio::time::timeout(grace, self.live.end()).await;
        }
        self.blocking("take a sandbox away", move |live| live.finish(disk))
            .await
    }
}
