//! The process in a container that makes sockets there, a copy of the agent with one thread.
//!
//! It is asked by packets, one byte (1 connect, 2 listen) and the address: a path, or the two
//! bytes 0 and `p` and a port, big-endian. It answers each with four bytes, 0 or the number of an
//! error, little-endian, and the socket.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrIn, UnixAddr, bind, connect, listen,
    setsockopt, socket, sockopt,
};
use nix::sys::stat::Mode;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::address::{Address, PATH_MOST};
use crate::sys::{self, CloneRequest};

/// `CAP_DAC_OVERRIDE`, `CAP_DAC_READ_SEARCH`, `CAP_FOWNER` and `CAP_NET_BIND_SERVICE`: sockets of
/// any owner, and every port.
const CAPABILITIES: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 10;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Before a port, where a path would begin.
const PORT: [u8; 2] = [0, b'p'];

/// Number of the packets' socket in the process.
const ASKED: i32 = 1;
/// Number of the pidfd of the container's first process.
const FIRST: i32 = 3;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    Connect,
    Listen,
}

/// The process. Dropping it ends it: it holds the container's mounts.
pub(super) struct Door {
    packets: AsyncFd<OwnedFd>,
    pidfd: OwnedFd,
}

impl Door {
    /// Makes the process in the container whose first process `first` is.
    pub(super) fn open(first: &OwnedFd) -> io::Result<Self> {
        let (ours, theirs) = sys::socket_pair()?;
        let null = File::open("/dev/null")?;
        let descriptors = [null.as_fd(), theirs.as_fd(), null.as_fd(), first.as_fd()];
        let request =
            CloneRequest { namespaces: 0, cgroup: None, pid_namespace: None, descriptors: &descriptors };
        let (_, pidfd) = sys::clone_child(&request, main)?;
        Ok(Self { packets: sys::watch(ours, Interest::READABLE | Interest::WRITABLE)?, pidfd })
    }

    /// Asks for a socket. The outer error is that of the process, which is of no use any more.
    pub(super) async fn ask(&self, ask: Ask, address: &Address) -> io::Result<io::Result<OwnedFd>> {
        let packet = packet(ask, address);
        self.packets.async_io(Interest::WRITABLE, |socket| sys::send(socket.as_fd(), &packet, None)).await?;
        let mut answer = [0; 4];
        let received = self
            .packets
            .async_io(Interest::READABLE, |socket| sys::receive(socket.as_fd(), &mut answer))
            .await?;
        match (received.length, i32::from_le_bytes(answer), received.descriptor) {
            (4, 0, Some(socket)) => Ok(Ok(socket)),
            (4, number @ 1.., None) => Ok(Err(io::Error::from_raw_os_error(number))),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = sys::signal_pidfd(self.pidfd.as_fd(), libc::SIGKILL);
    }
}

fn packet(ask: Ask, address: &Address) -> Vec<u8> {
    let mut packet = vec![match ask {
        Ask::Connect => 1,
        Ask::Listen => 2,
    }];
    match address {
        Address::Path(path) => packet.extend_from_slice(path),
        Address::Port(port) => {
            packet.extend_from_slice(&PORT);
            packet.extend_from_slice(&port.to_be_bytes());
        }
    }
    packet
}

fn parse(packet: &[u8]) -> Option<(Ask, Address)> {
    let (first, rest) = packet.split_first()?;
    let ask = match first {
        1 => Ask::Connect,
        2 => Ask::Listen,
        _ => return None,
    };
    let address = match rest.strip_prefix(&PORT) {
        Some(port) => Address::Port(u16::from_be_bytes(port.try_into().ok()?)),
        None => Address::Path(rest.to_vec()),
    };
    Some((ask, address))
}

fn main() -> i32 {
    // The agent's own hook ends the machine.
    drop(std::panic::take_hook());
    let (Some(packets), Some(first)) = (sys::inherited(ASKED), sys::inherited(FIRST)) else { return 125 };
    // Before any process of a container when memory is short.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    let entered = sys::join_namespaces(first.as_fd(), libc::CLONE_NEWNS | libc::CLONE_NEWNET);
    if entered.is_err() || sys::capabilities::apply(CAPABILITIES, CAPABILITIES, 0, 0).is_err() {
        return 125;
    }
    drop(first);
    nix::sys::stat::umask(Mode::empty());
    let mut packet = [0; PATH_MOST + 1];
    loop {
        let Ok(received) = sys::receive(packets.as_fd(), &mut packet) else { return 1 };
        let asked = packet.get(..received.length).filter(|packet| !packet.is_empty());
        // The agent is gone, or has no use for this process any more.
        let Some((ask, address)) = asked.and_then(parse) else { return 0 };
        let made = make(ask, &address);
        // Nothing of the container is held while nothing is asked.
        let _ = nix::unistd::chdir("/");
        if answer(packets.as_fd(), made).is_err() {
            return 1;
        }
    }
}

fn answer(packets: BorrowedFd<'_>, made: io::Result<OwnedFd>) -> io::Result<()> {
    match made {
        Ok(socket) => sys::send(packets, &0_i32.to_le_bytes(), Some(socket.as_fd())),
        Err(error) => {
            let number = error.raw_os_error().filter(|number| *number > 0).unwrap_or(libc::EIO);
            sys::send(packets, &number.to_le_bytes(), None)
        }
    }
}

fn make(ask: Ask, address: &Address) -> io::Result<OwnedFd> {
    match address {
        Address::Port(port) => make_tcp(ask, *port),
        Address::Path(path) => {
            use std::os::unix::ffi::OsStrExt;
            let path = Path::new(std::ffi::OsStr::from_bytes(path));
            // An address of a socket has room for a name of any length, and not for any path.
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            };
            nix::unistd::chdir(parent)?;
            match ask {
                Ask::Connect => connect_unix(Path::new(name)),
                Ask::Listen => listen_unix(Path::new(name)),
            }
        }
    }
}

