//! The agent as it is used: the real binary, served over a Unix socket.

mod exec;
mod json;
mod tree;
mod world;
