//! Lifecycle, registry, store, journals, deadlines and recovery.
//!
//! It is a crate of its own because it is the boundary between what speaks a protocol, which knows
//! no driver, and the drivers. [`Engine`] is all that the layers above use. There is no HTTP here
//! and no concrete driver.

mod caller;
mod config;
mod engine;
mod error;
mod reader;

// The layers above may use this crate only, and files go straight to the agent.
pub use pinfold_driver::agent::{
    AgentClient, AgentError, ByteChunks, WatchEvent, WatchStream, WriteFile,
};

pub use caller::{Caller, ListFilter};
pub use config::EngineConfig;
pub use engine::Engine;
pub use error::{EngineError, OpenError};
pub use reader::EventReader;
