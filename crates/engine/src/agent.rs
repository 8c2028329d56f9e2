//! What the engine needs of a guest agent: a seam, so that the engine's own tests need no process.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use pinfold_driver::agent::{AgentError, AgentExec, AgentStart, EventStream};
use pinfold_driver::{AgentClient, Instance};
use pinfold_types::ExecId;
use pinfold_types::api::Metrics;
use pinfold_types::exec::TerminalSize;

/// Makes a connection of its own to an instance's agent.
pub(crate) type Connect = Arc<dyn Fn(Arc<dyn Instance>) -> Arc<dyn Agent> + Send + Sync>;

/// The calls of [`AgentClient`] that the engine makes, with the same meaning.
#[async_trait]
pub(crate) trait Agent: Debug + Send + Sync {
    async fn ready(&self) -> Result<(), AgentError>;
    async fn metrics(&self) -> Result<Metrics, AgentError>;
    async fn start(&self, start: AgentStart) -> Result<i32, AgentError>;
    fn read(&self, exec_id: &ExecId, from_seq: u64) -> EventStream;
    async fn acknowledge(&self, exec_id: &ExecId, seq: u64) -> Result<(), AgentError>;
    async fn input(&self, exec_id: &ExecId, data: Bytes, end: bool) -> Result<(), AgentError>;
    async fn resize(&self, exec_id: &ExecId, size: TerminalSize) -> Result<(), AgentError>;
    async fn signal(&self, exec_id: &ExecId, signal: i32, tree: bool) -> Result<(), AgentError>;
    async fn list(&self) -> Result<Vec<AgentExec>, AgentError>;
    async fn forget(&self, exec_id: &ExecId) -> Result<(), AgentError>;
    async fn is_directory(&self, path: &str) -> Result<bool, AgentError>;
}

/// Returns how the product connects.
pub(crate) fn real() -> Connect {
    Arc::new(|instance| Arc::new(AgentClient::new(instance)))
}

#[async_trait]
impl Agent for AgentClient {
    async fn ready(&self) -> Result<(), AgentError> {
        Self::ready(self).await
    }

    async fn metrics(&self) -> Result<Metrics, AgentError> {
        Self::metrics(self).await
    }

    async fn start(&self, start: AgentStart) -> Result<i32, AgentError> {
        Self::start(self, start).await
    }

    fn read(&self, exec_id: &ExecId, from_seq: u64) -> EventStream {
        Self::read(self, exec_id, from_seq, true)
    }

    async fn acknowledge(&self, exec_id: &ExecId, seq: u64) -> Result<(), AgentError> {
        Self::acknowledge(self, exec_id, seq).await
    }

    async fn input(&self, exec_id: &ExecId, data: Bytes, end: bool) -> Result<(), AgentError> {
        Self::input(self, exec_id, data, end).await
    }

    async fn resize(&self, exec_id: &ExecId, size: TerminalSize) -> Result<(), AgentError> {
        Self::resize(self, exec_id, size).await
    }

    async fn signal(&self, exec_id: &ExecId, signal: i32, tree: bool) -> Result<(), AgentError> {
        Self::signal(self, exec_id, signal, tree).await
    }

    async fn list(&self) -> Result<Vec<AgentExec>, AgentError> {
        Self::list(self).await
    }

    async fn forget(&self, exec_id: &ExecId) -> Result<(), AgentError> {
        Self::forget(self, exec_id).await
    }

    async fn is_directory(&self, path: &str) -> Result<bool, AgentError> {
        match self.stat(path, true).await {
            Ok(info) => Ok(info.kind == "directory"),
            Err(error) if error.code == pinfold_types::ErrorCode::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}
