//! The kernel's routing netlink, rtnetlink(7).

use std::io;
use std::os::fd::OwnedFd;

use super::owned;

/// A socket to the kernel's routing netlink of this network namespace. What is read is a whole
/// number of messages; the kernel answers before a write returns, so that no read blocks for long.
///
/// # Errors
/// Those of socket(2).
pub fn netlink_route() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointer.
    owned(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) })
}
