//! Process trees: time-outs and signals that nothing escapes.

use pinfold_agent_api::v1::StartRequest;

use crate::world::{PATIENCE, World, alive, command, eventually, exit, text};

/// Children in the same session, in another, orphaned in another, and without any environment.
const FAMILY: &str = "sleep 1001 & echo $!; setsid sleep 1002 & echo $!; \
    (setsid sh -c 'echo $$; exec sleep 1003' & ); \
    (env -i setsid sh -c 'echo $$; exec sleep 1004' & ); \
    while :; do sleep 0.1; done";

fn pids(text: &str) -> Vec<i32> {
    text.lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect()
}

#[tokio::test]
async fn a_time_out_kills_the_whole_tree() {
    let world = World::new();
    let request = StartRequest {
        timeout_ms: 1500,
        ..command("a", &["sh", "-c", FAMILY])
    };
    world.start(request).await.unwrap();
    let family = pids(&world.until("a", |text| pids(text).len() == 4).await);
    assert!(family.iter().all(|pid| alive(*pid)));
    let exit = exit(&world.read("a", 1, true).await);
    assert!(exit.timed_out && !exit.out_of_memory);
    assert_eq!(exit.signal, Some(libc::SIGKILL));
    for pid in family {
        eventually("the end of a descendant", || !alive(pid)).await;
    }
}

#[tokio::test]
async fn a_signal_to_the_tree_reaches_everyone() {
    let world = World::new();
    world.shell("a", FAMILY).await;
    world.shell("other", "echo $$; exec sleep 1000").await;
    let family = pids(&world.until("a", |text| pids(text).len() == 4).await);
    let other = pids(&world.until("other", |text| pids(text).len() == 1).await);
    world.signal("a", libc::SIGTERM, true).await.unwrap();
    for pid in family {
        eventually("the end of a descendant", || !alive(pid)).await;
    }
    let events = world.read("a", 1, true).await;
    assert_eq!(exit(&events).signal, Some(libc::SIGTERM));
    assert!(alive(other[0]));
}

#[tokio::test]
async fn a_time_out_outlives_a_program_that_forks_without_end() {
    let world = World::new();
    let script = "ulimit -u 2>/dev/null; loop() { (setsid sh -c 'sleep 0.05' &); }; \
                  trap '' TERM INT HUP; while :; do loop; done";
    let request = StartRequest {
        timeout_ms: 300,
        ..command("a", &["sh", "-c", script])
    };
    world.start(request).await.unwrap();
    let read = world.read("a", 1, true);
    let events = tokio::time::timeout(PATIENCE, read).await.unwrap();
    assert!(exit(&events).timed_out, "{}", text(&events));
}

#[tokio::test]
async fn told_to_end_the_agent_takes_everything_with_it() {
    let world = World::new();
    world.shell("a", FAMILY).await;
    let family = pids(&world.until("a", |text| pids(text).len() == 4).await);
    let agent = world.agent_pid();
    drop(world);
    assert!(!alive(agent));
    for pid in family {
        eventually("the end of a descendant", || !alive(pid)).await;
    }
}
