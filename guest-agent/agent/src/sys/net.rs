//! Sockets: vsock to the host, packet sockets to new processes, the loopback interface.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::{check, owned};

/// A vsock address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VsockAddress {
    /// Context id.
    pub cid: u32,
    /// Port.
    pub port: u32,
}

impl VsockAddress {
    fn raw(self) -> libc::sockaddr_vm {
        // SAFETY: an all-zero address is valid.
        let mut address: libc::sockaddr_vm = unsafe { zeroed() };
        address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).expect("AF_VSOCK is 40");
        address.svm_cid = self.cid;
        address.svm_port = self.port;
        address
    }
}

const ADDRESS_LENGTH: libc::socklen_t = 16;

fn vsock_socket(nonblocking: bool) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
    // SAFETY: no pointer.
    owned(unsafe { libc::socket(libc::AF_VSOCK, flags, 0) })
}

/// Length of the accept queue, enough for the streams of many processes that start at the same
/// time.
const BACKLOG: libc::c_int = 4096;

/// Creates a non-blocking listening socket on a vsock port.
///
/// # Errors
/// Those of socket(2), bind(2) and listen(2).
pub fn listen_vsock(port: u32) -> io::Result<OwnedFd> {
    let socket = vsock_socket(true)?;
    let address = VsockAddress { cid: libc::VMADDR_CID_ANY, port }.raw();
    // SAFETY: the address has the length given.
    unsafe {
        check(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LENGTH))?;
        check(libc::listen(socket.as_raw_fd(), BACKLOG))?;
    }
    Ok(socket)
}

/// Accepts a connection; the new socket is non-blocking.
///
/// # Errors
/// Those of accept4(2).
pub fn accept_vsock(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, VsockAddress)> {
    // SAFETY: an all-zero address is valid, and the pointers are to live values of the length
    // given.
    unsafe {
        let mut address: libc::sockaddr_vm = zeroed();
        let mut length = ADDRESS_LENGTH;
        let fd = check(libc::accept4(
            listener.as_raw_fd(),
            (&raw mut address).cast(),
            &raw mut length,
            libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
        ))?;
        let address = VsockAddress { cid: address.svm_cid, port: address.svm_port };
        Ok((OwnedFd::from_raw_fd(fd), address))
    }
}

/// Accepts a connection on a stream socket of any family; the new socket is non-blocking.
///
/// # Errors
/// Those of accept4(2).
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the address is not asked for.
    owned(unsafe { libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) })
}

/// Connects a socket. If it is non-blocking, it becomes writable when the connection is established
/// or has failed; see [`connect_result`].
///
/// # Errors
/// Those of socket(2) and connect(2).
pub fn connect_vsock(address: VsockAddress, nonblocking: bool) -> io::Result<OwnedFd> {
    let socket = vsock_socket(nonblocking)?;
    let address = address.raw();
    // SAFETY: the address has the length given.
    match check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LENGTH) }) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}

/// Returns the result of a non-blocking connect.
///
/// # Errors
/// The error of the connect.
pub fn connect_result(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut error: libc::c_int = 0;
    let mut length = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: the pointers are to live values of the length given.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ERROR,
            (&raw mut error).cast(),
            &raw mut length,
        )
    })?;
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// Shuts down the sending direction. Errors are ignored; they mean that the peer has gone.
pub fn shutdown_write(socket: BorrowedFd<'_>) {
    // SAFETY: no pointer.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_WR) };
}

/// Tells the peer of a socket that nothing more is read.
pub fn shutdown_read(socket: BorrowedFd<'_>) {
    // SAFETY: no pointer.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RD) };
}

/// Sends small pieces of a TCP connection at once.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_no_delay(stream: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: the pointer is to a live value of the length given.
    check(unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NODELAY,
            (&raw const on).cast(),
            length,
        )
    })
    .map(drop)
}

