//! One sandbox as everybody but its own task sees it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pinfold_driver::{Instance, PreparedImage};
use pinfold_types::api::{Sandbox, UpdateSandboxRequest};
use pinfold_types::{
    ErrorCode, ExecId, Principal, SandboxId, SandboxName, SandboxState, TRACE_SPANS,
};
use tokio::sync::{Notify, OnceCell, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::activity::{Activity, ExecLease, Lease};
use crate::agent::Agent;
use crate::error::EngineError;
use crate::events::Events;
use crate::exec::ExecCell;
use crate::sandbox::{Binding, Taken};
use crate::store::{Once, SandboxRow};

/// Most requests that wait for one sandbox's task. Steps take milliseconds, a polite stop ten
/// seconds; whoever sends more meanwhile is told to come back.
const MAILBOX_MAX: usize = 256;

/// Answers one request.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, EngineError>>;

/// What a sandbox's task can be asked to do.
#[derive(Debug)]
pub(crate) enum Message {
    /// Make the instance of a new sandbox.
    Create {
        progress: Option<mpsc::Sender<String>>,
        once: Option<Once>,
        reply: Reply<Sandbox>,
    },
    Start {
        reply: Reply<Sandbox>,
    },
    Stop {
        grace: Duration,
        reply: Reply<Sandbox>,
    },
    Pause {
        reply: Reply<Sandbox>,
    },
    Resume {
        reply: Reply<Sandbox>,
    },
    Remove {
        keep_persist: bool,
        reply: Reply<Option<PathBuf>>,
    },
    Update {
        request: Box<UpdateSandboxRequest>,
        reply: Reply<Sandbox>,
    },
    /// Give a warm sandbox to a caller.
    Claim {
        binding: Box<Binding>,
        reply: Reply<Taken>,
    },
    /// Hand out the live instance; wakes a frozen one.
    Use {
        reply: Reply<(Live, Lease)>,
    },
}

impl Message {
    /// Returns the span that the message's step is in a trace.
    pub(crate) fn trace(&self, row: &SandboxRow, above: &tracing::Span) -> tracing::Span {
        let name = match self {
            Self::Create { .. } => "create",
            Self::Start { .. } => "start",
            Self::Stop { .. } => "stop",
            Self::Pause { .. } => "pause",
            Self::Resume { .. } => "resume",
            Self::Remove { .. } => "remove",
            Self::Update { .. } => "update",
            Self::Claim { .. } => "claim",
            Self::Use { .. } => "use",
        };
        tracing::info_span!(
            target: TRACE_SPANS,
            parent: above,
            "step",
            otel.name = name,
            sandbox = row.id.as_str(),
        )
    }
}

/// A message, and the span of whoever sent it: what is done for a request is logged as a part of it.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) message: Message,
    pub(crate) span: tracing::Span,
}

/// A running instance and how to reach its agent.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub(crate) instance: Arc<dyn Instance>,
    pub(crate) agent: Arc<dyn Agent>,
    pub(crate) image: Arc<PreparedImage>,
    /// Cancelled when the instance has ended.
    pub(crate) gone: CancellationToken,
    /// Where execs start when nobody says where; asked of the agent once.
    pub(crate) workdir: Arc<OnceCell<String>>,
    /// Whether somebody collects the events that its programs drop.
    pub(crate) collected: Arc<AtomicBool>,
}

impl Live {
    pub(crate) fn new(
        instance: Arc<dyn Instance>,
        agent: Arc<dyn Agent>,
        image: PreparedImage,
    ) -> Self {
        Self {
            instance,
            agent,
            image: Arc::new(image),
            gone: CancellationToken::new(),
            workdir: Arc::default(),
            collected: Arc::default(),
        }
    }
}

/// What is known of a sandbox now.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) row: Arc<SandboxRow>,
    pub(crate) live: Option<Live>,
}

/// One sandbox: where to send requests, and what its task last said of it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: SandboxId,
    mailbox: mpsc::Sender<Letter>,
    pub(crate) view: watch::Sender<View>,
    pub(crate) activity: Arc<Activity>,
    execs: Mutex<HashMap<ExecId, (Arc<ExecCell>, ExecLease)>>,
    /// Told when an exec is dropped from those.
    pub(crate) exec_dropped: Notify,
    /// The tasks that follow the execs.
    pub(crate) followers: TaskTracker,
    /// What its programs drop; opened when it is first read or written.
    pub(crate) events: OnceCell<Arc<Events>>,
    /// Ends those tasks where they stand.
    pub(crate) halt: CancellationToken,
    /// Somebody wants it gone, so making it is in vain.
    pub(crate) unwanted: CancellationToken,
}

