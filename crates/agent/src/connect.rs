//! The agent's own dialect: Connect services of `pinfold.agent.v1`.

#![expect(
    refining_impl_trait_internal,
    reason = "each method answers one type; saying so keeps the traits' opaque types readable"
)]

mod files;
mod process;
mod system;

use std::error::Error;
use std::sync::Arc;

use connectrpc::{ConnectError, ConnectRpcService, ErrorCode, Limits, Router};
use pinfold_agent_api::v1::{FileServiceExt, ProcessServiceExt, SystemServiceExt};
use pinfold_types::error::ErrorChain;

use crate::Agent;

/// Most bytes of one message: an environment and arguments at the API's own limits, and room.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// One service for each part; all of them serve the same agent.
#[derive(Debug)]
struct Service(Arc<Agent>);

/// Returns the service that answers every call.
pub(crate) fn service(agent: &Arc<Agent>) -> ConnectRpcService {
    let service = Arc::new(Service(Arc::clone(agent)));
    let router = ProcessServiceExt::register(Arc::clone(&service), Router::new());

    let router = FileServiceExt::register(Arc::clone(&service), router);
    let router = SystemServiceExt::register(service, router);
    let limits = Limits::default()
        .with_max_request_body_size(MESSAGE_BYTES_MAX)
        .with_max_message_size(MESSAGE_BYTES_MAX);
    ConnectRpcService::new(router).with_limits(limits)
}

/// Writes an error with its causes.
fn failed(code: ErrorCode, error: &dyn Error) -> ConnectError {
    ConnectError::new(code, ErrorChain(error).to_string())
}
