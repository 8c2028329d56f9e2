//! The launcher: a small process that makes sandboxes, so that the daemon never forks.
//!
//! [`Launcher`] is the daemon's side; [`serve`] is the process itself, which the agent's binary
//! becomes when it is started with the argument `launcher`.

mod child;
mod client;
mod error;
mod job;
mod outer;
pub mod plan;
mod server;
pub(crate) mod wire;

pub use client::{
    AgentBinary, Exit, Launched, Launcher, LauncherConfig, LauncherIdentity, SubordinateIds,
};
pub use error::{LaunchError, LaunchFailure, Timing};
#[cfg(feature = "fuzzing")]
pub(crate) use server::check as check_plan;
pub use server::serve;
pub(crate) use wire::{Refusal, refused};
