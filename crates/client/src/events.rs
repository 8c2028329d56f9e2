//! What happened in the daemon.

use http::Method;
use http::header::ACCEPT;
use pinfold_types::ApiErrorBody;
use pinfold_types::api::{DaemonEvent, DaemonEventList, DaemonEventQuery};

use crate::client::{Client, Lines};
use crate::error::ClientError;
use crate::query::Target;
use crate::transport::{Call, decode};

type Result<T, E = ClientError> = std::result::Result<T, E>;

/// Follows what happens in a daemon.
pub struct DaemonEvents {
    lines: Lines,
    /// The name of the event whose data comes next.
    named: Option<String>,
}

impl std::fmt::Debug for DaemonEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DaemonEvents").finish_non_exhaustive()
    }
}

impl Client {
    /// Returns a page of what happened, oldest first.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn events(&self, query: &DaemonEventQuery) -> Result<DaemonEventList> {
        let mut target = target(query);
        if query.limit > 0 {
            target = target.with("limit", &query.limit.to_string());
        }
        self.get_json(&target).await
    }

    /// Follows what happens after a place.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn follow_events(&self, query: &DaemonEventQuery) -> Result<DaemonEvents> {
        let target = target(query);
        let call = Call::new(Method::GET, &target).header(ACCEPT, "text/event-stream");
        let body = self.transport.send(call).await?.into_body();
        Ok(DaemonEvents {
            lines: Lines::new(body),
            named: None,
        })
    }
}

impl DaemonEvents {
    /// Waits for the next event; `None` when the daemon has ended the stream. Of events that are
    /// no longer kept it says nothing.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`] when the stream breaks or the daemon ends.
    pub async fn next(&mut self) -> Result<Option<DaemonEvent>> {
        while let Some(line) = self.lines.next().await? {
            if let Some(name) = line.strip_prefix(b"event: ") {
                self.named = Some(String::from_utf8_lossy(name).into_owned());
                continue;
            }
            let Some(data) = line.strip_prefix(b"data: ") else {
                continue;
            };
            match self.named.take().as_deref() {
                None => return decode(data).map(Some),
                Some("error") => {
                    let body: ApiErrorBody = decode(data)?;
                    return Err(ClientError::Api(Box::new(body.error)));
                }
                Some(_) => {}
            }
        }
        Ok(None)
    }
}

fn target(query: &DaemonEventQuery) -> Target {
    let mut target = Target::new("/events");
    if query.after > 0 {
        target = target.with("after", &query.after.to_string());
    }
    if let Some(sandbox) = &query.sandbox {
        target = target.with("sandbox", sandbox);
    }
    for kind in &query.kinds {
        target = target.with("type", kind.as_str());
    }
    target
}
