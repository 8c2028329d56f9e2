//! The agent as it is used: the real binary, served over a Unix socket.

mod archive;
mod exec;
mod file;
mod json;
mod tree;
mod world;
