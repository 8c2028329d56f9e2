//! The guest agent that this binary carries.

use pinfold_driver_native::AgentSource;

/// The static agent; empty only where the product is linted and not built.
static AGENT: &[u8] = include_bytes!(env!("EMBEDDED_AGENT_PATH"));

/// Variable that names an agent without some of its defences. No release build reads it.
#[cfg(feature = "test-weaken")]
const WEAK_AGENT_VARIABLE: &str = "PINFOLD_WEAK_AGENT";

/// Returns the agent that sandboxes get.
#[cfg(not(feature = "test-weaken"))]
pub(crate) fn source() -> AgentSource {
    AgentSource::Bytes(AGENT)
}

/// Returns the agent that sandboxes get: in this test build another one, if one is named.
#[cfg(feature = "test-weaken")]
pub(crate) fn source() -> AgentSource {
    match std::env::var_os(WEAK_AGENT_VARIABLE) {
        Some(path) => AgentSource::Path(path.into()),
        None => AgentSource::Bytes(AGENT),
    }
}

/// Returns the agent that this binary carries, for a driver of tests.
#[cfg(feature = "test-weaken")]
pub(crate) fn bytes() -> &'static [u8] {
    AGENT
}
