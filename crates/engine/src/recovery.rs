//! Taking over what an earlier daemon left, however it ended.
//!
//! What lives is adopted, what died is marked, what was half made or half removed is finished, and
//! what no row owns is swept. Journals go on at the first event that the disk does not hold.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use pinfold_driver::{Disk, Instance, PreparedImage};
use pinfold_types::{EventKind, ExecEvent, ExecExit, ExecId, SandboxId, SandboxState, crash_point};

use crate::activity::Activity;
use crate::core::{Core, JOURNALS};
use crate::entry::{Entry, Live};
use crate::error::{EngineError, chain};
use crate::exec::{ExecCell, Follower, TAG, remove_tree, spec_of_stray};
use crate::journal::{Journal, JournalWriter};
use crate::outbox;
use crate::pool;
use crate::sandbox;
use crate::store::{ExecRow, SandboxRow, Stored};

/// Sandboxes that are taken over at once: each asks the driver a few questions.
const CONCURRENCY: usize = 64;

/// Polite time of a stop that an earlier daemon began.
const GRACE: Duration = Duration::from_secs(1);

const AWAY: &str = "the sandbox ended while the daemon was away";

/// What becomes of a row.
enum Fate {
    Keep(Box<SandboxRow>, Option<Arc<dyn Instance>>),
    /// Everything of it goes.
    Purge(Box<SandboxRow>),
}

/// Takes over everything and starts the sandboxes' tasks.
pub(crate) async fn recover(core: &Arc<Core>, stored: Stored) -> Result<(), EngineError> {
    let mut execs: HashMap<SandboxId, Vec<ExecRow>> = HashMap::new();
    for exec in stored.execs {
        execs.entry(exec.sandbox.clone()).or_default().push(exec);
    }
    let fates: Vec<Fate> = stream::iter(stored.sandboxes)
        .map(|row| take_over(core, row))
        .buffer_unordered(CONCURRENCY)
        .collect()
        .await;
    crash_point!("engine.adopted");
    let swept = sweep(core, &fates).await;
    crash_point!("engine.swept");
    for fate in fates {
        match fate {
            Fate::Purge(row) if swept => {
                if let Err(error) = purge(core, &row).await {
                    tracing::error!(sandbox = %row.id, error = %chain(&error), "not removed");
                    resume(core, removing(*row), None, Vec::new()).await?;
                }
            }
            Fate::Purge(row) => resume(core, removing(*row), None, Vec::new()).await?,
            Fate::Keep(row, instance) => {
                let left = execs.remove(&row.id).unwrap_or_default();
                resume(core, *row, instance, left).await?;
            }
        }
    }
    remove_orphaned_journals(core).await;
    outbox::find_unsent(core).await;
    pool::recover(core).await
}

fn removing(mut row: SandboxRow) -> SandboxRow {
    row.state = SandboxState::Removing;
    row
}

async fn take_over(core: &Core, mut row: SandboxRow) -> Fate {
    let was = row.state;
    // One that was being given away may hold a part of what its caller wanted, and is nobody's.
    let half = matches!(was, SandboxState::Creating | SandboxState::Removing);
    if half || row.provenance.is_leaving() {
        return Fate::Purge(Box::new(row));
    }
    let found = match &row.record {
        Some(record) => core.driver.adopt(record).await,
        None => Ok(None),
    };
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            tracing::error!(sandbox = %row.id, error = %chain(&error), "not taken over");
            fail(
                core,
                &mut row,
                format!("the sandbox could not be taken over: {error}"),
            );
            return Fate::Keep(Box::new(row), None);
        }
    };
    match (was, found) {
        (SandboxState::Running | SandboxState::Paused, Some(instance)) => {
            agree(core, &row, instance.as_ref()).await;
            Fate::Keep(Box::new(row), Some(instance))
        }
        (SandboxState::Running | SandboxState::Paused, None) if row.spec.volatile => {
            Fate::Purge(Box::new(row))
        }
        (SandboxState::Running | SandboxState::Paused, None) => {
            fail(core, &mut row, AWAY.to_owned());
            Fate::Keep(Box::new(row), None)
        }
        (SandboxState::Stopping | SandboxState::Failed, found) => {
            if let Some(instance) = found {
                end(&row, instance.as_ref()).await;
            }
            if was == SandboxState::Stopping {
                row.state = SandboxState::Stopped;
                row.changed_ms = core.clock.now_ms();
            }
            Fate::Keep(Box::new(row), None)
        }
        (_, _) => Fate::Keep(Box::new(row), None),
    }
}

