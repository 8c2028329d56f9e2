//! Mounts and limits.

use std::path::Path;

use pinfold_types::{ByteSize, MountSpec, Resources, SandboxId};

use super::sandbox::{Command, prepare};
use super::{Sandbox, Setup, Stop, Verdict, ensure, ensure_eq};
use crate::contract::{DriverErrorKind, InstanceSpec, StartSource};
use crate::reach::HostMount;

fn mount(source: &Path, target: &str, writable: bool) -> HostMount {
    let mount = MountSpec {
        source: source.display().to_string(),
        target: target.to_owned(),
        writable,
    };
    mount.into()
}

pub async fn mounts_are_as_writable_as_named(setup: &Setup) -> Verdict {
    setup.needs(setup.driver.capabilities().own_root, "mounts")?;
    let fixed = setup.facts.host_dir.join("fixed");
    let open = setup.facts.host_dir.join("open");
    for directory in [&fixed, &open] {
        std::fs::create_dir_all(directory)?;
        std::fs::write(directory.join("file"), "from the host\n")?;
    }
    let spec = InstanceSpec {
        hostname: "yard".to_owned(),
        mounts: vec![
            mount(&fixed, "/mnt/fixed", false),
            mount(&open, "/mnt/open", true),
        ],
        ..InstanceSpec::default()
    };
    let sandbox = setup.sandbox_of(&spec).await?;
    let seen = sandbox.script("cat /mnt/fixed/file /mnt/open/file").await?;
    ensure_eq!(seen.text(), "from the host\nfrom the host\n");
    for script in [
        "echo x > /mnt/fixed/file",
        "echo x > /mnt/fixed/new",
        "rm /mnt/fixed/file",
        "mount -o remount,rw,bind /mnt/fixed && echo x > /mnt/fixed/file",
    ] {
        let finished = sandbox.run(Command::shell(script)).await?;
        ensure!(finished.exit.code != Some(0), "`{script}` was done");
    }
    sandbox.script("echo from inside > /mnt/open/new").await?;
    ensure_eq!(std::fs::read_to_string(open.join("new"))?, "from inside\n");
    sandbox.remove().await?;
    // Removing the instance does not remove what was only shown to it.
    ensure_eq!(
        std::fs::read_to_string(fixed.join("file"))?,
        "from the host\n"
    );
    ensure!(open.join("new").exists(), "the host's file is gone");
    setup.nothing_left(&sandbox.id).await
}

pub async fn a_missing_mount_leaves_nothing(setup: &Setup) -> Verdict {
    let spec = InstanceSpec {
        hostname: "yard".to_owned(),
        mounts: vec![mount(&setup.facts.host_dir.join("missing"), "/mnt", false)],
        ..InstanceSpec::default()
    };
    let image = prepare(&*setup.driver, &setup.facts.image).await?;
    let id = SandboxId::new();
    let answer = setup
        .driver
        .start(&id, StartSource::Image(&image), &spec)
        .await;
    let expected = if setup.driver.capabilities().own_root {
        DriverErrorKind::InvalidMount
    } else {
        DriverErrorKind::Unsupported
    };
    match answer {
        Err(error) => ensure_eq!(error.kind, expected),
        Ok(_) => ensure!(false, "it was started"),
    }
    setup.nothing_left(&id).await
}

/// Starts with limits; skips where this host says that it cannot hold them.
async fn limited(setup: &Setup, resources: Resources, name: &str) -> Verdict<Sandbox> {
    let spec = InstanceSpec {
        hostname: "yard".to_owned(),
        resources,
        ..InstanceSpec::default()
    };
    let image = prepare(&*setup.driver, &setup.facts.image).await?;
    let id = SandboxId::new();
    let answer = setup
        .driver
        .start(&id, StartSource::Image(&image), &spec)
        .await;
    let instance = match answer {
        Err(error) if error.kind == DriverErrorKind::NeedsCgroup => {
            ensure!(error.hint.is_some(), "no hint");
            setup.nothing_left(&id).await?;
            return Err(Stop::Skipped(format!("no {name} limit: {error}")));
        }
        answer => answer?,
    };
    let sandbox = Sandbox::of(id, instance);
    sandbox.answers().await?;
    sandbox.agent.make_directory("/yard", 0o755, true).await?;
    let granted = sandbox.instance.record().granted;
    ensure!(
        granted.limits.contains_key(name),
        "{name} is not in {:?}",
        granted.limits
    );
    Ok(sandbox)
}

pub async fn the_process_limit_holds(setup: &Setup) -> Verdict {
    const MOST: u32 = 320;
    let resources = Resources {
        pids: Some(MOST),
        ..Resources::default()
    };
    let sandbox = limited(setup, resources, "pids").await?;
    let script = "i=0; while [ $i -lt 400 ]; do sleep 1000 & i=$((i+1)); done; echo all";
    let command = Command::shell(script);
    let exec_id = command.0.exec_id.clone();
    let finished = sandbox.run(command).await?;
    ensure!(
        !finished.text().contains("all"),
        "more processes than {MOST} were made"
    );
    // The agent itself goes on, and ends them.
    sandbox.agent.ready().await?;
    drop(sandbox.agent.signal(&exec_id, 9, true).await);
    sandbox.remove().await?;
    setup.nothing_left(&sandbox.id).await
}

pub async fn the_memory_limit_holds(setup: &Setup) -> Verdict {
    let resources = Resources {
        memory: Some(ByteSize(64 << 20)),
        ..Resources::default()
    };
    let sandbox = limited(setup, resources, "memory").await?;
    // `tail` keeps in memory what it may have to print.
    let finished = sandbox
        .run(Command::shell(
            "head -c 300000000 /dev/zero | tail -c 290000000 > /dev/null",
        ))
        .await?;
    ensure!(
        finished.exit.code != Some(0),
        "more memory than the limit was taken"
    );
    sandbox.agent.ready().await?;
    ensure_eq!(sandbox.script("echo alive").await?.text(), "alive\n");
    Ok(())
}
