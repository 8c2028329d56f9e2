//! Named points at which a test lets a start fail, to see that everything is undone.

/// A point after a step of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultPoint {
    /// The record of the intention is written.
    Recorded,
    /// The range of ids is taken.
    Range,
    /// The cgroup is made.
    Cgroup,
    /// The private disk is made.
    Disk,
    /// The agent's socket listens.
    Listener,
    /// The process runs.
    Launched,
    /// The record of what runs is written.
    Stored,
}

#[cfg(test)]
impl FaultPoint {
    pub(crate) const ALL: [Self; 7] = [
        Self::Recorded,
        Self::Range,
        Self::Cgroup,
        Self::Disk,
        Self::Listener,
        Self::Launched,
        Self::Stored,
    ];
}

/// Which point fails; in a product none does.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    #[cfg(test)]
    at: std::sync::Mutex<Option<FaultPoint>>,
}

impl Faults {
    #[cfg(test)]
    pub(crate) fn set(&self, at: Option<FaultPoint>) {
        *self.at.lock().unwrap() = at;
    }

    /// Fails if a test asked for it.
    #[cfg(test)]
    pub(crate) fn pass(&self, point: FaultPoint) -> Result<(), pinfold_driver::DriverError> {
        if *self.at.lock().unwrap() == Some(point) {
            let kind = pinfold_driver::DriverErrorKind::Internal;
            return Err(pinfold_driver::DriverError::new(kind, "injected fault"));
        }
        Ok(())
    }

    /// Fails never.
    #[cfg(not(test))]
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "as the form of it that tests use"
    )]
    pub(crate) fn pass(&self, _point: FaultPoint) -> Result<(), pinfold_driver::DriverError> {
        Ok(())
    }
}
