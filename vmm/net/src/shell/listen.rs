//! Published ports: whoever connects to one is a flow that the host began.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use super::Shell;
use super::socket::{Kind, Socket, internet, prepare};
use crate::config::{Protocol, Publish};
use crate::core::FlowId;

/// A port that cannot be published.
#[derive(Debug, thiserror::Error)]
#[error("cannot publish {publish}: {what}")]
pub struct ListenError {
    publish: Publish,
    what: String,
}

/// A published port.
#[derive(Debug)]
pub(super) struct Listener {
    file: OwnedFd,
    publish: Publish,
    /// Flows of the peers of a UDP port.
    peers: HashMap<SocketAddr, FlowId>,
    /// Somebody called before there was a guest.
    pub(super) waits: bool,
}

/// How many callers are taken before others have their turn.
const TURN: usize = 64;

impl Listener {
    /// Listens.
    pub(super) fn bind(publish: Publish) -> Result<Self, ListenError> {
        let mut publish = publish;
        let (file, bound) = Self::socket(&publish).map_err(|error| ListenError {
            publish,
            what: match error {
                Errno::ADDRINUSE => super::holder::taken(&publish),
                Errno::ADDRNOTAVAIL => format!("the host has no address {}", publish.bind.ip()),
                Errno::ACCESS => format!(
                    "port {} is for privileged programs only; take one above 1023, or lower \
                     net.ipv4.ip_unprivileged_port_start",
                    publish.bind.port()
                ),
                other => other.to_string(),
            },
        })?;
        publish.bind = bound;
        Ok(Self { file, publish, peers: HashMap::new(), waits: false })
    }

    fn socket(publish: &Publish) -> Result<(OwnedFd, SocketAddr), Errno> {
        let family = if publish.bind.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let stream = publish.protocol == Protocol::Tcp;
        let kind = if stream { SocketType::STREAM } else { SocketType::DGRAM };
        let file = net::socket_with(family, kind, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
        if publish.bind.is_ipv6() {
            sockopt::set_ipv6_v6only(&file, true)?;
        }
        if stream {
            // Connections of a machine that ended do not hold its port up.
            sockopt::set_socket_reuseaddr(&file, true)?;
        }
        net::bind(&file, &publish.bind)?;
        if stream {
            net::listen(&file, 1024)?;
        }
        let bound = internet(net::getsockname(&file)?).ok_or(Errno::AFNOSUPPORT)?;
        Ok((file, bound))
    }

    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    pub(super) fn text(&self) -> String {
        self.publish.to_string()
    }

    /// Sends a peer of a UDP port something.
    pub(super) fn send(&self, bytes: &[u8], peer: SocketAddr) -> Result<usize, Errno> {
        net::sendto(&self.file, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT, &peer)
    }

    /// The peer's flow is no more.
    pub(super) fn forget(&mut self, peer: SocketAddr) {
        self.peers.remove(&peer);
    }
}

impl Shell {
    /// A published port was called.
    pub(super) fn listen(&mut self, place: usize) {
        let v4 = self.listeners[place].publish.bind.is_ipv4();
        let guest = self.listeners[place].publish.guest;
        // Each change is told once: all who call are answered.
        if self.listeners[place].publish.protocol == Protocol::Tcp {
            self.accept(place, v4, guest);
        } else {
            self.hear(place, v4, guest);
        }
    }

    fn accept(&mut self, place: usize, v4: bool, guest: u16) {
        // Who calls before there is a guest waits.
        self.listeners[place].waits = !self.net.has_guest();
        for turn in 0.. {
            if !self.net.has_guest() {
                return;
            }
            if turn == TURN {
                self.listeners[place].waits = true;
                return;
            }
            let now = self.now();
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match net::accept_with(&self.listeners[place].file, flags) {
                Ok(file) => {
                    prepare(&file);
                    let id = self.net.accepted(now, v4, guest);
                    // The flow that went to make room is closed before its place is taken.
                    self.act(now);
                    if let Some(id) = id
                        && self.add_socket(Socket::new(id, Some(file), Kind::Stream, true)).is_err()
                    {
                        self.net.broken(id);
                    }
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::MFILE | Errno::NFILE) => {
                    self.write_log("a caller of a published port waits: there are too many open files");
                    return;
                }
                Err(_) => return,
            }
            self.act(now);
        }
    }

    fn hear(&mut self, place: usize, v4: bool, guest: u16) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut many = 0;
        self.listeners[place].waits = false;
        loop {
            let now = self.now();
            let listener = &self.listeners[place];
            let flags = RecvFlags::DONTWAIT;
            match net::recvfrom(&listener.file, &mut *buffer, flags) {
                Ok((len, _, Some(peer))) => {
                    let Some(peer) = internet(peer) else { continue };
                    let known = listener.peers.get(&peer).copied();
                    let id = known.or_else(|| {
                        let id = self.net.heard_of(now, v4, guest);
                        self.act(now);
                        let id = id?;
                        self.listeners[place].peers.insert(peer, id);
                        self.add_socket(Socket::new(id, None, Kind::Peer(place, peer), true)).ok()?;
                        Some(id)
                    });
                    // What the guest has no room for is lost, as on any path.
                    if let Some(id) = id {
                        self.net.datagram(now, id, buffer[..len].to_vec());
                    }
                }
                Ok(_) | Err(Errno::INTR | Errno::CONNREFUSED) => {}
                Err(_) => break,
            }
            self.act(now);
            many += 1;
            if many == TURN {
                self.listeners[place].waits = true;
                break;
            }
        }
        self.buffer = buffer;
    }
}
