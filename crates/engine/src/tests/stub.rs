//! A driver and an agent in memory. The [`World`] outlives the engine, as processes do.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use pinfold_driver::agent::{AgentError, AgentExec, AgentStart, EventStream};
use pinfold_driver::*;
use pinfold_types::api::{Granted, Metrics};
use pinfold_types::doctor::Finding;
use pinfold_types::exec::TerminalSize;
use pinfold_types::spec::IsolationTier;
use pinfold_types::{
    ErrorCode, EventKind, ExecEvent, ExecExit, ExecId, MountSpec, OutputStream, Resources,
    SandboxId,
};
use tokio::sync::watch;

use crate::agent::{Agent, Connect};

/// What goes wrong when a test wants it to.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fault of its own")]
pub(super) struct Faults {
    pub(super) prepare: bool,
    pub(super) start: bool,
    /// Starts do not end while it is set.
    pub(super) start_hangs: bool,
    pub(super) agent_silent: bool,
    pub(super) pause_panics: bool,
    pub(super) shut_down: bool,
    pub(super) no_pause: bool,
    pub(super) no_live_resources: bool,
    pub(super) update: bool,
    /// Live mounts fail.
    pub(super) attach: bool,
    /// Neither mounts nor limits change while an instance lives.
    pub(super) nothing_live: bool,
}

/// Everything outside the engine.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) live: Mutex<HashMap<SandboxId, Arc<StubInstance>>>,
    /// What was to be shown of the host at each start.
    pub(super) shown: Mutex<Vec<Vec<HostMount>>>,
    pub(super) disks: Mutex<HashSet<SandboxId>>,
    pub(super) faults: Mutex<Faults>,
}

impl World {
    pub(super) fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap()
    }

    pub(super) fn instance(&self, id: &SandboxId) -> Option<Arc<StubInstance>> {
        self.live.lock().unwrap().get(id).cloned()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.live.lock().unwrap().is_empty() && self.disks.lock().unwrap().is_empty()
    }

    /// Returns how the engine reaches agents.
    pub(super) fn connect(self: &Arc<Self>) -> Connect {
        let world = Arc::clone(self);
        Arc::new(move |instance| {
            let id = instance.record().id;
            let instance = world.instance(&id);
            Arc::new(StubAgent {
                world: Arc::clone(&world),
                instance,
            })
        })
    }
}

#[derive(Debug)]
pub(super) struct StubDriver(pub(super) Arc<World>);

fn fault(wanted: bool) -> Result<(), DriverError> {
    if wanted {
        Err(DriverError::new(
            DriverErrorKind::ResourceExhausted,
            "a test wanted it",
        ))
    } else {
        Ok(())
    }
}

