//! The vocabulary that every part of pinfold shares: ids, names, units, specs, states, errors and
//! the request and response types of the public API.
//!
//! There is no I/O here but the look at which defences a weakened test build leaves out, no async
//! runtime and no policy: what a type means is decided where it is used.

pub mod api;
pub mod crash;
pub mod doctor;
pub mod error;
pub mod exec;
pub mod frame;
pub mod id;
pub mod name;
pub mod principal;
pub mod spec;
pub mod state;
mod trace;
pub mod units;
pub mod weaken;

pub use error::{ApiErrorBody, ErrorChain, ErrorCode};
pub use exec::{EventKind, ExecEvent, ExecExit, ExecSpec, OutputStream};
pub use id::{ExecId, KeyId, SandboxId};
pub use name::SandboxName;
pub use principal::{Principal, PrincipalName, Role};
pub use spec::{MountSpec, Resources, SandboxSpec};
pub use state::SandboxState;
pub use trace::{TRACE_SPANS, TraceContext, TraceContextError};
pub use units::{ByteSize, MilliCpu};
