//! Lifecycle, registry, store, journals, deadlines and recovery.
//!
//! It is a crate of its own because it is the boundary between what speaks a protocol, which knows
//! no driver, and the drivers. [`Engine`] is all that the layers above use. There is no HTTP here
//! and no concrete driver.
//!
//! Each sandbox has one task that owns its state (`sandbox`); the others send it messages and read
//! what it last published (`entry`). Each exec has one task that writes its journal (`exec`). One
//! thread writes the database (`store`). What an earlier daemon left is taken over in `recovery`.

mod activity;
mod admission;
mod agent;
mod blocking;
mod bounds;
mod caller;
mod claim;
mod clock;
mod config;
mod core;
mod defaults;
mod engine;
mod entry;
mod error;
mod events;
mod exec;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod journal;
mod keys;
mod leased;
mod lock;
mod meters;
mod mounts;
mod outbox;
mod pool;
mod quota;
mod reader;
mod recovery;
mod sandbox;
mod store;
mod template;

// The layers above may use this crate only, and files go straight to the agent.
pub use pinfold_driver::agent::{
    AgentClient, AgentError, ByteChunks, WatchEvent, WatchStream, WriteFile,
};

pub use crate::core::Held;
pub use admission::Capacity;
pub use bounds::FLOOD_BYTES_MAX;
pub use caller::{Caller, ExecFilter, ListFilter};
pub use config::EngineConfig;
pub use defaults::{Cache, Defaults};
pub use engine::{Engine, EventFollower, Followed, OnceKey, OnceKeyError, Outcome};
pub use error::{EngineError, OpenError};
pub use keys::Grant;
pub use mounts::{ALLOWED_MAX, AllowedDirectory, AllowedError, MountsAllowed};
pub use outbox::{BatchLimits, PushBatch, PushFault};
pub use reader::EventReader;
pub use template::ConfiguredPool;

#[cfg(test)]
mod tests;
