//! The end of another process, by a handle that can mean no other one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::Child;
use std::time::Duration;

/// Kills one process, from any thread, also while another waits for it. A number could be another
/// process's by then.
#[derive(Debug)]
pub struct Killer(platform::Handle);

impl Killer {
    /// For a child that nobody has collected.
    ///
    /// # Errors
    /// The system has no such handles, or no descriptor is left.
    pub fn of(child: &Child) -> io::Result<Self> {
        platform::open(child).map(Self)
    }

    /// Ends the process. One that has ended already stays as it is.
    pub fn kill(&self) {
        platform::kill(&self.0);
    }

    /// Waits until the process has ended, whether somebody has collected it or not; `false` when
    /// `timeout` was over first.
    #[must_use]
    pub fn ended(&self, timeout: Duration) -> bool {
        platform::ended(&self.0, timeout)
    }
}

impl AsFd for Killer {
    /// Readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        platform::as_fd(&self.0)
    }
}

#[cfg(target_os = "linux")]
mod platform {
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
    use std::process::Child;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

    pub(super) type Handle = OwnedFd;

    pub(super) fn open(child: &Child) -> io::Result<Handle> {
        Ok(pidfd_open(Pid::from_child(child), PidfdFlags::empty())?)
    }

    pub(super) fn kill(process: &Handle) {
        // Refused of a process that is gone, which is what was wanted.
        let _gone = pidfd_send_signal(process, Signal::KILL);
    }

    pub(super) fn as_fd(process: &Handle) -> BorrowedFd<'_> {
        process.as_fd()
    }

    pub(super) fn ended(process: &Handle, timeout: Duration) -> bool {
        // A time beyond what the system counts is no limit.
        let timeout = Timespec::try_from(timeout).ok();
        let waited =
            rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(process, PollFlags::IN)], timeout.as_ref()));
        waited.is_ok_and(|ready| ready > 0)
    }
}

#[cfg(not(target_os = "linux"))]
mod platform {
    use std::convert::Infallible;
    use std::io;
    use std::os::fd::BorrowedFd;
    use std::process::Child;
    use std::time::Duration;

    pub(super) type Handle = Infallible;

    pub(super) fn open(_child: &Child) -> io::Result<Handle> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn kill(process: &Handle) {
        match *process {}
    }

    pub(super) fn as_fd(process: &Handle) -> BorrowedFd<'_> {
        match *process {}
    }

    pub(super) fn ended(process: &Handle, _timeout: Duration) -> bool {
        match *process {}
    }
}
