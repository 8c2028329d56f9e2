//! The server over a real Unix socket, with the engine and the fake driver behind it.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "this is a test, but only its test functions are known for one"
)]

mod audit;
mod changes;
mod connections;
mod events;
mod execs;
mod files;
mod happened;
mod metrics;
mod openapi;
mod port;
mod reference;
mod requests;
mod server;
mod streams;
