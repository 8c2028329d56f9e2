//! What the driver itself does: start, adopt, sweep, pause, end.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt as _;
use pinfold_types::{ErrorCode, EventKind, ExecEvent, ExecId, MountSpec, Resources, SandboxId};

use super::sandbox::{Command, GRACE, prepare};
use super::{Facts, Sandbox, Setup, Stop, Verdict, ensure, ensure_eq, soon};
use crate::agent::AgentClient;
use crate::contract::{
    Disk, DriverError, DriverErrorKind, GuestPort, ImageRequest, InstanceRecord, InstanceSpec,
    NoProgress, RECORD_BYTES_MAX, StartSource,
};
use crate::reach::{HostMount, HostReach};

fn spec() -> InstanceSpec {
    InstanceSpec {
        hostname: "yard".to_owned(),
        ..InstanceSpec::default()
    }
}

pub async fn a_started_instance_answers(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    ensure_eq!(sandbox.script("echo hello").await?.text(), "hello\n");
    let granted = sandbox.instance.record().granted;
    ensure_eq!(granted.driver, setup.driver.kind().as_str());
    ensure_eq!(granted.isolation, setup.driver.capabilities().tier);
    for finding in setup.driver.probe().await {
        ensure!(!finding.name.is_empty(), "{finding:?}");
    }
    Ok(())
}

pub async fn starting_twice_answers_the_same(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    sandbox.write("mark", b"x").await?;
    let image = prepare(&*setup.driver, &setup.facts.image).await?;
    let again = setup
        .driver
        .start(&sandbox.id, StartSource::Image(&image), &spec())
        .await?;
    ensure_eq!(again.record(), sandbox.instance.record());
    let again = Sandbox::of(sandbox.id.clone(), again);
    ensure!(again.exists("mark").await?, "it is another one");
    Ok(())
}

pub async fn starting_at_once_makes_one(setup: &Setup) -> Verdict {
    let image = prepare(&*setup.driver, &setup.facts.image).await?;
    let id = SandboxId::new();
    let spec = spec();
    let start = || setup.driver.start(&id, StartSource::Image(&image), &spec);
    let (one, two, three) = futures::join!(start(), start(), start());
    let record = one?.record();
    ensure_eq!(two?.record(), record);
    ensure_eq!(three?.record(), record);
    Ok(())
}

pub async fn what_is_not_an_image_is_refused(setup: &Setup) -> Verdict {
    let noise = setup.facts.host_dir.join("noise");
    std::fs::write(&noise, b"this is not an archive of a root filesystem")?;
    let noise = noise.display().to_string();
    for reference in ["", "/no/such/image", "relative/path", noise.as_str()] {
        let request = ImageRequest {
            reference: reference.to_owned(),
            reach: HostReach::DAEMON,
        };
        match setup.driver.prepare(&request, &NoProgress).await {
            Err(error) => {
                ensure!(
                    error.kind == DriverErrorKind::InvalidImage,
                    "{reference:?}: {error} ({:?})",
                    error.kind
                );
                ensure!(error.hint.is_some(), "{reference:?}: no hint");
            }
            Ok(image) => ensure!(false, "{reference:?} is {image:?}"),
        }
    }
    Ok(())
}

pub async fn a_record_survives_storage(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let record = sandbox.instance.record();
    ensure_eq!(record.id, sandbox.id);
    ensure_eq!(record.driver, setup.driver.kind());
    let stored = serde_json::to_vec(&record)?;
    ensure!(
        stored.len() <= RECORD_BYTES_MAX,
        "a record has {} bytes",
        stored.len()
    );
    let read: InstanceRecord = serde_json::from_slice(&stored)?;
    ensure_eq!(read, record);
    Ok(())
}

pub async fn an_unknown_record_is_refused(setup: &Setup) -> Verdict {
    setup.needs(setup.driver.capabilities().adopt, "adoption")?;
    let sandbox = setup.sandbox().await?;
    let record = sandbox.instance.record();
    let newer = InstanceRecord {
        version: record.version + 1000,
        ..record.clone()
    };
    let senseless = InstanceRecord {
        state: serde_json::json!(["this is no state"]),
        ..record
    };
    for record in [newer, senseless] {
        match setup.driver.adopt(&record).await {
            Err(error) => ensure_eq!(error.kind, DriverErrorKind::InvalidRecord),
            Ok(_) => ensure!(false, "{record:?} was believed"),
        }
    }
    Ok(())
}

