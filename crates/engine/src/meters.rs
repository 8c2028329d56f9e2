//! What the engine counts and times, for whoever watches the daemon.
//!
//! Nothing here is named after a sandbox, a caller or anything that a guest can choose, so the number
//! of series is bounded: the only names are those of the pools in the configuration, which are the
//! operator's. How it is shown is the business of the layer above, which gives the registry.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use pinfold_types::{ExecExit, SandboxState};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::core::Core;
use crate::engine::Engine;

/// A label with its value, both known when this is compiled.
type Label = [(&'static str, &'static str); 1];

/// Two of them.
type Labels = [(&'static str, &'static str); 2];

/// The one label whose value the operator's configuration names.
type Named = [(&'static str, String); 1];

type Times<L> = Family<L, Histogram, fn() -> Histogram>;

/// A gauge that holds a fraction.
type Share = Gauge<f64, AtomicU64>;

/// What the pools that are in no configuration are counted together as: a configured pool's name
/// begins with a letter, so none is called so.
const OTHER_POOLS: &str = "(other)";

/// Times from half a millisecond, which the kernel needs for a launch, to half a minute.
fn steps() -> Histogram {
    Histogram::new(exponential_buckets(0.000_5, 2.0, 17))
}

/// Times from ten microseconds, a write without a sync, to a third of a second.
fn writes() -> Histogram {
    Histogram::new(exponential_buckets(0.000_01, 2.0, 16))
}

/// Times from a millisecond to nine hours.
fn execs() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 4.0, 13))
}

/// A step of a sandbox's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Create,
    Start,
    Stop,
    Pause,
    Resume,
    Remove,
    Claim,
    Update,
}

impl Step {
    const ALL: [Self; 8] = [
        Self::Create,
        Self::Start,
        Self::Stop,
        Self::Pause,
        Self::Resume,
        Self::Remove,
        Self::Claim,
        Self::Update,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Remove => "remove",
            Self::Claim => "claim",
            Self::Update => "update",
        }
    }
}

/// A part of making an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Getting the image ready.
    Image,
    /// The driver's start.
    Instance,
    /// Until its agent answers.
    Agent,
}

impl Phase {
    const ALL: [Self; 3] = [Self::Image, Self::Instance, Self::Agent];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Instance => "instance",
            Self::Agent => "agent",
        }
    }
}

/// The ways in which an exec ends.
const ENDINGS: [&str; 6] = ["success", "failure", "signal", "timeout", "memory", "lost"];

const fn ending(exit: &ExecExit) -> &'static str {
    if exit.lost {
        "lost"
    } else if exit.timed_out {
        "timeout"
    } else if exit.out_of_memory {
        "memory"
    } else if exit.signal.is_some() {
        "signal"
    } else if matches!(exit.code, Some(0)) {
        "success"
    } else {
        "failure"
    }
}

/// What the database counts and times.
#[derive(Debug, Clone)]
pub(crate) struct StoreMeters {
    pub(crate) written: Histogram,
    pub(crate) failed: Counter,
}

impl Default for StoreMeters {
    fn default() -> Self {
        Self {
            written: writes(),
            failed: Counter::default(),
        }
    }
}

/// What the engine counts and times.
#[derive(Debug)]
pub(crate) struct Meters {
    steps: Times<Labels>,
    phases: Times<Label>,
    sandboxes: Family<Label, Gauge>,
    execs_started: Counter,
    execs_refused: Counter,
    execs_running: Gauge,
    execs_ended: Family<Label, Counter>,
    exec_seconds: Histogram,
    claims: Family<Label, Counter>,
    refills: Histogram,
    refills_failed: Counter,
    pool_depth: Family<Named, Gauge>,
    pool_target: Family<Named, Gauge>,
    pool_starting: Family<Named, Gauge>,
    pool_hit_ratio: Family<Named, Share>,
    store_queue: Gauge,
    store_bytes: Gauge,
}

impl Default for Meters {
    fn default() -> Self {
        let meters = Self {
            steps: Times::new_with_constructor(steps),
            phases: Times::new_with_constructor(steps),
            sandboxes: Family::default(),
            execs_started: Counter::default(),
            execs_refused: Counter::default(),
            execs_running: Gauge::default(),
            execs_ended: Family::default(),
            exec_seconds: execs(),
            claims: Family::default(),
            refills: steps(),
            refills_failed: Counter::default(),
            pool_depth: Family::default(),
            pool_target: Family::default(),
            pool_starting: Family::default(),
            pool_hit_ratio: Family::default(),
            store_queue: Gauge::default(),
            store_bytes: Gauge::default(),
        };
        meters.begin_at_zero();
        meters
    }
}

