//! The launcher: a small process that makes sandboxes, so that the daemon never forks.

pub mod plan;