impl Entry {
    pub(crate) fn new(
        row: SandboxRow,
        live: Option<Live>,
        activity: Arc<Activity>,
        closing: &CancellationToken,
    ) -> (Arc<Self>, mpsc::Receiver<Letter>) {
        let (mailbox, messages) = mpsc::channel(MAILBOX_MAX);
        let entry = Self {
            id: row.id.clone(),
            mailbox,
            view: watch::Sender::new(View {
                row: Arc::new(row),
                live,
            }),
            activity,
            execs: Mutex::default(),
            exec_dropped: Notify::new(),
            followers: TaskTracker::new(),
            events: OnceCell::new(),
            halt: closing.child_token(),
            unwanted: CancellationToken::new(),
        };
        (Arc::new(entry), messages)
    }

    pub(crate) fn row(&self) -> Arc<SandboxRow> {
        Arc::clone(&self.view.borrow().row)
    }

    /// Returns its owner and its name, which change when it is claimed.
    pub(crate) fn key(&self) -> (Principal, SandboxName) {
        let view = self.view.borrow();
        (view.row.owner.clone(), view.row.name.clone())
    }

    pub(crate) fn name(&self) -> SandboxName {
        self.view.borrow().row.name.clone()
    }

    /// Returns whether it waits in a pool, where nobody may see or use it.
    pub(crate) fn is_waiting(&self) -> bool {
        self.view.borrow().row.provenance.is_waiting()
    }

    pub(crate) fn state(&self) -> SandboxState {
        self.view.borrow().row.state
    }

    /// Asks the sandbox's task and waits for its answer.
    pub(crate) async fn ask<T>(
        &self,
        message: impl FnOnce(Reply<T>) -> Message,
    ) -> Result<T, EngineError> {
        let (reply, answer) = oneshot::channel();
        self.mailbox
            .try_send(Letter {
                message: message(reply),
                span: tracing::Span::current(),
            })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => EngineError::new(
                    ErrorCode::LimitExceeded,
                    format!(
                        "{MAILBOX_MAX} requests wait for sandbox `{}` already",
                        self.name()
                    ),
                )
                .hint("try again when the step that it is in has ended"),
                mpsc::error::TrySendError::Closed(_) => self.no_answer(),
            })?;
        answer.await.unwrap_or_else(|_| Err(self.no_answer()))
    }

    /// Takes hold of the running instance; wakes a frozen one.
    pub(crate) async fn enter(&self) -> Result<(Live, Lease), EngineError> {
        self.ask(|reply| Message::Use { reply }).await
    }

    /// Waits until the sandbox's task has ended.
    pub(crate) async fn gone(&self) {
        self.mailbox.closed().await;
    }

    fn no_answer(&self) -> EngineError {
        if self.halt.is_cancelled() && self.state() != SandboxState::Removing {
            return EngineError::closing();
        }
        let name = self.name();
        match self.state() {
            SandboxState::Removing => EngineError::not_found("sandbox", name.as_str()),
            _ => EngineError::new(
                ErrorCode::Internal,
                format!("sandbox `{name}` could not finish the request"),
            )
            .hint(format!("see its state with `pinfold status {name}`")),
        }
    }

    fn lock_execs(&self) -> MutexGuard<'_, HashMap<ExecId, (Arc<ExecCell>, ExecLease)>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns an exec that has not ended.
    pub(crate) fn exec(&self, id: &ExecId) -> Option<Arc<ExecCell>> {
        self.lock_execs().get(id).map(|(cell, _)| Arc::clone(cell))
    }

    /// Returns every exec that has not ended.
    pub(crate) fn live_execs(&self) -> Vec<Arc<ExecCell>> {
        let execs = self.lock_execs();
        execs.values().map(|(cell, _)| Arc::clone(cell)).collect()
    }

    pub(crate) fn add_exec(&self, cell: Arc<ExecCell>) {
        let lease = self.activity.exec_lease();
        self.lock_execs().insert(cell.row.id.clone(), (cell, lease));
    }

    pub(crate) fn drop_exec(&self, id: &ExecId) {
        let dropped = self.lock_execs().remove(id);
        if let Some((cell, lease)) = dropped {
            cell.leave();
            drop(lease);
        }
        self.exec_dropped.notify_waiters();
    }
}
