//! Edge-triggered readiness: each change is told once, so that a socket that waits costs nothing.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::Ready;

/// Descriptors that are waited for.
pub struct Poller {
    file: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poller {
    /// None yet.
    ///
    /// # Errors
    /// The system has no more descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { file: epoll::create(epoll::CreateFlags::CLOEXEC)?, events: Vec::with_capacity(256) })
    }

    /// Waits for `file` too, until it is closed.
    ///
    /// # Errors
    /// The system has no more memory, or too many are waited for.
    pub fn add(&self, file: impl AsFd, token: u64) -> io::Result<()> {
        use epoll::EventFlags as E;
        let flags = E::IN | E::PRI | E::OUT | E::RDHUP | E::ET;
        Ok(epoll::add(&self.file, file, epoll::EventData::new_u64(token), flags)?)
    }

    /// Waits for `file` no more. One that others have open, too, is told of until then.
    ///
    /// # Errors
    /// It was not waited for.
    pub fn remove(&self, file: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.file, file)?)
    }

    /// Waits until something is ready or `timeout` is over (`None`: never).
    ///
    /// # Errors
    /// Those of the system, which are bugs.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.events.clear();
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match epoll::wait(&self.file, spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// What the last wait found.
    pub fn ready(&self) -> impl Iterator<Item = Ready> + '_ {
        use epoll::EventFlags as E;
        self.events.iter().map(|event| {
            let (token, flags) = (event.data.u64(), event.flags);
            let broken = flags.intersects(E::ERR | E::HUP);
            Ready {
                token,
                readable: broken || flags.intersects(E::IN | E::PRI | E::RDHUP),
                writable: broken || flags.contains(E::OUT),
                ended: broken || flags.contains(E::RDHUP),
                urgent: flags.contains(E::PRI),
            }
        })
    }
}
