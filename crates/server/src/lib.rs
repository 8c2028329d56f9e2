//! The public API over HTTP and WebSocket.
//!
//! It is a crate of its own because it has another dependency set than the engine, which knows no
//! HTTP. There is no state here but that of connections: every request becomes calls of
//! [`pinfold_engine::Engine`].
//!
//! [`serve`] answers on a Unix socket, and on a port when there is one, that whoever starts the daemon
//! has bound. What every request passes is in `access`.

mod access;
mod audit;
mod body;
mod connection;
mod docs_page;
mod error;
mod events;
mod execs;
mod files;
mod fleet;
mod keys;
mod leash;
mod listeners;
mod meters;
mod openapi;
mod options;
mod peer;
mod pools;
mod push;
mod query;
mod request;
mod router;
mod sandboxes;
mod sse;
mod stream;
mod tls;

pub use audit::{
    AuditError, AuditLog, Entry as AuditEntry, Line as AuditLine, Problem as AuditProblem,
    Verified, lines as audit_lines, verify as verify_audit,
};
pub use connection::serve;
pub use listeners::{DoorError, Listeners, TcpDoor};
pub use meters::metrics_page;
pub use openapi::openapi_document;
pub use options::ServerOptions;
pub use push::{Collector, CollectorError, CollectorOptions, push};
pub use router::REQUEST_SPAN;
pub use tls::{Tls, TlsError};
