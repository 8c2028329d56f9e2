//! The engine's calls about execs and files.

use std::sync::Arc;

use bytes::Bytes;
use pinfold_driver::AgentClient;
use pinfold_types::api::{Exec, ExecList, PAGE_ENTRIES_MAX, SignalRequest};
use pinfold_types::exec::TerminalSize;
use pinfold_types::{ErrorCode, ExecExit, ExecId, ExecSpec, SandboxState};
use tracing::Instrument as _;

use super::{Engine, Result};
use crate::activity::Lease;
use crate::caller::{Caller, ExecFilter};
use crate::entry::{Entry, Live};
use crate::error::EngineError;
use crate::exec::{ExecCell, Starting};
use crate::journal::Journal;
use crate::leased::LeasedInstance;
use crate::reader::{EventReader, Reading};

/// Largest signal number of the kernel.
const SIGNAL_MAX: i32 = 64;

impl Engine {
    /// Starts a process; its journal follows it from the first byte. Wakes a frozen sandbox.
    ///
    /// It is started even when the caller stops waiting.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why; then nothing is left of it.
    pub async fn exec_start(&self, caller: &Caller, target: &str, spec: ExecSpec) -> Result<Exec> {
        self.core.check_open()?;
        spec.check()?;
        let entry = self.core.find(caller, target)?;
        // Before a frozen sandbox is woken for nothing.
        let most = self.core.quotas(caller).execs;
        let place = self.core.running.enter(&entry.key().0, most)?;
        let (live, lease) = entry.enter().await?;
        let starting = Starting {
            core: Arc::clone(&self.core),
            entry,
            live,
            _lease: lease,
            spec,
            place,
        };
        let task = self.core.tasks.spawn(starting.run().in_current_span());
        task.await.unwrap_or_else(|error| {
            Err(EngineError::new(ErrorCode::Internal, "failed to start the exec").caused_by(error))
        })
    }

