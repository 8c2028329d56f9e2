//! Claims against a model: whatever is asked, and wherever the daemon is killed, a claimed sandbox
//! is its owner's with everything that was asked for, a warm one is nobody's and holds nothing, and
//! nothing else lives.
//!
//! A crash is the end of a runtime with every task in it where it stands; the [`World`] lives on.

use std::collections::BTreeMap;
use std::time::Duration;

use pinfold_types::api::{ClaimRequest, ScalePoolRequest};
use pinfold_types::{ByteSize, MountSpec, Resources, SandboxId, SandboxSpec, SandboxState};
use proptest::prelude::*;

use super::pools::{full, pool_of, put};
use super::*;

#[derive(Debug, Clone, Copy)]
enum Step {
    /// So many claims at once; the numbers say who and what.
    Claims(usize, u8),
    /// The same, and the daemon is killed after so many turns of its tasks.
    KilledClaims(usize, u8, usize),
    ChangeTemplate,
    KilledChange(usize),
    Scale(u32),
    Remove(usize),
    WarmDies,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1usize..6, any::<u8>()).prop_map(|(count, kind)| Step::Claims(count, kind)),
        5 => (1usize..6, any::<u8>(), 0usize..60)
            .prop_map(|(count, kind, turns)| Step::KilledClaims(count, kind, turns)),
        1 => Just(Step::ChangeTemplate),
        1 => (0usize..20).prop_map(Step::KilledChange),
        1 => (0u32..5).prop_map(Step::Scale),
        2 => (0usize..8).prop_map(Step::Remove),
        1 => Just(Step::WarmDies),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..10)
}

/// What was asked for under a name.
#[derive(Debug, Clone)]
struct Asked {
    caller: &'static Caller,
    request: ClaimRequest,
}

/// A runtime with a daemon in it.
struct Daemon {
    runtime: tokio::runtime::Runtime,
    engine: Engine,
}

impl Daemon {
    fn start(dir: &Path, world: &Arc<World>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let engine = runtime.block_on(open(dir, world));
        Self { runtime, engine }
    }

    fn end(self) {
        self.runtime.block_on(self.engine.shut_down());
    }

    /// Ends every task where it stands.
    fn kill(self) {
        drop(self.runtime);
        // The database's own thread does what it was sent, as a kernel does with writes.
        drop(self.engine);
    }
}

struct Model {
    dir: tempfile::TempDir,
    world: Arc<World>,
    daemon: Option<Daemon>,
    /// What was acknowledged, by name.
    claimed: BTreeMap<String, Asked>,
    /// What may be there or not: the daemon was killed before it answered.
    unsure: BTreeMap<String, Asked>,
    numbers: usize,
    changes: usize,
}

fn asked(name: &str, kind: usize) -> Asked {
    let caller = if kind & 1 == 0 { &ADMIN } else { &USER };
    let mut request = ClaimRequest {
        template: Some("t".parse().unwrap()),
        name: Some(name.parse().unwrap()),
        env: [("NAME".to_owned(), name.to_owned())].into(),
        ..ClaimRequest::default()
    };
    if kind & 2 != 0 {
        request.resources.memory = Some(ByteSize(64 << 20));
    }
    // Mounts through a daemon of root's are root's only.
    if kind & 5 == 4 {
        request.mounts.push(MountSpec {
            source: "/".to_owned(),
            target: "/mnt/host".to_owned(),
            writable: false,
        });
    }
    Asked { caller, request }
}

