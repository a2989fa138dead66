//! Frames as their receiver can take them: a driver that takes neither frames with unfinished
//! checksums nor long ones gets whole ones, each no longer than the MTU.

use std::net::IpAddr;

use super::admit::{Admitted, Layout};
use crate::link::{ETHERNET_LEN, NetHeader, Offloads};
use crate::number::{be16, be32, len16, len32};
use crate::wire::checksum::{Sum, checksum};
use crate::wire::ip::{V4_LEN, V6_LEN, protocol};
use crate::wire::tcp::flag;

/// Gives `emit` the frame, or the frames that come of it.
pub(super) fn fit(admitted: &Admitted<'_>, offloads: Offloads, emit: &mut dyn FnMut(NetHeader, &[u8])) {
    let Admitted { header, frame, layout, .. } = *admitted;
    let Some(layout) = layout else { return emit(header, frame) };
    let needs = Offloads::CSUM
        | match (header.gso_type, layout.v4) {
            (NetHeader::GSO_TCPV4, _) => Offloads::TSO4,
            (NetHeader::GSO_TCPV6, _) => Offloads::TSO6,
            (NetHeader::GSO_UDP_L4, true) => Offloads::USO4,
            (NetHeader::GSO_UDP_L4, false) => Offloads::USO6,
            _ => Offloads::default(),
        };
    if offloads.has(needs) {
        return emit(header, frame);
    }
    let (head, payload) = (&frame[..layout.payload], &frame[layout.payload..layout.end]);
    if header.gso_type == NetHeader::GSO_NONE {
        let mut whole = frame.to_vec();
        finish(&mut whole[..layout.end], &layout);
        return emit(NetHeader::default(), &whole);
    }
    let size = usize::from(header.gso_size);
    let parts = payload.len().div_ceil(size);
    for (at, part) in payload.chunks(size).enumerate() {
        let mut whole = Vec::with_capacity(head.len() + part.len());
        whole.extend(head);
        whole.extend(part);
        cut(&mut whole, &layout, at * size, (at, parts));
        finish(&mut whole, &layout);
        emit(NetHeader::default(), &whole);
    }
}

/// Makes the headers of `whole`, which are those of a long frame, those of its part `at` of
/// `parts`, whose data begins `offset` bytes behind that of the first.
fn cut(whole: &mut [u8], layout: &Layout, offset: usize, (at, parts): (usize, usize)) {
    let packet = &mut whole[ETHERNET_LEN..];
    if layout.v4 {
        let len = len16(packet.len());
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        let id = be16(packet, 4).unwrap_or(0).wrapping_add(len16(at));
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        packet[10..12].fill(0);
        let header = layout.transport - ETHERNET_LEN;
        let sum = checksum(&packet[..header.max(V4_LEN)]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        let len = len16(packet.len() - V6_LEN);
        packet[4..6].copy_from_slice(&len.to_be_bytes());
    }
    let len = whole.len() - layout.transport;
    let transport = &mut whole[layout.transport..];
    if layout.protocol == protocol::TCP {
        /// The sender has made its window smaller (RFC 3168): said once.
        const CWR: u8 = 0x80;
        let seq = be32(transport, 4).unwrap_or(0).wrapping_add(len32(offset));
        transport[4..8].copy_from_slice(&seq.to_be_bytes());
        if at + 1 < parts {
            transport[13] &= !(flag::FIN | flag::PSH);
        }
        if at > 0 {
            transport[13] &= !CWR;
        }
    } else {
        transport[4..6].copy_from_slice(&len16(len).to_be_bytes());
    }
}

/// Completes the checksum of a frame that ends with its packet.
fn finish(whole: &mut [u8], layout: &Layout) {
    let packet = &whole[ETHERNET_LEN..];
    let ends = if layout.v4 {
        let address = |at: usize| packet[at..].first_chunk::<4>().map(|bytes| IpAddr::from(*bytes));
        address(12).zip(address(16))
    } else {
        let address = |at: usize| packet[at..].first_chunk::<16>().map(|bytes| IpAddr::from(*bytes));
        address(8).zip(address(24))
    };
    let (src, dst) = ends.expect("a bug: a packet without its header was admitted");
    let segment = &mut whole[layout.transport..];
    let at = if layout.protocol == protocol::TCP { 16 } else { 6 };
    segment[at..at + 2].fill(0);
    let mut sum = Sum::default();
    sum.add_pseudo(src, dst, layout.protocol, segment.len());
    sum.add(segment);
    // 0 means that there is none, in UDP; both are the same number.
    let sum = if sum.finish() == 0 { 0xffff } else { sum.finish() };
    segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}
