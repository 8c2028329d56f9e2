//! Journals of execs: whole, in order, and there for who comes back.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use pinfold_types::{EventKind, ExecEvent};

use super::sandbox::{Command, numbers};
use super::{Setup, Verdict, ensure, ensure_eq, soon};

/// What the agent keeps of one exec before its process blocks.
const KEPT_BYTES: usize = 4 << 20;
/// Silence after which nothing more is expected of a process that writes as fast as it can.
const QUIET: Duration = Duration::from_secs(1);

pub async fn output_is_complete_and_in_order(setup: &Setup) -> Verdict {
    const LAST: u32 = 1_200_000;
    let sandbox = setup.sandbox().await?;
    let finished = sandbox.script(&format!("seq 1 {LAST}")).await?;
    ensure!(finished.stdout.len() > 8 << 20, "too little to test with");
    ensure!(
        finished.stdout == numbers(LAST),
        "{} bytes came and are not the ones that were written",
        finished.stdout.len()
    );
    Ok(())
}

pub async fn the_exit_follows_all_output(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    for _ in 0..20 {
        let finished = sandbox.script("seq 1 20000; seq 1 2000 >&2").await?;
        ensure!(
            finished.stdout == numbers(20_000) && finished.stderr == numbers(2000),
            "{} and {} bytes came before the exit",
            finished.stdout.len(),
            finished.stderr.len()
        );
    }
    Ok(())
}

pub async fn a_reader_comes_back_without_gap_or_repeat(setup: &Setup) -> Verdict {
    const READERS: usize = 5;
    let sandbox = setup.sandbox().await?;
    let script = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i; done";
    let exec_id = sandbox.start(Command::shell(script)).await?;
    let mut next = 1;
    let mut output = Vec::new();
    let mut ended = false;
    for reader in 1..=READERS {
        // Each has a connection of its own, which ends in the middle.
        let client = sandbox.new_client();
        let mut events = client.read(&exec_id, next, true);
        let mut seen = 0;
        while reader == READERS || seen < 20 {
            let Some(event) = soon("the next event", events.next()).await? else {
                break;
            };
            let ExecEvent { seq, kind, .. } = event?;
            ensure_eq!(seq, next);
            next += 1;
            seen += 1;
            match kind {
                EventKind::Output { data, .. } => output.extend(data),
                EventKind::Exit(_) => ended = true,
                EventKind::Start { .. } | EventKind::Dropped { .. } => {}
            }
        }
        if ended {
            break;
        }
    }
    ensure!(ended, "the exit did not come");
    ensure!(output == numbers(3000), "{} bytes came", output.len());
    Ok(())
}

pub async fn a_lost_client_ends_nothing(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let client = sandbox.new_client();
    let command = Command::shell("echo up; while [ ! -e go ]; do sleep 0.02; done; echo done");
    let exec_id = command.0.exec_id.clone();
    client.start(command.0).await?;
    {
        let mut events = client.read(&exec_id, 1, true);
        soon("the start", events.next()).await?;
    }
    drop(client);
    sandbox.write("go", b"").await?;
    ensure_eq!(sandbox.finish(&exec_id).await?.text(), "up\ndone\n");
    Ok(())
}

pub async fn what_is_acknowledged_is_dropped(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let command = Command::shell("for i in 1 2 3; do echo $i; sleep 0.05; done");
    let exec_id = command.0.exec_id.clone();
    sandbox.run(command).await?;
    let all: Vec<ExecEvent> = sandbox.agent.read(&exec_id, 0, false).try_collect().await?;
    ensure!(all.len() >= 3, "{all:?}");
    sandbox.agent.acknowledge(&exec_id, 2).await?;
    let rest: Vec<ExecEvent> = sandbox.agent.read(&exec_id, 1, true).try_collect().await?;
    let (first, kept) = match rest.split_first() {
        Some((first, kept)) => (&first.kind, kept),
        None => return Err(super::Stop::Failed("nothing is kept".to_owned())),
    };
    ensure_eq!(*first, EventKind::Dropped { first_kept: 3 });
    ensure_eq!(Some(kept), all.get(2..));
    let last = all.last().map_or(0, |event| event.seq);
    for exec in sandbox.agent.list().await? {
        ensure_eq!(
            (exec.first_seq, exec.last_seq, exec.running),
            (3, last, false)
        );
    }
    Ok(())
}

pub async fn unacknowledged_output_blocks_its_process(setup: &Setup) -> Verdict {
    const BYTES: usize = 16 << 20;
    let sandbox = setup.sandbox().await?;
    let script = format!("head -c {BYTES} /dev/zero; echo x > written");
    let exec_id = sandbox.start(Command::shell(&script)).await?;
    let mut events = sandbox.agent.read(&exec_id, 1, true);
    let mut unacknowledged = 0;
    while let Ok(Some(event)) = tokio::time::timeout(QUIET, events.next()).await {
        if let EventKind::Output { data, .. } = event?.kind {
            unacknowledged += data.len();
        }
    }
    ensure!(
        (KEPT_BYTES / 2..=KEPT_BYTES + (512 << 10)).contains(&unacknowledged),
        "{unacknowledged} bytes are kept"
    );
    ensure!(!sandbox.exists("written").await?, "it did not block");
    // It goes on once somebody takes the output.
    let finished = sandbox.finish(&exec_id).await?;
    ensure_eq!(finished.stdout.len(), BYTES);
    ensure!(sandbox.exists("written").await?, "it did not go on");
    Ok(())
}

pub async fn two_readers_see_the_same(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let exec_id = sandbox.start(Command::shell("seq 1 100000")).await?;
    let other = sandbox.new_client();
    let (one, two): (Result<Vec<ExecEvent>, _>, Result<Vec<ExecEvent>, _>) = futures::join!(
        sandbox.agent.read(&exec_id, 1, true).try_collect(),
        other.read(&exec_id, 0, true).try_collect()
    );
    ensure!(one? == two?, "they differ");
    Ok(())
}
