//! The ends of an exec's pipes and terminal that are ours.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use pinfold_types::crash_point;
use pinfold_types::exec::OutputStream;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::journal::{EventKind, Journal, OUTPUT_BYTES_MAX};
use crate::ready;

thread_local! {
    /// Where output is read to before it is known how much there is; the agent has one thread that
    /// reads, and a buffer for each of a thousand execs would cost 128 MiB.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A descriptor of ours that never waits.
#[derive(Debug)]
pub(super) struct End {
    fd: AsyncFd<OwnedFd>,
}

impl End {
    pub(super) fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        let fd = ready::watched(fd, interest)?;
        Ok(Self { fd })
    }

    pub(super) fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }

    /// Reads at most `limit` bytes; none is the end. A terminal's end is an error of its own.
    async fn read(&self, limit: usize) -> Bytes {
        loop {
            let Ok(mut ready) = self.fd.readable().await else {
                return Bytes::new();
            };
            let read = ready.try_io(|fd| {
                SCRATCH.with_borrow_mut(|scratch| {
                    scratch.resize(OUTPUT_BYTES_MAX, 0);
                    let room = scratch.get_mut(..limit.min(OUTPUT_BYTES_MAX));
                    let count = rustix::io::read(fd.get_ref(), room.unwrap_or_default())?;
                    Ok(Bytes::copy_from_slice(
                        scratch.get(..count).unwrap_or_default(),
                    ))
                })
            });
            match read {
                Ok(Ok(data)) => return data,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => return Bytes::new(),
                Err(_would_block) => {}
            }
        }
    }

    /// Writes everything, waiting for the reader as often as needed.
    pub(super) async fn write(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let mut ready = self.fd.writable().await?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), data)?)) {
                Ok(Ok(count)) => data = data.get(count..).unwrap_or_default(),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }

    /// Returns how much waits to be read.
    fn waiting(&self) -> u64 {
        rustix::io::ioctl_fionread(self.as_fd()).unwrap_or(0)
    }
}

/// One stream of output on its way into the journal.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) end: Arc<End>,
    stream: OutputStream,
    taken: AtomicU64,
    held_up: AtomicBool,
    at_end: AtomicBool,
}

impl Output {
    pub(super) fn new(end: Arc<End>, stream: OutputStream) -> Self {
        Self {
            end,
            stream,
            taken: AtomicU64::new(0),
            held_up: AtomicBool::new(false),
            at_end: AtomicBool::new(false),
        }
    }

    /// Journals everything until the end.
    pub(super) async fn pump(&self, journal: &Journal) {
        loop {
            self.held_up.store(journal.room() == 0, Ordering::Relaxed);
            let room = journal.wait_for_room().await;
            self.held_up.store(false, Ordering::Relaxed);
            // Another stream of the same exec may fill the room meanwhile: the limit is then passed
            // by one event at most.
            let data = self.end.read(room).await;
            if data.is_empty() {
                self.at_end.store(true, Ordering::Relaxed);
                return;
            }
            let count = u64::try_from(data.len()).unwrap_or(u64::MAX);
            self.taken.fetch_add(count, Ordering::Relaxed);
            crash_point!("agent.output_read");
            journal.append(EventKind::Output(self.stream, data));
            crash_point!("agent.output_journaled");
        }
    }

    /// Reads and forgets everything until the end, so that who still writes is not killed by it.
    pub(super) async fn discard(&self) {
        while !self.end.read(OUTPUT_BYTES_MAX).await.is_empty() {}
    }

    /// Returns how much was journaled.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Returns how much will have been journaled once what waits now was.
    pub(super) fn owed(&self) -> u64 {
        self.taken() + self.end.waiting()
    }

    /// Returns whether the journal, and not the process, is what this waits for.
    pub(super) fn is_held_up(&self) -> bool {
        self.held_up.load(Ordering::Relaxed)
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at_end.load(Ordering::Relaxed)
    }
}
