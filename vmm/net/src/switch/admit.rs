//! Which frames of a machine are passed on, and to whom. Everything in a frame is a claim of the
//! guest: it is dropped unless it fits what was said when the machine joined.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::MTU;
use crate::link::{ETHERNET_LEN, NetHeader};
use crate::number::{be16, len16};
use crate::peers::Join;
use crate::wire::ip::{Packet, V6_LEN, protocol};
use crate::wire::{Arp, Frame, Mac, kind};

/// IGMP.
const IGMP: u8 = 2;
/// ICMP messages of those who play the router: redirects, advertisements and what asks for them.
const ROUTERS: [u8; 3] = [5, 9, 10];
/// TCP segments or datagrams that a driver makes of one frame, at most: as many datagrams as Linux
/// makes, and what a frame of 64 KiB is in segments of 512 bytes. The switch may have to cut it.
const PARTS: usize = 128;

/// Why a frame is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It lies about itself, or is of a kind that is not passed on.
    Malformed,
    /// It has an address that is not the machine's.
    Forged,
    /// It is an ordinary frame that is nobody's business here.
    Quiet,
}

/// Whom a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    /// The machine with this address of the link.
    Mac(Mac),
    /// The machine with this address, which is asked for.
    Address(IpAddr),
    /// Everybody.
    All,
}

/// Where in a frame the parts of a TCP segment or of a datagram are, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// TCP or UDP.
    pub(super) protocol: u8,
    /// The header of the IP packet begins behind that of Ethernet.
    pub(super) v4: bool,
    /// The header of TCP or UDP.
    pub(super) transport: usize,
    /// What is behind it.
    pub(super) payload: usize,
    /// Where the packet ends.
    pub(super) end: usize,
}

/// A frame that is passed on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Admitted<'a> {
    /// To whom.
    pub(super) to: To,
    /// The header of the link, made anew from what the frame is.
    pub(super) header: NetHeader,
    /// The frame.
    pub(super) frame: &'a [u8],
    /// Where its parts are; there if `header` asks for anything.
    pub(super) layout: Option<Layout>,
}

/// Looks at a message of the machine that joined with `join`.
pub(super) fn admit<'a>(join: &Join, message: &'a [u8]) -> Result<Admitted<'a>, Refusal> {
    let (header, bytes) = NetHeader::parse(message).ok_or(Refusal::Malformed)?;
    let frame = Frame::parse(bytes).ok_or(Refusal::Malformed)?;
    if frame.src != join.mac {
        return Err(Refusal::Forged);
    }
    let to = if frame.dst.is_unicast() { To::Mac(frame.dst) } else { To::All };
    let (to, packet) = match frame.kind {
        kind::ARP => (arp(join, &frame, to)?, None),
        kind::IPV4 => {
            let packet = Packet::parse_v4(frame.payload).ok_or(Refusal::Malformed)?;
            four(join, &packet)?;
            (to, Some(packet))
        }
        kind::IPV6 => {
            let packet = Packet::parse_v6(frame.payload).ok_or(Refusal::Malformed)?;
            (six(join, &packet, to)?, Some(packet))
        }
        _ => return Err(Refusal::Malformed),
    };
    let asked = header.flags & NetHeader::NEEDS_CSUM != 0 || header.gso_type != NetHeader::GSO_NONE;
    let (header, layout) = match packet.filter(|_| asked) {
        Some(packet) => {
            let layout = layout(bytes, &packet).ok_or(Refusal::Malformed)?;
            (offloads(header, &layout).ok_or(Refusal::Malformed)?, Some(layout))
        }
        None if asked => return Err(Refusal::Malformed),
        // What it says of a checksum that is there is no other machine's to believe.
        None => (NetHeader::default(), None),
    };
    if header.gso_type == NetHeader::GSO_NONE && bytes.len() > ETHERNET_LEN + MTU {
        return Err(Refusal::Malformed);
    }
    Ok(Admitted { to, header, frame: bytes, layout })
}

/// ARP: a question goes to whoever has the address, as if it were for that machine alone.
fn arp(join: &Join, frame: &Frame<'_>, to: To) -> Result<To, Refusal> {
    let arp = Arp::parse(frame.payload).ok_or(Refusal::Malformed)?;
    if arp.sender != (join.mac, join.address4) {
        // Whoever checks whether an address is free has none yet.
        let probe = arp.request && arp.sender.0 == join.mac && arp.sender.1.is_unspecified();
        return Err(if probe { Refusal::Quiet } else { Refusal::Forged });
    }
    if arp.target.1 == join.address4 {
        // It announces itself. The others ask when they need to know.
        return Err(Refusal::Quiet);
    }
    Ok(if to == To::All { To::Address(arp.target.1.into()) } else { to })
}

fn four(join: &Join, packet: &Packet<'_>) -> Result<(), Refusal> {
    if packet.src != IpAddr::V4(join.address4) {
        let none_yet = packet.src == IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        return Err(if none_yet { Refusal::Quiet } else { Refusal::Forged });
    }
    if packet.protocol == IGMP {
        return Err(Refusal::Quiet);
    }
    let begins = packet.fragment.is_none_or(|fragment| fragment.offset == 0);
    let kind = packet.payload.first().filter(|_| packet.protocol == protocol::ICMP && begins);
    if kind.is_some_and(|kind| ROUTERS.contains(kind)) {
        return Err(Refusal::Quiet);
    }
    no_configuration(packet, [67, 68])
}

