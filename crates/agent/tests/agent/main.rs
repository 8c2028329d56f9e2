//! The agent as it is used: the real binary, served over a Unix socket.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what fails in a test's own tools fails the test"
)]

mod archive;
mod exec;
mod file;
mod first;
mod json;
mod tree;
mod world;
