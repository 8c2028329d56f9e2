//! The one place where blocking work leaves the runtime's own threads.

use pinfold_driver::{DriverError, DriverErrorKind};
use pinfold_linux::weaken::{Defence, is_off};

/// Runs kernel work where it may block. It goes on to its end when the caller stops waiting, so
/// that nothing is left half made.
pub(crate) async fn run<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, DriverError> + Send + 'static,
) -> Result<T, DriverError> {
    if is_off(Defence::BlockingThreads) {
        return work();
    }
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        let message = format!("the work to {what} ended early");
        Err(DriverError::new(DriverErrorKind::Internal, message))
    })
}
