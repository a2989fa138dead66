//! Who is at the other end of a Unix socket.

use std::io;
use std::os::fd::AsFd;

/// The user of the process that connected this socket.
///
/// # Errors
/// It is not connected.
pub fn peer_user(socket: impl AsFd) -> io::Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(socket)?.uid.as_raw())
}
