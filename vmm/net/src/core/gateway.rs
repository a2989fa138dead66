//! What the gateway itself says: who has which address, and which address the guest may have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::table::Time;
use super::{Net, OWN_MAC};
use crate::link::{ETHERNET_LEN, HEADER_LEN, NetHeader};
use crate::wire::dhcp::{self, Lease, Message};
use crate::wire::icmp::{self, Router};
use crate::wire::{Arp, Mac, dhcp6, kind, put_ethernet};

/// The gateway's link-local address, made of [`OWN_MAC`].
pub(super) const LINK_LOCAL: Ipv6Addr = {
    let [a, b, c, d, e, f] = OWN_MAC.0;
    Ipv6Addr::from_octets([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
};
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// How often a router says that it is there.
const ADVERTISE_EVERY: Time = Time::from_secs(600);

impl Net {
    /// Whether an address is the gateway's.
    pub(super) fn is_gateway(&self, address: IpAddr) -> bool {
        address == self.config.gateway4 || address == self.config.gateway6 || address == LINK_LOCAL
    }

    /// Whether an address is the resolver's.
    pub(super) fn is_dns(&self, address: IpAddr) -> bool {
        address == self.config.dns4 || address == self.config.dns6
    }

    /// Whether what answers here may be the host itself: what the policy let through, and its
    /// resolvers.
    pub(super) fn is_trusted(&self, remote: SocketAddr) -> bool {
        self.is_gateway(remote.ip()) || self.is_dns(remote.ip())
    }

    /// `None`: the message lies about itself.
    pub(super) fn arp(&mut self, payload: &[u8]) -> Option<()> {
        let arp = Arp::parse(payload)?;
        let wanted = IpAddr::V4(arp.target.1);
        if !arp.request || !(self.is_gateway(wanted) || self.is_dns(wanted)) {
            return Some(());
        }
        let maker = self.maker()?;
        let mut head = NetHeader::default().to_bytes().to_vec();
        put_ethernet(&mut head, maker.guest, OWN_MAC, kind::ARP);
        Arp { request: false, sender: (OWN_MAC, arp.target.1), target: arp.sender }.put(&mut head);
        self.queue(vec![super::Outgoing { head, data: super::Data::None, finish: None }]);
        Some(())
    }

    /// Says where an address is, if it is here. Who checks whether an address is free has none yet.
    pub(super) fn neighbour(&mut self, asker: IpAddr, address: Ipv6Addr) {
        if !self.is_gateway(address.into()) && !self.is_dns(address.into()) {
            return;
        }
        let solicited = !asker.is_unspecified();
        let (src, dst) = (address.into(), if solicited { asker } else { ALL_NODES.into() });
        self.multicast_or_not(src, dst, icmp::neighbour(address, OWN_MAC, solicited));
    }

    /// Says that there is a router.
    pub(super) fn advertise(&mut self, now: Time) {
        self.next_advertisement = Some(now + ADVERTISE_EVERY);
        let router = Router {
            mac: OWN_MAC,
            lifetime: if self.has_v6 { 3 * 600 } else { 0 },
            prefix: self.config.prefix6.address,
            dns: self.config.dns6,
            mtu: self.mtu().into(),
        };
        self.multicast_or_not(LINK_LOCAL.into(), ALL_NODES.into(), router.advertisement());
    }

    fn multicast_or_not(&mut self, src: IpAddr, dst: IpAddr, message: Vec<u8>) {
        let Some(mut maker) = self.maker() else { return };
        if dst == IpAddr::V6(ALL_NODES) {
            maker.guest = Mac([0x33, 0x33, 0, 0, 0, 1]);
        }
        let message = icmp::finished(src, dst, message);
        self.queue(maker.icmp(src, dst, &message, 0));
    }

    /// What a DHCP client is answered. There is one address, for whoever is on the link.
    pub(super) fn dhcp(&mut self, payload: &[u8]) -> Option<()> {
        let message = Message::parse(payload)?;
        let config = &self.config;
        if message.server.is_some_and(|server| server != config.gateway4) {
            return Some(());
        }
        let wanted = message.wants.or((!message.has.is_unspecified()).then_some(message.has));
        let kind = match message.kind {
            dhcp::Kind::Discover => dhcp::Kind::Offer,
            dhcp::Kind::Inform => dhcp::Kind::Ack,
            dhcp::Kind::Request if wanted == Some(config.guest4) => dhcp::Kind::Ack,
            dhcp::Kind::Request => dhcp::Kind::Nak,
            _ => return Some(()),
        };
        let lease = Lease {
            address: config.guest4,
            prefix: config.prefix4.len,
            gateway: config.gateway4,
            dns: config.dns4,
            search: config.search.clone(),
            mtu: self.mtu(),
        };
        let everybody = message.broadcast || kind == dhcp::Kind::Nak;
        let to = match (everybody, message.has.is_unspecified()) {
            (true, _) => Ipv4Addr::BROADCAST,
            (false, true) => config.guest4,
            (false, false) => message.has,
        };
        let (src, dst) =
            (SocketAddr::new(config.gateway4.into(), dhcp::SERVER), SocketAddr::new(to.into(), dhcp::CLIENT));
        let mut maker = self.maker()?;
        maker.guest = if everybody { Mac::BROADCAST } else { message.mac };
        let answers = maker.datagram(src, dst, lease.answer(&message, kind), 0);
        debug_assert!(answers[0].head.len() > HEADER_LEN + ETHERNET_LEN);
        self.queue(answers);
        Some(())
    }

    /// What a DHCPv6 client at `from` is answered. As for IPv4, the one address is for whoever is
    /// on the link, so that no number of clients takes it from anybody.
    pub(super) fn dhcp6(&mut self, from: Ipv6Addr, payload: &[u8]) -> Option<()> {
        let message = dhcp6::Message::parse(payload)?;
        // A client has no other address that it may ask from.
        if !from.is_unicast_link_local() {
            return None;
        }
        let config = &self.config;
        let lease = dhcp6::Lease {
            address: config.guest6,
            prefix: config.prefix6.address,
            server: OWN_MAC,
            dns: config.dns6,
            search: config.search.clone(),
        };
        let Some(answer) = lease.answer(&message) else { return Some(()) };
        let src = SocketAddr::new(LINK_LOCAL.into(), dhcp6::SERVER);
        self.send_datagram(src, SocketAddr::new(from.into(), dhcp6::CLIENT), answer);
        Some(())
    }
}