/// Whether the peer of a stream has closed both directions, and not only its sending direction.
#[must_use]
pub fn hung_up(stream: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd { fd: stream.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one live element.
    let n = unsafe { libc::poll(&raw mut poll, 1, 0) };
    if n == 1 && poll.revents & (libc::POLLHUP | libc::POLLERR) != 0 {
        return true;
    }
    // poll does not report this for vsock, but sending fails, even of 0 bytes.
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: no byte is read from the null pointer.
    let sent = unsafe { libc::send(stream.as_raw_fd(), std::ptr::null(), 0, flags) };
    sent < 0 && !matches!(io::Error::last_os_error().raw_os_error(), Some(libc::EAGAIN | libc::ENOTSOCK))
}

/// Two connected packet sockets with close-on-exec. The first one is non-blocking, the second is
/// not.
///
/// # Errors
/// Those of socketpair(2).
pub fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for the two descriptors.
    check(unsafe {
        libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr())
    })?;
    let pair = (owned(ends[0])?, owned(ends[1])?);
    use std::os::fd::AsFd;
    super::set_nonblocking(pair.0.as_fd(), true)?;
    Ok(pair)
}

/// Size of the control message with one file descriptor.
#[repr(C, align(8))]
struct Control([u8; 32]);

/// A received packet.
#[derive(Debug)]
pub struct ReceivedBytes {
    /// Length in bytes; 0 is end of file.
    pub length: usize,
    /// The file descriptor that was sent with it.
    pub descriptor: Option<OwnedFd>,
}

/// Receives one packet.
///
/// # Errors
/// Those of recvmsg(2).
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<ReceivedBytes> {
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = Control([0; 32]);
    // SAFETY: an all-zero header is valid; every pointer in it is to a live value of the length
    // given; the control message is read only if the kernel wrote one of the kind that carries a
    // descriptor, which then is ours.
    unsafe {
        let mut header: libc::msghdr = zeroed();
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut control).cast();
        header.msg_controllen = size_of::<Control>();
        let n = libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC);
        let length = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
        let message = libc::CMSG_FIRSTHDR(&raw const header);
        let carries = !message.is_null()
            && (*message).cmsg_level == libc::SOL_SOCKET
            && (*message).cmsg_type == libc::SCM_RIGHTS;
        let descriptor = carries
            .then(|| OwnedFd::from_raw_fd(libc::CMSG_DATA(message).cast::<libc::c_int>().read_unaligned()));
        Ok(ReceivedBytes { length, descriptor })
    }
}

/// Sends one packet, optionally with a file descriptor. Does not raise SIGPIPE.
///
/// # Errors
/// Those of sendmsg(2).
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control([0; 32]);
    // SAFETY: an all-zero header is valid; every pointer in it is to a live value of the length
    // given; the control buffer has room for one descriptor.
    let n = unsafe {
        let mut header: libc::msghdr = zeroed();
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        if let Some(descriptor) = descriptor {
            let size = u32::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
            header.msg_control = (&raw mut control).cast();
            header.msg_controllen = usize::try_from(libc::CMSG_SPACE(size)).map_err(io::Error::other)?;
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = usize::try_from(libc::CMSG_LEN(size)).map_err(io::Error::other)?;
            libc::CMSG_DATA(message).cast::<libc::c_int>().write_unaligned(descriptor.as_raw_fd());
        }
        libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL)
    };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Brings up the loopback interface of this network namespace.
///
/// # Errors
/// Those of socket(2) and ioctl(2).
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: no pointer.
    let socket = owned(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: an all-zero request is valid; the name is two bytes and a zero; the union's flags are
    // what both calls mean.
    unsafe {
        let mut request: libc::ifreq = zeroed();
        for (slot, byte) in request.ifr_name.iter_mut().zip(b"lo") {
            *slot = libc::c_char::from_ne_bytes([*byte]);
        }
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request))?;
        request.ifr_ifru.ifru_flags |= libc::c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request))?;
    }
    Ok(())
}
