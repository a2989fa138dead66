//! Pings, and what is said of packets that do not arrive.

use std::net::{IpAddr, SocketAddr};

use super::Net;
use super::out::Action;
use super::table::{Key, Kind, Time};
use super::udp::is_for_many;
use crate::config::Protocol;
use crate::wire::Udp;
use crate::wire::checksum::{checksum, is_right};
use crate::wire::icmp::{self, Discovery, Echo, Unreachable};
use crate::wire::ip::{self, Packet, protocol};
use crate::wire::tcp::Segment;

impl Net {
    /// A message of the guest. `None`: it lies about itself.
    pub(super) fn icmp_from_guest(&mut self, now: Time, packet: &Packet<'_>) -> Option<()> {
        let v4 = packet.src.is_ipv4();
        let right = if v4 {
            checksum(packet.payload) == 0
        } else {
            is_right(packet.src, packet.dst, protocol::ICMPV6, packet.payload)
        };
        if !right {
            return None;
        }
        if let Some(echo) = icmp::echo_request(v4, packet.payload) {
            self.ping(now, packet, echo);
        } else if let (false, 255, Some(asked)) = (v4, packet.hops, icmp::discovery(packet.payload)) {
            match asked {
                Discovery::Routers => self.next_advertisement = Some(now),
                Discovery::Neighbour(address) => self.neighbour(packet.src, address),
            }
        }
        Some(())
    }

    fn ping(&mut self, now: Time, packet: &Packet<'_>, echo: Echo<'_>) {
        let (src, dst) = (packet.src, packet.dst);
        if src.is_unspecified() || is_for_many(dst) {
            return;
        }
        if self.is_gateway(dst) || self.is_dns(dst) {
            self.echo_answer(dst, src, echo);
            return;
        }
        let key = Self::key(Protocol::Icmp, SocketAddr::new(src, echo.id), SocketAddr::new(dst, 0));
        let id = match self.table.find(&key) {
            Some(id) => id,
            None => {
                let to = match self.policy.decide(now, Protocol::Icmp, key.remote) {
                    Ok(passage) => {
                        self.let_out(now, &key, passage.by);
                        passage.to
                    }
                    Err(reason) => {
                        self.refused(now, &key, reason);
                        self.unreachable(Unreachable::Prohibited, packet.whole);
                        return;
                    }
                };
                self.make_room(now);
                let id = self.table.insert(now, key, to, Kind::Ping);
                self.actions.push_back(Action::Connect {
                    flow: id,
                    protocol: Protocol::Icmp,
                    to,
                    trusted: false,
                });
                self.arm(id);
                id
            }
        };
        if let Some(flow) = self.table.get(id) {
            flow.last = now;
        }
        // The system puts its own number and the checksum in.
        let bytes = icmp::echo(src.is_ipv4(), false, echo);
        self.actions.push_back(Action::Datagram { flow: id, bytes });
    }

    /// Queues the answer to a ping.
    pub(super) fn echo_answer(&mut self, src: IpAddr, dst: IpAddr, echo: Echo<'_>) {
        let message = icmp::finished(src, dst, icmp::echo(src.is_ipv4(), true, echo));
        let id = self.number();
        if let Some(maker) = self.maker() {
            self.queue(maker.icmp(src, dst, &message, id));
        }
    }

    /// Says that a packet of the guest did not arrive.
    pub(super) fn unreachable(&mut self, why: Unreachable, original: &[u8]) {
        let addresses = match original.first().map(|first| first >> 4) {
            Some(4) => {
                original.get(12..16).and_then(|src| src.first_chunk::<4>()).map(|src| IpAddr::from(*src))
            }
            _ => original.get(8..24).and_then(|src| src.first_chunk::<16>()).map(|src| IpAddr::from(*src)),
        };
        let (Some(dst), Some(maker)) = (addresses, self.maker()) else { return };
        let src: IpAddr =
            if dst.is_ipv4() { self.config.gateway4.into() } else { self.config.gateway6.into() };
        let message = icmp::finished(src, dst, icmp::unreachable(dst.is_ipv4(), why, original));
        self.queue(maker.icmp(src, dst, &message, 0));
    }

    /// As [`Self::unreachable`], for a packet of a flow that is not at hand any more: as much of it
    /// is made again as the guest looks at.
    pub(super) fn flow_unreachable(&mut self, key: &Key, why: Unreachable) {
        let v4 = key.guest.is_ipv4();
        let (mut original, mut inner) = (Vec::new(), Vec::new());
        let number = match key.protocol {
            Protocol::Tcp => {
                let seq = self.table.find(key).and_then(|id| match &self.table.get(id)?.kind {
                    Kind::Tcp(tcp) => Some(tcp.next().1.wrapping_sub(1)),
                    _ => None,
                });
                let seq = seq.unwrap_or(0);
                let (src, dst) = (key.guest.port(), key.remote.port());
                Segment { src, dst, seq, flags: crate::wire::tcp::flag::SYN, ..Segment::default() }
                    .put(&mut inner, 0);
                protocol::TCP
            }
            Protocol::Udp => {
                Udp { src: key.guest.port(), dst: key.remote.port() }.put(&mut inner, 0, 0);
                protocol::UDP
            }
            Protocol::Icmp => {
                inner = icmp::echo(v4, false, Echo { id: key.guest.port(), seq: 0, data: &[] });
                if v4 { protocol::ICMP } else { protocol::ICMPV6 }
            }
        };
        ip::put_header(&mut original, key.guest.ip(), key.remote.ip(), number, inner.len());
        original.extend(inner);
        self.unreachable(why, &original);
    }
}
