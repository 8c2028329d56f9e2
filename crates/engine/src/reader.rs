//! Reading the journal of an exec.

use pinfold_types::ExecEvent;

use crate::error::EngineError;

/// Reads an exec's events in order: first those kept on disk, then live ones.
#[derive(Debug)]
pub struct EventReader {
    _private: (),
}

impl EventReader {
    /// Returns the next event, or `None` after the last.
    ///
    /// Waits for it when the reader follows the exec. Safe to cancel: no event is lost.
    #[expect(clippy::unused_async, reason = "the facade before its implementation")]
    pub async fn next(&mut self) -> Option<Result<ExecEvent, EngineError>> {
        None
    }
}
