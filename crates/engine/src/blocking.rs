//! The one place where work that blocks leaves the async threads.

/// Runs blocking work on a thread of its own and waits for it.
///
/// The work goes on when the future is dropped. A panic in it goes on in the caller.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // Only at the end of the runtime, when nobody is left to be answered.
        Err(_) => std::future::pending().await,
    }
}