/// Makes a sandbox with a driver of its own and forgets both, as a daemon that dies.
async fn abandoned(facts: &Facts) -> Verdict<(InstanceRecord, ExecId)> {
    let driver = (facts.open)().await;
    let image = prepare(&*driver, &facts.image).await?;
    let id = SandboxId::new();
    let instance = driver
        .start(&id, StartSource::Image(&image), &spec())
        .await?;
    let sandbox = Sandbox::of(id, instance);
    sandbox.answers().await?;
    sandbox.agent.make_directory("/yard", 0o755, true).await?;
    let exec_id = sandbox
        .start(Command::shell(
            "echo up; while [ ! -e go ]; do sleep 0.02; done; echo done",
        ))
        .await?;
    sandbox.says(&exec_id, "up").await?;
    Ok((sandbox.instance.record(), exec_id))
}

pub async fn a_new_daemon_adopts(setup: &Setup) -> Verdict {
    if !setup.driver.capabilities().adopt {
        let record = setup.sandbox().await?.instance.record();
        unsupported(setup.driver.adopt(&record).await, "adopt")?;
        return setup.needs(false, "adoption");
    }
    let (record, exec_id) = abandoned(&setup.facts).await?;
    let driver = (setup.facts.open)().await;
    let Some(instance) = driver.adopt(&record).await? else {
        return Err(Stop::Failed("it no longer lives".to_owned()));
    };
    ensure_eq!(instance.record(), record);
    let Some(again) = driver.adopt(&record).await? else {
        return Err(Stop::Failed("the second adoption found nothing".to_owned()));
    };
    ensure_eq!(again.record(), record);
    let sandbox = Sandbox::of(record.id.clone(), instance);
    sandbox.write("go", b"").await?;
    ensure_eq!(sandbox.finish(&exec_id).await?.text(), "up\ndone\n");
    sandbox.remove().await?;
    setup.nothing_left(&sandbox.id).await
}

pub async fn what_ended_is_not_adopted(setup: &Setup) -> Verdict {
    setup.needs(setup.driver.capabilities().adopt, "adoption")?;
    let sandbox = setup.sandbox().await?;
    let record = sandbox.instance.record();
    sandbox.remove().await?;
    ensure!(
        setup.driver.adopt(&record).await?.is_none(),
        "a removed instance was adopted"
    );
    let driver = (setup.facts.open)().await;
    ensure!(
        driver.adopt(&record).await?.is_none(),
        "a removed instance was adopted by a new daemon"
    );
    Ok(())
}

pub async fn a_sweep_removes_what_nobody_owns(setup: &Setup) -> Verdict {
    let kept = setup.sandbox().await?;
    let doomed = setup.sandbox().await?;
    doomed
        .start(Command::shell("setsid sleep 1000 & sleep 1000"))
        .await?;
    let report = setup
        .driver
        .sweep(&HashSet::from([kept.id.clone()]))
        .await?;
    ensure_eq!(report.removed.as_slice(), std::slice::from_ref(&doomed.id));
    ensure!(report.leftovers.is_empty(), "{:?}", report.leftovers);
    setup.nothing_left(&doomed.id).await?;
    soon("its end", doomed.instance.wait()).await?;
    ensure_eq!(kept.script("echo alive").await?.text(), "alive\n");
    let again = setup
        .driver
        .sweep(&HashSet::from([kept.id.clone()]))
        .await?;
    ensure!(again.removed.is_empty(), "{again:?}");
    Ok(())
}

pub async fn a_sweep_finds_what_a_dead_daemon_left(setup: &Setup) -> Verdict {
    setup.needs(setup.driver.capabilities().adopt, "life without its daemon")?;
    let (record, _) = abandoned(&setup.facts).await?;
    let (owned, exec_id) = abandoned(&setup.facts).await?;
    let driver = (setup.facts.open)().await;
    let report = driver.sweep(&HashSet::from([owned.id.clone()])).await?;
    ensure_eq!(report.removed.as_slice(), std::slice::from_ref(&record.id));
    setup.nothing_left(&record.id).await?;
    // What is owned can be adopted after the sweep as before it.
    let Some(instance) = driver.adopt(&owned).await? else {
        return Err(Stop::Failed("the sweep ended what was owned".to_owned()));
    };
    let sandbox = Sandbox::of(owned.id, instance);
    sandbox.write("go", b"").await?;
    sandbox.finish(&exec_id).await?;
    sandbox.remove().await
}

