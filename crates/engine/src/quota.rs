//! What each principal has, and what it may have.
//!
//! The ledger is a part of the registry and lives under its lock, so a burst of creations is counted
//! one by one. CPUs and memory are counted as the limits that sandboxes were made with, whether they
//! run or not: a stopped one can be started at any time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use pinfold_types::api::keys::Quotas;
use pinfold_types::{ErrorCode, Principal, Resources, SandboxId};
use serde_json::json;

use crate::error::EngineError;

/// One minute, the time that a creation rate is given for.
const MINUTE_MS: u64 = 60_000;

/// When to try again after a quota that somebody has to make room in: soon enough for a person, and
/// no load when a thousand programs wait so.
const RETRY_ROOM_MS: u64 = 5_000;

/// When to try again after the quota of execs, which end by themselves.
const RETRY_EXEC_MS: u64 = 1_000;

/// Principals whose creation rate is remembered; beyond that those with a full allowance are
/// forgotten, which changes nothing for them.
const RATES_MAX: usize = 10_000;

/// What a sandbox costs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Thousandths of a CPU; none when not limited.
    cpus: Option<u64>,
    /// Bytes; none when not limited.
    memory: Option<u64>,
}

impl Cost {
    pub(crate) fn of(resources: &Resources) -> Self {
        Self {
            cpus: resources.cpus.map(|cpus| u64::from(cpus.0)),
            memory: resources.memory.map(|memory| memory.0),
        }
    }
}

/// What one principal has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Usage {
    sandboxes: u64,
    cpus: u64,
    memory: u64,
}

impl Usage {
    fn with(self, cost: Cost) -> Self {
        Self {
            sandboxes: self.sandboxes.saturating_add(1),
            cpus: self.cpus.saturating_add(cost.cpus.unwrap_or(0)),
            memory: self.memory.saturating_add(cost.memory.unwrap_or(0)),
        }
    }

    fn without(self, cost: Cost) -> Self {
        Self {
            sandboxes: self.sandboxes.saturating_sub(1),
            cpus: self.cpus.saturating_sub(cost.cpus.unwrap_or(0)),
            memory: self.memory.saturating_sub(cost.memory.unwrap_or(0)),
        }
    }
}

/// How much of a creation rate is left: a bucket that fills with time.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    /// A creation is a minute's milliseconds, so that nothing is rounded.
    left: u64,
    at_ms: i64,
}

/// What every principal has.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    usage: HashMap<Principal, Usage>,
    /// What each sandbox is counted as, and for whom.
    charged: HashMap<SandboxId, (Principal, Cost)>,
    rates: HashMap<Principal, Allowance>,
}

/// What a sandbox is to be counted as.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Charge<'a> {
    pub(crate) sandbox: &'a SandboxId,
    pub(crate) principal: &'a Principal,
    pub(crate) cost: Cost,
}

impl Ledger {
    /// Counts a new sandbox, unless a quota is used up.
    pub(crate) fn charge(
        &mut self,
        charge: Charge<'_>,
        quotas: &Quotas,
        now_ms: i64,
    ) -> Result<(), EngineError> {
        let (principal, cost) = (charge.principal, charge.cost);
        let used = self.usage.get(principal).copied().unwrap_or_default();
        let then = used.with(cost);
        let checks = [
            Check {
                quota: "sandboxes",
                most: quotas.sandboxes.map(u64::from),
                used: used.sandboxes,
                then: then.sandboxes,
                named: true,
            },
            Check {
                quota: "cpus",
                most: quotas.cpus.map(|cpus| u64::from(cpus.0)),
                used: used.cpus,
                then: then.cpus,
                named: cost.cpus.is_some(),
            },
            Check {
                quota: "memory",
                most: quotas.memory.map(|memory| memory.0),
                used: used.memory,
                then: then.memory,
                named: cost.memory.is_some(),
            },
        ];
        for check in checks {
            check.hold()?;
        }
        // Last, so that what is refused for another reason costs nothing of the rate.
        if let Some(rate) = quotas.creations {
            self.take_rate(principal, rate, now_ms)?;
        }
        self.count(charge);
        Ok(())
    }

    /// Counts a sandbox as something else from now on, unless a quota is used up by that.
    pub(crate) fn recharge(
        &mut self,
        sandbox: &SandboxId,
        cost: Cost,
        quotas: &Quotas,
    ) -> Result<(), EngineError> {
        let Some((principal, before)) = self.charged.get(sandbox).cloned() else {
            return Ok(());
        };
        self.release(sandbox);
        let charge = |cost| Charge {
            sandbox,
            principal: &principal,
            cost,
        };
        // It is no new sandbox.
        let quotas = Quotas {
            sandboxes: None,
            creations: None,
            ..*quotas
        };
        let counted = self.charge(charge(cost), &quotas, 0);
        if counted.is_err() {
            self.count(charge(before));
        }
        counted
    }