impl Model {
    fn new() -> Self {
        let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
        let daemon = Daemon::start(dir.path(), &world);
        daemon.runtime.block_on(async {
            put(&daemon.engine, &ADMIN, "t", SandboxSpec::default()).await;
            let pool = pool_of("p", 3);
            daemon.engine.create_pool(&ADMIN, pool).await.unwrap();
            full(&daemon.engine, "p").await;
        });
        Self {
            dir,
            world,
            daemon: Some(daemon),
            claimed: BTreeMap::new(),
            unsure: BTreeMap::new(),
            numbers: 0,
            changes: 0,
        }
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    fn template(&mut self) -> SandboxSpec {
        self.changes += 1;
        SandboxSpec {
            env: [("CHANGE".to_owned(), self.changes.to_string())].into(),
            ..SandboxSpec::default()
        }
    }

    fn claims(&mut self, count: usize, kind: u8, turns: Option<usize>) {
        let wanted: BTreeMap<String, Asked> = (0..count)
            .map(|index| {
                self.numbers += 1;
                let name = format!("n{}", self.numbers);
                let asked = asked(&name, usize::from(kind).wrapping_add(index));
                (name, asked)
            })
            .collect();
        let daemon = self.daemon();
        let answers = daemon.runtime.block_on(async {
            let tasks: Vec<_> = wanted
                .values()
                .cloned()
                .map(|asked| {
                    let engine = daemon.engine.clone();
                    tokio::spawn(async move { engine.claim(asked.caller, asked.request).await })
                })
                .collect();
            for _ in 0..turns.unwrap_or(0) {
                // Time for the database's thread as well as for the tasks.
                tokio::time::sleep(Duration::from_micros(50)).await;
            }
            let mut answers = Vec::new();
            for task in tasks {
                let answer = match turns {
                    Some(_) if !task.is_finished() => None,
                    _ => Some(task.await.unwrap().unwrap()),
                };
                answers.push(answer);
            }
            answers
        });
        for ((name, asked), answer) in wanted.into_iter().zip(answers) {
            match answer {
                Some(claim) => {
                    assert_eq!(claim.sandbox.name.as_str(), name);
                    self.claimed.insert(name, asked);
                }
                None => drop(self.unsure.insert(name, asked)),
            }
        }
    }

    fn restart(&mut self, kill: bool) {
        let daemon = self.daemon.take().unwrap();
        if kill {
            daemon.kill();
        } else {
            daemon.end();
        }
        self.daemon = Some(Daemon::start(self.dir.path(), &self.world));
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Claims(count, kind) => self.claims(count, kind, None),
            Step::KilledClaims(count, kind, turns) => {
                self.claims(count, kind, Some(turns));
                self.restart(true);
            }
            Step::ChangeTemplate => {
                let spec = self.template();
                let daemon = self.daemon();
                let put = put(&daemon.engine, &ADMIN, "t", spec);
                daemon.runtime.block_on(put);
            }
            Step::KilledChange(turns) => {
                let spec = self.template();
                let daemon = self.daemon();
                daemon.runtime.block_on(async {
                    let engine = daemon.engine.clone();
                    tokio::spawn(async move { put(&engine, &ADMIN, "t", spec).await });
                    for _ in 0..turns {
                        tokio::time::sleep(Duration::from_micros(50)).await;
                    }
                });
                self.restart(true);
            }
            Step::Scale(size) => {
                let size = ScalePoolRequest {
                    size: Some(size),
                    ..ScalePoolRequest::default()
                };
                let daemon = self.daemon();
                let scaled = daemon.engine.scale_pool(&ADMIN, "p", size);
                daemon.runtime.block_on(scaled).unwrap();
            }
            Step::Remove(index) => {
                let Some((name, asked)) = self
                    .claimed
                    .iter()
                    .nth(index)
                    .map(|(name, asked)| (name.clone(), asked.clone()))
                else {
                    return;
                };
                let daemon = self.daemon();
                let removed = daemon.engine.remove(asked.caller, &name, false);
                daemon.runtime.block_on(removed).unwrap();
                self.claimed.remove(&name);
            }
            Step::WarmDies => {
                let waiting = self.waiting();
                if let Some(instance) = waiting.first().and_then(|id| self.world.instance(id)) {
                    instance.die();
                }
            }
            Step::Restart => self.restart(false),
        }
    }

    fn waiting(&self) -> Vec<SandboxId> {
        let everyone = self.daemon().engine.core.everyone();
        let waiting = everyone.iter().filter(|entry| entry.is_waiting());
        waiting.map(|entry| entry.id.clone()).collect()
    }

    fn check(&mut self, step: Step) {
        let context = format!("after {step:?}");
        let daemon = self.daemon.take().unwrap();
        daemon.runtime.block_on(async {
            let engine = &daemon.engine;
            for (name, asked) in std::mem::take(&mut self.unsure) {
                if engine.get(asked.caller, &name).await.is_ok() {
                    self.claimed.insert(name, asked);
                }
            }
            let mut seen = 0;
            for (name, asked) in &self.claimed {
                let sandbox = engine.get(asked.caller, name).await.unwrap();
                assert_eq!(sandbox.state, SandboxState::Running, "{context}");
                assert_eq!(sandbox.owner, asked.caller.principal, "{context}");
                assert_eq!(&sandbox.spec.env["NAME"], name, "{context}");
                let instance = self.world.instance(&sandbox.id).unwrap();
                let mounts = instance.mounts.lock().unwrap().clone();
                assert_eq!(mounts, asked.request.mounts, "{context}");
                let limits = *instance.limits.lock().unwrap();
                assert_eq!(limits, asked.request.resources, "{context}");
                let other = engine.get(&OTHER, sandbox.id.as_str()).await;
                assert!(other.is_err(), "{context}");
                seen += 1;
            }
            let everybody = engine.list(&ADMIN, &crate::ListFilter::default()).await;
            assert_eq!(everybody.unwrap().sandboxes.len(), seen, "{context}");
            let pool = full(engine, "p").await;
            self.check_warm(engine, seen, (pool.target, pool.template_version))
                .await;
        });
        self.daemon = Some(daemon);
    }

    /// Waits until nothing lives but what is claimed and what is warm, and looks at the latter.
    async fn check_warm(&self, engine: &Engine, claimed: usize, (target, version): (u32, u32)) {
        let target = usize::try_from(target).unwrap();
        let live = || self.world.live.lock().unwrap().len();
        let disks = || self.world.disks.lock().unwrap().len();
        let known = || engine.core.everyone().len();
        let current = || {
            let everyone = engine.core.everyone();
            let mut waiting = everyone.iter().filter(|entry| entry.is_waiting());
            waiting.all(|entry| entry.row().provenance.version() == version)
        };
        let counts = || [live(), disks(), known()];
        until(|| counts() == [claimed + target; 3] && current()).await;
        for entry in engine.core.everyone() {
            if !entry.is_waiting() {
                continue;
            }
            let instance = self.world.instance(&entry.id).unwrap();
            assert!(instance.mounts.lock().unwrap().is_empty());
            assert_eq!(*instance.limits.lock().unwrap(), Resources::default());
            assert!(instance.execs.lock().unwrap().is_empty());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn claims_are_what_the_model_says(steps in steps()) {
        let mut model = Model::new();
        for step in steps {
            model.take(step);
            model.check(step);
        }
        model.daemon.take().unwrap().end();
    }
}
