//! Other processes: a handle that can mean no other one, when one began, and what it uses.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::process::Child;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal};

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;

#[cfg(target_os = "linux")]
use linux as platform;
#[cfg(target_os = "macos")]
use macos as platform;

/// One process, whoever has its number later. It can be signalled from any thread, also while
/// another waits for it.
#[derive(Debug)]
pub struct ProcessHandle(platform::Handle);

/// What a process uses of the host. Nothing, where the host does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessUsage {
    /// CPU time in nanoseconds.
    pub cpu_ns: u64,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
}

impl ProcessHandle {
    /// For a child that nobody has collected.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn of(child: &Child) -> io::Result<Self> {
        platform::open(Pid::from_child(child)).map(Self)
    }

    /// For the process that has this number now. What it began at ([`ProcessHandle::started`]),
    /// looked at afterwards, tells whether it is the one that is meant.
    ///
    /// # Errors
    /// There is none, or no descriptor is left.
    pub fn open(number: u32) -> io::Result<Self> {
        let number = i32::try_from(number).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        platform::open(number).map(Self)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended (`ESRCH`), or is not this user's.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        platform::signal(&self.0, signal)
    }

    /// Ends the process. One that has ended already stays as it is.
    pub fn kill(&self) {
        // Refused of a process that is gone, which is what was wanted.
        let _gone = self.signal(Signal::KILL);
    }

    /// Waits until the process has ended, whether somebody has collected it or not; `false` when
    /// `timeout` was over first.
    #[must_use]
    pub fn ended(&self, timeout: Duration) -> bool {
        // A time beyond what the system counts is no limit.
        let timeout = Timespec::try_from(timeout).ok();
        let waited = rustix::io::retry_on_intr(|| {
            poll(&mut [PollFd::from_borrowed_fd(self.as_fd(), PollFlags::IN)], timeout.as_ref())
        });
        waited.is_ok_and(|ready| ready > 0)
    }

    /// When the process that has this number now began, in a unit of the system's own that tells
    /// processes of one number apart.
    ///
    /// # Errors
    /// There is none, or the system does not show it.
    pub fn started(number: u32) -> io::Result<u64> {
        platform::started(number)
    }
}

impl ProcessUsage {
    /// Of a process that is a child of this one and not collected, so that its number is its own.
    #[must_use]
    pub fn of(number: u32) -> Self {
        platform::usage(number).unwrap_or_default()
    }
}

impl AsFd for ProcessHandle {
    /// Readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for ProcessHandle {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_child_is_seen_to_run_and_to_end() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let handle = ProcessHandle::of(&child).unwrap();
        let another = ProcessHandle::open(child.id()).unwrap();
        assert!(!handle.ended(Duration::ZERO));
        assert_eq!(ProcessHandle::started(child.id()).unwrap(), ProcessHandle::started(child.id()).unwrap());
        // The system counts its first pages a moment after it has become `cat`.
        while ProcessUsage::of(child.id()).resident_bytes == 0 {
            assert!(!handle.ended(Duration::from_millis(1)));
        }
        handle.kill();
        assert!(handle.ended(Duration::from_secs(60)) && another.ended(Duration::from_secs(60)));
        // Ended, and nobody has collected it yet.
        assert!(ProcessHandle::of(&child).unwrap().ended(Duration::from_secs(60)));
        child.wait().unwrap();
        let gone = handle.signal(Signal::KILL).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ESRCH));
        handle.kill();
        assert!(another.ended(Duration::ZERO));
    }

    #[test]
    fn numbers_that_are_no_process_are_told() {
        for number in [0, u32::MAX] {
            assert!(ProcessHandle::open(number).is_err(), "{number}");
            assert!(ProcessHandle::started(number).is_err(), "{number}");
            assert_eq!(ProcessUsage::of(number), ProcessUsage::default(), "{number}");
        }
    }
}
