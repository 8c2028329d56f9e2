//! Server-sent events: an exec's journal, and changes to files.
//!
//! A reader that is slow waits in its own connection, as with the WebSocket.

use std::convert::Infallible;

use axum::body::Body;
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt as _};
use pinfold_engine::{EventFollower, EventReader, Followed, WatchEvent, WatchStream};
use pinfold_types::api::{FileChange, FileChangeKind};
use pinfold_types::exec::EventMessage;
use pinfold_types::id::RequestId;
use pinfold_types::{ApiErrorBody, EventKind, ExecEvent, ExecId, SandboxId};
use serde::Serialize;
use tokio::time::{Instant, Interval};

use crate::error::ApiError;
use crate::meters::{OpenStream, StreamKind};
use crate::router::Api;

/// What a caller accepts that wants server-sent events.
const EVENTS_TYPE: &str = "text/event-stream";

/// Name of the header by which a reader that comes back says what it saw last.
const LAST_EVENT_HEADER: &str = "last-event-id";

/// Returns whether a request asks for server-sent events.
pub(crate) fn wanted(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(ACCEPT).iter();
    accepted.any(|accept| accept.to_str().is_ok_and(|text| text.contains(EVENTS_TYPE)))
}

/// Returns the number of the event that a reader saw last.
pub(crate) fn last_event(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(LAST_EVENT_HEADER) else {
        return Ok(None);
    };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| {
        ApiError::invalid("`Last-Event-ID` is not the number of an event")
            .hint("send the `id` of the last event that was read, or leave the header out")
    })
}

/// Streams the journal of an exec to its exit.
pub(crate) fn journal(
    api: &Api,
    request_id: RequestId,
    (sandbox_id, exec_id): (SandboxId, ExecId),
    reader: EventReader,
) -> Response {
    let source = Source::Journal {
        sandbox_id,
        exec_id,
        reader: Box::new(reader),
    };
    answer(api, request_id, source)
}

/// Streams changes to files until the reader leaves.
pub(crate) fn watch(api: &Api, request_id: RequestId, changes: WatchStream) -> Response {
    answer(api, request_id, Source::Watch(changes))
}

/// Streams what happens in the daemon until the reader leaves.
pub(crate) fn daemon_events(api: &Api, request_id: RequestId, follower: EventFollower) -> Response {
    answer(api, request_id, Source::Daemon(Box::new(follower)))
}

/// Answers that there is nothing more, which tells a browser not to come back.
pub(crate) fn nothing_more() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

enum Source {
    Journal {
        sandbox_id: SandboxId,
        exec_id: ExecId,
        reader: Box<EventReader>,
    },
    Watch(WatchStream),
    Daemon(Box<EventFollower>),
}

impl Source {
    /// Returns the next event as it is sent. Safe to cancel.
    async fn next(&mut self, open: &OpenStream) -> Option<Result<Bytes, ApiError>> {
        match self {
            Self::Journal {
                sandbox_id,
                exec_id,
                reader,
            } => {
                let event = match reader.next().await? {
                    Ok(event) => event,
                    Err(error) => return Some(Err(error.into())),
                };
                if matches!(event.kind, EventKind::Dropped { .. }) {
                    open.dropped();
                }
                let message = EventMessage::new(sandbox_id, exec_id, &event);
                Some(Ok(event_text(Some(seen_with(&event)), None, &message)))
            }
            Self::Daemon(follower) => Some(match follower.next().await {
                Ok(Followed::Event(event)) => Ok(event_text(Some(event.id), None, &event)),
                Ok(Followed::Dropped { first_kept }) => {
                    open.dropped();
                    let told = serde_json::json!({ "first_kept": first_kept });
                    Ok(event_text(None, Some("dropped"), &told))
                }
                Err(error) => Err(error.into()),
            }),
            Self::Watch(changes) => Some(match changes.next().await? {
                Ok(change) => Ok(event_text(None, None, &shown(change))),
                Err(error) => Err(error.into()),
            }),
        }
    }
}

