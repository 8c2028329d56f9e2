//! The guest agent that this binary carries.

/// The static agent; empty only where the product is linted and not built.
pub(crate) static AGENT: &[u8] = include_bytes!(env!("PINFOLD_EMBEDDED_AGENT"));