#[async_trait]
impl Driver for StubDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::Fake
    }

    fn capabilities(&self) -> Capabilities {
        let faults = self.0.faults();
        Capabilities {
            tier: IsolationTier::Namespace,
            pause: !faults.no_pause,
            adopt: true,
            live_mounts: !faults.nothing_live,
            live_resources: !faults.nothing_live && !faults.no_live_resources,
            ..Capabilities::default()
        }
    }

    async fn probe(&self) -> Vec<Finding> {
        Vec::new()
    }

    async fn prepare(
        &self,
        image: &ImageRequest,
        progress: &dyn Progress,
    ) -> Result<PreparedImage, DriverError> {
        progress.report("unpacking", 1, Some(2));
        fault(self.0.faults().prepare)?;
        Ok(PreparedImage {
            key: image.reference.clone(),
            layers: Vec::new(),
            env: BTreeMap::from([("IMAGE".to_owned(), "1".to_owned())]),
            workdir: None,
            user: None,
        })
    }

    async fn start(
        &self,
        id: &SandboxId,
        source: StartSource<'_>,
        spec: &InstanceSpec,
    ) -> Result<Arc<dyn Instance>, DriverError> {
        fault(self.0.faults().start)?;
        self.0.shown.lock().unwrap().push(spec.mounts.clone());
        if let StartSource::Disk(_) = source {
            assert!(
                self.0.disks.lock().unwrap().contains(id),
                "no disk to start from"
            );
        }
        self.0.disks.lock().unwrap().insert(id.clone());
        while self.0.faults().start_hangs {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let instance = self
            .0
            .live
            .lock()
            .unwrap()
            .entry(id.clone())
            .or_insert_with(|| {
                Arc::new(StubInstance {
                    id: id.clone(),
                    world: Arc::clone(&self.0),
                    end: watch::Sender::new(None),
                    paused: watch::Sender::new(false),
                    execs: Mutex::default(),
                    changes: watch::Sender::new(0),
                    mounts: Mutex::new(
                        spec.mounts
                            .iter()
                            .map(|shown| shown.mount.clone())
                            .collect(),
                    ),
                    limits: Mutex::new(spec.resources),
                })
            })
            .clone();
        Ok(instance)
    }

    async fn adopt(
        &self,
        record: &InstanceRecord,
    ) -> Result<Option<Arc<dyn Instance>>, DriverError> {
        Ok(self
            .0
            .instance(&record.id)
            .map(|instance| instance as Arc<dyn Instance>))
    }

    async fn sweep(&self, keep: &HashSet<SandboxId>) -> Result<SweepReport, DriverError> {
        let mut removed: HashSet<SandboxId> = HashSet::new();
        self.0.live.lock().unwrap().retain(|id, instance| {
            if !keep.contains(id) {
                instance.end.send_replace(Some("swept".to_owned()));
                removed.insert(id.clone());
            }
            keep.contains(id)
        });
        self.0.disks.lock().unwrap().retain(|id| {
            if !keep.contains(id) {
                removed.insert(id.clone());
            }
            keep.contains(id)
        });
        Ok(SweepReport {
            removed: removed.into_iter().collect(),
            leftovers: Vec::new(),
        })
    }
}

#[derive(Debug, Default)]
pub(super) struct StubExec {
    pub(super) start: Option<AgentStart>,
    pub(super) events: Vec<ExecEvent>,
    pub(super) acknowledged: u64,
    pub(super) input: Vec<u8>,
}

impl StubExec {
    fn ended(&self) -> bool {
        matches!(
            self.events.last().map(|e| &e.kind),
            Some(EventKind::Exit(_))
        )
    }

    fn push(&mut self, kind: EventKind) {
        self.events.push(ExecEvent {
            seq: self.events.len() as u64 + 1,
            time_ms: 1000,
            kind,
        });
    }
}

#[derive(Debug)]
pub(super) struct StubInstance {
    pub(super) id: SandboxId,
    world: Arc<World>,
    pub(super) end: watch::Sender<Option<String>>,
    pub(super) paused: watch::Sender<bool>,
    pub(super) execs: Mutex<HashMap<ExecId, StubExec>>,
    changes: watch::Sender<u64>,
    pub(super) mounts: Mutex<Vec<MountSpec>>,
    pub(super) limits: Mutex<Resources>,
}

impl StubInstance {
    fn changed(&self) {
        self.changes.send_modify(|version| *version += 1);
    }

    pub(super) fn die(&self) {
        self.world.live.lock().unwrap().remove(&self.id);
        self.end.send_replace(Some("killed by a test".to_owned()));
        self.changed();
    }

    pub(super) fn emit(&self, id: &ExecId, data: &[u8]) {
        let mut execs = self.execs.lock().unwrap();
        execs.get_mut(id).unwrap().push(EventKind::Output {
            stream: OutputStream::Stdout,
            data: data.to_vec(),
        });
        drop(execs);
        self.changed();
    }

    pub(super) fn exit(&self, id: &ExecId, code: i32) {
        let mut execs = self.execs.lock().unwrap();
        execs.get_mut(id).unwrap().push(EventKind::Exit(ExecExit {
            code: Some(code),
            ..ExecExit::default()
        }));
        drop(execs);
        self.changed();
    }
}

