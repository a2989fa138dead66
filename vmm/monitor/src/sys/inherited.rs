//! Inherited file descriptors and the environment.

#![allow(
    unsafe_code,
    reason = "a number is all that a command line says about a descriptor, and the environment is the C library's"
)]

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

/// Duplicates the file descriptor `number`, with close-on-exec. The original stays open.
///
/// # Errors
/// The file descriptor is not open.
pub fn inherited(number: u32) -> io::Result<OwnedFd> {
    let number = RawFd::try_from(number).map_err(|_| io::Error::from(rustix::io::Errno::BADF))?;
    // SAFETY: the borrow lasts for one call, which asks the system about the number and answers
    // EBADF when nothing is open there. A number that comes from u32 is not -1.
    let file = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(rustix::io::fcntl_dupfd_cloexec(file, 3)?)
}

/// Closes all file descriptors except 0 to 2 and those in `handed`, with one system call for each
/// gap between them.
///
/// To be called once by a program, before it opens files of its own. A library must not call it.
///
/// # Errors
/// The system does not have the call (Linux before 5.9).
pub fn close_all_but(handed: &[u32]) -> io::Result<()> {
    gaps(handed).into_iter().try_for_each(close_range)
}

/// The ranges of numbers from 3 on that are not in `kept`.
fn gaps(kept: &[u32]) -> Vec<RangeInclusive<u32>> {
    let mut kept = kept.to_vec();
    kept.sort_unstable();
    let (mut gaps, mut next) = (Vec::new(), 3);
    for number in kept.into_iter().filter(|&number| number >= 3) {
        if number > next {
            gaps.push(next..=number - 1);
        }
        match number.checked_add(1) {
            Some(behind) => next = behind,
            None => return gaps,
        }
    }
    gaps.push(next..=u32::MAX);
    gaps
}

#[cfg(target_os = "linux")]
fn close_range(numbers: RangeInclusive<u32>) -> io::Result<()> {
    // SAFETY: the caller of `close_all_but` has nothing open in this range that anybody still uses.
    match unsafe { libc::syscall(libc::SYS_close_range, *numbers.start(), *numbers.end(), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(not(target_os = "linux"))]
fn close_range(_numbers: RangeInclusive<u32>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Overwrites the environment that this program was started with, so that neither its memory nor
/// `/proc/PID/environ` contains secrets of the parent process.
///
/// # Safety
/// No other thread may be running, and there must be no reference to a variable's text (`std::env`
/// returns copies).
pub(super) unsafe fn forget_environment() {
    unsafe extern "C" {
        static mut environ: *mut *mut libc::c_char;
    }
    // SAFETY: the C library's list of texts, each with its NUL, and a null pointer behind the last;
    // it is null itself when somebody cleared it. The system made the texts for this process to
    // write to, and the caller says that nobody else looks.
    unsafe {
        let mut variable = environ;
        while !variable.is_null() && !(*variable).is_null() {
            std::ptr::write_bytes(*variable, 0, libc::strlen(*variable));
            *variable = std::ptr::null_mut();
            variable = variable.add(1);
        }
    }
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

    #[test]
    fn what_lies_between_the_kept_numbers_is_closed_and_nothing_else() {
        const END: u32 = u32::MAX;
        let table: [(&[u32], &[RangeInclusive<u32>]); 7] = [
            (&[], &[3..=END]),
            (&[0, 1, 2], &[3..=END]),
            (&[3, 4, 5], &[6..=END]),
            (&[5, 3, 5], &[4..=4, 6..=END]),
            (&[9], &[3..=8, 10..=END]),
            (&[7, 1, 4], &[3..=3, 5..=6, 8..=END]),
            (&[END], &[3..=END - 1]),
        ];
        for (kept, expected) in table {
            assert_eq!(gaps(kept), expected, "{kept:?}");
        }
    }
}
