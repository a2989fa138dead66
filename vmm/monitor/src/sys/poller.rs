//! Level-triggered readiness: epoll on Linux, kqueue on macOS.

#[cfg(target_os = "linux")]
mod platform {
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
    use std::time::Duration;

    use rustix::buffer::spare_capacity;
    use rustix::event::{Timespec, epoll};
    use rustix::io::Errno;

    use super::super::{Interest, Ready};

    /// See the module.
    #[derive(Debug)]
    pub struct Poller(OwnedFd);

    fn flags(interest: Interest) -> epoll::EventFlags {
        let mut flags = epoll::EventFlags::empty();
        if interest.readable {
            // A peer's half close counts as readable: the read that follows returns 0.
            flags |= epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        }
        if interest.writable {
            flags |= epoll::EventFlags::OUT;
        }
        flags
    }

    impl Poller {
        /// An empty poller.
        pub fn new() -> io::Result<Self> {
            Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
        }

        /// Starts to wait for `interest` on `fd`, reported under `token`. A descriptor is added
        /// once.
        pub fn add(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
            Ok(epoll::add(&self.0, fd, epoll::EventData::new_u64(token), flags(interest))?)
        }

        /// Changes what is waited for.
        pub fn modify(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
            Ok(epoll::modify(&self.0, fd, epoll::EventData::new_u64(token), flags(interest))?)
        }

        /// Stops waiting for `fd`.
        pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
            Ok(epoll::delete(&self.0, fd)?)
        }

        /// Waits until something is ready or `timeout` (None: for ever) is over, and fills `ready`
        /// (at most 64 at once).
        pub fn wait(&self, ready: &mut Vec<Ready>, timeout: Option<Duration>) -> io::Result<()> {
            ready.clear();
            let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
            let mut events: Vec<epoll::Event> = Vec::with_capacity(64);
            match epoll::wait(&self.0, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) => {}
                Err(Errno::INTR) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            ready.extend(events.iter().map(|event| {
                let (token, flags) = (event.data.u64(), event.flags);
                // Errors and hang-ups are told by the next read or write, so they count as both.
                let broken = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
                Ready {
                    token,
                    interest: Interest {
                        readable: broken
                            || flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP),
                        writable: broken || flags.contains(epoll::EventFlags::OUT),
                    },
                }
            }));
            Ok(())
        }
    }

    impl AsFd for Poller {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}

#[cfg(not(target_os = "linux"))]
#[path = "poller_kqueue.rs"]
mod platform;

pub use platform::Poller;

/// What to wait for, or what is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Interest {
    /// A read will not block (data, end of stream or an error).
    pub readable: bool,
    /// A write will not block.
    pub writable: bool,
}

impl Interest {
    /// Reading only.
    pub const READ: Self = Self { readable: true, writable: false };
    /// Writing only.
    pub const WRITE: Self = Self { readable: false, writable: true };
    /// Neither: the descriptor stays registered and only a hang-up is reported.
    pub const NONE: Self = Self { readable: false, writable: false };
}

/// One descriptor that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// As given to [`Poller::add`].
    pub token: u64,
    /// What will not block.
    pub interest: Interest,
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;
    use crate::sys::Notifier;

    #[test]
    fn reports_by_token_until_consumed_and_not_after_removal() {
        let poller = Poller::new().unwrap();
        let notifier = Notifier::new().unwrap();
        let mut ready = Vec::new();
        poller.add(notifier.as_fd(), 7 << 32 | 1, Interest::READ).unwrap();
        poller.wait(&mut ready, Some(Duration::ZERO)).unwrap();
        assert!(ready.is_empty());
        notifier.notify().unwrap();
        for _ in 0..2 {
            poller.wait(&mut ready, None).unwrap();
            assert_eq!(ready, [Ready { token: 7 << 32 | 1, interest: Interest::READ }]);
        }
        poller.remove(notifier.as_fd()).unwrap();
        poller.wait(&mut ready, Some(Duration::from_millis(1))).unwrap();
        assert!(ready.is_empty());
    }
}
