//! A wake-up that can be polled: an eventfd on Linux, a pipe elsewhere.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
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
        let result = rustix::io::retry_on_intr(|| match &self.write {
            None => rustix::io::write(&self.read, &one),
            Some(end) => rustix::io::write(end, &one[..1]),
        });
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

    /// [`Self::consume`], where another process has the descriptor, too: it may take the wake-up
    /// first, and make reads wait (`O_NONBLOCK` is a flag of all duplicates). This one does not.
    #[cfg(target_os = "linux")]
    pub fn consume_shared(&self) -> io::Result<bool> {
        use rustix::io::{ReadWriteFlags, preadv2};
        let mut buffer = [0u8; 8];
        loop {
            let pieces = &mut [io::IoSliceMut::new(&mut buffer)];
            // The largest offset stands for none.
            match preadv2(&self.read, pieces, u64::MAX, ReadWriteFlags::NOWAIT) {
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                // Linux before 5.8.
                Err(Errno::OPNOTSUPP) => return Ok(self.is_ready(PollFlags::IN)? && self.consume()?),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// [`Self::consume`]: no other process has the descriptor here.
    #[cfg(not(target_os = "linux"))]
    pub fn consume_shared(&self) -> io::Result<bool> {
        self.consume()
    }

    /// [`Self::notify`], where another process has the descriptor, too: a counter that it has
    /// filled is a wake-up, and is not waited for. (If it is filled between the look and the write,
    /// it is: no system call adds to an eventfd and never waits.)
    pub fn notify_shared(&self) -> io::Result<()> {
        if self.is_ready(PollFlags::OUT)? { self.notify() } else { Ok(()) }
    }

    fn is_ready(&self, how: PollFlags) -> io::Result<bool> {
        let end = if how == PollFlags::OUT { self.write.as_ref().unwrap_or(&self.read) } else { &self.read };
        let mut looked = [PollFd::new(end, how)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::io::retry_on_intr(|| poll(&mut looked, Some(&now)))?;
        // A counter that the kernel has filled to its end is told as an error, asked or not.
        Ok(looked[0].revents().contains(how))
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

    #[test]
    #[cfg(target_os = "linux")]
    fn another_process_that_makes_it_block_holds_nobody_up() {
        let notifier = Notifier::new().unwrap();
        let theirs = notifier.as_fd().try_clone_to_owned().unwrap();
        rustix::fs::fcntl_setfl(&theirs, rustix::fs::OFlags::empty()).unwrap();
        assert!(!notifier.consume_shared().unwrap());
        // As full as it can be.
        rustix::io::write(&theirs, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        notifier.notify_shared().unwrap();
        assert!(notifier.consume_shared().unwrap() && !notifier.consume_shared().unwrap());
        notifier.notify_shared().unwrap();
        rustix::io::read(&theirs, &mut [0; 8]).unwrap();
        assert!(!notifier.consume_shared().unwrap());
    }
}
