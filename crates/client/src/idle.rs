//! Connections of a port that wait for the next request: a handshake costs more than a request.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use hyper::client::conn::http1::SendRequest;

use crate::transport::Body;

/// Most connections that wait: as many as a verb uses at once on a few sandboxes.
const CONNECTIONS_MAX: usize = 8;

/// Longest time that one waits. The daemon ends an idle connection after ten seconds, and a request
/// that meets that moment could not be told from one that was done.
const WAIT_MAX: Duration = Duration::from_secs(5);

type Sender = SendRequest<Body>;

/// The connections of one port that wait. Clones are handles to the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Idle(Arc<Mutex<Vec<(Sender, Instant)>>>);

impl Idle {
    /// Takes the connection that has waited the shortest and still stands.
    pub(crate) async fn take(&self) -> Option<Sender> {
        if let Some(sender) = self.look() {
            return Some(sender);
        }
        // One whose answer has just been read comes back when its task gets its turn.
        tokio::task::yield_now().await;
        self.look()
    }

    fn look(&self) -> Option<Sender> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < WAIT_MAX);
        let at = waiting.iter().rposition(|(sender, _)| sender.is_ready())?;
        Some(waiting.remove(at).0)
    }

    /// Lets a connection wait once its answer has been read; an answer that is dropped before ends it.
    pub(crate) fn keep(&self, mut sender: Sender) {
        let waiting = Arc::downgrade(&self.0);
        // The task ends with the answer or with the connection.
        drop(tokio::spawn(async move {
            if sender.ready().await.is_ok() {
                put(&waiting, sender);
            }
        }));
    }
}

fn put(waiting: &Weak<Mutex<Vec<(Sender, Instant)>>>, sender: Sender) {
    let Some(waiting) = waiting.upgrade() else {
        return;
    };
    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    if waiting.len() >= CONNECTIONS_MAX {
        waiting.remove(0);
    }
    waiting.push((sender, Instant::now()));
}
