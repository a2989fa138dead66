//! A wake-up that can be polled: an eventfd on Linux, a pipe elsewhere.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

/// A counter that one side bumps and the other side waits for. Cloning shares it.
#[derive(Debug)]
pub struct Notifier {
    read: OwnedFd,
    /// The write end where it is not the same descriptor.
    write: Option<OwnedFd>,
}

impl Notifier {
    /// Creates a non-blocking, close-on-exec notifier.
    #[cfg(target_os = "linux")]
    pub fn new() -> io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        let read = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { read, write: None })
    }

    /// Creates a non-blocking, close-on-exec notifier.
    #[cfg(not(target_os = "linux"))]
    pub fn new() -> io::Result<Self> {
        use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
        use rustix::io::{FdFlags, fcntl_setfd};
        let (read, write) = rustix::pipe::pipe()?;
        for end in [&read, &write] {
            fcntl_setfd(end, FdFlags::CLOEXEC)?;
            fcntl_setfl(end, fcntl_getfl(end)? | OFlags::NONBLOCK)?;
        }
        Ok(Self { read, write: Some(write) })
    }

    /// Wakes the other side. A full counter or pipe is a wake-up that is still pending: not an
    /// error.
    pub fn notify(&self) -> io::Result<()> {
        let one = 1u64.to_ne_bytes();
        let result = match &self.write {
            None => rustix::io::write(&self.read, &one),
            Some(end) => rustix::io::write(end, &one[..1]),
        };
        match result {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes every pending wake-up; `true` when there was one.
    pub fn consume(&self) -> io::Result<bool> {
        let mut buffer = [0u8; 64];
        let mut woken = false;
        loop {
            match rustix::io::read(&self.read, &mut buffer) {
                Ok(0) => return Ok(woken),
                // An eventfd hands over its whole counter in one read.
                Ok(_) if self.write.is_none() => return Ok(true),
                Ok(_) => woken = true,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(woken),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A second handle on the same counter.
    pub fn try_clone(&self) -> io::Result<Self> {
        let write = self.write.as_ref().map(OwnedFd::try_clone).transpose()?;
        Ok(Self { read: self.read.try_clone()?, write })
    }
}

impl AsFd for Notifier {
    /// The end to poll for reading.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wakes_once_for_many_notifications() {
        let notifier = Notifier::new().unwrap();
        assert!(!notifier.consume().unwrap());
        let other = notifier.try_clone().unwrap();
        for _ in 0..100_000 {
            other.notify().unwrap();
        }
        assert!(notifier.consume().unwrap());
        assert!(!notifier.consume().unwrap());
    }
}
