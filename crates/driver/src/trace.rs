//! Which place in a trace the present span has, for the agent's calls to carry it on.
//!
//! Whoever collects spans is put together above this crate, and has not to be there at all.

use std::sync::OnceLock;

use pinfold_types::TraceContext;
use tracing::{Dispatch, span};

/// Answers which place a span has, when it is collected.
pub type Find = fn(&Dispatch, &span::Id) -> Option<TraceContext>;

/// One for the process, as the subscriber itself is.
static FIND: OnceLock<Find> = OnceLock::new();

/// Has calls of agents carry on the place that `find` answers. The first one stays.
pub fn find_with(find: Find) {
    let _set_before = FIND.set(find);
}

/// Returns the present span's place, when it is collected.
pub(crate) fn present() -> Option<TraceContext> {
    let find = FIND.get()?;
    tracing::Span::current()
        .with_subscriber(|(id, dispatch)| find(dispatch, id))
        .flatten()
}