/// Nobody here gives others their addresses: what asks for them, and what would answer, stays with
/// the machine that said it.
fn no_configuration(packet: &Packet<'_>, ports: [u16; 2]) -> Result<(), Refusal> {
    let begins = packet.fragment.is_none_or(|fragment| fragment.offset == 0);
    if packet.protocol == protocol::UDP && begins {
        let (src, dst) = (be16(packet.payload, 0), be16(packet.payload, 2));
        let (Some(src), Some(dst)) = (src, dst) else { return Err(Refusal::Malformed) };
        if ports.contains(&src) || ports.contains(&dst) {
            return Err(Refusal::Quiet);
        }
    }
    Ok(())
}

fn six(join: &Join, packet: &Packet<'_>, to: To) -> Result<To, Refusal> {
    let [_, own, link_local] = join.addresses();
    if packet.src != own && packet.src != link_local {
        // Whoever checks whether an address is free has none yet.
        let none_yet = packet.src == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        return Err(if none_yet { Refusal::Quiet } else { Refusal::Forged });
    }
    no_configuration(packet, [546, 547])?;
    if packet.fragment.is_some() {
        // What is hidden behind a fragment's header cannot be looked at (RFC 6980, RFC 7113).
        let plain = matches!(packet.protocol, protocol::TCP | protocol::UDP);
        let echo = packet.protocol == protocol::ICMPV6
            && match packet.fragment.map(|fragment| fragment.offset) {
                Some(0) => matches!(packet.payload.first(), Some(128 | 129)),
                _ => true,
            };
        return if plain || echo { Ok(to) } else { Err(Refusal::Malformed) };
    }
    if packet.protocol != protocol::ICMPV6 {
        return Ok(to);
    }
    match packet.payload.first() {
        None => Err(Refusal::Malformed),
        // Who listens to which group; routers, and redirections: there is no router here.
        Some(130..=134 | 137 | 143) => Err(Refusal::Quiet),
        Some(135) => {
            let target = target(packet)?;
            if option_is_not(join, packet, 1) {
                return Err(Refusal::Forged);
            }
            Ok(if to == To::All { To::Address(target.into()) } else { to })
        }
        Some(136) => {
            let target = IpAddr::V6(target(packet)?);
            if target != own && target != link_local || option_is_not(join, packet, 2) {
                return Err(Refusal::Forged);
            }
            Ok(to)
        }
        Some(_) => Ok(to),
    }
}

/// The address that neighbour discovery is about.
fn target(packet: &Packet<'_>) -> Result<Ipv6Addr, Refusal> {
    let bytes = packet.payload.get(8..).and_then(|rest| rest.first_chunk::<16>());
    bytes.map(|bytes| Ipv6Addr::from(*bytes)).ok_or(Refusal::Malformed)
}

/// Whether neighbour discovery says of its sender another address of the link than it has, in an
/// option of this kind. Options that lie about their length are no better.
fn option_is_not(join: &Join, packet: &Packet<'_>, wanted: u8) -> bool {
    let mut rest = &packet.payload[24..];
    while let [kind, words, ..] = *rest {
        let len = usize::from(words) * 8;
        if len == 0 || len > rest.len() {
            return true;
        }
        if kind == wanted && rest.get(2..8) != Some(&join.mac.0[..]) {
            return true;
        }
        rest = &rest[len..];
    }
    !rest.is_empty()
}

/// Where the parts of a segment or datagram are. `None`: it is none, or a fragment of one.
fn layout(bytes: &[u8], packet: &Packet<'_>) -> Option<Layout> {
    if packet.fragment.is_some() {
        return None;
    }
    let v4 = packet.src.is_ipv4();
    let transport = ETHERNET_LEN + packet.whole.len() - packet.payload.len();
    let end = ETHERNET_LEN + packet.whole.len();
    let header = match packet.protocol {
        protocol::TCP => usize::from(*packet.payload.get(12)? >> 4) * 4,
        protocol::UDP => crate::wire::Udp::LEN,
        _ => return None,
    };
    let least = if packet.protocol == protocol::TCP { crate::wire::tcp::LEN } else { header };
    if header < least || header > packet.payload.len() || end > bytes.len() {
        return None;
    }
    // Only plain headers are made anew for each part: those with extensions are not cut.
    Some(Layout { protocol: packet.protocol, v4, transport, payload: transport + header, end })
}

/// The header of the link, made of what the frame is and what is asked for. `None`: it is asked for
/// what does not fit the frame.
fn offloads(asked: NetHeader, layout: &Layout) -> Option<NetHeader> {
    let offset = if layout.protocol == protocol::TCP { 16 } else { 6 };
    if asked.flags & NetHeader::NEEDS_CSUM == 0
        || usize::from(asked.csum_start) != layout.transport
        || usize::from(asked.csum_offset) != offset
    {
        return None;
    }
    let mut header = NetHeader {
        flags: NetHeader::NEEDS_CSUM,
        csum_start: len16(layout.transport),
        csum_offset: len16(offset),
        ..NetHeader::default()
    };
    if asked.gso_type != NetHeader::GSO_NONE {
        let fits = match asked.gso_type {
            NetHeader::GSO_TCPV4 => layout.v4 && layout.protocol == protocol::TCP,
            NetHeader::GSO_TCPV6 => !layout.v4 && layout.protocol == protocol::TCP,
            NetHeader::GSO_UDP_L4 => layout.protocol == protocol::UDP,
            _ => false,
        };
        let (size, len) = (usize::from(asked.gso_size), layout.end - layout.payload);
        let whole = layout.payload - ETHERNET_LEN + size;
        let plain = layout.v4 || layout.transport == ETHERNET_LEN + V6_LEN;
        if !fits || !plain || size == 0 || len == 0 || whole > MTU || len.div_ceil(size) > PARTS {
            return None;
        }
        // One part alone asks for nothing but its checksum.
        if len > size {
            header.gso_type = asked.gso_type;
            header.gso_size = asked.gso_size;
            header.hdr_len = len16(layout.payload);
        }
    }
    Some(header)
}
