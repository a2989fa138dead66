//! Descriptors that a program was started with, by number.

#![allow(unsafe_code, reason = "a number is all that a command line says about a descriptor")]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

/// A descriptor of our own, close-on-exec, for the file that is open under `number`. What is open there stays open.
///
/// # Errors
/// Nothing is open under that number.
pub fn inherited(number: u32) -> io::Result<OwnedFd> {
    let number = RawFd::try_from(number).map_err(|_| io::Error::from(rustix::io::Errno::BADF))?;
    // SAFETY: the borrow lasts for one call, which asks the system about the number and answers EBADF when nothing is open there.
    // A number that comes from u32 is not -1.
    let file = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(rustix::io::fcntl_dupfd_cloexec(file, 3)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_what_is_open_and_refuses_what_is_not() {
        assert!(inherited(2).is_ok());
        for number in [900_000, u32::MAX] {
            assert_eq!(
                inherited(number).unwrap_err().raw_os_error(),
                Some(rustix::io::Errno::BADF.raw_os_error())
            );
        }
    }
}
