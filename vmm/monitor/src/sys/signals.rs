//! Signals through a file descriptor, for programs. A library should not use this.

#![allow(unsafe_code, reason = "signal sets and signalfd have no safe wrapper here")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Whether the signal with this number is ignored, as it is in a process that was started with
/// `nohup` or as a background job of a shell.
///
/// # Errors
/// The number is invalid.
pub fn ignored(number: i32) -> io::Result<bool> {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null action changes nothing, and the current one is written to a place of its type.
    if unsafe { libc::sigaction(number, std::ptr::null(), action.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it wrote the whole action.
    Ok(unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN)
}

/// Restores the default action of the signal with this number, unless it is ignored.
///
/// # Errors
/// The number is invalid, or the action of the signal cannot be changed.
pub fn act_by_default(number: i32) -> io::Result<()> {
    if ignored(number)? {
        return Ok(());
    }
    // SAFETY: the default action runs no code of this process.
    if unsafe { libc::signal(number, libc::SIG_DFL) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Blocked signals, which are read from a file descriptor.
#[derive(Debug)]
pub struct Signals(OwnedFd);

#[cfg(target_os = "linux")]
impl Signals {
    /// Blocks the signals with these numbers in this thread and in threads that it creates later.
    /// Must be called before other threads are created.
    ///
    /// # Errors
    /// A number is invalid, or a system call failed.
    pub fn block(numbers: &[i32]) -> io::Result<Self> {
        use std::os::fd::FromRawFd;
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initializes the set it is given.
        let mut set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        };
        for number in numbers {
            // SAFETY: the set is initialized; a bad number is answered by an error.
            if unsafe { libc::sigaddset(&raw mut set, *number) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: the set is initialized and nothing is written through the null pointer.
        let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: the set is initialized; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call gave us this descriptor, which nobody else knows.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The number of the next pending signal, if any.
    ///
    /// # Errors
    /// The descriptor cannot be read.
    pub fn take(&self) -> io::Result<Option<i32>> {
        let mut record = [0u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut record)) {
            // The number is the record's first field, 32 bits.
            Ok(_) => Ok(record.first_chunk().map(|number| i32::from_ne_bytes(*number))),
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Signals {
    /// See the Linux version.
    ///
    /// # Errors
    /// Always: not implemented for this system.
    pub fn block(_numbers: &[i32]) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// See the Linux version.
    ///
    /// # Errors
    /// Never.
    pub fn take(&self) -> io::Result<Option<i32>> {
        Ok(None)
    }
}

impl AsFd for Signals {
    /// Readable while a signal is pending.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_was_ignored_from_the_start_is_known() {
        // The standard library ignores it before main, and nobody here ignores the other.
        assert!(ignored(libc::SIGPIPE).unwrap());
        assert!(!ignored(libc::SIGUSR1).unwrap());
        assert!(ignored(10_000).is_err());
        act_by_default(libc::SIGPIPE).unwrap();
        assert!(ignored(libc::SIGPIPE).unwrap());
        assert!(act_by_default(10_000).is_err() && act_by_default(libc::SIGKILL).is_err());
    }

    #[test]
    fn a_blocked_signal_waits_in_the_descriptor() {
        // In a thread of its own, whose mask goes with it.
        let taken = std::thread::spawn(|| {
            let signals = Signals::block(&[libc::SIGUSR2]).unwrap();
            assert_eq!(signals.take().unwrap(), None);
            // SAFETY: raises a signal that this thread blocks.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) };
            (signals.take().unwrap(), signals.take().unwrap())
        });
        assert_eq!(taken.join().unwrap(), (Some(libc::SIGUSR2), None));
        assert!(Signals::block(&[10_000]).is_err());
    }
}