fn fail(core: &Core, row: &mut SandboxRow, reason: String) {
    row.state = SandboxState::Failed;
    row.reason = Some(reason);
    row.changed_ms = core.clock.now_ms();
}

/// Makes the instance what the row says: a crash may have come between the two.
async fn agree(core: &Core, row: &SandboxRow, instance: &dyn Instance) {
    if !core.driver.capabilities().pause {
        return;
    }
    let agreed = if row.state == SandboxState::Paused {
        instance.pause().await
    } else {
        instance.resume().await
    };
    if let Err(error) = agreed {
        tracing::warn!(sandbox = %row.id, error = %chain(&error), "frozen or not is unknown");
    }
}

async fn end(row: &SandboxRow, instance: &dyn Instance) {
    let disk = if row.spec.volatile {
        Disk::Remove
    } else {
        Disk::Keep
    };
    if let Err(error) = instance.shut_down(GRACE, disk).await {
        tracing::error!(sandbox = %row.id, error = %chain(&error), "not ended");
    }
}

/// Removes what no row owns; answers whether nothing of it is left.
async fn sweep(core: &Core, fates: &[Fate]) -> bool {
    let mut keep: HashSet<SandboxId> = core.unreadable.iter().cloned().collect();
    for fate in fates {
        if let Fate::Keep(row, _) = fate {
            let diskless = row.spec.volatile && row.state == SandboxState::Stopped;
            if !diskless {
                keep.insert(row.id.clone());
            }
        }
    }
    match core.driver.sweep(&keep).await {
        Ok(report) => {
            for id in &report.removed {
                tracing::info!(sandbox = %id, "removed what no row owned");
            }
            for leftover in &report.leftovers {
                tracing::error!(leftover, "not removed");
            }
            report.leftovers.is_empty()
        }
        Err(error) => {
            tracing::error!(error = %chain(&error), "nothing swept");
            false
        }
    }
}

async fn purge(core: &Core, row: &SandboxRow) -> Result<(), EngineError> {
    sandbox::remove_files(core, row).await?;
    core.store.delete(row).await?;
    Ok(())
}

/// Starts the task of a sandbox that stays, and goes on with its execs.
async fn resume(
    core: &Arc<Core>,
    row: SandboxRow,
    instance: Option<Arc<dyn Instance>>,
    execs: Vec<ExecRow>,
) -> Result<(), EngineError> {
    if let Err(error) = core.store.save(&row).await {
        // On a full disk the daemon must still start, or nobody could make room with it.
        tracing::error!(sandbox = %row.id, error = %chain(&error), "state not written");
    }
    let live = instance.map(|instance| {
        let agent = (core.connect)(Arc::clone(&instance));
        let image = row.image.clone().unwrap_or_else(no_image);
        Live::new(instance, agent, image)
    });
    let activity = Activity::new(core.clock);
    let (entry, messages) = Entry::new(row, live.clone(), activity, &core.closing);
    core.register_again(&entry)?;
    for exec in execs {
        if let Err(error) = resume_exec(core, &entry, live.as_ref(), exec).await {
            tracing::error!(sandbox = %entry.id, error = %chain(&error), "exec not resumed");
        }
    }
    if let Some(live) = live {
        let (core, entry) = (Arc::clone(core), Arc::clone(&entry));
        let tasks = core.tasks.clone();
        tasks.spawn(async move {
            let halt = entry.halt.clone();
            tokio::select! {
                () = halt.cancelled() => {}
                () = reconcile(&core, &entry, &live) => {}
            }
        });
    }
    sandbox::spawn(core, &entry, messages);
    Ok(())
}

fn no_image() -> PreparedImage {
    PreparedImage {
        key: String::new(),
        layers: Vec::new(),
        env: std::collections::BTreeMap::new(),
        workdir: None,
        user: None,
    }
}

async fn open_journal(
    core: &Core,
    row: &ExecRow,
) -> Result<(Arc<Journal>, JournalWriter), EngineError> {
    let dir = core.journal(&row.sandbox, &row.id);
    let (limits, lossless) = (core.journal_limits(), row.spec.back_pressure);
    crate::blocking::run(move || Journal::open(&dir, limits, lossless))
        .await
        .map_err(|error| EngineError::host_io("open a journal", error))
}

