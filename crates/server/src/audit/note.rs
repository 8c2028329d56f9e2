//! What is written of one request, as it becomes known.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{Method, StatusCode};
use pinfold_engine::Caller;
use pinfold_types::ErrorCode;
use pinfold_types::api::now_ms;
use pinfold_types::id::RequestId;

use super::{AuditLog, Entry};
use crate::error::ApiError;
use crate::peer::{Door, Peer};

/// Routes that are asked with `GET` and change something.
const CHANGING_GET: &str = "/attach";

/// Ends of routes that make room, or nothing worse than there is: they are done although they cannot
/// be told of yet.
const HARMLESS: &[&str] = &["/stop", "/pause", "/signal", "/input", "/resize"];

/// What is written of one request. Without an audit log it writes nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Note(Option<Arc<Inner>>);

/// Says of a request whose caller left before its answer that this is so.
impl Drop for Inner {
    fn drop(&mut self) {
        let entry = self.entry.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if self.changes && !self.written.load(Ordering::Relaxed) {
            let mut entry = std::mem::take(entry);
            "the caller left before the answer".clone_into(&mut entry.outcome);
            let log = self.log.clone();
            runtime.spawn(async move { log.record(entry).await });
        }
    }
}

#[derive(Debug)]
struct Inner {
    log: AuditLog,
    entry: Mutex<Entry>,
    changes: bool,
    /// The handler says itself how it ended.
    deferred: AtomicBool,
    written: AtomicBool,
}

/// What a request is, as far as the audit log is concerned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asking<'a> {
    pub(crate) method: &'a Method,
    pub(crate) route: Option<&'static str>,
    pub(crate) path: &'a str,
    pub(crate) request_id: &'a RequestId,
    pub(crate) peer: Option<&'a Peer>,
}

impl Asking<'_> {
    fn changes(&self) -> bool {
        let reads = [Method::GET, Method::HEAD, Method::OPTIONS].contains(self.method);
        match self.route {
            None => false,
            Some(route) => !reads || route.ends_with(CHANGING_GET),
        }
    }

    fn makes_no_more(&self) -> bool {
        let route = self.route.unwrap_or_default();
        self.method == Method::DELETE || HARMLESS.iter().any(|end| route.ends_with(end))
    }
}

impl Note {
    /// Begins a note of a request.
    pub(crate) fn begin(log: Option<&AuditLog>, asking: &Asking<'_>) -> Self {
        let Some(log) = log else {
            return Self::default();
        };
        let action = format!("{} {}", asking.method, asking.route.unwrap_or("(none)"));
        let entry = Entry {
            time_ms: now_ms(),
            principal: "-".to_owned(),
            key: None,
            peer: asking.peer.map_or_else(|| "-".to_owned(), address),
            request_id: asking.request_id.to_string(),
            action,
            target: asking.path.to_owned(),
            outcome: String::new(),
            detail: None,
        };
        Self(Some(Arc::new(Inner {
            log: log.clone(),
            entry: Mutex::new(entry),
            changes: asking.changes(),
            deferred: AtomicBool::new(false),
            written: AtomicBool::new(false),
        })))
    }

    /// Refuses what could not be told of, but lets through what makes room.
    pub(crate) fn check(&self, asking: &Asking<'_>) -> Result<(), ApiError> {
        let behind = |inner: &Arc<Inner>| inner.changes && inner.log.is_behind();
        if !self.0.as_ref().is_some_and(behind) || asking.makes_no_more() {
            return Ok(());
        }
        Err(ApiError::new(
            ErrorCode::ResourceExhausted,
            "the audit log cannot be written, so nothing is changed",
        )
        .hint(
            "free space on the file system of the state directory; what removes or stops something \
             still works",
        ))
    }

    fn with(&self, change: impl FnOnce(&mut Entry)) {
        if let Some(inner) = &self.0 {
            change(&mut inner.entry.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Says who asks.
    pub(crate) fn of(&self, caller: &Caller) {
        self.with(|entry| {
            entry.principal = caller.principal.to_string();
            entry.key = caller.key.as_ref().map(ToString::to_string);
        });
    }

    /// Says what was made.
    pub(crate) fn made(&self, id: &str) {
        self.with(|entry| entry.detail = Some(format!("made {id}")));
    }

    /// Keeps the note open behind the answer's head, until [`Self::end`].
    pub(crate) fn defer(&self) {
        if let Some(inner) = &self.0 {
            inner.deferred.store(true, Ordering::Relaxed);
        }
    }

    /// Writes the note of a deferred request.
    pub(crate) async fn end(&self, code: Option<ErrorCode>) {
        let outcome = match code {
            None => StatusCode::CREATED.as_str().to_owned(),
            Some(code) => format!("{} {code}", code.http_status()),
        };
        self.write(outcome, false).await;
    }

    /// Writes the note of a request that was answered, if it is one to be written.
    pub(crate) async fn answered(&self, status: StatusCode, code: Option<ErrorCode>) {
        let Some(inner) = &self.0 else { return };
        let refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        let deferred = inner.deferred.load(Ordering::Relaxed) && code.is_none();
        if deferred || !(inner.changes || refused) {
            return;
        }
        let outcome = match code {
            None => status.as_str().to_owned(),
            Some(code) => format!("{} {code}", status.as_str()),
        };
        self.write(outcome, refused).await;
    }

    async fn write(&self, outcome: String, refused: bool) {
        let Some(inner) = &self.0 else { return };
        inner.written.store(true, Ordering::Relaxed);
        let entry = Entry {
            outcome,
            ..inner
                .entry
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
        };
        if refused {
            inner.log.record_refusal(entry).await;
        } else {
            inner.log.record(entry).await;
        }
    }
}

fn address(peer: &Peer) -> String {
    match (&peer.door, peer.address) {
        (Door::Local { caller, pid }, _) => {
            let uid = caller.uid.unwrap_or_default();
            let pid = pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
            format!("unix uid={uid} pid={pid}")
        }
        (Door::Development { .. } | Door::Keys { .. }, Some(address)) => address.to_string(),
        (Door::Development { .. } | Door::Keys { .. }, None) => "-".to_owned(),
    }
}
