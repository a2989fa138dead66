//! Waiting for one of a few descriptors.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Waits until one of `fds` is ready, each for its own flags (always also for its other end's being
/// closed), and says which: the first in order. `None` when `timeout` was over first; without one
/// it waits as long as it takes.
pub(super) fn first_ready(
    fds: &[(BorrowedFd<'_>, PollFlags)],
    timeout: Option<Duration>,
) -> io::Result<Option<usize>> {
    // A time beyond what the system counts is no limit.
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    let mut polled: Vec<_> = fds.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
    rustix::io::retry_on_intr(|| poll(&mut polled, timeout.as_ref()))?;
    Ok(polled.iter().position(|polled| !polled.revents().is_empty()))
}
