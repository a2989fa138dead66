//! Datagrams of the guest: each pair of ends is a flow with a connected socket of its own, so that
//! nothing arrives from a port that was not asked, and refusals do.

use std::net::{IpAddr, SocketAddr};

use super::out::Action;
use super::table::{Kind, Time};
use super::talk::Asker;
use super::{Input, Net, dns_port};
use crate::config::Protocol;
use crate::link::NetHeader;
use crate::wire::icmp::Unreachable;
use crate::wire::ip::{Packet, protocol};
use crate::wire::{Udp, checksum, dhcp, dhcp6};

impl Net {
    /// A datagram of the guest. `None`: it lies about itself.
    pub(super) fn udp_from_guest(&mut self, now: Time, packet: &Packet<'_>, input: Input<'_>) -> Option<()> {
        let (udp, payload) = Udp::parse(packet.payload)?;
        let has_sum = packet.payload[6..8] != [0, 0] || packet.src.is_ipv6();
        if has_sum && !input.sum_is_known {
            let whole = packet.payload.get(..Udp::LEN + payload.len())?;
            if !checksum::is_right(packet.src, packet.dst, protocol::UDP, whole) {
                return None;
            }
        }
        if udp.dst == dhcp::SERVER && packet.src.is_ipv4() && self.is_for_dhcp(packet.dst) {
            return self.dhcp(payload);
        }
        if let (dhcp6::SERVER, IpAddr::V6(from)) = (udp.dst, packet.src)
            && packet.dst == IpAddr::V6(dhcp6::SERVERS)
        {
            return self.dhcp6(from, payload);
        }
        if packet.src.is_unspecified() {
            return None;
        }
        if is_for_many(packet.dst) || packet.dst == IpAddr::V4(self.config.prefix4.broadcast()) {
            // Nobody else is on this link.
            return Some(());
        }
        let (guest, remote) = (SocketAddr::new(packet.src, udp.src), SocketAddr::new(packet.dst, udp.dst));
        let cut = match input.header {
            NetHeader { gso_type: NetHeader::GSO_UDP_L4, gso_size: size @ 1.., .. } => usize::from(size),
            _ => usize::MAX,
        };
        /// A driver makes no more datagrams of one.
        const PARTS: usize = 128;
        if payload.len().div_ceil(cut) > PARTS {
            return None;
        }
        if payload.len() <= cut {
            self.datagram_from_guest(now, guest, remote, payload, packet.whole);
        } else {
            for part in payload.chunks(cut) {
                self.datagram_from_guest(now, guest, remote, part, packet.whole);
            }
        }
        Some(())
    }

    fn datagram_from_guest(
        &mut self,
        now: Time,
        guest: SocketAddr,
        remote: SocketAddr,
        payload: &[u8],
        original: &[u8],
    ) {
        if self.is_dns(remote.ip()) && dns_port(remote) {
            self.query(now, Asker { guest, resolver: remote, in_stream: false }, payload);
            return;
        }
        let key = Self::key(Protocol::Udp, guest, remote);
        let id = match self.table.find(&key) {
            Some(id) => id,
            None => {
                let to = match self.policy.decide(now, Protocol::Udp, remote) {
                    Ok(passage) => {
                        self.let_out(now, &key, passage.by);
                        passage.to
                    }
                    Err(reason) => {
                        self.refused(now, &key, reason);
                        let closed = self.is_gateway(remote.ip()) || self.is_dns(remote.ip());
                        let why = if closed { Unreachable::Port } else { Unreachable::Prohibited };
                        self.unreachable(why, original);
                        return;
                    }
                };
                self.make_room(now);
                let id = self.table.insert(now, key, to, Kind::Udp);
                let trusted = self.is_trusted(remote);
                self.actions.push_back(Action::Connect { flow: id, protocol: Protocol::Udp, to, trusted });
                self.arm(id);
                id
            }
        };
        if let Some(flow) = self.table.get(id) {
            flow.last = now;
        }
        self.actions.push_back(Action::Datagram { flow: id, bytes: payload.to_vec() });
    }

    /// Queues a datagram for the guest.
    pub(super) fn send_datagram(&mut self, src: SocketAddr, dst: SocketAddr, bytes: Vec<u8>) {
        let id = self.number();
        if let Some(maker) = self.maker() {
            self.queue(maker.datagram(src, dst, bytes, id));
        }
    }

    fn is_for_dhcp(&self, dst: IpAddr) -> bool {
        dst == IpAddr::V4(self.config.gateway4)
            || dst == IpAddr::V4(self.config.prefix4.broadcast())
            || dst == IpAddr::V4(std::net::Ipv4Addr::BROADCAST)
    }
}

/// Whether an address is that of a group.
pub(super) fn is_for_many(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_multicast(),
    }
}
