//! Descriptors in the event loop.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Takes an owned descriptor into the event loop of this thread's runtime.
///
/// # Errors
/// Those of epoll_ctl(2).
///
/// # Panics
/// Outside of a runtime.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open as long as it lives, always answers the same number, and is
    // dropped by nobody else.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