    /// Lists the execs of a sandbox, newest last. It does not count as use.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn exec_list(&self, caller: &Caller, target: &str) -> Result<ExecList> {
        let everything = ExecFilter {
            limit: usize::MAX,
            ..ExecFilter::default()
        };
        self.exec_page(caller, target, &everything).await
    }

    /// Lists execs of a sandbox, newest last. It does not count as use.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn exec_page(
        &self,
        caller: &Caller,
        target: &str,
        filter: &ExecFilter,
    ) -> Result<ExecList> {
        let most = match filter.limit {
            0 => PAGE_ENTRIES_MAX,
            limit => limit,
        };
        let entry = self.core.find(caller, target)?;
        let rows = self.core.store.execs(&entry.id).await?;
        let mut wanted = rows
            .iter()
            .filter(|row| filter.after.as_ref().is_none_or(|after| row.id > *after))
            .map(|row| match entry.exec(&row.id) {
                Some(cell) => cell.row_now().shown(),
                None => row.shown(),
            })
            .filter(|exec| {
                let running = exec.exit.is_none();
                filter.running.is_none_or(|wanted| wanted == running)
            });
        let execs: Vec<Exec> = wanted.by_ref().take(most).collect();
        let next = match (wanted.next(), execs.last()) {
            (Some(_), Some(last)) => Some(last.exec_id.clone()),
            _ => None,
        };
        Ok(ExecList { execs, next })
    }

    /// Returns an exec. It does not count as use.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn exec_get(&self, caller: &Caller, target: &str, exec_id: &ExecId) -> Result<Exec> {
        let entry = self.core.find(caller, target)?;
        if let Some(cell) = entry.exec(exec_id) {
            return Ok(cell.row_now().shown());
        }
        let row = self.core.store.exec(&entry.id, exec_id).await?;
        row.map(|row| row.shown())
            .ok_or_else(|| EngineError::not_found("exec", exec_id.as_str()))
    }

    /// Writes to the standard input of an exec; with `end` closes it afterwards.
    ///
    /// Inputs of one exec are written one after the other, in the order in which they were asked
    /// for. Returns when the process's pipe has taken all of it.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    #[expect(
        clippy::too_many_arguments,
        reason = "one for each part of the request"
    )]
    pub async fn exec_input(
        &self,
        caller: &Caller,
        target: &str,
        exec_id: &ExecId,
        data: Bytes,
        end: bool,
    ) -> Result<()> {
        let (cell, live, _lease) = self.reach(caller, target, exec_id).await?;
        let _turn = cell.input.lock().await;
        Ok(live.agent.input(exec_id, data, end).await?)
    }

    /// Tells the terminal of an exec its size.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn exec_resize(
        &self,
        caller: &Caller,
        target: &str,
        exec_id: &ExecId,
        size: TerminalSize,
    ) -> Result<()> {
        let (_cell, live, _lease) = self.reach(caller, target, exec_id).await?;
        Ok(live.agent.resize(exec_id, size).await?)
    }

    /// Signals an exec.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn exec_signal(
        &self,
        caller: &Caller,
        target: &str,
        exec_id: &ExecId,
        request: SignalRequest,
    ) -> Result<()> {
        if !(1..=SIGNAL_MAX).contains(&request.signal) {
            return Err(EngineError::new(
                ErrorCode::InvalidArgument,
                format!(
                    "{} is not a signal: signals are 1 to {SIGNAL_MAX}",
                    request.signal
                ),
            ));
        }
        let (_cell, live, _lease) = self.reach(caller, target, exec_id).await?;
        Ok(live
            .agent
            .signal(exec_id, request.signal, request.tree)
            .await?)
    }

    /// Reads the journal of an exec from a sequence number on (0 and 1: from the start); with
    /// `follow` until its exit.
    ///
    /// A reader that follows a running exec counts as use, wakes a frozen sandbox, and of an exec
    /// with back-pressure slows the process to its own pace. Without back-pressure a slow reader is
    /// told by a `dropped` event what it missed.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    #[expect(
        clippy::too_many_arguments,
        reason = "one for each part of the request"
    )]
    pub async fn exec_events(
        &self,
        caller: &Caller,
        target: &str,
        exec_id: &ExecId,
        from_seq: u64,
        follow: bool,
    ) -> Result<EventReader> {
        self.core.check_open()?;
        let entry = self.core.find(caller, target)?;
        let (journal, live) = self.journal_of(&entry, exec_id).await?;
        // Nothing is added to a journal that an ended exec left.
        let follow = follow && live;
        // Events come from a sandbox that is used; waiting for some is no use of it.
        let used = follow && !exec_id.is_events();
        let reading = Reading {
            from_seq,
            follow,
            lease: if used {
                Some(self.wake(&entry).await)
            } else {
                None
            },
        };
        Ok(EventReader::new(
            journal,
            reading,
            self.core.closing.clone(),
            self.core.clock,
        ))
    }

    /// Waits until an exec has ended. Counts as use, and wakes a frozen sandbox.
    ///
    /// An exec with back-pressure ends only when somebody reads what it writes.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn exec_wait(
        &self,
        caller: &Caller,
        target: &str,
        exec_id: &ExecId,
    ) -> Result<ExecExit> {
        self.core.check_open()?;
        let entry = self.core.find(caller, target)?;
        let Some(cell) = entry.exec(exec_id) else {
            let row = self.core.store.exec(&entry.id, exec_id).await?;
            return row
                .and_then(|row| row.exit)
                .ok_or_else(|| EngineError::not_found("exec", exec_id.as_str()));
        };
        let _lease = self.wake(&entry).await;
        let mut changes = cell.journal.changes();
        loop {
            changes.mark_unchanged();
            if let Some(exit) = cell.journal.exit() {
                return Ok(exit);
            }
            if cell.journal.is_removed() {
                return Err(EngineError::not_found("exec", exec_id.as_str()));
            }
            tokio::select! {
                biased;
                heard = changes.changed() => if heard.is_err() {
                    return Err(EngineError::closing());
                },
                () = self.core.closing.cancelled() => return Err(EngineError::closing()),
            }
        }
    }

    /// Returns a client for the files of a sandbox; wakes a frozen one.
    ///
    /// The sandbox counts as used as long as the client or one of its streams is there, so drop it
    /// when the request has ended.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn files(&self, caller: &Caller, target: &str) -> Result<AgentClient> {
        self.core.check_open()?;
        let entry = self.core.find(caller, target)?;
        let (live, lease) = entry.enter().await?;
        Ok(AgentClient::new(Arc::new(LeasedInstance::new(
            live.instance,
            lease,
        ))))
    }

    /// Finds an exec that has not ended and takes hold of its sandbox.
    pub(super) async fn reach(
        &self,
        caller: &Caller,
        target: &str,
        exec_id: &ExecId,
    ) -> Result<(Arc<ExecCell>, Live, Lease)> {
        self.core.check_open()?;
        let entry = self.core.find(caller, target)?;
        let Some(cell) = entry.exec(exec_id) else {
            let row = self.core.store.exec(&entry.id, exec_id).await?;
            return Err(if row.is_some() {
                EngineError::new(
                    ErrorCode::IllegalState,
                    format!("exec `{exec_id}` has ended"),
                )
            } else {
                EngineError::not_found("exec", exec_id.as_str())
            });
        };
        let (live, lease) = entry.enter().await?;
        Ok((cell, live, lease))
    }

    /// Wakes a frozen sandbox and marks it as used; what has no instance is left as it is.
    async fn wake(&self, entry: &Arc<Entry>) -> Lease {
        if entry.state() == SandboxState::Paused
            && let Err(error) = entry.enter().await
        {
            tracing::warn!(sandbox = %entry.id, error = %crate::error::chain(&error), "not woken");
        }
        entry.activity.lease()
    }

    /// Returns an exec's journal and whether the exec still runs.
    async fn journal_of(
        &self,
        entry: &Arc<Entry>,
        exec_id: &ExecId,
    ) -> Result<(Arc<Journal>, bool)> {
        if exec_id.is_events() {
            return Ok((entry.events_to_read(&self.core).await?, true));
        }
        if let Some(cell) = entry.exec(exec_id) {
            return Ok((Arc::clone(&cell.journal), true));
        }
        let not_found = || EngineError::not_found("exec", exec_id.as_str());
        let row = self.core.store.exec(&entry.id, exec_id).await?;
        if row.ok_or_else(not_found)?.exit.is_none() {
            // It was started between the two looks, or is being started and has no reader yet.
            let cell = entry.exec(exec_id).ok_or_else(not_found)?;
            return Ok((Arc::clone(&cell.journal), true));
        }
        let dir = self.core.journal(&entry.id, exec_id);
        let limits = self.core.journal_limits();
        let opened = crate::blocking::run(move || Journal::open(&dir, limits, false)).await;
        let (journal, _writer) =
            opened.map_err(|error| EngineError::host_io("open the journal", error))?;
        Ok((journal, false))
    }
}