/// Returns the last number that a reader has seen with an event: it goes on behind it.
const fn seen_with(event: &ExecEvent) -> u64 {
    match event.kind {
        EventKind::Dropped { first_kept } => first_kept.saturating_sub(1),
        EventKind::Start { .. } | EventKind::Output { .. } | EventKind::Exit(_) => event.seq,
    }
}

fn shown(change: WatchEvent) -> FileChange {
    FileChange {
        kinds: FileChangeKind::of_mask(change.mask),
        directory: change.directory,
        name: change.name,
        mask: change.mask,
        cookie: change.cookie,
    }
}

/// Writes one event. JSON holds no line break, so its text is one line.
fn event_text(id: Option<u64>, name: Option<&str>, data: &impl Serialize) -> Bytes {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    let name = name
        .map(|name| format!("event: {name}\n"))
        .unwrap_or_default();
    let data = serde_json::to_string(data).unwrap_or_default();
    Bytes::from(format!("{id}{name}data: {data}\n\n"))
}

struct Sending {
    source: Source,
    open: OpenStream,
    request_id: RequestId,
    heartbeat: Interval,
    shutdown: BoxFuture<'static, ()>,
}

impl Sending {
    /// Returns the next piece, and itself unless that was the last.
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Option<Self>)> {
        let failed = tokio::select! {
            next = self.source.next(&self.open) => match next? {
                Ok(text) => {
                    self.open.sent(text.len());
                    self.heartbeat.reset();
                    return Some((Ok(text), Some(self)));
                }
                Err(error) => error,
            },
            _ = self.heartbeat.tick() => {
                return Some((Ok(Bytes::from_static(b": still there\n\n")), Some(self)));
            }
            () = &mut self.shutdown => ApiError::shutting_down(),
        };
        let body = ApiErrorBody {
            error: failed.detail(&self.request_id),
        };
        Some((Ok(event_text(None, Some("error"), &body)), None))
    }
}

fn answer(api: &Api, request_id: RequestId, source: Source) -> Response {
    let every = api.options.heartbeat;
    let sending = Sending {
        source,
        open: api.meters.stream(StreamKind::ServerSent),
        request_id,
        heartbeat: tokio::time::interval_at(Instant::now() + every, every),
        shutdown: Box::pin(api.shutdown.clone().cancelled_owned()),
    };
    let pieces: BoxStream<'static, Result<Bytes, Infallible>> =
        futures::stream::unfold(Some(sending), |sending| async { sending?.next().await }).boxed();
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(EVENTS_TYPE)),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    // The first piece says that the stream is open.
    let opened = futures::stream::once(async { Ok(Bytes::from_static(b": open\n\n")) });
    (headers, Body::from_stream(opened.chain(pieces))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_block_and_a_reader_goes_on_behind_what_was_dropped() {
        let text = event_text(Some(7), Some("error"), &"a\nb");
        assert_eq!(&text[..], b"id: 7\nevent: error\ndata: \"a\\nb\"\n\n");
        let event = |kind| ExecEvent {
            seq: 3,
            time_ms: 0,
            kind,
        };
        assert_eq!(seen_with(&event(EventKind::Start { pid: 1 })), 3);
        assert_eq!(seen_with(&event(EventKind::Dropped { first_kept: 9 })), 8);
    }

    #[test]
    fn what_was_seen_last_is_a_number() {
        let headers = |value: &'static str| {
            HeaderMap::from_iter([(
                axum::http::HeaderName::from_static(LAST_EVENT_HEADER),
                HeaderValue::from_static(value),
            )])
        };
        assert_eq!(last_event(&headers("12")).unwrap(), Some(12));
        assert_eq!(last_event(&HeaderMap::new()).unwrap(), None);
        for bad in ["", "x", "-1", "99999999999999999999"] {
            assert!(last_event(&headers(bad)).is_err(), "{bad}");
        }
    }
}
