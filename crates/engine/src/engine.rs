//! The engine as the layers above see it.

use std::sync::Arc;

use bytes::Bytes;
use pinfold_driver::{AgentClient, Driver};
use pinfold_types::api::{
    CreateSandboxRequest, DoctorReport, Exec, ExecList, Metrics, Report, Sandbox, SandboxList,
    SignalRequest, StopRequest,
};
use pinfold_types::exec::TerminalSize;
use pinfold_types::{ErrorCode, ExecExit, ExecId, ExecSpec};
use tokio::sync::mpsc;

use crate::caller::{Caller, ListFilter};
use crate::config::EngineConfig;
use crate::error::{EngineError, OpenError};
use crate::reader::EventReader;

type Result<T, E = EngineError> = std::result::Result<T, E>;

/// Owns every sandbox of a state directory. Clones are handles to the same engine.
#[derive(Debug, Clone)]
pub struct Engine {
    _private: (),
}

#[expect(
    clippy::unused_async,
    unused_variables,
    reason = "the facade before its implementation"
)]
impl Engine {
    /// Opens the state directory, recovers what an earlier daemon left and removes what nobody owns.
    ///
    /// # Errors
    ///
    /// Returns [`OpenError`] when the state is unusable or used by another daemon.
    pub async fn open(config: EngineConfig, driver: Arc<dyn Driver>) -> Result<Self, OpenError> {
        Err(OpenError::State {
            what: "open",
            path: std::path::PathBuf::new(),
            source: std::io::Error::other("not built yet"),
        })
    }

    /// Makes a sandbox; returns when its agent has answered.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn create(
        &self,
        caller: &Caller,
        request: CreateSandboxRequest,
        progress: Option<mpsc::Sender<String>>,
    ) -> Result<Sandbox> {
        Err(EngineError::new(ErrorCode::Internal, "not built yet"))
    }

    /// Returns a sandbox.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn get(&self, caller: &Caller, target: &str) -> Result<Sandbox> {
        Err(EngineError::new(ErrorCode::Internal, "not built yet"))
    }

    /// Lists sandboxes, oldest first.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn list(&self, caller: &Caller, filter: &ListFilter) -> Result<SandboxList> {
        Err(EngineError::new(ErrorCode::Internal, "not built yet"))
    }

    /// Starts a stopped or failed sandbox from its disk.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn start(&self, caller: &Caller, target: &str) -> Result<Sandbox> {
        Err(EngineError::new(ErrorCode::Internal, "not built yet"))
    }

    /// Stops a sandbox and keeps its disk.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn stop(
        &self,
        caller: &Caller,
        target: &str,
        request: StopRequest,
    ) -> Result<Sandbox> {
        Err(EngineError::new(ErrorCode::Internal, "not built yet"))
    }

    /// Freezes a sandbox in memory.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn pause(&self, caller: &Caller, target: &str) -> Result<Sandbox> {
        Err(EngineError::new(ErrorCode::Internal, "not built yet"))
    }

    /// Lets a frozen sandbox go on.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn resume(&self, caller: &Caller, target: &str) -> Result<Sandbox> {
        Err(EngineError::new(ErrorCode::Internal, "not built yet"))
    }

    /// Removes a sandbox with everything of it; with `keep_persist` its persist directory stays and is answered.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn remove(
        &self,
        caller: &Caller,
        target: &str,
        keep_persist: bool,
    ) -> Result<Option<std::path::PathBuf>> {
        Err(EngineError::new(ErrorCode::Internal, "not built yet"))
    }

    /// Starts a process; its journal follows it from the first byte.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn exec_start(&self, caller: &Caller, target: &str, spec: ExecSpec) -> Result<Exec> {
        Err(EngineError::new(ErrorCode::Internal, "not built yet"))
    }

    /// Lists the execs of a sandbox, newest last.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn exec_list(&self, caller: &Caller, target: &str) -> Result<ExecList> {
        Err(EngineError::new(ErrorCode::Internal, "not built yet"))
    }

    /// Returns an exec.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn exec_get(&self, caller: &Caller, target: &str, exec_id: &ExecId) -> Result<Exec> {
        Err(EngineError::new(ErrorCode::Internal, "not built yet"))
    }

    /// Writes to the standard input of an exec; with `end` closes it afterwards.
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
        Err(EngineError::new(ErrorCode::Internal, "not built yet"))
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
        Err(EngineError::new(ErrorCode::Internal, "not built yet"))
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
        Err(EngineError::new(ErrorCode::Internal, "not built yet"))
    }

    /// Reads the journal of an exec from a sequence number on; with `follow` until its exit.
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
        Err(EngineError::new(ErrorCode::Internal, "not built yet"))
    }

    /// Waits until an exec has ended.
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
        Err(EngineError::new(ErrorCode::Internal, "not built yet"))
    }

    /// Returns a client for the files of a sandbox; wakes a frozen one and keeps it from idling.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn files(&self, caller: &Caller, target: &str) -> Result<AgentClient> {
        Err(EngineError::new(ErrorCode::Internal, "not built yet"))
    }

    /// Returns what the agent of a sandbox says of it.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn metrics(&self, caller: &Caller, target: &str) -> Result<Metrics> {
        Err(EngineError::new(ErrorCode::Internal, "not built yet"))
    }

    /// Asks every agent at once and answers one line for each sandbox that is not stopped.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn report(&self, caller: &Caller) -> Result<Report> {
        Err(EngineError::new(ErrorCode::Internal, "not built yet"))
    }

    /// Looks at every prerequisite of this host.
    pub async fn doctor(&self) -> DoctorReport {
        DoctorReport {
            findings: Vec::new(),
            tiers: Vec::new(),
        }
    }

    /// Ends the engine: refuses new work and writes every journal; sandboxes live on.
    pub async fn shut_down(&self) {}
}
