//! The conformance suite on the native driver, as root and as each kind of ordinary user.
//!
//! The suite runs as whoever runs this test. Started by root, it also starts itself again as the
//! users that `cargo xtask people` makes.

#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use pinfold_driver::conformance::{Facts, Setup};
use pinfold_driver::{Driver, InstanceRecord};
use pinfold_driver_native::{AgentSource, NativeConfig, NativeDriver};
use pinfold_types::SandboxId;
use rustix::process::{Pid, Signal, kill_process};

/// Tells the test that it was started again as another user.
const PERSON: &str = "PINFOLD_TEST_PERSON";
/// Where each of the programs of a test is told to be.
const PROGRAMS: &str = "PINFOLD_TEST_PROGRAMS";

/// Copies the programs to where every user can execute them: a build directory may be root's.
fn programs() -> &'static Path {
    static COPIES: OnceLock<PathBuf> = OnceLock::new();
    COPIES.get_or_init(|| {
        if let Some(directory) = std::env::var_os(PROGRAMS) {
            return PathBuf::from(directory);
        }
        let agent = std::env::var_os("PINFOLD_AGENT_BIN")
            .expect("PINFOLD_AGENT_BIN names the static agent: run `cargo xtask test`");
        let this = std::env::current_exe().unwrap();
        let sources = [
            ("agent", PathBuf::from(agent)),
            ("test", this),
            (
                "unpack",
                PathBuf::from(env!("CARGO_BIN_EXE_pinfold-native-unpack")),
            ),
        ];
        let stamps = sources.iter().map(|(_, source)| {
            let stamp = fs::metadata(source).unwrap();
            format!("{:x}-{:x}", stamp.ino(), stamp.mtime_nsec())
        });
        let name = format!("pinfold-native-{}", stamps.collect::<Vec<_>>().join("-"));
        let directory = Path::new("/var/tmp").join(name);
        if directory.exists() {
            return directory;
        }
        let partial = directory.with_extension(std::process::id().to_string());
        fs::create_dir_all(&partial).unwrap();
        fs::set_permissions(&partial, fs::Permissions::from_mode(0o755)).unwrap();
        for (name, source) in sources {
            let copy = partial.join(name);
            fs::copy(source, &copy).unwrap();
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        }
        // Another test process may have been faster, and its copies are the same.
        if fs::rename(&partial, &directory).is_err() {
            fs::remove_dir_all(&partial).unwrap();
        }
        directory
    })
}

fn open(directory: &Path) -> Arc<dyn Driver> {
    let agent = AgentSource::Path(programs().join("agent"));
    let mut config = NativeConfig::new(directory.join("state"), agent);
    config.unpacker = programs().join("unpack");
    config.ids_dir = directory.join("ids");
    Arc::new(NativeDriver::new(config).unwrap())
}

/// Lists what can be seen of a sandbox from the host.
fn leftovers(directory: &Path, id: &SandboxId) -> Vec<String> {
    let mut left = Vec::new();
    let home = directory.join("state/native").join(id.as_str());
    if home.exists() {
        left.push(format!("directory {}", home.display()));
    }
    for process in pinfold_linux::marks::find(id.as_str()).unwrap() {
        left.push(format!("process {process:?}"));
    }
    for mounts in ["/proc/self/mountinfo", "/proc/1/mountinfo"] {
        let text = fs::read_to_string(mounts).unwrap_or_default();
        left.extend(
            text.lines()
                .filter(|line| line.contains(id.as_str()))
                .map(str::to_owned),
        );
    }
    left.extend(cgroups_of(id));
    let entries = fs::read_dir(directory.join("ids")).into_iter().flatten();
    for entry in entries.filter_map(Result::ok) {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        if target.ends_with(id.as_str()) {
            left.push(format!("ids {}", entry.path().display()));
        }
    }
    left
}

fn cgroups_of(id: &SandboxId) -> BTreeSet<String> {
    let found = Command::new("find")
        .args(["/sys/fs/cgroup", "-type", "d", "-name"])
        .arg(format!("*{id}*"))
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    text.lines().map(str::to_owned).collect()
}

