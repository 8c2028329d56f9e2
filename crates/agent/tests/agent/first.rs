//! The agent as process 1 of a pid namespace, with everything that it gives up.

use std::time::Duration;

use pinfold_agent_api::v1::{ReadyRequest, StartRequest};

use crate::world::{World, command, eventually, exit, text};

/// Process 1 in a namespace of its own, or nothing where this run may not make one.
fn first() -> Option<World> {
    if rustix::process::geteuid().is_root() {
        return Some(World::first());
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "these tests need root, and CI skips none"
    );
    None
}

#[tokio::test]
async fn orphans_are_reaped() {
    let Some(world) = first() else { return };
    let script = "for i in 1 2 3; do (setsid sh -c 'echo orphan; exec sleep 0.05' &); done";
    let (orphans, _) = world.run("a", script).await;
    assert_eq!(orphans.matches("orphan").count(), 3);
    for round in 0..100 {
        let id = format!("look{round}");
        let (seen, _) = world
            .run(&id, "grep -l '^State:.Z' /proc/[0-9]*/status; pgrep sleep")
            .await;
        if seen.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("they are still there");
}

#[tokio::test]
async fn nothing_inside_can_end_or_look_into_it() {
    let Some(world) = first() else { return };
    let script = "for s in TERM INT HUP QUIT USR1 STOP KILL CHLD; do kill -$s 1; done; \
                  cat /proc/1/environ /proc/1/maps /proc/1/mem >/dev/null && echo read; \
                  for f in /proc/1/fd/* /proc/1/exe /proc/1/cwd; do readlink $f && echo read; \
                  done; (: </proc/1/fd/3) && echo read; echo done";
    let (said, _) = world.run("a", script).await;
    assert!(said.contains("done\n"), "{said}");
    assert!(
        !said.contains("read\n") && !said.contains("listed\n"),
        "{said}"
    );
    let ready = world.system.ready(ReadyRequest::default()).await.unwrap();
    assert!(ready.view().ready);
}

#[tokio::test]
async fn execs_have_no_more_capabilities_than_programs_of_a_sandbox_may() {
    let Some(world) = first() else { return };
    let exec_set = format!("{:016x}", pinfold_linux::capability::exec_set().bits());
    let (status, _) = world.run("a", "cat /proc/self/status").await;
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert!(
            status.contains(&format!("{set}:\t{exec_set}\n")),
            "{set} in {status}"
        );
    }
    for set in ["CapInh", "CapAmb"] {
        assert!(
            status.contains(&format!("{set}:\t0000000000000000\n")),
            "{set} in {status}"
        );
    }
    let request = StartRequest {
        user: "12345:54321".to_owned(),
        ..command("b", &["cat", "/proc/self/status"])
    };
    world.start(request).await.unwrap();
    let status = text(&world.read("b", 1, true).await);
    for line in [
        "Uid:\t12345\t12345\t12345\t12345\n",
        "Gid:\t54321\t54321\t54321\t54321\n",
        "Groups:\t54321 \n",
        "CapPrm:\t0000000000000000\n",
        "CapEff:\t0000000000000000\n",
    ] {
        assert!(status.contains(line), "{line} in {status}");
    }
}

#[tokio::test]
async fn a_terminal_belongs_to_its_user() {
    let Some(world) = first() else { return };
    let request = StartRequest {
        user: "12345".to_owned(),
        terminal: pinfold_agent_api::v1::TerminalSize {
            columns: 80,
            rows: 24,
            ..pinfold_agent_api::v1::TerminalSize::default()
        }
        .into(),
        ..command("a", &["sh", "-c", "stat -c %u $(tty); echo hello >$(tty)"])
    };
    world.start(request).await.unwrap();
    let said = text(&world.read("a", 1, true).await);
    assert_eq!(said, "12345\r\nhello\r\n");
}

#[tokio::test]
async fn told_from_outside_it_lets_everyone_end_and_ends() {
    let Some(mut world) = first() else { return };
    world
        .shell(
            "a",
            "trap 'echo asked; exit 5' TERM; echo ready; while :; do sleep 0.01; done",
        )
        .await;
    world.shell("b", "sleep 1000").await;
    world.until("a", |said| said.contains("ready")).await;
    let events = world.read("a", 1, true);
    let told = async {
        world.tell_to_end();
    };
    let (events, ()) = tokio::join!(events, told);
    assert!(text(&events).contains("asked\n"), "{}", text(&events));
    assert_eq!(exit(&events).code, Some(5));
    eventually("its end", || world.has_ended()).await;
}
