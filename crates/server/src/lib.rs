//! The public API over HTTP and WebSocket.
//!
//! It is a crate of its own because it has another dependency set than the engine, which knows no
//! HTTP. There is no state here but that of connections: every request becomes calls of
//! [`pinfold_engine::Engine`].
//!
//! [`serve`] answers on a Unix socket that whoever starts the daemon has bound.

mod body;
mod connection;
mod docs_page;
mod error;
mod execs;
mod files;
mod fleet;
mod openapi;
mod options;
mod peer;
mod query;
mod request;
mod router;
mod sandboxes;
mod sse;
mod stream;

pub use connection::serve;
pub use openapi::openapi_document;
pub use options::ServerOptions;
