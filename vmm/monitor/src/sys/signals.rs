//! Signals as a descriptor, for programs that own their process. A library has no business here.

#![allow(unsafe_code, reason = "signal sets and signalfd have no safe wrapper here")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Whether the signal of this number is ignored: whoever started the process wanted it so (`nohup`,
/// a shell's background jobs).
///
/// # Errors
/// A number that is none.
pub fn ignored(number: i32) -> io::Result<bool> {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null action changes nothing, and the current one is written to a place of its type.
    if unsafe { libc::sigaction(number, std::ptr::null(), action.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it wrote the whole action.
    Ok(unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN)
}

/// Undoes what was set to handle the signal of this number; one that is ignored stays so.
///
/// # Errors
/// A number that is none, or of a signal whose action cannot be set.
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

/// Signals that no longer end the process but wait in a descriptor.
#[derive(Debug)]
pub struct Signals(OwnedFd);

#[cfg(target_os = "linux")]
impl Signals {
    /// Blocks the signals of these numbers in this thread and in those it starts from now on. To be
    /// called before any other thread is.
    ///
    /// # Errors
    /// A number that is none, or the host's refusal.
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

    /// The number of the next signal that arrived, if one did.
    ///
    /// # Errors
    /// The descriptor cannot be read.
    pub fn take(&self) -> io::Result<Option<i32>> {
        let mut record = [0u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.0, &mut record) {
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
    /// Always: not written for this system.
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
    /// Readable while a signal waits.
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