#[async_trait]
impl Instance for StubInstance {
    fn record(&self) -> InstanceRecord {
        InstanceRecord {
            version: 1,
            driver: DriverKind::Fake,
            id: self.id.clone(),
            granted: Granted {
                driver: "stub".to_owned(),
                ..Granted::default()
            },
            state: serde_json::Value::Null,
        }
    }

    async fn connect(&self, _to: GuestPort) -> Result<GuestStream, DriverError> {
        Err(DriverError::new(
            DriverErrorKind::Unsupported,
            "the stub has no streams",
        ))
    }

    async fn pause(&self) -> Result<(), DriverError> {
        let panics = self.world.faults().pause_panics;
        assert!(!panics, "a test wanted it");
        self.paused.send_replace(true);
        Ok(())
    }

    async fn resume(&self) -> Result<(), DriverError> {
        self.paused.send_replace(false);
        Ok(())
    }

    async fn attach(&self, mount: &HostMount) -> Result<(), DriverError> {
        fault(self.world.faults().attach)?;
        self.mounts.lock().unwrap().push(mount.mount.clone());
        tokio::task::yield_now().await;
        Ok(())
    }

    async fn detach(&self, _target: &str) -> Result<(), DriverError> {
        Err(DriverError::new(DriverErrorKind::Unsupported, "no"))
    }

    async fn update(&self, resources: &Resources) -> Result<Granted, DriverError> {
        fault(self.world.faults().update)?;
        *self.limits.lock().unwrap() = *resources;
        tokio::task::yield_now().await;
        let pids = resources
            .pids
            .map(|pids| ("pids".to_owned(), pids.to_string()));
        Ok(Granted {
            limits: pids.into_iter().collect(),
            ..self.record().granted
        })
    }

    async fn usage(&self) -> Result<Usage, DriverError> {
        Ok(Usage::default())
    }

    async fn wait(&self) -> InstanceExit {
        let mut end = self.end.subscribe();
        let reason = end.wait_for(Option::is_some).await.unwrap().clone();
        InstanceExit {
            reason: reason.unwrap(),
        }
    }

