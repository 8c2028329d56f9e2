//! How long nobody has used a sandbox.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use crate::clock::Clock;

/// When a sandbox was last used, and who uses it now.
#[derive(Debug)]
pub(crate) struct Activity {
    clock: Clock,
    last_ms: AtomicI64,
    users: AtomicUsize,
    /// Execs that have not ended. They use the sandbox while it is not frozen.
    execs: AtomicUsize,
}

/// Keeps a sandbox from being idle until it is dropped.
#[derive(Debug)]
pub(crate) struct Lease(Arc<Activity>);

/// Keeps a sandbox from being idle until its exec has ended.
#[derive(Debug)]
pub(crate) struct ExecLease(Arc<Activity>);

impl Activity {
    pub(crate) fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            clock,
            last_ms: AtomicI64::new(clock.now_ms()),
            users: AtomicUsize::new(0),
            execs: AtomicUsize::new(0),
        })
    }

    /// Notes that the sandbox was used just now.
    pub(crate) fn touch(&self) {
        self.last_ms
            .fetch_max(self.clock.now_ms(), Ordering::Relaxed);
    }

    /// Notes that somebody uses the sandbox from now on.
    pub(crate) fn lease(self: &Arc<Self>) -> Lease {
        self.users.fetch_add(1, Ordering::AcqRel);
        self.touch();
        Lease(Arc::clone(self))
    }

    /// Notes that an exec runs from now on.
    pub(crate) fn exec_lease(self: &Arc<Self>) -> ExecLease {
        self.execs.fetch_add(1, Ordering::AcqRel);
        self.touch();
        ExecLease(Arc::clone(self))
    }

    /// Returns when the sandbox was last used: now, while somebody uses it or an exec runs. An exec
    /// of a frozen sandbox does not run.
    pub(crate) fn last_ms(&self, frozen: bool) -> i64 {
        let runs = !frozen && self.execs.load(Ordering::Acquire) > 0;
        if runs || self.users.load(Ordering::Acquire) > 0 {
            self.clock.now_ms()
        } else {
            self.last_ms.load(Ordering::Relaxed)
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.touch();
        self.0.users.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for ExecLease {
    fn drop(&mut self) {
        self.0.touch();
        self.0.execs.fetch_sub(1, Ordering::AcqRel);
    }
}
