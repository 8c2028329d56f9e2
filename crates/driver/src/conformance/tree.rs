//! Signals and time-outs, and whom they reach.

use pinfold_types::ErrorCode;

use super::sandbox::Command;
use super::{Sandbox, Setup, Verdict, ensure, ensure_eq, eventually};

/// A parent, a child in a session of its own that has lost its parent, and a plain child.
const FAMILY: &str = "setsid sh -c 'setsid sh -c \"echo \\$\\$ > orphan; exec sleep 1000\" & echo $$ > leader; exec sleep 1000' &
    sh -c 'echo $$ > child; exec sleep 1000' &
    while [ ! -s orphan ] || [ ! -s leader ] || [ ! -s child ]; do sleep 0.01; done
    echo up
    wait";

async fn family_is_gone(sandbox: &Sandbox) -> Verdict {
    for member in ["orphan", "leader", "child"] {
        eventually(&format!("the {member} is gone"), || async {
            // A zombie whose parent has not looked yet is gone too.
            let script = format!(
                "p=$(cat {member}) && {{ ! kill -0 $p 2>/dev/null || grep -q '^State:.Z' /proc/$p/status; }}"
            );
            let finished = sandbox.run(Command::shell(&script)).await?;
            Ok(finished.exit.code == Some(0))
        })
        .await?;
    }
    Ok(())
}

pub async fn an_interrupt_reaches_the_process(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let exec_id = sandbox
        .start(Command::shell("echo up; exec sleep 1000"))
        .await?;
    sandbox.says(&exec_id, "up").await?;
    sandbox.agent.signal(&exec_id, 2, false).await?;
    ensure_eq!(sandbox.finish(&exec_id).await?.exit.signal, Some(2));
    Ok(())
}

pub async fn a_time_out_ends_the_tree(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let mut command = Command::shell(FAMILY);
    command.0.timeout_ms = Some(4000);
    let finished = sandbox.run(command).await?;
    ensure!(finished.exit.timed_out, "{:?}", finished.exit);
    ensure_eq!(finished.exit.shell_code(), 124);
    ensure_eq!(finished.text(), "up\n");
    family_is_gone(&sandbox).await
}

pub async fn a_signal_reaches_the_tree(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let exec_id = sandbox.start(Command::shell(FAMILY)).await?;
    sandbox.says(&exec_id, "up").await?;
    sandbox.agent.signal(&exec_id, 9, true).await?;
    let finished = sandbox.finish(&exec_id).await?;
    ensure_eq!(finished.exit.signal, Some(9));
    ensure!(!finished.exit.timed_out, "nothing timed out");
    family_is_gone(&sandbox).await
}

pub async fn a_signal_that_is_none_is_refused(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let exec_id = sandbox.start(Command::new(&["sleep", "1000"])).await?;
    for signal in [-1, 0, 65, i32::MAX] {
        match sandbox.agent.signal(&exec_id, signal, false).await {
            Err(error) => ensure_eq!(error.code, ErrorCode::InvalidArgument),
            Ok(()) => ensure!(false, "signal {signal} was sent"),
        }
    }
    sandbox.agent.signal(&exec_id, 9, false).await?;
    ensure_eq!(sandbox.finish(&exec_id).await?.exit.signal, Some(9));
    Ok(())
}