pub async fn a_kept_disk_is_there_again(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    sandbox.write("file", b"kept").await?;
    sandbox.script("mkdir -p d; echo deep > d/e").await?;
    sandbox.instance.shut_down(GRACE, Disk::Keep).await?;
    let image = prepare(&*setup.driver, &setup.facts.image).await?;
    let instance = setup
        .driver
        .start(&sandbox.id, StartSource::Disk(&image), &spec())
        .await?;
    let again = Sandbox::of(sandbox.id.clone(), instance);
    again.answers().await?;
    ensure_eq!(again.content("file").await?, b"kept");
    ensure_eq!(again.content("d/e").await?, b"deep\n");
    again.remove().await?;
    // From an image the disk is new, also for an id that had one.
    let instance = setup
        .driver
        .start(&sandbox.id, StartSource::Image(&image), &spec())
        .await?;
    let fresh = Sandbox::of(sandbox.id.clone(), instance);
    fresh.answers().await?;
    ensure!(!fresh.exists("file").await?, "the old disk is there");
    Ok(())
}

pub async fn removing_leaves_nothing(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    sandbox
        .script("mkdir -p a/b/c; echo x > a/b/c/d; chmod 0 a/b/c; ln -s / link")
        .await?;
    sandbox
        .start(Command::shell("setsid sleep 1000 & sleep 1000"))
        .await?;
    sandbox.remove().await?;
    setup.nothing_left(&sandbox.id).await?;
    match sandbox.instance.connect(GuestPort::Agent).await {
        Err(error) => ensure_eq!(error.kind, DriverErrorKind::Gone),
        Ok(_) => ensure!(false, "a removed instance took a connection"),
    }
    match sandbox.new_client().ready().await {
        Err(error) => {
            ensure_eq!(error.code, ErrorCode::InstanceGone);
            ensure!(error.hint.is_some(), "no hint");
        }
        Ok(()) => ensure!(false, "a removed instance is ready"),
    }
    Ok(())
}

pub async fn shutting_down_is_idempotent(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let instance = &sandbox.instance;
    let (one, two) = futures::join!(
        instance.shut_down(GRACE, Disk::Keep),
        instance.shut_down(GRACE, Disk::Keep)
    );
    one?;
    two?;
    instance.shut_down(GRACE, Disk::Keep).await?;
    instance.shut_down(GRACE, Disk::Remove).await?;
    instance.shut_down(GRACE, Disk::Remove).await?;
    soon("the end", instance.wait()).await?;
    setup.nothing_left(&sandbox.id).await
}

pub async fn shutting_down_ends_stubborn_processes(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let script = "trap '' TERM HUP INT; setsid sh -c \"trap '' TERM HUP; echo up; while :; do sleep 1; done\" & wait";
    let exec_id = sandbox.start(Command::shell(script)).await?;
    sandbox.says(&exec_id, "up").await?;
    let ending = sandbox
        .instance
        .shut_down(Duration::from_millis(200), Disk::Remove);
    soon("the end", ending).await??;
    setup.nothing_left(&sandbox.id).await
}

pub async fn the_end_of_the_agent_is_told(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let other = Arc::clone(&sandbox.instance);
    let exec_id = sandbox.start(Command::new(&["sleep", "1000"])).await?;
    let mut events = sandbox.agent.read(&exec_id, 1, true);
    soon("the start", events.try_next()).await??;
    (setup.facts.kill_agent)(&sandbox.instance.record());
    let (one, two) = soon("the end", async {
        futures::join!(sandbox.instance.wait(), other.wait())
    })
    .await?;
    ensure!(!one.reason.is_empty() && one == two, "{one:?} {two:?}");
    match soon("the journal's end", events.try_next()).await? {
        Err(_) => {}
        Ok(event) => ensure!(false, "{event:?} came of a dead agent"),
    }
    match sandbox.agent.ready().await {
        Err(error) => ensure_eq!(error.code, ErrorCode::InstanceGone),
        Ok(()) => ensure!(false, "a dead agent is ready"),
    }
    sandbox.remove().await?;
    setup.nothing_left(&sandbox.id).await
}

/// Waits until a process that writes lines has written so many.
async fn beats(sandbox: &Sandbox, exec_id: &ExecId, lines: usize) -> Verdict {
    super::eventually("the process writes", || async {
        let events: Vec<ExecEvent> = sandbox.agent.read(exec_id, 1, false).try_collect().await?;
        let written: usize = events
            .iter()
            .map(|event| match &event.kind {
                EventKind::Output { data, .. } => String::from_utf8_lossy(data).lines().count(),
                _ => 0,
            })
            .sum();
        Ok(written >= lines)
    })
    .await
}

