//! IPv4 and IPv6 packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::checksum;
use crate::number::{be16, be32, len16};

/// Numbers of protocols.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
}

/// The length of an IPv4 header without options, in bytes.
pub const V4_LEN: usize = 20;
/// The length of an IPv6 header, in bytes.
pub const V6_LEN: usize = 40;

/// A packet, or a fragment of one.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Who sent it.
    pub src: IpAddr,
    /// Whom it is for.
    pub dst: IpAddr,
    /// What the payload is.
    pub protocol: u8,
    /// How many hops it may still make.
    pub hops: u8,
    /// Where it belongs if it is a fragment.
    pub fragment: Option<Fragment>,
    /// The packet from its first byte on.
    pub whole: &'a [u8],
    /// What is behind the headers.
    pub payload: &'a [u8],
}

/// Which part of a packet a fragment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The packet.
    pub id: u32,
    /// Where its payload belongs, in bytes.
    pub offset: usize,
    /// Others follow.
    pub more: bool,
}

impl<'a> Packet<'a> {
    /// Reads an IPv4 packet. What follows its end is padding. `None`: it lies about itself.
    #[must_use]
    pub fn parse_v4(bytes: &'a [u8]) -> Option<Self> {
        let first = *bytes.first()?;
        let header = usize::from(first & 15) * 4;
        let total = usize::from(be16(bytes, 2)?);
        if first >> 4 != 4 || header < V4_LEN || total < header {
            return None;
        }
        let whole = bytes.get(..total)?;
        if checksum(&whole[..header]) != 0 {
            return None;
        }
        let place = be16(whole, 6)?;
        let (offset, more) = (usize::from(place & 0x1fff) * 8, place & 0x2000 != 0);
        let fragment = Fragment { id: be16(whole, 4)?.into(), offset, more };
        let address = |at: usize| be32(whole, at).map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)));
        Some(Self {
            src: address(12)?,
            dst: address(16)?,
            protocol: whole[9],
            hops: whole[8],
            fragment: (more || offset != 0).then_some(fragment),
            whole,
            payload: &whole[header..],
        })
    }

    /// Reads an IPv6 packet, with at most a few extension headers. `None`: it lies about itself.
    #[must_use]
    pub fn parse_v6(bytes: &'a [u8]) -> Option<Self> {
        let len = usize::from(be16(bytes, 4)?);
        let whole = bytes.get(..V6_LEN + len)?;
        if whole[0] >> 4 != 6 {
            return None;
        }
        let address =
            |at: usize| whole[at..].first_chunk().map(|b: &[u8; 16]| IpAddr::V6(Ipv6Addr::from(*b)));
        let mut packet = Self {
            src: address(8)?,
            dst: address(24)?,
            protocol: whole[6],
            hops: whole[7],
            fragment: None,
            whole,
            payload: &whole[V6_LEN..],
        };
        for _ in 0..4 {
            match packet.protocol {
                // Hop by hop, routing and destination options say nothing that matters here.
                0 | 43 | 60 => {
                    let len = 8 + usize::from(*packet.payload.get(1)?) * 8;
                    packet.protocol = *packet.payload.first()?;
                    packet.payload = packet.payload.get(len..)?;
                }
                44 => {
                    let place = be16(packet.payload, 2)?;
                    let (offset, more) = (usize::from(place & 0xfff8), place & 1 != 0);
                    let fragment = Fragment { id: be32(packet.payload, 4)?, offset, more };
                    packet.protocol = packet.payload[0];
                    packet.payload = &packet.payload[8..];
                    packet.fragment = (more || offset != 0).then_some(fragment);
                    // One that is whole is as if it had no such header (RFC 6946).
                    if packet.fragment.is_some() {
                        return Some(packet);
                    }
                }
                _ => return Some(packet),
            }
        }
        None
    }
}

/// The length of a header towards `address`, in bytes.
#[must_use]
pub fn header_len(address: IpAddr) -> usize {
    if address.is_ipv4() { V4_LEN } else { V6_LEN }
}

/// Writes a header for `len` bytes of payload behind `out`.
///
/// # Panics
/// The addresses are of two families, or the packet is longer than 65,535 bytes: bugs.
pub fn put_header(out: &mut Vec<u8>, src: IpAddr, dst: IpAddr, protocol: u8, len: usize) {
    put_part(out, (src, dst), protocol, len, None);
}

/// As [`put_header`], for a fragment. The length of IPv6's fragment header is not in `len`.
///
/// # Panics
/// As [`put_header`].
pub fn put_part(
    out: &mut Vec<u8>,
    ends: (IpAddr, IpAddr),
    protocol: u8,
    len: usize,
    fragment: Option<Fragment>,
) {
    /// Hops that a packet of this network may make.
    const HOPS: u8 = 64;
    match ends {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let at = out.len();
            let (id, place) = match fragment {
                // Atomic: no identification is needed, and none is guessed at.
                None => (0, 0x4000),
                Some(f) => (f.id & 0xffff, len16(f.offset / 8) | if f.more { 0x2000 } else { 0 }),
            };
            out.extend([0x45, 0]);
            out.extend(len16(V4_LEN + len).to_be_bytes());
            out.extend(&id.to_be_bytes()[2..]);
            out.extend(place.to_be_bytes());
            out.extend([HOPS, protocol, 0, 0]);
            out.extend(src.octets());
            out.extend(dst.octets());
            let sum = checksum(&out[at..]);
            out[at + 10..at + 12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let (next, more) = if fragment.is_some() { (44, 8) } else { (protocol, 0) };
            out.extend([0x60, 0, 0, 0]);
            out.extend(len16(len + more).to_be_bytes());
            // Neighbour discovery is heard only from a packet that made no hop.
            out.extend([next, if protocol == self::protocol::ICMPV6 { 255 } else { HOPS }]);
            out.extend(src.octets());
            out.extend(dst.octets());
            if let Some(f) = fragment {
                out.extend([protocol, 0]);
                out.extend((len16(f.offset) | u16::from(f.more)).to_be_bytes());
                out.extend(f.id.to_be_bytes());
            }
        }
        _ => panic!("a bug: a packet between two families of addresses"),
    }
}
