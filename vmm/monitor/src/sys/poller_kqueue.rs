//! kqueue behind the same face as epoll.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::kqueue::{Event, EventFilter, EventFlags, kevent, kqueue};
use rustix::io::Errno;

use super::super::{Interest, Ready};

/// See the module.
#[derive(Debug)]
pub struct Poller(OwnedFd);

impl Poller {
    /// An empty poller.
    pub fn new() -> io::Result<Self> {
        Ok(Self(kqueue()?))
    }

    /// Starts to wait for `interest` on `fd`, reported under `token`. A descriptor is added once.
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        self.modify(fd, token, interest)
    }

    /// Changes what is waited for.
    pub fn modify(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        self.set(fd, token, interest)
    }

    /// Stops waiting for `fd`.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.set(fd, 0, Interest::NONE)
    }
}
