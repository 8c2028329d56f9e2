//! Whether what sandboxes request together still fits the host.
//!
//! A request is a promise: its sandbox gets at least that much. So the sum of all requests must not
//! be larger than what there is. A sandbox without a request is promised nothing and always fits. A
//! stopped one keeps its place, for it can be started at any time.

use std::collections::HashMap;

use pinfold_types::{ByteSize, ErrorCode, MilliCpu, Resources, SandboxId};
use serde_json::json;

use crate::error::EngineError;

/// When to try again: somebody has to make room first.
const RETRY_AFTER_MS: u64 = 5_000;

/// What the host has for sandboxes' requests; none is not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    /// CPUs.
    pub cpus: Option<MilliCpu>,
    /// Memory.
    pub memory: Option<ByteSize>,
    /// Disk.
    pub disk: Option<ByteSize>,
}

/// What one sandbox, or all of them, were promised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Promise {
    cpus: u64,
    memory: u64,
    disk: u64,
}

impl Promise {
    fn of(resources: &Resources) -> Self {
        let bytes = |size: Option<ByteSize>| size.map_or(0, |size| size.0);
        Self {
            cpus: resources.cpu_request.map_or(0, |cpus| u64::from(cpus.0)),
            memory: bytes(resources.memory_request),
            disk: bytes(resources.disk_request),
        }
    }

    const fn with(self, more: Self) -> Self {
        Self {
            cpus: self.cpus.saturating_add(more.cpus),
            memory: self.memory.saturating_add(more.memory),
            disk: self.disk.saturating_add(more.disk),
        }
    }

    const fn without(self, less: Self) -> Self {
        Self {
            cpus: self.cpus.saturating_sub(less.cpus),
            memory: self.memory.saturating_sub(less.memory),
            disk: self.disk.saturating_sub(less.disk),
        }
    }
}

/// What every sandbox was promised. It lives under the registry's lock, as the quotas do.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    total: Promise,
    each: HashMap<SandboxId, Promise>,
}

impl Admission {
    /// Promises a sandbox what it requests, in place of what it was promised before, unless there
    /// is too little; then nothing changes.
    pub(crate) fn promise(
        &mut self,
        sandbox: &SandboxId,
        resources: &Resources,
        capacity: &Capacity,
    ) -> Result<(), EngineError> {
        let asked = Promise::of(resources);
        let before = self.each.get(sandbox).copied().unwrap_or_default();
        let others = self.total.without(before);
        let cpus = capacity.cpus.map(|cpus| u64::from(cpus.0));
        let bytes = |size: Option<ByteSize>| size.map(|size| size.0);
        let parts = [
            ("cpus", asked.cpus, before.cpus, others.cpus, cpus),
            (
                "memory",
                asked.memory,
                before.memory,
                others.memory,
                bytes(capacity.memory),
            ),
            (
                "disk",
                asked.disk,
                before.disk,
                others.disk,
                bytes(capacity.disk),
            ),
        ];
        for (what, asked, before, others, most) in parts {
            // What asks for nothing more is not refused because the capacity was made smaller.
            if let Some(most) = most
                && asked > before
                && others.saturating_add(asked) > most
            {
                return Err(refused(what, (asked, others, most)));
            }
        }
        self.keep(sandbox, resources);
        Ok(())
    }

    /// Promises a sandbox of an earlier daemon what it was promised then.
    pub(crate) fn keep(&mut self, sandbox: &SandboxId, resources: &Resources) {
        self.release(sandbox);
        let promise = Promise::of(resources);
        if promise != Promise::default() {
            self.total = self.total.with(promise);
            self.each.insert(sandbox.clone(), promise);
        }
    }

    /// Takes back what a sandbox was promised.
    pub(crate) fn release(&mut self, sandbox: &SandboxId) {
        if let Some(promise) = self.each.remove(sandbox) {
            self.total = self.total.without(promise);
        }
    }
}

fn refused(what: &str, (asked, others, most): (u64, u64, u64)) -> EngineError {
    let mut details = json!({
        "resource": what,
        "requested": asked,
        "requested_by_others": others,
        "capacity": most,
    });
    let (message, hint) = if asked > most {
        // No time to try again is named: nobody else has it.
        (
            format!("the sandbox requests more {what} than the host has"),
            format!("request less, or raise `capacity_{what}` of the daemon"),
        )
    } else {
        if let Some(details) = details.as_object_mut() {
            details.insert("retry_after_ms".to_owned(), RETRY_AFTER_MS.into());
        }
        (
            format!("the host has too little {what} left for the request"),
            format!(
                "remove sandboxes with `pinfold rm NAME`, request less, or raise \
                 `capacity_{what}` of the daemon"
            ),
        )
    };
    EngineError::new(ErrorCode::CapacityExceeded, message)
        .details(details)
        .hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(milli: u32) -> Resources {
        Resources {
            cpu_request: (milli > 0).then_some(MilliCpu(milli)),
            ..Resources::default()
        }
    }

    #[test]
    fn the_sum_of_requests_fits_to_the_last_unit_and_is_given_back() {
        let capacity = Capacity {
            cpus: Some(MilliCpu(1000)),
            ..Capacity::default()
        };
        let mut admission = Admission::default();
        let ids: Vec<SandboxId> = (0..4).map(|_| SandboxId::new()).collect();
        let mut step = |id: &SandboxId, milli, fits| {
            let asked = admission.promise(id, &cpus(milli), &capacity);
            assert_eq!(asked.is_ok(), fits, "{milli}");
            if let Err(error) = asked {
                assert_eq!(error.code, ErrorCode::CapacityExceeded);
                // To wait helps when others have it.
                let wait = error.details.get("retry_after_ms").is_some();
                assert_eq!(wait, milli <= 1000, "{milli}");
                assert_eq!(error.details["resource"], "cpus");
            }
        };
        step(&ids[0], 600, true);
        step(&ids[1], 400, true);
        step(&ids[2], 1, false);
        // Who requests nothing is promised nothing.
        step(&ids[2], 0, true);
        // A change counts as the difference.
        step(&ids[0], 601, false);
        step(&ids[0], 500, true);
        step(&ids[3], 100, true);
        step(&ids[2], 5000, false);
        for id in &ids {
            admission.release(id);
            admission.release(id);
        }
        assert_eq!(admission.total, Promise::default());
        assert!(admission.each.is_empty());
    }

    #[test]
    fn what_is_there_already_stays_when_the_capacity_shrinks() {
        let mut admission = Admission::default();
        let id = SandboxId::new();
        admission.keep(&id, &cpus(2000));
        let capacity = Capacity {
            cpus: Some(MilliCpu(1000)),
            ..Capacity::default()
        };
        assert!(admission.promise(&id, &cpus(1500), &capacity).is_ok());
        assert!(admission.promise(&id, &cpus(1501), &capacity).is_err());
        assert!(
            admission
                .promise(&SandboxId::new(), &cpus(1), &capacity)
                .is_err()
        );
    }
}
