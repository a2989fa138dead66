//! Making sockets, and flags of sending and receiving, of which systems have not the same.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
#[cfg(target_os = "linux")]
use rustix::net::SocketFlags;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketType};

/// A peer that is gone is an error of the call, and no signal.
#[cfg(target_os = "linux")]
pub const QUIET: SendFlags = SendFlags::NOSIGNAL;
/// A peer that is gone is an error of the call: each socket that is made here has been told so.
#[cfg(not(target_os = "linux"))]
pub const QUIET: SendFlags = SendFlags::empty();

/// Descriptors that come are closed on exec.
#[cfg(target_os = "linux")]
pub const CLOSE_ON_EXEC: RecvFlags = RecvFlags::CMSG_CLOEXEC;
/// Descriptors that come stay open on exec: the programs execute none.
#[cfg(not(target_os = "linux"))]
pub const CLOSE_ON_EXEC: RecvFlags = RecvFlags::empty();

/// What Linux says of a connection whose network is gone.
#[cfg(target_os = "linux")]
pub const NO_NETWORK: Errno = Errno::NONET;
/// Other systems have no error of their own for that.
#[cfg(not(target_os = "linux"))]
pub const NO_NETWORK: Errno = Errno::NETDOWN;

/// A socket that no call waits for.
///
/// # Errors
/// The system does not make it.
#[cfg(target_os = "linux")]
pub fn socket(family: AddressFamily, kind: SocketType, protocol: Option<Protocol>) -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(family, kind, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, protocol)
}

/// As on Linux.
///
/// # Errors
/// The system does not make it.
#[cfg(not(target_os = "linux"))]
pub fn socket(family: AddressFamily, kind: SocketType, protocol: Option<Protocol>) -> Result<OwnedFd, Errno> {
    let file = rustix::net::socket(family, kind, protocol)?;
    prepare(&file)?;
    rustix::io::ioctl_fionbio(&file, true)?;
    Ok(file)
}

/// Two sockets that are connected to each other, and keep messages apart.
///
/// # Errors
/// The system does not make them.
#[cfg(target_os = "linux")]
pub fn message_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// As on Linux, but an end that is closed is told by the next write alone: of the system's sockets
/// between processes, those of datagrams keep messages apart.
///
/// # Errors
/// The system does not make them.
#[cfg(not(target_os = "linux"))]
pub fn message_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = rustix::net::SocketFlags::empty();
    let (one, other) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    prepare(&one)?;
    prepare(&other)?;
    Ok((one, other))
}

/// Whether connections between processes can keep messages apart, as those to a switch do.
#[cfg(target_os = "linux")]
pub const KEEPS_MESSAGES: bool = true;
/// Without a connection they can: [`message_pair`].
#[cfg(not(target_os = "linux"))]
pub const KEEPS_MESSAGES: bool = false;

/// Two streams that are connected to each other, and that no call waits for.
///
/// # Errors
/// The system does not make them.
#[cfg(target_os = "linux")]
pub fn stream_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// As on Linux.
///
/// # Errors
/// The system does not make them.
#[cfg(not(target_os = "linux"))]
pub fn stream_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = rustix::net::SocketFlags::empty();
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    for end in [&pair.0, &pair.1] {
        prepare(end)?;
        rustix::io::ioctl_fionbio(end, true)?;
    }
    Ok(pair)
}

/// A connection, which no call waits for.
///
/// # Errors
/// There is none, or the system does not give it.
#[cfg(target_os = "linux")]
pub fn accept(listener: &OwnedFd) -> Result<OwnedFd, Errno> {
    rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)
}

/// As on Linux.
///
/// # Errors
/// There is none, or the system does not give it.
#[cfg(not(target_os = "linux"))]
pub fn accept(listener: &OwnedFd) -> Result<OwnedFd, Errno> {
    let file = rustix::net::accept(listener)?;
    prepare(&file)?;
    rustix::io::ioctl_fionbio(&file, true)?;
    Ok(file)
}

#[cfg(not(target_os = "linux"))]
fn prepare(file: &OwnedFd) -> Result<(), Errno> {
    rustix::io::fcntl_setfd(file, rustix::io::FdFlags::CLOEXEC)?;
    rustix::net::sockopt::set_socket_nosigpipe(file, true)
}