fn fresh(family: AddressFamily, protocol: Option<SockProtocol>) -> nix::Result<OwnedFd> {
    socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, protocol)
}

/// `EAGAIN`: its queue is full.
fn connect_unix(name: &Path) -> io::Result<OwnedFd> {
    let socket = fresh(AddressFamily::Unix, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(name)?)?;
    Ok(socket)
}

fn listen_unix(name: &Path) -> io::Result<OwnedFd> {
    match fs::symlink_metadata(name) {
        Ok(found) if found.file_type().is_socket() => match connect_unix(name) {
            // That of one that is gone.
            Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => fs::remove_file(name)?,
            _ => return Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
        },
        Ok(_) => return Err(io::Error::from_raw_os_error(libc::EEXIST)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let socket = fresh(AddressFamily::Unix, None)?;
    // The file has its mode from its socket: by its name it may be another's by then.
    nix::sys::stat::fchmod(&socket, Mode::from_bits_truncate(0o666))?;
    bind(socket.as_raw_fd(), &UnixAddr::new(name)?)?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket)
}

/// One that connects may be under way still.
fn make_tcp(ask: Ask, port: u16) -> io::Result<OwnedFd> {
    let socket = fresh(AddressFamily::Inet, Some(SockProtocol::Tcp))?;
    let address = SockaddrIn::new(127, 0, 0, 1, port);
    if ask == Ask::Connect {
        return match connect(socket.as_raw_fd(), &address) {
            Ok(()) | Err(nix::Error::EINPROGRESS) => Ok(socket),
            Err(error) => Err(error.into()),
        };
    }
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &address)?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_out_as_they_went_in_and_nothing_else_does() {
        for ask in [Ask::Connect, Ask::Listen] {
            for address in [Address::Port(1), Address::Port(65_535), Address::Path(b"/a".to_vec())] {
                assert_eq!(parse(&packet(ask, &address)), Some((ask, address)));
            }
        }
        for bad in [&b""[..], b"\x03/a", b"\x01\0p1", b"\x01\0p123"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
