//! The native driver: sandboxes from Linux namespaces, cgroups, overlayfs, seccomp and capabilities.
//!
//! A crate of its own because it alone needs the kernel layer's launcher. What is not here: making
//! the namespaces and mounts (crate `linux`), images (crate `image`), and everything that happens
//! inside a sandbox (its agent).
//!
//! Every sandbox has a directory `native/ID` in the state directory, with a record that is written
//! before anything else is made and that names everything that may have to be taken away.

mod blocking;
mod claims;
mod config;
mod driver;
mod fault;
mod grant;
mod images;
mod instance;
mod launchers;
mod live_mounts;
mod probe;
mod process;
mod ranges;
mod reach;
mod start;
mod sweep;
mod teardown;
#[cfg(test)]
mod undone;

pub use config::{AgentSource, IDS_DIRECTORY, NativeConfig};
pub use driver::{NativeDriver, NewError};
