//! Terminals.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{c_string, check, owned};

/// Both sides of a new terminal.
#[derive(Debug)]
pub struct Terminal {
    /// The side that the agent reads and writes.
    pub master: OwnedFd,
    /// The side of the process.
    pub slave: OwnedFd,
    /// N of /dev/pts/N.
    pub number: u32,
}

/// Opens a terminal by the multiplexer at `path`, which is checked to be one.
///
/// # Errors
/// Those of open(2) and ioctl(2); `ENOTTY` when the path is something else.
pub fn open_terminal(path: &str) -> io::Result<Terminal> {
    let path = c_string(path)?;
    // SAFETY: a C string.
    let master = owned(unsafe {
        libc::open(path.as_ptr(), libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK)
    })?;
    // SAFETY: an all-zero stat is valid, and the pointer is to a live one.
    let stat = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        check(libc::fstat(master.as_raw_fd(), &raw mut stat))?;
        stat
    };
    let multiplexer = stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == libc::makedev(5, 2);
    if !multiplexer {
        return Err(io::Error::from_raw_os_error(libc::ENOTTY));
    }
    let unlocked: libc::c_int = 0;
    let mut number: libc::c_uint = 0;
    // SAFETY: the pointers are to live integers; TIOCGPTPEER takes flags and makes a descriptor.
    let slave = unsafe {
        check(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked))?;
        check(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut number))?;
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        owned(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags))?
    };
    Ok(Terminal { master, slave, number })
}

/// Makes a terminal the controlling one of this session.
///
/// # Errors
/// Those of ioctl(2).
pub fn make_controlling(slave: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the argument is a number, not a pointer.
    check(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// Sets the size; the foreground process group gets SIGWINCH when it changed.
///
/// # Errors
/// Those of ioctl(2).
pub fn set_window_size(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the pointer is to a live structure.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}