pub async fn a_paused_instance_stands_still(setup: &Setup) -> Verdict {
    const PAUSE: Duration = Duration::from_millis(600);
    let sandbox = setup.sandbox().await?;
    if !setup.driver.capabilities().pause {
        unsupported(sandbox.instance.pause().await, "pause")?;
        unsupported(sandbox.instance.resume().await, "resume")?;
        return setup.needs(false, "pause");
    }
    let script = "while [ ! -e stop ]; do date +%s%N; sleep 0.02; done";
    let exec_id = sandbox
        .start(Command::shell(&format!("setsid sh -c '{script}' & wait")))
        .await?;
    beats(&sandbox, &exec_id, 2).await?;
    sandbox.instance.pause().await?;
    let client: AgentClient = sandbox.new_client();
    let answer = tokio::time::timeout(PAUSE, client.ready()).await;
    ensure!(answer.is_err(), "a paused agent answered: {answer:?}");
    sandbox.instance.resume().await?;
    sandbox.answers().await?;
    // Beats from before the pause may still be on their way, but few.
    beats(&sandbox, &exec_id, 20).await?;
    sandbox.write("stop", b"").await?;
    let text = sandbox.finish(&exec_id).await?.text();
    let times: Vec<u128> = text.lines().filter_map(|line| line.parse().ok()).collect();
    let gap = times
        .windows(2)
        .filter_map(|pair| pair.last()?.checked_sub(*pair.first()?))
        .max()
        .unwrap_or(0);
    ensure!(
        gap >= PAUSE.as_nanos() / 2,
        "the longest time between two beats is {gap} ns in {text:?}"
    );
    Ok(())
}

pub async fn pausing_is_idempotent(setup: &Setup) -> Verdict {
    setup.needs(setup.driver.capabilities().pause, "pause")?;
    let sandbox = setup.sandbox().await?;
    let instance = &sandbox.instance;
    instance.resume().await?;
    instance.pause().await?;
    instance.pause().await?;
    instance.resume().await?;
    instance.resume().await?;
    sandbox.answers().await?;
    ensure_eq!(sandbox.script("echo alive").await?.text(), "alive\n");
    Ok(())
}

pub async fn a_paused_instance_can_be_shut_down(setup: &Setup) -> Verdict {
    setup.needs(setup.driver.capabilities().pause, "pause")?;
    let sandbox = setup.sandbox().await?;
    sandbox
        .start(Command::shell("sleep 1000 & sleep 1000"))
        .await?;
    sandbox.instance.pause().await?;
    soon("the end", sandbox.remove()).await??;
    setup.nothing_left(&sandbox.id).await
}

fn unsupported<T>(answer: Result<T, DriverError>, what: &str) -> Verdict {
    match answer {
        Err(error) => ensure!(
            error.kind == DriverErrorKind::Unsupported,
            "{what} answered {:?} without its capability",
            error.kind
        ),
        Ok(_) => ensure!(false, "{what} was done without its capability"),
    }
    Ok(())
}

fn supported<T>(answer: Result<T, DriverError>, what: &str) -> Verdict {
    if let Err(error) = answer {
        ensure!(
            error.kind != DriverErrorKind::Unsupported,
            "{what} is unsupported and its capability is there"
        );
    }
    Ok(())
}

pub async fn capabilities_are_what_they_say(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let can = setup.driver.capabilities();
    let instance = &sandbox.instance;
    let mount = HostMount::from(MountSpec {
        source: setup.facts.host_dir.display().to_string(),
        target: "/mnt".to_owned(),
        writable: false,
    });
    let check = |there: bool, what: &str, answer: Result<(), DriverError>| {
        if there {
            supported(answer, what)
        } else {
            unsupported(answer, what)
        }
    };
    check(can.live_mounts, "attach", instance.attach(&mount).await)?;
    check(can.live_mounts, "detach", instance.detach("/mnt").await)?;
    let update = instance.update(&Resources::default()).await.map(drop);
    check(can.live_resources, "update", update)?;
    check(can.pause, "pause", instance.pause().await)?;
    check(can.pause, "resume", instance.resume().await)?;
    let port = instance.connect(GuestPort::Tcp(1)).await.map(drop);
    check(can.guest_tcp, "connect", port)?;
    let adopted = setup.driver.adopt(&instance.record()).await.map(drop);
    check(can.adopt, "adopt", adopted)?;
    supported(instance.usage().await, "usage")?;
    ensure_eq!(setup.driver.capabilities(), can);
    Ok(())
}