async fn resume_exec(
    core: &Arc<Core>,
    entry: &Arc<Entry>,
    live: Option<&Live>,
    row: ExecRow,
) -> Result<(), EngineError> {
    let (journal, mut writer) = open_journal(core, &row).await?;
    let place = core.running.enter(&entry.key().0, None)?;
    let cell = ExecCell::new(row, journal, place);
    if let Some(live) = live {
        follow(core, entry, live, (cell, writer));
        return Ok(());
    }
    if cell.journal.exit().is_none() {
        let lost = Arc::new(ExecEvent {
            seq: cell.journal.next_seq(),
            time_ms: core.clock.now_ms(),
            kind: EventKind::Exit(ExecExit {
                lost: true,
                ..ExecExit::default()
            }),
        });
        crate::blocking::run(move || writer.append(&[lost]))
            .await
            .map_err(|error| EngineError::host_io("write a journal", error))?;
    }
    core.store.end_exec(&cell.row_now()).await?;
    Ok(())
}

fn follow(
    core: &Arc<Core>,
    entry: &Arc<Entry>,
    live: &Live,
    (cell, writer): (Arc<ExecCell>, JournalWriter),
) {
    entry.add_exec(Arc::clone(&cell));
    Follower {
        core: Arc::clone(core),
        entry: Arc::clone(entry),
        live: live.clone(),
        cell,
    }
    .spawn(writer);
}

/// Compares what the agent knows with the rows: nothing that runs goes unfollowed, and what ended
/// is forgotten.
async fn reconcile(core: &Arc<Core>, entry: &Arc<Entry>, live: &Live) {
    let known = match live.agent.list().await {
        Ok(known) => known,
        Err(error) => {
            tracing::warn!(sandbox = %entry.id, error = %chain(&error), "execs not compared");
            return;
        }
    };
    for exec in known.into_iter().filter(|exec| exec.tag.starts_with(TAG)) {
        if entry.exec(&exec.exec_id).is_some() {
            continue;
        }
        let done = match core.store.exec(&entry.id, &exec.exec_id).await {
            Ok(Some(row)) if row.exit.is_some() && !exec.running => {
                live.agent.forget(&exec.exec_id).await.map_err(Into::into)
            }
            // One that is just being started.
            Ok(Some(_)) => Ok(()),
            Ok(None) => {
                let spec = spec_of_stray(exec.arguments, &exec.tag);
                follow_stray(core, entry, live, (exec.exec_id.clone(), spec)).await
            }
            Err(error) => Err(error.into()),
        };
        if let Err(error) = done {
            tracing::warn!(exec = %exec.exec_id, error = %chain(&error), "exec not compared");
        }
    }
}

async fn follow_stray(
    core: &Arc<Core>,
    entry: &Arc<Entry>,
    live: &Live,
    (id, spec): (ExecId, pinfold_types::ExecSpec),
) -> Result<(), EngineError> {
    tracing::warn!(sandbox = %entry.id, exec = %id, "following an exec that no row names");
    let row = ExecRow {
        sandbox: entry.id.clone(),
        id,
        spec,
        started_ms: core.clock.now_ms(),
        ended_ms: None,
        exit: None,
        last_seq: 0,
    };
    core.store.insert_exec(&row, usize::MAX).await?;
    let (journal, writer) = open_journal(core, &row).await?;
    let place = core.running.enter(&entry.key().0, None)?;
    let cell = ExecCell::new(row, journal, place);
    follow(core, entry, live, (cell, writer));
    Ok(())
}

/// Removes journals of sandboxes that no row names. Persist directories are never removed so.
async fn remove_orphaned_journals(core: &Arc<Core>) {
    let known: HashSet<SandboxId> = {
        let registered = core.everyone();
        let ids = registered.iter().map(|entry| entry.id.clone());
        ids.chain(core.unreadable.iter().cloned()).collect()
    };
    let dir = core.config.state_dir.join(JOURNALS);
    let removed = crate::blocking::run(move || -> std::io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let owner = entry.file_name().to_str().map(str::parse::<SandboxId>);
            if let Some(Ok(id)) = owner
                && !known.contains(&id)
            {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    })
    .await;
    if let Err(error) = removed {
        tracing::warn!(error = %chain(&error), "journals without a sandbox not removed");
    }
}
