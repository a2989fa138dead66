//! Who is at the other end of a Unix socket.

#![cfg_attr(not(target_os = "linux"), allow(unsafe_code, reason = "no crate asks who that is"))]

use std::io;
use std::os::fd::AsFd;

/// The user of the process that connected this socket.
///
/// # Errors
/// It is not connected.
#[cfg(target_os = "linux")]
pub fn peer_user(socket: impl AsFd) -> io::Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(socket)?.uid.as_raw())
}

/// As on Linux, by getpeereid(3).
///
/// # Errors
/// It is not connected.
#[cfg(not(target_os = "linux"))]
pub fn peer_user(socket: impl AsFd) -> io::Result<u32> {
    use std::os::fd::AsRawFd;
    let (mut user, mut group) = (0, 0);
    // SAFETY: the socket is open, and the system writes two numbers.
    match unsafe { libc::getpeereid(socket.as_fd().as_raw_fd(), &raw mut user, &raw mut group) } {
        0 => Ok(user),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What a file is, whatever its name: its device and its inode.
#[cfg(target_os = "linux")]
#[must_use]
pub fn identity(found: &rustix::fs::Stat) -> (u64, u64) {
    (found.st_dev, found.st_ino)
}

/// As on Linux, where the device's number has another width.
#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn identity(found: &rustix::fs::Stat) -> (u64, u64) {
    (u64::from(found.st_dev.cast_unsigned()), found.st_ino)
}
