//! kqueue behind the same face as epoll. Urgent data is not told apart: it comes within the stream.

#![allow(unsafe_code, reason = "kevent takes raw descriptors")]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::kqueue::{Event, EventFilter, EventFlags, kevent, kqueue};
use rustix::io::Errno;

use super::Ready;

/// Descriptors that are waited for.
pub struct Poller {
    file: OwnedFd,
    events: Vec<Event>,
}

impl Poller {
    /// None yet.
    ///
    /// # Errors
    /// The system has no more descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { file: kqueue()?, events: Vec::with_capacity(256) })
    }

    /// Waits for `file` too, until it is closed.
    ///
    /// # Errors
    /// The system has no more memory, or too many are waited for.
    pub fn add(&self, file: impl AsFd, token: u64) -> io::Result<()> {
        let number = file.as_fd().as_raw_fd();
        let token = usize::try_from(token).map_err(|_| io::ErrorKind::InvalidInput)?;
        // CLEAR: each change is told once.
        let change = |filter| {
            let flags = EventFlags::ADD | EventFlags::CLEAR;
            Event::new(filter, flags, std::ptr::without_provenance_mut::<c_void>(token))
        };
        let changes = [change(EventFilter::Read(number)), change(EventFilter::Write(number))];
        let mut none: Vec<Event> = Vec::new();
        // SAFETY: the only descriptor named is borrowed for the call; the system forgets filters of
        // a closed one by itself.
        unsafe { kevent(&self.file, &changes, spare_capacity(&mut none), Some(Duration::ZERO)) }?;
        Ok(())
    }

    /// Waits for `file` no more.
    ///
    /// # Errors
    /// It was not waited for.
    pub fn remove(&self, file: impl AsFd) -> io::Result<()> {
        let number = file.as_fd().as_raw_fd();
        let change = |filter| Event::new(filter, EventFlags::DELETE, std::ptr::null_mut());
        let changes = [change(EventFilter::Read(number)), change(EventFilter::Write(number))];
        let mut none: Vec<Event> = Vec::new();
        // SAFETY: the only descriptor named is borrowed for the call.
        unsafe { kevent(&self.file, &changes, spare_capacity(&mut none), Some(Duration::ZERO)) }?;
        Ok(())
    }

    /// Waits until something is ready or `timeout` is over (`None`: never).
    ///
    /// # Errors
    /// Those of the system, which are bugs.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.events.clear();
        // SAFETY: the list of changes is empty, so no descriptor is named.
        match unsafe { kevent(&self.file, &[], spare_capacity(&mut self.events), timeout) } {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// What the last wait found.
    pub fn ready(&self) -> impl Iterator<Item = Ready> + '_ {
        self.events.iter().map(|event| {
            let ended = event.flags().intersects(EventFlags::EOF | EventFlags::ERROR);
            let reads = matches!(event.filter(), EventFilter::Read(_));
            Ready {
                token: event.udata().addr() as u64,
                readable: reads,
                writable: !reads,
                ended: reads && ended,
                urgent: false,
            }
        })
    }
}
