//! Inherited file descriptors and the environment.

#![allow(
    unsafe_code,
    reason = "a number is all that a command line says about a descriptor, and the environment is the C library's"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Duplicates the file descriptor `number`, with close-on-exec. The original stays open.
///
/// # Errors
/// It is not open.
pub fn inherited(number: u32) -> io::Result<OwnedFd> {
    let number = RawFd::try_from(number).map_err(|_| io::Error::from(rustix::io::Errno::BADF))?;
    // SAFETY: the borrow lasts for one call, which asks the system about the number and answers
    // EBADF when nothing is open there. A number that comes from u32 is not -1.
    let file = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(rustix::io::fcntl_dupfd_cloexec(file, 3)?)
}

/// Closes all file descriptors above 2 except `kept`.
///
/// To be called once by a program, before it opens files of its own. A library must not call it.
///
/// # Errors
/// The system does not have the call (Linux before 5.9).
pub fn close_all_but(kept: &[&OwnedFd]) -> io::Result<()> {
    let mut kept: Vec<RawFd> =
        kept.iter().map(|file| file.as_raw_fd()).filter(|&number| number >= 3).collect();
    kept.sort_unstable();
    let mut first = 3;
    for number in kept {
        if number > first {
            close_range(first, number - 1)?;
        }
        first = number + 1;
    }
    close_range(first, RawFd::MAX)
}

#[cfg(target_os = "linux")]
fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: the caller of `close_all_but` has nothing open in this range that anybody still uses.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// As on Linux, one number after the other.
#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "as on Linux")]
fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: the call asks for a number and takes nothing.
    let most = unsafe { libc::getdtablesize() };
    for number in first..=last.min(most) {
        // SAFETY: the caller of `close_all_but` has nothing open in this range that anybody still
        // uses; a number that is not open is refused.
        let _not_open = unsafe { libc::close(number) };
    }
    Ok(())
}

/// Whether this thread is the only one of its process.
///
/// # Errors
/// The system does not tell.
#[cfg(target_os = "linux")]
pub(super) fn is_alone() -> io::Result<bool> {
    Ok(std::fs::read_dir("/proc/self/task")?.count() == 1)
}

/// The system has no place where that stands: the programs call what needs it before they make
/// threads.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "as on Linux")]
pub(super) fn is_alone() -> io::Result<bool> {
    Ok(true)
}

/// Overwrites the environment that this program was started with, so that neither its memory nor
/// `/proc/PID/environ` holds what the parent process has in its own. To be called first by a
/// program.
///
/// # Errors
/// Another thread runs, which may be reading it, or the system does not tell.
pub fn forget_environment() -> io::Result<()> {
    unsafe extern "C" {
        static mut environ: *mut *mut libc::c_char;
    }
    if !is_alone()? {
        return Err(io::Error::other("another thread runs"));
    }
    // SAFETY: the C library's list of texts, each with its NUL, and a null pointer behind the last;
    // it is null itself when somebody cleared it. The system made the texts for this process to
    // write to. No other thread runs, and nobody has a reference to one: `std::env` gives copies.
    unsafe {
        let mut variable = environ;
        while !variable.is_null() && !(*variable).is_null() {
            std::ptr::write_bytes(*variable, 0, libc::strlen(*variable));
            *variable = std::ptr::null_mut();
            variable = variable.add(1);
        }
    }
    Ok(())
}
