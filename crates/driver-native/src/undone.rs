//! Tests that whatever step of a start fails, and wherever a daemon died, nothing is left.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pinfold_driver::{
    Disk, Driver, DriverErrorKind, HostReach, ImageRequest, InstanceSpec, NoProgress,
    PreparedImage, StartSource,
};
use pinfold_types::{ByteSize, Resources, SandboxId};

use crate::claims::Home;
use crate::fault::FaultPoint;
use crate::{AgentSource, NativeConfig, NativeDriver};

/// Time for an agent to end by itself.
const GRACE: Duration = Duration::from_secs(5);

struct Bench {
    driver: NativeDriver,
    directory: tempfile::TempDir,
}

/// Returns the agent that `cargo xtask agent` built; in CI it must be there.
fn agent() -> Option<PathBuf> {
    let root = rustix::process::geteuid().is_root();
    let agent = std::env::var_os("PINFOLD_AGENT_BIN").map(PathBuf::from);
    assert!(
        std::env::var_os("CI").is_none() || (root && agent.is_some()),
        "these tests need root and PINFOLD_AGENT_BIN, and CI skips none"
    );
    if !root || agent.is_none() {
        println!("skipped: needs root and PINFOLD_AGENT_BIN");
        return None;
    }
    agent
}

impl Bench {
    fn new() -> Option<Self> {
        let agent = agent()?;
        let directory = tempfile::tempdir().unwrap();
        Some(Self {
            driver: open(&agent, directory.path()),
            directory,
        })
    }

    async fn image(&self) -> PreparedImage {
        let image = ImageRequest {
            reference: "host".to_owned(),
            reach: HostReach::DAEMON,
        };
        self.driver.prepare(&image, &NoProgress).await.unwrap()
    }

    /// Lists everything of a sandbox that can be seen from outside.
    fn left(&self, id: &SandboxId) -> Vec<String> {
        let inner = self.driver.inner();
        let group = inner.host.cgroups.open(&inner.group_name(id)).unwrap();
        let mut left = Vec::new();
        if Home::new(&inner.native, id).path().exists() {
            left.push("directory".to_owned());
        }
        if group.exists() {
            left.push("cgroup".to_owned());
        }
        let ids = std::fs::read_dir(self.directory.path().join("ids"));
        left.extend(ids.into_iter().flatten().map(|entry| format!("{entry:?}")));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(id.as_str()))
                .map(str::to_owned),
        );
        let devices = std::fs::read_dir("/sys/block")
            .unwrap()
            .filter_map(|entry| {
                let backing = entry.ok()?.path().join("loop/backing_file");
                std::fs::read_to_string(backing).ok()
            });
        left.extend(devices.filter(|backing| backing.contains(id.as_str())));
        left
    }
}

fn open(agent: &Path, directory: &Path) -> NativeDriver {
    let mut config = NativeConfig::new(
        directory.join("state"),
        AgentSource::Path(agent.to_path_buf()),
    );
    config.ids_dir = directory.join("ids");
    NativeDriver::new(config).unwrap()
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(test);
}

fn limited() -> InstanceSpec {
    InstanceSpec {
        hostname: "undone".to_owned(),
        resources: Resources {
            memory: Some(ByteSize::from_mib(128)),
            disk: Some(ByteSize::from_mib(64)),
            inodes: Some(2000),
            ..Resources::default()
        },
        ..InstanceSpec::default()
    }
}

