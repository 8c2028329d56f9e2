//! Follows one exec from its start to its exit event.

use std::sync::Arc;
use std::time::Duration;

use pinfold_linux::init::{Ended, Reaped};
use pinfold_types::crash_point;
use pinfold_types::exec::ExecExit;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use super::exec::Exec;
use super::streams::Output;
use crate::journal::EventKind;
use crate::metrics::Usage;

/// How long, after the process has ended, its streams must be silent before its exit is told
/// although a background process still holds them open.
pub(super) const DRAIN_QUIET: Duration = Duration::from_millis(500);
/// The same when a background process never is silent. Everything that was written before the
/// process ended is journaled in any case.
pub(super) const DRAIN_MAX: Duration = Duration::from_secs(2);
/// How often what a process tree leaves behind is looked for again.
const KILL_EVERY: Duration = Duration::from_millis(5);
/// How often the tree is stopped before it is killed, so that it cannot grow meanwhile.
const STOP_ROUNDS: usize = 20;
/// How often it is killed. What then still lives cannot be killed now (it waits for a device).
const KILL_ROUNDS: usize = 200;
/// Most streams of ended execs whose background processes still write.
const DISCARDS_MAX: usize = 1024;
/// The exit code by which a shell tells that signal 9 ended its command.
const SHELL_KILLED: i32 = 128 + libc::SIGKILL;

/// Places for streams that nobody reads any more.
static DISCARDS: Semaphore = Semaphore::const_new(DISCARDS_MAX);

/// Journals output, waits for the end or the time-out, and tells the exit.
pub(super) async fn supervise(
    exec: Arc<Exec>,
    outputs: Vec<Output>,
    mut reaped: oneshot::Receiver<Reaped>,
    (timeout, usage): (Option<Duration>, Arc<Usage>),
) {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let (reaped, timed_out) = {
        let pumps = futures::future::join_all(outputs.iter().map(|out| out.pump(&exec.journal)));
        tokio::pin!(pumps);
        let end = wait(&exec, deadline, &mut reaped);
        tokio::pin!(end);
        tokio::select! {
            end = &mut end => {
                drain(&outputs, pumps).await;
                end
            }
            _ = &mut pumps => end.await,
        }
    };
    let exit = describe(&exec, reaped, timed_out, &usage);
    crash_point!("agent.exit_known");
    exec.journal.append(EventKind::Exited(exit));
    crash_point!("agent.exit_journaled");
    exec.ended.send_replace(true);
    *exec.input.lock().await = None;
    exec.hang_up();
    if !exec.has_terminal {
        outputs.into_iter().for_each(discard);
    }
}

/// Waits until the process has been reaped; kills its tree when its time is up.
async fn wait(
    exec: &Exec,
    deadline: Option<Instant>,
    reaped: &mut oneshot::Receiver<Reaped>,
) -> (Option<Reaped>, bool) {
    let Some(deadline) = deadline else {
        return (reaped.await.ok(), false);
    };
    tokio::select! {
        biased;
        reaped = &mut *reaped => (reaped.ok(), false),
        () = tokio::time::sleep_until(deadline) => {
            kill_tree(exec).await;
            (reaped.await.ok(), true)
        }
    }
}

/// Stops and then kills everything that descends from an exec, until nothing is left.
async fn kill_tree(exec: &Exec) {
    let mut stopped = 0;
    for _ in 0..STOP_ROUNDS {
        let count = exec.signal_tree(libc::SIGSTOP).unwrap_or(0);
        if count == stopped {
            break;
        }
        stopped = count;
        tokio::task::yield_now().await;
    }
    for _ in 0..KILL_ROUNDS {
        if exec.signal_tree(libc::SIGKILL).unwrap_or(0) == 0 {
            return;
        }
        tokio::time::sleep(KILL_EVERY).await;
    }
}

/// Goes on journaling after the end: at least what was written before it.
async fn drain(outputs: &[Output], pumps: impl Future<Output = Vec<()>> + Unpin) {
    let owed: Vec<u64> = outputs.iter().map(Output::owed).collect();
    let work = async {
        let mut pumps = pumps;
        (&mut pumps).await;
    };
    tokio::pin!(work);
    let mut quiet_from = Instant::now();
    let mut last = total(outputs);
    let mut left = DRAIN_MAX;
    loop {
        let step = DRAIN_QUIET.min(left);
        tokio::select! {
            () = &mut work => return,
            () = tokio::time::sleep(step) => {}
        }
        if outputs.iter().any(Output::is_held_up) {
            // Nobody takes events now; that is no silence of the process.
            quiet_from = Instant::now();
            continue;
        }
        left = left.saturating_sub(step);
        let paid = outputs
            .iter()
            .zip(&owed)
            .all(|(output, owed)| output.taken() >= *owed);
        let now = total(outputs);
        if now != last {
            last = now;
            quiet_from = Instant::now();
        }
        if paid && (quiet_from.elapsed() >= DRAIN_QUIET || left.is_zero()) {
            return;
        }
        left = left.max(KILL_EVERY);
    }
}

fn total(outputs: &[Output]) -> u64 {
    outputs.iter().map(Output::taken).sum()
}

fn discard(output: Output) {
    if output.is_at_end() {
        return;
    }
    if let Ok(place) = DISCARDS.try_acquire() {
        tokio::spawn(async move {
            output.discard().await;
            drop(place);
        });
    }
}

fn describe(exec: &Exec, reaped: Option<Reaped>, timed_out: bool, usage: &Usage) -> ExecExit {
    let Some(reaped) = reaped else {
        return ExecExit {
            lost: true,
            ..ExecExit::default()
        };
    };
    let (code, signal) = match reaped.ended {
        Ended::Exited(code) => (Some(code), None),
        Ended::Signalled(signal) => (None, Some(signal)),
    };
    let killed = signal == Some(libc::SIGKILL) || code == Some(SHELL_KILLED);
    let short_of_memory = usage.out_of_memory_kills() > exec.out_of_memory_before;
    ExecExit {
        code,
        signal,
        timed_out,
        out_of_memory: killed && !timed_out && short_of_memory,
        lost: false,
        user_time_us: reaped.user_time_us,
        system_time_us: reaped.system_time_us,
        memory_max_bytes: reaped.memory_max_bytes,
    }
}