    fn count(&mut self, charge: Charge<'_>) {
        let used = self.usage.entry(charge.principal.clone()).or_default();
        *used = used.with(charge.cost);
        let counted = (charge.principal.clone(), charge.cost);
        self.charged.insert(charge.sandbox.clone(), counted);
    }

    /// Gives back what a sandbox was counted as.
    pub(crate) fn release(&mut self, sandbox: &SandboxId) {
        let Some((principal, cost)) = self.charged.remove(sandbox) else {
            return;
        };
        if let Some(used) = self.usage.get_mut(&principal) {
            *used = used.without(cost);
            if *used == Usage::default() {
                self.usage.remove(&principal);
            }
        }
    }

    fn take_rate(
        &mut self,
        principal: &Principal,
        rate: u32,
        now_ms: i64,
    ) -> Result<(), EngineError> {
        let rate = u64::from(rate);
        let full = rate.saturating_mul(MINUTE_MS);
        if self.rates.len() >= RATES_MAX {
            self.rates.retain(|_, allowance| {
                now_ms.saturating_sub(allowance.at_ms) < MINUTE_MS.cast_signed()
            });
        }
        let before = self.rates.get(principal).copied();
        let left = before.map_or(full, |before| {
            let passed = u64::try_from(now_ms.saturating_sub(before.at_ms)).unwrap_or(0);
            before
                .left
                .saturating_add(passed.saturating_mul(rate))
                .min(full)
        });
        let Some(rest) = left.checked_sub(MINUTE_MS) else {
            let missing = MINUTE_MS - left;
            let wait_ms = missing.checked_div(rate).map_or(MINUTE_MS, |time| time + 1);
            return Err(exceeded("creations", rate, rate, wait_ms));
        };
        self.rates.insert(
            principal.clone(),
            Allowance {
                left: rest,
                at_ms: now_ms,
            },
        );
        Ok(())
    }
}

/// One quota against what is asked.
struct Check {
    quota: &'static str,
    most: Option<u64>,
    used: u64,
    then: u64,
    /// Whether the sandbox says how much it takes.
    named: bool,
}

impl Check {
    fn hold(&self) -> Result<(), EngineError> {
        let Some(most) = self.most else {
            return Ok(());
        };
        if !self.named {
            return Err(EngineError::new(
                ErrorCode::InvalidArgument,
                format!(
                    "a quota of {} holds for you, so the sandbox needs a limit",
                    self.quota
                ),
            )
            .details(json!({ "quota": self.quota, "limit": most, "used": self.used }))
            .hint(format!("name one with --{}", self.quota)));
        }
        if self.then > most {
            return Err(exceeded(self.quota, most, self.used, RETRY_ROOM_MS));
        }
        Ok(())
    }
}

fn exceeded(quota: &str, most: u64, used: u64, retry_after_ms: u64) -> EngineError {
    let hint = match quota {
        "creations" => "make fewer in a minute, or ask whoever runs the daemon for more",
        "execs" => "wait for one to end, or ask whoever runs the daemon for more",
        _ => "remove sandboxes with `pinfold rm NAME`, or ask whoever runs the daemon for more",
    };
    EngineError::new(
        ErrorCode::QuotaExceeded,
        format!("the quota of {most} {quota} is used up"),
    )
    .details(json!({
        "quota": quota,
        "limit": most,
        "used": used,
        "retry_after_ms": retry_after_ms,
    }))
    .hint(hint)
}

/// How many execs each principal runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Running(Arc<Mutex<HashMap<Principal, u64>>>);

impl Running {
    /// Counts one more, unless the quota is used up.
    pub(crate) fn enter(
        &self,
        principal: &Principal,
        most: Option<u32>,
    ) -> Result<Place, EngineError> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(principal.clone()).or_default();
        if let Some(most) = most.map(u64::from)
            && *count >= most
        {
            let used = *count;
            if used == 0 {
                counts.remove(principal);
            }
            return Err(exceeded("execs", most, used, RETRY_EXEC_MS));
        }
        *count += 1;
        Ok(Place {
            running: self.clone(),
            principal: principal.clone(),
        })
    }
}

