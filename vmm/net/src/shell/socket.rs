//! Host sockets: none of them ever blocks.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketAddrAny, SocketType, ipproto, sockopt};

use super::ring::Ring;
use crate::config::Protocol;
use crate::core::{Failure, FlowId};
use crate::sys::{QUIET, socket};

/// What a flow's socket is like.
#[derive(Debug)]
pub(super) enum Kind {
    /// A stream that is being connected.
    Connecting,
    /// A stream.
    Stream,
    /// A stream that the core wants to see whole.
    Answer,
    /// A stream without a socket.
    Local,
    /// Datagrams, pings too.
    Datagrams,
    /// A peer of a published UDP port: the place of its socket among them.
    Peer(usize, SocketAddr),
}

/// The socket of a flow.
#[derive(Debug)]
pub(super) struct Socket {
    /// The flow.
    pub(super) id: FlowId,
    /// The socket; a peer of a published port has none of its own.
    pub(super) file: Option<OwnedFd>,
    /// What it is like.
    pub(super) kind: Kind,
    /// There may be something to read.
    pub(super) readable: bool,
    /// The peer has said that nothing more comes.
    pub(super) ended: bool,
    /// There was urgent data: a read that gives little does not mean that there is no more.
    pub(super) urgent: bool,
    /// It stands in the list of work.
    pub(super) queued: bool,
    /// What the guest does not have yet.
    pub(super) ring: Ring,
    /// What the socket did not take yet.
    pub(super) left: VecDeque<u8>,
    /// Nothing more will be written once `left` is.
    pub(super) shut: bool,
    /// It may be connected to the host itself.
    pub(super) trusted: bool,
}

impl Socket {
    /// The socket of a flow, of which nothing is known yet.
    pub(super) fn new(id: FlowId, file: Option<OwnedFd>, kind: Kind, trusted: bool) -> Self {
        Self {
            id,
            file,
            kind,
            readable: false,
            ended: false,
            urgent: false,
            queued: false,
            ring: Ring::default(),
            left: VecDeque::new(),
            shut: false,
            trusted,
        }
    }

    /// Writes `bytes` behind what is left, and keeps what is not taken. Gives how much is left.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        let Some(file) = &self.file else { return Ok(0) };
        let mut bytes = bytes;
        if self.left.is_empty() && !matches!(self.kind, Kind::Connecting) {
            match net::send(file, bytes, QUIET | SendFlags::DONTWAIT) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        self.left.extend(bytes);
        Ok(self.left.len())
    }

    /// Writes what is left, and shuts the stream if that was all. Gives how much is left.
    pub(super) fn flush(&mut self) -> Result<usize, Errno> {
        let Some(file) = &self.file else { return Ok(0) };
        while !self.left.is_empty() {
            let (a, b) = self.left.as_slices();
            let parts = [IoSlice::new(a), IoSlice::new(b)];
            match send_parts(file, &parts) {
                Ok(sent) => _ = self.left.drain(..sent),
                Err(Errno::AGAIN) => return Ok(self.left.len()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        // What a burst took is given back.
        self.left = VecDeque::new();
        if self.shut {
            match net::shutdown(file, net::Shutdown::Write) {
                // The peer is gone already: reading says so.
                Ok(()) | Err(Errno::NOTCONN) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(0)
    }

    /// Whether it is connected to an address of the host.
    pub(super) fn is_own(&self) -> bool {
        let Some(file) = &self.file else { return false };
        let ends =
            (net::getsockname(file).ok().and_then(ip), net::getpeername(file).ok().flatten().and_then(ip));
        matches!(ends, (Some(own), Some(peer)) if own == peer)
    }
}

/// The IP address and port of an address.
pub(super) fn internet(address: SocketAddrAny) -> Option<SocketAddr> {
    SocketAddr::try_from(address).ok()
}

fn ip(address: SocketAddrAny) -> Option<IpAddr> {
    internet(address).map(|address| address.ip())
}

/// Sends some slices as one message.
pub(super) fn send_parts(file: &OwnedFd, parts: &[IoSlice<'_>]) -> Result<usize, Errno> {
    let flags = QUIET | SendFlags::DONTWAIT;
    net::sendmsg(file, parts, &mut net::SendAncillaryBuffer::default(), flags)
}

/// Receives one message.
pub(super) fn receive(file: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    net::recv(file, buffer, RecvFlags::DONTWAIT).map(|(len, _)| len)
}

/// A socket of this kind towards this address.
pub(super) fn open(protocol: Protocol, to: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, None),
        Protocol::Udp => (SocketType::DGRAM, None),
        Protocol::Icmp if to.is_ipv4() => (SocketType::DGRAM, Some(ipproto::ICMP)),
        Protocol::Icmp => (SocketType::DGRAM, Some(ipproto::ICMPV6)),
    };
    let file = socket(family, kind, number)?;
    if protocol == Protocol::Tcp {
        prepare(&file);
    }
    Ok(file)
}

/// The guest decides when to send, who is silent for long is asked whether it is there, and urgent
/// data is data.
pub(super) fn prepare(stream: &OwnedFd) {
    // No stream of the Internet refuses any of these.
    let _ = sockopt::set_tcp_nodelay(stream, true);
    let _ = sockopt::set_socket_keepalive(stream, true);
    // Urgent data stays in its place in the stream.
    let _ = sockopt::set_socket_oobinline(stream, true);
}

/// The peer of this stream is to see a reset when it is closed.
pub(super) fn reset_at_close(stream: &OwnedFd) {
    let _ = sockopt::set_socket_linger(stream, Some(std::time::Duration::ZERO));
}

/// What an error means for a guest.
pub(super) fn failure(error: Errno) -> Failure {
    match error {
        Errno::CONNREFUSED => Failure::Refused,
        Errno::NETUNREACH | Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT => Failure::NetUnreachable,
        Errno::HOSTUNREACH | Errno::HOSTDOWN | Errno::TIMEDOUT => Failure::HostUnreachable,
        Errno::ACCESS | Errno::PERM => Failure::Prohibited,
        _ => Failure::Other,
    }
}