#[test]
fn whichever_step_fails_nothing_is_left_and_the_next_try_works() {
    let Some(bench) = Bench::new() else { return };
    run(async {
        let image = bench.image().await;
        let spec = limited();
        let id = SandboxId::new();
        for point in FaultPoint::ALL {
            bench.driver.inner().faults.set(Some(point));
            let started = bench
                .driver
                .start(&id, StartSource::Image(&image), &spec)
                .await;
            let error = started.unwrap_err();
            assert_eq!(error.message, "injected fault", "{point:?}: {error:?}");
            assert!(error.leftovers.is_empty(), "{point:?}: {error:?}");
            let left = bench.left(&id);
            // The kernel frees a loop device a moment after its last mount.
            let lasting = left.iter().find(|what| !what.contains("disk.img"));
            assert_eq!(lasting, None, "{point:?}: {left:?}");
        }
        bench.driver.inner().faults.set(None);
        let source = StartSource::Image(&image);
        let instance = bench.driver.start(&id, source, &spec).await.unwrap();
        assert!(!bench.left(&id).is_empty());
        let again = bench.driver.start(&id, source, &spec).await.unwrap();
        assert_eq!(again.record(), instance.record());
        instance.shut_down(GRACE, Disk::Remove).await.unwrap();
        instance.shut_down(GRACE, Disk::Remove).await.unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !bench.left(&id).is_empty() {
            assert!(
                tokio::time::Instant::now() < deadline,
                "{:?}",
                bench.left(&id)
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

#[test]
fn a_fault_while_a_kept_disk_starts_again_keeps_the_disk() {
    let Some(bench) = Bench::new() else { return };
    run(async {
        let image = bench.image().await;
        let spec = InstanceSpec::default();
        let id = SandboxId::new();
        let source = StartSource::Image(&image);
        let instance = bench.driver.start(&id, source, &spec).await.unwrap();
        instance.shut_down(GRACE, Disk::Keep).await.unwrap();
        let kept = Home::new(&bench.driver.inner().native, &id)
            .private()
            .join("upper/kept");
        std::fs::write(&kept, "kept").unwrap();
        for point in FaultPoint::ALL {
            bench.driver.inner().faults.set(Some(point));
            let started = bench
                .driver
                .start(&id, StartSource::Disk(&image), &spec)
                .await;
            assert!(started.is_err());
            assert_eq!(std::fs::read_to_string(&kept).unwrap(), "kept", "{point:?}");
        }
        bench.driver.inner().faults.set(None);
        let source = StartSource::Disk(&image);
        let instance = bench.driver.start(&id, source, &spec).await.unwrap();
        instance.shut_down(GRACE, Disk::Keep).await.unwrap();
        assert!(kept.exists());
        instance.shut_down(GRACE, Disk::Remove).await.unwrap();
        assert_eq!(bench.left(&id), Vec::<String>::new());
        let gone = bench
            .driver
            .start(&id, StartSource::Disk(&image), &spec)
            .await;
        assert_eq!(gone.unwrap_err().kind, DriverErrorKind::Gone);
    });
}

#[test]
fn a_later_daemon_adopts_what_lives_and_sweeps_what_nobody_owns() {
    let Some(bench) = Bench::new() else { return };
    run(async {
        let image = bench.image().await;
        let source = StartSource::Image(&image);
        let spec = InstanceSpec::default();
        let (kept, lost) = (SandboxId::new(), SandboxId::new());
        let first = bench
            .driver
            .start(&kept, source, &spec)
            .await
            .unwrap()
            .record();
        let _lost = bench.driver.start(&lost, source, &spec).await.unwrap();

        let later = open(&agent().unwrap(), bench.directory.path());
        let adopted = later.adopt(&first).await.unwrap().unwrap();
        assert_eq!(adopted.record(), first);
        let report = later.sweep(&HashSet::from([kept.clone()])).await.unwrap();
        assert_eq!((report.removed, report.leftovers), (vec![lost], Vec::new()));
        assert!(later.adopt(&first).await.unwrap().is_some());

        adopted.shut_down(GRACE, Disk::Keep).await.unwrap();
        assert!(later.adopt(&first).await.unwrap().is_none());
        let report = later.sweep(&HashSet::new()).await.unwrap();
        assert_eq!(
            (report.removed, report.leftovers),
            (vec![kept.clone()], Vec::new())
        );
        assert_eq!(bench.left(&kept), Vec::<String>::new());
    });
}

/// Returns the launcher of a driver: the child of this process that writes to its log.
fn launcher_of(native: &Path) -> rustix::process::Pid {
    let log = native.join("launcher.log");
    let own = format!("PPid:\t{}", std::process::id());
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let status = std::fs::read_to_string(path.join("status")).ok()?;
        let is_it = std::fs::read_link(path.join("fd/2")).ok()? == log;
        let is_it = is_it && status.lines().any(|line| line == own);
        is_it.then(|| path.file_name()?.to_str()?.parse().ok())?
    });
    let found: Vec<i32> = pids.collect();
    assert_eq!(found.len(), 1, "{found:?}");
    rustix::process::Pid::from_raw(found[0]).unwrap()
}

#[test]
fn sandboxes_outlive_a_launcher_and_the_next_start_makes_another() {
    let Some(bench) = Bench::new() else { return };
    run(async {
        let image = bench.image().await;
        let source = StartSource::Image(&image);
        let spec = InstanceSpec::default();
        let (one, two) = (SandboxId::new(), SandboxId::new());
        let first = bench.driver.start(&one, source, &spec).await.unwrap();
        let killed = launcher_of(&bench.driver.inner().native);
        rustix::process::kill_process(killed, rustix::process::Signal::KILL).unwrap();
        let second = bench.driver.start(&two, source, &spec).await.unwrap();
        assert_ne!(launcher_of(&bench.driver.inner().native), killed);
        for (instance, id) in [(first, &one), (second, &two)] {
            instance
                .connect(pinfold_driver::GuestPort::Agent)
                .await
                .unwrap();
            instance.shut_down(GRACE, Disk::Remove).await.unwrap();
            let entries = format!("{:?}", bench.left(id));
            assert!(!entries.contains(id.as_str()), "{entries}");
        }
    });
}

#[test]
fn foreign_and_unknown_records_are_refused() {
    let Some(bench) = Bench::new() else { return };
    run(async {
        let image = bench.image().await;
        let source = StartSource::Image(&image);
        let id = SandboxId::new();
        let instance = bench
            .driver
            .start(&id, source, &InstanceSpec::default())
            .await
            .unwrap();
        let record = instance.record();
        let mut newer = record.clone();
        newer.version += 1;
        let mut broken = record.clone();
        broken.state = serde_json::json!({"version": 1});
        let mut other = record;
        other.id = SandboxId::new();
        for record in [newer, broken, other] {
            let refused = bench.driver.adopt(&record).await.unwrap_err();
            assert_eq!(refused.kind, DriverErrorKind::InvalidRecord);
        }
        instance.shut_down(GRACE, Disk::Remove).await.unwrap();
    });
}