fn kill_agent(record: &InstanceRecord) {
    let pid = record.state["process"]["pid"].as_i64().unwrap();
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

async fn setup() -> Setup {
    let directory = tempfile::Builder::new()
        .prefix("pf-")
        .tempdir_in("/var/tmp")
        .unwrap();
    let path = directory.path().to_path_buf();
    let host_dir = path.join("host");
    fs::create_dir(&host_dir).unwrap();
    let (opened, searched) = (path.clone(), path.clone());
    Setup {
        driver: open(&path),
        facts: Facts {
            image: "host".to_owned(),
            open: Box::new(move || {
                let driver = open(&opened);
                Box::pin(async move { driver })
            }),
            leftovers: Box::new(move |id| leftovers(&searched, id)),
            kill_agent: Box::new(kill_agent),
            host_dir,
            keep: Box::new(directory),
        },
    }
}

pinfold_driver::conformance::suite!(setup);

/// Cases of this driver alone.
mod native {
    use pinfold_driver::conformance::{Sandbox, Stop, Verdict, check};
    use pinfold_driver::{
        DriverError, DriverErrorKind, HostReach, ImageRequest, InstanceSpec, NoProgress,
        StartSource,
    };
    use pinfold_types::{ByteSize, Resources};

    use super::*;

    fn fail<T>(what: impl Into<String>) -> Verdict<T> {
        Err(Stop::Failed(what.into()))
    }

    async fn start(setup: &Setup, resources: Resources) -> Verdict<Result<Sandbox, DriverError>> {
        let image = ImageRequest {
            reference: setup.facts.image.clone(),
            reach: HostReach::DAEMON,
        };
        let image = setup.driver.prepare(&image, &NoProgress).await?;
        let id = SandboxId::new();
        let spec = InstanceSpec {
            hostname: "yard".to_owned(),
            resources,
            ..InstanceSpec::default()
        };
        let started = setup
            .driver
            .start(&id, StartSource::Image(&image), &spec)
            .await;
        Ok(match started {
            Ok(instance) => {
                let sandbox = Sandbox::of(id, instance);
                sandbox.answers().await?;
                sandbox.agent.make_directory("/yard", 0o755, true).await?;
                Ok(sandbox)
            }
            Err(error) => {
                setup.nothing_left(&id).await?;
                Err(error)
            }
        })
    }

    /// Fills a file until no more fits and answers its size.
    async fn fill(sandbox: &Sandbox) -> Verdict<u64> {
        let script = "dd if=/dev/zero of=/root/full bs=1M count=200 2>&- ; stat -c %s /root/full";
        let size = sandbox.script(script).await?.text();
        size.trim().parse().or_else(|_| fail(size))
    }

    async fn a_disk_limit_holds_or_is_refused(setup: &Setup) -> Verdict {
        let disk = Some(ByteSize::from_mib(48));
        let memory = Some(ByteSize::from_mib(256));
        let wanted = Resources {
            disk,
            memory,
            ..Resources::default()
        };
        let sandbox = match start(setup, wanted).await? {
            Ok(sandbox) => sandbox,
            // Without a memory cgroup there is nothing that a disk in memory could count to.
            Err(error) if error.kind == DriverErrorKind::NeedsCgroup => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let size = fill(&sandbox).await?;
        if !(16 << 20..=48 << 20).contains(&size) {
            return fail(format!("{size} bytes fit"));
        }
        let granted = sandbox.instance.record().granted;
        if !granted.limits["disk"].starts_with("48MiB (") {
            return fail(format!("{granted:?}"));
        }
        sandbox.remove().await?;
        setup.nothing_left(&sandbox.id).await
    }

    async fn limits_change_on_a_live_sandbox(setup: &Setup) -> Verdict {
        if !setup.driver.capabilities().live_resources {
            return Err(Stop::Skipped("this user has no cgroups".to_owned()));
        }
        let sandbox = setup.sandbox().await?;
        let wanted = Resources {
            memory: Some(ByteSize::from_mib(64)),
            pids: Some(100),
            ..Resources::default()
        };
        let granted = sandbox.instance.update(&wanted).await?;
        if !granted.limits["memory"].starts_with("64MiB (cgroup") {
            return fail(format!("{granted:?}"));
        }
        if sandbox.instance.record().granted != granted {
            return fail("the record does not know of it");
        }
        let hog = "head -c 300000000 /dev/zero | tail -c 290000000 > /dev/null";
        // That the program fails may have other reasons; the host's own count has not.
        drop(sandbox.script(hog).await);
        if sandbox.instance.usage().await?.out_of_memory.unwrap_or(0) == 0 {
            return fail("the new limit ended nothing");
        }
        let bigger = Resources {
            disk: Some(ByteSize::from_mib(64)),
            ..wanted
        };
        match sandbox.instance.update(&bigger).await {
            Err(error) if error.kind == DriverErrorKind::NeedsDiskLimit => Ok(()),
            other => fail(format!("{other:?}")),
        }
    }

    #[test]
    fn disk_limit_holds_or_is_refused() -> Result<(), String> {
        check(setup, |setup| {
            Box::pin(a_disk_limit_holds_or_is_refused(setup))
        })
    }

    #[test]
    fn live_limits_change() -> Result<(), String> {
        check(setup, |setup| {
            Box::pin(limits_change_on_a_live_sandbox(setup))
        })
    }
}

/// Runs the whole suite again as another user.
fn as_user(user: &str) {
    if std::env::var_os(PERSON).is_some() {
        return;
    }
    let root = rustix::process::geteuid().is_root();
    assert!(
        root || std::env::var_os("CI").is_none(),
        "this becomes other users, so it needs root, and CI skips nothing"
    );
    if !root {
        drop(writeln!(
            std::io::stderr(),
            "skipped: becoming {user} needs root"
        ));
        return;
    }
    let output = Command::new("setpriv")
        .args([
            "--reuid",
            user,
            "--regid",
            user,
            "--init-groups",
            "--reset-env",
        ])
        .arg("env")
        .arg(format!("{PERSON}={user}"))
        .arg(format!("{PROGRAMS}={}", programs().display()))
        .arg(programs().join("test"))
        .args(["--test-threads", "2"])
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failures = said
        .split_once("\nfailures:")
        .map_or(&*said, |(_, failures)| failures);
    assert!(
        output.status.success(),
        "as {user}: {failures}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn passes_as_a_user_with_delegated_cgroups() {
    as_user("pinfold-test");
}

#[test]
fn passes_as_a_user_with_subordinate_ids() {
    as_user("pinfold-plain");
}

#[test]
fn passes_as_a_user_with_a_single_id() {
    as_user("pinfold-single");
}
