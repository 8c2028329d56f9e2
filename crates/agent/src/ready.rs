//! Waits for descriptors.

use std::io;
use std::os::fd::AsRawFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Lets the runtime wait for a descriptor that `owner` owns for as long as it lives.
#[expect(
    deprecated,
    reason = "its successor is `unsafe` for owners that change their descriptor; ours never do"
)]
pub(crate) fn watched<T: AsRawFd>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(owner, interest)
}
