//! What changes of an instance that lives: mounts and limits.

use std::path::Path;

use pinfold_types::{ByteSize, MountSpec, Resources};

use super::sandbox::Command;
use super::{Sandbox, Setup, Verdict, ensure, ensure_eq};
use crate::contract::DriverErrorKind;
use crate::reach::HostMount;

fn mount(source: &Path, target: &str, writable: bool) -> HostMount {
    HostMount::from(MountSpec {
        source: source.display().to_string(),
        target: target.to_owned(),
        writable,
    })
}

async fn fails(sandbox: &Sandbox, script: &str) -> Verdict {
    let finished = sandbox.run(Command::shell(script)).await?;
    ensure!(finished.exit.code != Some(0), "`{script}` was done");
    Ok(())
}

pub async fn mounts_come_and_go_while_it_lives(setup: &Setup) -> Verdict {
    setup.needs(setup.driver.capabilities().live_mounts, "live mounts")?;
    let (fixed, open) = (
        setup.facts.host_dir.join("fixed"),
        setup.facts.host_dir.join("open"),
    );
    for directory in [&fixed, &open] {
        std::fs::create_dir_all(directory)?;
        std::fs::write(directory.join("file"), "from the host\n")?;
    }
    let sandbox = setup.sandbox().await?;
    let instance = &sandbox.instance;
    let (shown, writable) = (
        mount(&fixed, "/mnt/deep/fixed", false),
        mount(&open, "/mnt/open", true),
    );
    for mount in [&shown, &writable, &shown] {
        instance.attach(mount).await?;
    }
    let seen = sandbox.script("cat /mnt/deep/fixed/file /mnt/open/file");
    ensure_eq!(seen.await?.text(), "from the host\nfrom the host\n");
    fails(&sandbox, "echo x > /mnt/deep/fixed/file").await?;
    fails(&sandbox, "mount -o remount,rw,bind /mnt/deep/fixed").await?;
    sandbox.script("echo from inside > /mnt/open/new").await?;
    ensure_eq!(std::fs::read_to_string(open.join("new"))?, "from inside\n");
    let other = mount(&open, "/mnt/deep/fixed", false);
    let refused = instance.attach(&other).await.err().map(|error| error.kind);
    ensure_eq!(refused, Some(DriverErrorKind::InvalidMount));
    // A new daemon knows what is mounted: the same again is done already, and it can be taken away.
    let adopted = setup.driver.adopt(&instance.record()).await?;
    let Some(instance) = adopted else {
        return fails(&sandbox, "true").await;
    };
    instance.attach(&shown).await?;
    for target in ["/mnt/deep/fixed", "/mnt/open", "/mnt/open", "/usr"] {
        instance.detach(target).await?;
    }
    fails(&sandbox, "test -e /mnt/deep/fixed/file").await?;
    fails(&sandbox, "test -e /mnt/open/file").await?;
    ensure!(open.join("new").exists(), "the host's file is gone");
    sandbox.remove().await?;
    setup.nothing_left(&sandbox.id).await
}

pub async fn a_live_mount_is_no_way_out(setup: &Setup) -> Verdict {
    setup.needs(setup.driver.capabilities().live_mounts, "live mounts")?;
    let shown = setup.facts.host_dir.join("shown");
    std::fs::create_dir_all(&shown)?;
    std::fs::write(shown.join("file"), "from the host\n")?;
    let sandbox = setup.sandbox().await?;
    // Links of the guest's lead where they lead inside, and never into the kernel's files.
    let links = "ln -s /proc/1 /mnt/kernel; ln -s ../../../../../../root/inside /mnt/link; \
                 mkdir -p /root/inside";
    sandbox.script(links).await?;
    for target in [
        "/proc/live",
        "/sys/live",
        "/dev/live",
        "/mnt/kernel/live",
        "/",
    ] {
        let answer = sandbox.instance.attach(&mount(&shown, target, false)).await;
        let kind = answer.err().map(|error| error.kind);
        ensure_eq!(
            (target, kind),
            (target, Some(DriverErrorKind::InvalidMount))
        );
    }
    let linked = mount(&shown, "/mnt/link/there", false);
    sandbox.instance.attach(&linked).await?;
    let seen = sandbox.script("cat /root/inside/there/file").await?;
    ensure_eq!(seen.text(), "from the host\n");
    let missing = mount(&shown.join("missing"), "/mnt/missing", false);
    let answer = sandbox.instance.attach(&missing).await;
    let kind = answer.err().map(|error| error.kind);
    ensure_eq!(kind, Some(DriverErrorKind::InvalidMount));
    sandbox.remove().await?;
    let gone = sandbox.instance.attach(&linked).await;
    let kind = gone.err().map(|error| error.kind);
    ensure_eq!(kind, Some(DriverErrorKind::Gone));
    setup.nothing_left(&sandbox.id).await
}

pub async fn limits_change_while_it_lives(setup: &Setup) -> Verdict {
    setup.needs(setup.driver.capabilities().live_resources, "live limits")?;
    let sandbox = setup.sandbox().await?;
    let few = Resources {
        memory: Some(ByteSize(64 << 20)),
        ..Resources::default()
    };
    // A host may have a part of the controllers only; it then says which one is missing.
    match sandbox.instance.update(&few).await {
        Err(error) if error.kind == DriverErrorKind::NeedsCgroup => {
            return setup.needs(false, "a live limit of memory");
        }
        granted => {
            let limits = granted?.limits;
            ensure!(limits.contains_key("memory"), "{limits:?}");
        }
    }
    ensure_eq!(
        sandbox
            .instance
            .record()
            .granted
            .limits
            .contains_key("memory"),
        true
    );
    fails(
        &sandbox,
        "head -c 200000000 /dev/zero | tail -c 190000000 > /dev/null",
    )
    .await?;
    sandbox.instance.update(&Resources::default()).await?;
    sandbox
        .script("head -c 200000000 /dev/zero | tail -c 190000000 > /dev/null")
        .await?;
    sandbox.remove().await?;
    setup.nothing_left(&sandbox.id).await
}
