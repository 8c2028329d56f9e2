//! Failures that a test wants, at the place that it names.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::contract::{DriverError, DriverErrorKind};

/// A place where the fake driver can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// `Driver::prepare`.
    Prepare,
    /// `Driver::start`, before anything was made.
    Start,
    /// `Driver::start`, after the agent was started: everything must be undone.
    Started,
    /// `Driver::adopt`.
    Adopt,
    /// `Driver::sweep`.
    Sweep,
    /// `Instance::connect`.
    Connect,
    /// `Instance::pause`.
    Pause,
    /// `Instance::resume`.
    Resume,
    /// `Instance::shut_down`, before anything was done.
    ShutDown,
}

/// What is to fail. Clones are the same set, so a test can change it while the driver works.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    set: Arc<Set>,
}

#[derive(Debug, Default)]
struct Set {
    failing: Mutex<HashMap<Step, (DriverErrorKind, u32)>>,
    silent: AtomicBool,
}

impl Faults {
    /// Makes the next `times` passages of a step fail.
    pub fn fail(&self, step: Step, kind: DriverErrorKind, times: u32) {
        self.set
            .failing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(step, (kind, times));
    }

    /// Makes every new connection to an agent one that is accepted and never answered.
    pub fn silence(&self, silent: bool) {
        self.set.silent.store(silent, Ordering::SeqCst);
    }

    pub(super) fn silent(&self) -> bool {
        self.set.silent.load(Ordering::SeqCst)
    }

    pub(super) fn pass(&self, step: Step) -> Result<(), DriverError> {
        let mut failing = self
            .set
            .failing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match failing.get_mut(&step) {
            Some((kind, times)) if *times > 0 => {
                *times -= 1;
                Err(DriverError::new(
                    *kind,
                    format!("a test wanted {step:?} to fail"),
                ))
            }
            _ => Ok(()),
        }
    }
}