impl Meters {
    /// Makes every series that there can be, so that the first of a kind is seen to be one more.
    fn begin_at_zero(&self) {
        for step in Step::ALL {
            for outcome in ["ok", "failed"] {
                drop(self.steps.get_or_create(&step_labels(step, outcome)));
            }
        }
        for phase in Phase::ALL {
            drop(self.phases.get_or_create(&[("phase", phase.as_str())]));
        }
        for state in SandboxState::ALL {
            drop(self.sandboxes.get_or_create(&[("state", state.as_str())]));
        }
        for kind in ENDINGS {
            drop(self.execs_ended.get_or_create(&[("kind", kind)]));
        }
        for result in ["warm", "cold"] {
            drop(self.claims.get_or_create(&[("result", result)]));
        }
    }

    /// Notes a step that was taken, or failed.
    pub(crate) fn step(&self, step: Step, took: Duration, good: bool) {
        let outcome = if good { "ok" } else { "failed" };
        let times = self.steps.get_or_create(&step_labels(step, outcome));
        times.observe(took.as_secs_f64());
    }

    /// Notes a part of making an instance that was done.
    pub(crate) fn phase(&self, phase: Phase, took: Duration) {
        let times = self.phases.get_or_create(&[("phase", phase.as_str())]);
        times.observe(took.as_secs_f64());
    }

    /// Notes an exec that was asked for: it runs, or nothing came of it.
    pub(crate) fn exec_begun(&self, good: bool) {
        if good {
            self.execs_started.inc();
        } else {
            self.execs_refused.inc();
        }
    }

    /// Notes the end of an exec.
    pub(crate) fn exec_ended(&self, exit: Option<&ExecExit>, lived_ms: i64) {
        let kind = exit.map_or("lost", ending);
        self.execs_ended.get_or_create(&[("kind", kind)]).inc();
        let lived = Duration::from_millis(u64::try_from(lived_ms).unwrap_or(0));
        self.exec_seconds.observe(lived.as_secs_f64());
    }

    /// Notes a sandbox that somebody was given for a template that a pool is of.
    pub(crate) fn claimed(&self, warm: bool) {
        let result = if warm { "warm" } else { "cold" };
        self.claims.get_or_create(&[("result", result)]).inc();
    }

    /// Notes a warm sandbox that was made, or was not.
    pub(crate) fn refilled(&self, took: Option<Duration>) {
        match took {
            Some(took) => self.refills.observe(took.as_secs_f64()),
            None => drop(self.refills_failed.inc()),
        }
    }

    /// Looks at what is not counted as it happens.
    async fn look(&self, core: &Core) {
        for state in SandboxState::ALL {
            let gauge = self.sandboxes.get_or_create(&[("state", state.as_str())]);
            gauge.set(0);
        }
        for entry in core.everyone() {
            if !entry.is_waiting() {
                let labels = [("state", entry.state().as_str())];
                self.sandboxes.get_or_create(&labels).inc();
            }
        }
        let held = core.held();
        self.execs_running.set(whole(held.execs as u64));
        self.look_at_pools(core);
        self.store_queue.set(whole(core.store.waiting() as u64));
        let dir = core.config.state_dir.clone();
        let bytes = crate::blocking::run(move || crate::store::bytes_on_disk(&dir)).await;
        self.store_bytes.set(whole(bytes));
    }

    fn look_at_pools(&self, core: &Core) {
        // Pools come and go; what is gone must not stand still for ever.
        for family in [&self.pool_depth, &self.pool_target, &self.pool_starting] {
            family.clear();
        }
        self.pool_hit_ratio.clear();
        let mut claims = std::collections::BTreeMap::<String, (u64, u64)>::new();
        claims.insert(OTHER_POOLS.to_owned(), (0, 0));
        for pool in core.pools.all() {
            let configured = pool.row().configured;
            let shown = pool.shown(0);
            let name = if configured {
                shown.name.to_string()
            } else {
                OTHER_POOLS.to_owned()
            };
            let add = |family: &Family<Named, Gauge>, number: u32| {
                let gauge = family.get_or_create(&[("pool", name.clone())]);
                gauge.inc_by(i64::from(number));
            };
            add(&self.pool_depth, shown.metrics.depth);
            add(&self.pool_target, shown.target);
            add(&self.pool_starting, shown.starting);
            let sum = claims.entry(name.clone()).or_default();
            sum.0 += shown.metrics.claims_warm;
            sum.1 += shown.metrics.claims_warm + shown.metrics.claims_cold;
        }
        for (name, (warm, all)) in claims {
            let labels = [("pool", name)];
            for family in [&self.pool_depth, &self.pool_target, &self.pool_starting] {
                drop(family.get_or_create(&labels));
            }
            #[expect(clippy::cast_precision_loss, reason = "it is a share")]
            let share = if all == 0 {
                0.0
            } else {
                warm as f64 / all as f64
            };
            self.pool_hit_ratio.get_or_create(&labels).set(share);
        }
    }

