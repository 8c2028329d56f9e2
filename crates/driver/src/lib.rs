//! The driver contract, the client of the guest agent, the fake driver and the conformance suite.
//!
//! It is a crate of its own because it is the boundary between the engine, which knows no concrete
//! driver, and the drivers, which know no engine.

pub mod agent;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod contract;
#[cfg(feature = "fake")]
pub mod fake;
pub mod reach;
pub mod trace;

pub use agent::AgentClient;
pub use contract::*;
pub use reach::{HostMount, HostReach};
