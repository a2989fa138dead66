//! kqueue behind the same face as epoll: one descriptor has a read filter and a write filter, both
//! under one token.

#![allow(unsafe_code, reason = "kevent takes raw descriptors")]

use std::collections::HashMap;
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::kqueue::{Event, EventFilter, EventFlags, kevent, kqueue};
use rustix::io::Errno;

use super::super::{Interest, Ready};

/// See the module.
#[derive(Debug)]
pub struct Poller {
    queue: OwnedFd,
    /// What each descriptor has now: a filter that is not there cannot be deleted.
    interests: Mutex<HashMap<RawFd, Interest>>,
}

impl Poller {
    /// An empty poller.
    pub fn new() -> io::Result<Self> {
        Ok(Self { queue: kqueue()?, interests: Mutex::default() })
    }

    /// Starts to wait for `interest` on `fd`, reported under `token`. A descriptor is added once.
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        self.change(fd, token, Interest::NONE, interest)?;
        self.remember(fd, Some(interest));
        Ok(())
    }

    /// Changes what is waited for.
    pub fn modify(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        let before = self.known(fd).ok_or(io::ErrorKind::NotFound)?;
        self.change(fd, token, before, interest)?;
        self.remember(fd, Some(interest));
        Ok(())
    }

    /// Stops waiting for `fd`.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let before = self.known(fd).ok_or(io::ErrorKind::NotFound)?;
        self.remember(fd, None);
        self.change(fd, 0, before, Interest::NONE)
    }

    /// Waits until something is ready or `timeout` (None: for ever) is over, and fills `ready` (at
    /// most 64 at once).
    pub fn wait(&self, ready: &mut Vec<Ready>, timeout: Option<Duration>) -> io::Result<()> {
        ready.clear();
        let mut events: Vec<Event> = Vec::with_capacity(64);
        // SAFETY: the change list is empty, so no descriptor is named.
        match unsafe { kevent(&self.queue, &[], spare_capacity(&mut events), timeout) } {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            let token = event.udata().addr() as u64;
            let interest = match event.filter() {
                EventFilter::Read(_) => Interest::READ,
                EventFilter::Write(_) => Interest::WRITE,
                _ => continue,
            };
            // One entry a descriptor, as epoll reports it.
            match ready.iter_mut().find(|entry: &&mut Ready| entry.token == token) {
                Some(entry) => {
                    entry.interest.readable |= interest.readable;
                    entry.interest.writable |= interest.writable;
                }
                None => ready.push(Ready { token, interest }),
            }
        }
        Ok(())
    }

    fn known(&self, fd: BorrowedFd<'_>) -> Option<Interest> {
        self.interests.lock().unwrap_or_else(PoisonError::into_inner).get(&fd.as_raw_fd()).copied()
    }

    fn remember(&self, fd: BorrowedFd<'_>, interest: Option<Interest>) {
        let mut interests = self.interests.lock().unwrap_or_else(PoisonError::into_inner);
        match interest {
            Some(interest) => interests.insert(fd.as_raw_fd(), interest),
            None => interests.remove(&fd.as_raw_fd()),
        };
    }

    fn change(&self, fd: BorrowedFd<'_>, token: u64, before: Interest, after: Interest) -> io::Result<()> {
        let raw = fd.as_raw_fd();
        let token = usize::try_from(token).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut changes = Vec::with_capacity(2);
        let mut filter = |filter: EventFilter, before: bool, after: bool| {
            let flags = match (before, after) {
                (_, true) => EventFlags::ADD,
                (true, false) => EventFlags::DELETE,
                (false, false) => return,
            };
            changes.push(Event::new(filter, flags, std::ptr::without_provenance_mut::<c_void>(token)));
        };
        filter(EventFilter::Read(raw), before.readable, after.readable);
        filter(EventFilter::Write(raw), before.writable, after.writable);
        if changes.is_empty() {
            return Ok(());
        }
        let mut none: Vec<Event> = Vec::new();
        // SAFETY: the only descriptor named is borrowed for the call; the system forgets filters of
        // a closed one by itself.
        unsafe { kevent(&self.queue, &changes, spare_capacity(&mut none), Some(Duration::ZERO)) }?;
        Ok(())
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}
