//! The safe kernel layer: what the rest of pinfold needs of Linux, synchronous and without policy.
//!
//! This is the only crate with `unsafe`, which is why it is a crate of its own. There is no async
//! runtime here and nothing that knows what a sandbox is for.

pub mod beneath;
pub mod capability;
pub mod cgroup;
pub mod seccomp;
pub mod spawn;
