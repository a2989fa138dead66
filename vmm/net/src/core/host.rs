//! What the host's sockets say.

use std::net::SocketAddr;

use super::Net;
use super::out::Action;
use super::table::{FlowId, Kind, Time};
use super::tcp::Tcp;
use crate::config::Protocol;
use crate::number::len32;
use crate::wire::icmp::{Echo, Unreachable};

/// Why a socket does not serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nobody listens there.
    Refused,
    /// There is no way to its network.
    NetUnreachable,
    /// Nobody answers there.
    HostUnreachable,
    /// The host does not let it out.
    Prohibited,
    /// It turned out to be an address of the host itself.
    OwnAddress,
    /// The host has nothing left, or something else went wrong.
    Other,
}

impl Net {
    /// The socket of a stream is connected.
    pub fn connected(&mut self, now: Time, id: FlowId) {
        if let Some(flow) = self.table.get(id)
            && let Kind::Tcp(tcp) = &mut flow.kind
        {
            tcp.connected(now);
            self.settle(id);
        }
        self.lookup_connected(id);
    }

    /// A socket cannot be connected, or says that what it sent did not arrive. The flow ends.
    pub fn failed(&mut self, now: Time, id: FlowId, failure: Failure) {
        let Some(flow) = self.table.get(id) else { return };
        let key = flow.key;
        let is_lookup = matches!(flow.kind, Kind::Lookup(_));
        if failure == Failure::OwnAddress && !is_lookup {
            self.refused(now, &key, crate::policy::Reason::OwnAddress);
        }
        match key.protocol {
            _ if is_lookup => self.lookup_failed(now, id),
            Protocol::Udp | Protocol::Icmp => {
                self.end(id, false, false);
                let why = match failure {
                    Failure::Refused => Unreachable::Port,
                    Failure::NetUnreachable => Unreachable::Net,
                    Failure::Prohibited | Failure::OwnAddress => Unreachable::Prohibited,
                    Failure::HostUnreachable | Failure::Other => Unreachable::Host,
                };
                self.flow_unreachable(&key, why);
            }
            Protocol::Tcp => {
                let why = match failure {
                    Failure::NetUnreachable => Some(Unreachable::Net),
                    Failure::HostUnreachable => Some(Unreachable::Host),
                    Failure::Prohibited => Some(Unreachable::Prohibited),
                    Failure::Refused | Failure::OwnAddress | Failure::Other => None,
                };
                if let Some(why) = why {
                    self.flow_unreachable(&key, why);
                }
                self.end(id, true, why.is_none());
            }
        }
    }

    /// The shell has `len` bytes more of a stream for the guest.
    pub fn received(&mut self, now: Time, id: FlowId, len: usize) {
        if self.speaks_too_early(now, id) {
            return;
        }
        self.stream(id, |tcp| tcp.received(now, len32(len)));
    }

    /// A stream from the host has ended.
    pub fn ended(&mut self, now: Time, id: FlowId) {
        self.stream(id, |tcp| tcp.ended(now));
        if self.answers_in_stream(id) {
            self.lookup_failed(now, id);
        }
    }

    /// A stream's socket broke.
    pub fn broken(&mut self, id: FlowId) {
        if !self.lookup_broken(id) {
            self.end(id, true, true);
        }
    }

    /// Of what the guest sent, a stream's socket has yet to take `len` bytes.
    pub fn unwritten(&mut self, now: Time, id: FlowId, len: usize) {
        let Some(flow) = self.table.get(id) else { return };
        let Kind::Tcp(tcp) = &mut flow.kind else { return };
        let before = tcp.unwritten;
        tcp.drained(now, len32(len));
        self.unwritten = self.unwritten + u64::from(len32(len)) - u64::from(before);
        self.settle(id);
    }

    fn stream(&mut self, id: FlowId, what: impl FnOnce(&mut Tcp)) {
        if let Some(flow) = self.table.get(id)
            && let Kind::Tcp(tcp) = &mut flow.kind
        {
            what(tcp);
            self.settle(id);
        }
    }

    /// A datagram came from the host.
    pub fn datagram(&mut self, now: Time, id: FlowId, bytes: Vec<u8>) {
        let Some(flow) = self.table.get(id) else { return };
        flow.last = now;
        let key = flow.key;
        match &flow.kind {
            Kind::Tcp(_) => {}
            Kind::Lookup(_) => self.lookup_answered(now, id, bytes),
            Kind::Udp => self.send_datagram(key.remote, key.guest, bytes),
            Kind::Ping => {
                if let (Some(0 | 129), Some(seq), Some(data)) =
                    (bytes.first(), crate::number::be16(&bytes, 6), bytes.get(8..))
                {
                    let echo = Echo { id: key.guest.port(), seq, data };
                    self.echo_answer(key.remote.ip(), key.guest.ip(), echo);
                }
            }
        }
    }

    /// A published TCP port was called: the flow to give its socket to. `None`: the guest cannot be
    /// called yet, or too many have called it.
    pub fn accepted(&mut self, now: Time, v4: bool, guest_port: u16) -> Option<FlowId> {
        self.maker()?;
        let key = self.published(Protocol::Tcp, v4, guest_port)?;
        self.make_room(now);
        self.counters.connections += 1;
        let tcp = Tcp::calling(now, self.number(), self.mss(key.remote));
        let id = self.table.insert(now, key, key.remote, Kind::Tcp(tcp));
        self.begins(id);
        self.settle(id);
        Some(id)
    }

    /// A published UDP port heard of a new peer: the flow that stands for it. `None` as for
    /// [`Self::accepted`].
    pub fn heard_of(&mut self, now: Time, v4: bool, guest_port: u16) -> Option<FlowId> {
        self.maker()?;
        let key = self.published(Protocol::Udp, v4, guest_port)?;
        self.make_room(now);
        let id = self.table.insert(now, key, key.remote, Kind::Udp);
        self.arm(id);
        Some(id)
    }

    /// The ends of a flow that begins at a published port: peers have the gateway's address and a
    /// port of its own for each. `None`: no port was found, which is counted.
    fn published(&mut self, protocol: Protocol, v4: bool, guest_port: u16) -> Option<super::Key> {
        let (guest, gateway) = if v4 {
            (self.config.guest4.into(), self.config.gateway4.into())
        } else {
            (self.config.guest6.into(), self.config.gateway6.into())
        };
        /// No more ports are tried: nearly all are taken then, and whoever floods the port would
        /// cost a search through all of them each time.
        const TRIES: u32 = 256;
        let start = self.number();
        let found = (0..TRIES).find_map(|step| {
            let port = 49_152 | len16_of(start.wrapping_add(step));
            let key = Self::key(protocol, SocketAddr::new(guest, guest_port), SocketAddr::new(gateway, port));
            self.table.find(&key).is_none().then_some(key)
        });
        self.counters.lost += u64::from(found.is_none());
        found
    }

    /// Ends every flow: the link is gone.
    pub fn close_all(&mut self) {
        for id in self.table.ids() {
            self.end(id, true, false);
        }
        self.actions.retain(|action| !matches!(action, Action::Write { .. }));
    }
}

/// The lower 14 bits of a number, as a part of a port.
fn len16_of(number: u32) -> u16 {
    crate::number::at_most16(number & 0x3fff)
}