    async fn shut_down(&self, _grace: Duration, disk: Disk) -> Result<(), DriverError> {
        fault(self.world.faults().shut_down)?;
        self.die();
        if disk == Disk::Remove {
            self.world.disks.lock().unwrap().remove(&self.id);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct StubAgent {
    world: Arc<World>,
    instance: Option<Arc<StubInstance>>,
}

fn refusal(code: ErrorCode, message: &str) -> AgentError {
    AgentError {
        code,
        message: message.to_owned(),
        hint: None,
    }
}

impl StubAgent {
    async fn reach(&self) -> Result<&Arc<StubInstance>, AgentError> {
        let silent = self.world.faults().agent_silent;
        if silent {
            std::future::pending::<()>().await;
        }
        let instance = self
            .instance
            .as_ref()
            .filter(|instance| instance.end.borrow().is_none())
            .ok_or_else(|| refusal(ErrorCode::InstanceGone, "gone"))?;
        let mut paused = instance.paused.subscribe();
        paused.wait_for(|paused| !paused).await.unwrap();
        Ok(instance)
    }

    async fn exec<T>(
        &self,
        id: &ExecId,
        act: impl FnOnce(&mut StubExec) -> T,
    ) -> Result<T, AgentError> {
        let instance = self.reach().await?;
        let mut execs = instance.execs.lock().unwrap();
        execs
            .get_mut(id)
            .map(act)
            .ok_or_else(|| refusal(ErrorCode::NotFound, "unknown exec"))
    }
}

#[async_trait]
impl Agent for StubAgent {
    async fn ready(&self) -> Result<(), AgentError> {
        self.reach().await.map(drop)
    }

    async fn metrics(&self) -> Result<Metrics, AgentError> {
        self.reach().await.map(|_| Metrics::default())
    }

    async fn start(&self, start: AgentStart) -> Result<i32, AgentError> {
        let instance = self.reach().await?;
        let program = start.arguments[0].clone();
        if program == "missing" {
            return Err(refusal(
                ErrorCode::CommandNotFound,
                "`missing` was not found",
            ));
        }
        let mut exec = StubExec::default();
        exec.push(EventKind::Start { pid: 7 });
        if program == "true" {
            exec.push(EventKind::Exit(ExecExit {
                code: Some(0),
                ..ExecExit::default()
            }));
        }
        let id = start.exec_id.clone();
        exec.start = Some(start);
        instance.execs.lock().unwrap().entry(id).or_insert(exec);
        instance.changed();
        Ok(7)
    }

    fn read(&self, exec_id: &ExecId, from_seq: u64) -> EventStream {
        let Some(instance) = self.instance.clone() else {
            let gone = refusal(ErrorCode::InstanceGone, "gone");
            return futures::stream::iter([Err(gone)]).boxed();
        };
        let id = exec_id.clone();
        let changes = instance.changes.subscribe();
        let state = (instance, changes, from_seq.max(1), false);
        futures::stream::unfold(state, move |(instance, mut changes, next, done)| {
            let id = id.clone();
            async move {
                loop {
                    if done {
                        return None;
                    }
                    changes.mark_unchanged();
                    if instance.end.borrow().is_some() {
                        let gone = refusal(ErrorCode::InstanceGone, "gone");
                        return Some((Err(gone), (instance, changes, next, true)));
                    }
                    let found = {
                        let execs = instance.execs.lock().unwrap();
                        execs.get(&id).map(|exec| {
                            let index = usize::try_from(next).unwrap() - 1;
                            exec.events.get(index).cloned()
                        })
                    };
                    match found {
                        None => {
                            let unknown = refusal(ErrorCode::NotFound, "unknown exec");
                            return Some((Err(unknown), (instance, changes, next, true)));
                        }
                        Some(Some(event)) => {
                            let last = matches!(event.kind, EventKind::Exit(_));
                            return Some((Ok(event), (instance, changes, next + 1, last)));
                        }
                        Some(None) => changes.changed().await.unwrap(),
                    }
                }
            }
        })
        .boxed()
    }

    async fn acknowledge(&self, exec_id: &ExecId, seq: u64) -> Result<(), AgentError> {
        self.exec(exec_id, |exec| exec.acknowledged = seq).await
    }

    async fn input(&self, exec_id: &ExecId, data: Bytes, _end: bool) -> Result<(), AgentError> {
        self.exec(exec_id, |exec| exec.input.extend(data)).await
    }

    async fn resize(&self, exec_id: &ExecId, _size: TerminalSize) -> Result<(), AgentError> {
        self.exec(exec_id, |_| ()).await
    }

    async fn signal(&self, exec_id: &ExecId, signal: i32, _tree: bool) -> Result<(), AgentError> {
        self.exec(exec_id, |exec| {
            exec.push(EventKind::Exit(ExecExit {
                signal: Some(signal),
                ..ExecExit::default()
            }));
        })
        .await?;
        self.reach().await?.changed();
        Ok(())
    }

    async fn list(&self) -> Result<Vec<AgentExec>, AgentError> {
        let instance = self.reach().await?;
        let execs = instance.execs.lock().unwrap();
        Ok(execs
            .iter()
            .map(|(id, exec)| AgentExec {
                exec_id: id.clone(),
                tag: exec
                    .start
                    .as_ref()
                    .map_or("", |s| s.tag.as_str())
                    .to_owned(),
                pid: 7,
                running: !exec.ended(),
                first_seq: 1,
                last_seq: exec.events.len() as u64,
                arguments: vec!["stub".to_owned()],
            })
            .collect())
    }

    async fn forget(&self, exec_id: &ExecId) -> Result<(), AgentError> {
        let instance = self.reach().await?;
        instance.execs.lock().unwrap().remove(exec_id);
        Ok(())
    }

    async fn is_directory(&self, path: &str) -> Result<bool, AgentError> {
        self.reach().await.map(|_| path == "/workspace")
    }
}