    fn describe(&self, registry: &mut Registry, store: &StoreMeters) {
        let seconds = || Unit::Seconds;
        registry.register_with_unit(
            "lifecycle",
            "Time of steps in the lives of sandboxes, from when their turn came",
            seconds(),
            self.steps.clone(),
        );
        registry.register_with_unit(
            "start_phase",
            "Time of the parts of making an instance that were done",
            seconds(),
            self.phases.clone(),
        );
        registry.register(
            "sandboxes",
            "Sandboxes that are somebody's, by state",
            self.sandboxes.clone(),
        );
        self.describe_execs(registry);
        self.describe_pools(registry);
        registry.register_with_unit(
            "store_write",
            "Time of the database's transactions, the sync to the disk included",
            seconds(),
            store.written.clone(),
        );
        registry.register(
            "store_failures",
            "Transactions of the database that failed",
            store.failed.clone(),
        );
        registry.register(
            "store_queue",
            "Transactions that wait for the database's writer",
            self.store_queue.clone(),
        );
        registry.register_with_unit(
            "store_size",
            "Size of the database with its log",
            Unit::Bytes,
            self.store_bytes.clone(),
        );
    }

    fn describe_execs(&self, registry: &mut Registry) {
        registry.register(
            "execs_started",
            "Execs whose process was started",
            self.execs_started.clone(),
        );
        registry.register(
            "execs_refused",
            "Execs of which nothing came, such as of a command that was not found",
            self.execs_refused.clone(),
        );
        registry.register(
            "execs_running",
            "Execs that have not ended",
            self.execs_running.clone(),
        );
        registry.register(
            "execs_ended",
            "Execs that have ended, by how",
            self.execs_ended.clone(),
        );
        registry.register_with_unit(
            "exec_duration",
            "Time from an exec's start to its end",
            Unit::Seconds,
            self.exec_seconds.clone(),
        );
    }

    fn describe_pools(&self, registry: &mut Registry) {
        registry.register(
            "pool_claims",
            "Sandboxes given for templates that pools are of",
            self.claims.clone(),
        );
        registry.register(
            "pool_depth",
            "Warm sandboxes that wait; pools of no configuration count together",
            self.pool_depth.clone(),
        );
        registry.register(
            "pool_target",
            "Warm sandboxes that there should be",
            self.pool_target.clone(),
        );
        registry.register(
            "pool_starting",
            "Warm sandboxes that are being made",
            self.pool_starting.clone(),
        );
        registry.register(
            "pool_hit_ratio",
            "Share of the claims since the daemon's start that were served warm",
            self.pool_hit_ratio.clone(),
        );
        registry.register_with_unit(
            "pool_refill",
            "Time to make a warm sandbox",
            Unit::Seconds,
            self.refills.clone(),
        );
        registry.register(
            "pool_refills_failed",
            "Warm sandboxes that could not be made",
            self.refills_failed.clone(),
        );
    }
}

const fn step_labels(step: Step, outcome: &'static str) -> Labels {
    [("step", step.as_str()), ("outcome", outcome)]
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Engine {
    /// Enters everything that the engine counts and times into a registry.
    pub fn describe_meters(&self, registry: &mut Registry) {
        let core = &self.core;
        core.meters.describe(registry, core.store.meters());
    }

    /// Brings those numbers up to date that are looked at and not counted. Call it before the
    /// registry is read.
    pub async fn look_at_meters(&self) {
        self.core.meters.look(&self.core).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_is_one_kind() {
        let check = |exit: ExecExit, kind: &str| {
            assert_eq!(ending(&exit), kind);
            assert!(ENDINGS.contains(&kind));
        };
        let exit = ExecExit::default;
        check(
            ExecExit {
                code: Some(0),
                ..exit()
            },
            "success",
        );
        check(
            ExecExit {
                code: Some(3),
                ..exit()
            },
            "failure",
        );
        check(
            ExecExit {
                signal: Some(9),
                ..exit()
            },
            "signal",
        );
        check(
            ExecExit {
                signal: Some(9),
                timed_out: true,
                ..exit()
            },
            "timeout",
        );
        check(
            ExecExit {
                signal: Some(9),
                out_of_memory: true,
                ..exit()
            },
            "memory",
        );
        check(
            ExecExit {
                lost: true,
                ..exit()
            },
            "lost",
        );
    }
}
