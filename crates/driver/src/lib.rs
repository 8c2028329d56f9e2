//! The driver contract, the client of the guest agent, the fake driver and the conformance suite.
//!
//! It is a crate of its own because it is the boundary between the engine, which knows no concrete
//! driver, and the drivers, which know no engine.

pub mod agent;
pub mod contract;

pub use agent::AgentClient;
pub use contract::*;