/// One counted exec; it is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    running: Running,
    principal: Principal,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self
            .running
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.principal) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.principal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pinfold_types::{ByteSize, MilliCpu};

    use super::*;

    const ONE: Principal = Principal::User(1);

    fn cost(cpus: u32, memory: u64) -> Cost {
        Cost::of(&Resources {
            cpus: Some(MilliCpu(cpus)),
            memory: Some(ByteSize(memory)),
            ..Resources::default()
        })
    }

    fn quota(error: &EngineError) -> (ErrorCode, String) {
        let name = error.details["quota"].as_str().unwrap().to_owned();
        (error.code, name)
    }

    /// Charges a principal for one more sandbox.
    fn ask(
        ledger: &mut Ledger,
        principal: &Principal,
        cost: Cost,
        (quotas, now_ms): (&Quotas, i64),
    ) -> Result<SandboxId, EngineError> {
        let sandbox = SandboxId::new();
        let charge = Charge {
            sandbox: &sandbox,
            principal,
            cost,
        };
        ledger.charge(charge, quotas, now_ms)?;
        Ok(sandbox)
    }

    #[test]
    fn each_quota_holds_to_its_last_unit_and_is_given_back() {
        let quotas = Quotas {
            sandboxes: Some(3),
            cpus: Some(MilliCpu(1000)),
            memory: Some(ByteSize(100)),
            ..Quotas::NONE
        };
        let mut ledger = Ledger::default();
        let mut made = Vec::new();
        let mut steps = |principal: Principal, cpus, memory, refused: Option<&str>| {
            let asked = ask(&mut ledger, &principal, cost(cpus, memory), (&quotas, 0));
            match (asked, refused) {
                (Ok(sandbox), None) => made.push(sandbox),
                (Err(error), Some(name)) => {
                    assert_eq!(quota(&error), (ErrorCode::QuotaExceeded, name.to_owned()));
                }
                (asked, _) => panic!("{asked:?}"),
            }
        };
        steps(ONE, 400, 10, None);
        steps(ONE, 600, 10, None);
        steps(ONE, 10, 10, Some("cpus"));
        steps(ONE, 0, 81, Some("memory"));
        steps(ONE, 0, 80, None);
        steps(ONE, 0, 0, Some("sandboxes"));
        // Another principal has all of its own.
        steps(Principal::User(2), 1000, 100, None);
        ledger.release(&made[0]);
        ledger.release(&made[0]);
        let again = ask(&mut ledger, &ONE, cost(400, 10), (&quotas, 0)).unwrap();
        assert!(ask(&mut ledger, &ONE, cost(0, 0), (&quotas, 0)).is_err());
        made.push(again);
        for sandbox in &made {
            ledger.release(sandbox);
        }
        assert!(ledger.usage.is_empty() && ledger.charged.is_empty());
    }

    #[test]
    fn what_is_not_limited_does_not_pass_a_quota_of_it() {
        let quotas = Quotas {
            cpus: Some(MilliCpu(1000)),
            ..Quotas::NONE
        };
        let mut ledger = Ledger::default();
        let refused = ask(&mut ledger, &ONE, Cost::default(), (&quotas, 0)).unwrap_err();
        assert_eq!(
            quota(&refused),
            (ErrorCode::InvalidArgument, "cpus".to_owned())
        );
        ask(&mut ledger, &ONE, Cost::default(), (&Quotas::NONE, 0)).unwrap();
    }

    #[test]
    fn a_rate_allows_its_burst_and_then_its_pace() {
        let quotas = Quotas {
            creations: Some(6),
            ..Quotas::NONE
        };
        let mut ledger = Ledger::default();
        let mut ask = |now_ms| ask(&mut ledger, &ONE, Cost::default(), (&quotas, now_ms));
        for _ in 0..6 {
            ask(0).unwrap();
        }
        let refused = ask(0).unwrap_err();
        let wait = refused.details["retry_after_ms"].as_i64().unwrap();
        assert!((10_000..=10_001).contains(&wait), "{wait}");
        assert!(ask(9_999).is_err());
        ask(10_000).unwrap();
        assert!(ask(10_000).is_err());
        // A clock that is set back gives nothing and breaks nothing.
        assert!(ask(-100_000).is_err());
        for _ in 0..6 {
            ask(200_000).unwrap();
        }
        assert!(ask(200_000).is_err());
    }

    #[test]
    fn execs_give_their_places_back() {
        let running = Running::default();
        let first = running.enter(&ONE, Some(2)).unwrap();
        let _second = running.enter(&ONE, Some(2)).unwrap();
        let refused = running.enter(&ONE, Some(2)).unwrap_err();
        assert_eq!(
            quota(&refused),
            (ErrorCode::QuotaExceeded, "execs".to_owned())
        );
        drop(first);
        let _third = running.enter(&ONE, Some(2)).unwrap();
        let _unlimited = running.enter(&ONE, None).unwrap();
        assert!(running.enter(&Principal::User(2), Some(0)).is_err());
        assert_eq!(running.0.lock().unwrap().len(), 1);
    }
}
