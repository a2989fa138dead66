//! Frames for the guest, and what the host is asked to do.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use super::table::FlowId;
use crate::config::Protocol;
use crate::link::{ETHERNET_LEN, HEADER_LEN, Hello, NetHeader, Offloads};
use crate::number::len16;
use crate::wire::checksum::Sum;
use crate::wire::ip::{self, protocol};
use crate::wire::tcp::Segment;
use crate::wire::{Mac, kind, put_ethernet};

/// What the host is asked to do, in this order, before the next thing is told to the core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Begin to connect a socket, without waiting for it.
    Connect {
        /// For this flow.
        flow: FlowId,
        /// Of this kind.
        protocol: Protocol,
        /// To this address.
        to: SocketAddr,
        /// Which may be one of the host itself.
        trusted: bool,
    },
    /// There is a stream that no socket stands for: it is [fed](Self::Feed).
    Local {
        /// The flow.
        flow: FlowId,
    },
    /// Put bytes into a stream for the guest that no socket stands for.
    Feed {
        /// The flow.
        flow: FlowId,
        /// The bytes; the core counts with them already.
        bytes: Vec<u8>,
    },
    /// Write a part of the message in hand to the flow's stream, and keep what it does not take.
    Write {
        /// The flow.
        flow: FlowId,
        /// Where in the message it is.
        range: Range<usize>,
    },
    /// Write bytes to the flow's stream that were held back until it was known whom they are for,
    /// and keep what it does not take.
    WriteHeld {
        /// The flow.
        flow: FlowId,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Send a datagram.
    Datagram {
        /// The flow.
        flow: FlowId,
        /// What it holds.
        bytes: Vec<u8>,
    },
    /// Hand the connected socket of a stream over to who puts secrets into what is said to `name`,
    /// and go on with a stream to that process in its place.
    HandOver {
        /// The flow.
        flow: FlowId,
        /// Whom the stream is for, in small letters.
        name: String,
        /// The guest's end.
        from: SocketAddr,
        /// What the socket is connected to.
        to: SocketAddr,
    },
    /// Say that nothing more will be written, once everything is.
    Shutdown {
        /// The flow.
        flow: FlowId,
    },
    /// Forget bytes of the stream that the guest has, from the oldest on.
    Free {
        /// The flow.
        flow: FlowId,
        /// How many.
        len: u32,
    },
    /// Close the socket; there is no such flow any more.
    Close {
        /// The flow.
        flow: FlowId,
        /// The peer is to see a reset.
        abort: bool,
    },
    /// Pass the message in hand on to the other machines of the network.
    Peers,
    /// Write a line into the log: an object of JSON, to which the time is added.
    Log(String),
}

/// What stands behind the headers of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// Nothing.
    None,
    /// These bytes.
    Bytes(Vec<u8>),
    /// Bytes of a flow's stream that it still has.
    Stream {
        /// The flow.
        flow: FlowId,
        /// The first, counted from the oldest that the host still has.
        offset: usize,
        /// How many.
        len: usize,
    },
}

/// A message for the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The header of the link, and those of the frame.
    pub head: Vec<u8>,
    /// What is behind them.
    pub data: Data,
    /// The frame's checksum is to be completed: where its bytes begin, and where it stands.
    pub finish: Option<(usize, usize)>,
}

impl Outgoing {
    /// Completes the checksum with the bytes that stand behind the headers.
    pub fn complete(&mut self, data: &[&[u8]]) {
        let Some((start, at)) = self.finish.take() else { return };
        let mut sum = Sum::default();
        sum.add(&self.head[start..]);
        for part in data {
            sum.add(part);
        }
        let sum = sum.finish();
        // 0 means that there is none, in UDP; both are the same number.
        self.head[at..at + 2].copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());
    }
}

/// How frames towards the guest are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Maker {
    /// What the guest can receive.
    pub(crate) hello: Hello,
    /// The guest.
    pub(crate) guest: Mac,
    /// This network's own address on the link.
    pub(crate) own: Mac,
    /// The link's MTU in bytes.
    pub(crate) mtu: usize,
}

impl Maker {
    fn head(&self, v4: bool) -> Vec<u8> {
        let mut head = Vec::with_capacity(HEADER_LEN + ETHERNET_LEN + ip::V6_LEN + 28);
        head.extend(NetHeader::default().to_bytes());
        put_ethernet(&mut head, self.guest, self.own, if v4 { kind::IPV4 } else { kind::IPV6 });
        head
    }

    /// The bytes of TCP payload that a frame may have, of segments of `mss` bytes.
    #[must_use]
    pub(crate) fn most(&self, v4: bool, mss: usize) -> usize {
        let offload = if v4 { Offloads::TSO4 } else { Offloads::TSO6 };
        // As Linux has it: a packet of 64 KiB with the longest headers there may be.
        const MOST: usize = 65_535 - 120;
        if self.hello.offloads.has(offload | Offloads::CSUM) { (MOST / mss * mss).max(mss) } else { mss }
    }

    /// A TCP segment with `len` bytes of data, cut by the guest into segments of `mss` bytes.
    #[must_use]
    pub(crate) fn segment(
        &self,
        ends: (IpAddr, IpAddr),
        segment: &Segment,
        len: usize,
        mss: usize,
    ) -> Outgoing {
        let (src, dst) = ends;
        let mut head = self.head(src.is_ipv4());
        let whole = segment.header_len() + len;
        ip::put_header(&mut head, src, dst, protocol::TCP, whole);
        let start = head.len();
        let mut sum = Sum::default();
        sum.add_pseudo(src, dst, protocol::TCP, whole);
        segment.put(&mut head, sum.partial());
        let mut header = NetHeader::default();
        if len > mss {
            header.gso_type = if src.is_ipv4() { NetHeader::GSO_TCPV4 } else { NetHeader::GSO_TCPV6 };
            header.gso_size = len16(mss);
        }
        self.sealed(head, header, start, 16)
    }

    /// A datagram, in fragments where it must be.
    #[must_use]
    pub(crate) fn datagram(
        &self,
        src: SocketAddr,
        dst: SocketAddr,
        bytes: Vec<u8>,
        id: u32,
    ) -> Vec<Outgoing> {
        let (from, to) = (src.ip(), dst.ip());
        let whole = crate::wire::Udp::LEN + bytes.len();
        let mut sum = Sum::default();
        sum.add_pseudo(from, to, protocol::UDP, whole);
        let udp = crate::wire::Udp { src: src.port(), dst: dst.port() };
        if ip::header_len(from) + whole <= self.mtu {
            let mut head = self.head(from.is_ipv4());
            ip::put_header(&mut head, from, to, protocol::UDP, whole);
            let start = head.len();
            udp.put(&mut head, bytes.len(), sum.partial());
            let mut out = self.sealed(head, NetHeader::default(), start, 6);
            out.complete(&[&bytes]);
            out.data = Data::Bytes(bytes);
            return vec![out];
        }
        let mut all = Vec::with_capacity(whole);
        udp.put(&mut all, bytes.len(), 0);
        all.extend(bytes);
        sum.add(&all);
        let checksum = if sum.finish() == 0 { 0xffff } else { sum.finish() };
        all[6..8].copy_from_slice(&checksum.to_be_bytes());
        self.fragments((from, to), protocol::UDP, &all, id)
    }

    fn fragments(&self, ends: (IpAddr, IpAddr), number: u8, all: &[u8], id: u32) -> Vec<Outgoing> {
        let v4 = ends.0.is_ipv4();
        let most = (self.mtu - ip::header_len(ends.0) - if v4 { 0 } else { 8 }) / 8 * 8;
        let pieces = all.chunks(most).enumerate();
        pieces
            .map(|(at, piece)| {
                let offset = at * most;
                let fragment = ip::Fragment { id, offset, more: offset + piece.len() < all.len() };
                let mut head = self.head(v4);
                ip::put_part(&mut head, ends, number, piece.len(), Some(fragment));
                Outgoing { head, data: Data::Bytes(piece.to_vec()), finish: None }
            })
            .collect()
    }

    /// An ICMP message, whose checksum is complete.
    #[must_use]
    pub(crate) fn icmp(&self, src: IpAddr, dst: IpAddr, message: &[u8], id: u32) -> Vec<Outgoing> {
        let number = if src.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
        if ip::header_len(src) + message.len() > self.mtu {
            return self.fragments((src, dst), number, message, id);
        }
        let mut head = self.head(src.is_ipv4());
        ip::put_header(&mut head, src, dst, number, message.len());
        head.extend(message);
        vec![Outgoing { head, data: Data::None, finish: None }]
    }

    /// A frame with checksum as the guest wants it: complete, or for it to complete.
    fn sealed(&self, mut head: Vec<u8>, mut header: NetHeader, start: usize, offset: usize) -> Outgoing {
        let mut finish = Some((start, start + offset));
        if self.hello.offloads.has(Offloads::CSUM) {
            header.flags = NetHeader::NEEDS_CSUM;
            header.csum_start = len16(start - HEADER_LEN);
            header.csum_offset = len16(offset);
            finish = None;
        }
        if header.gso_type != NetHeader::GSO_NONE {
            header.hdr_len = len16(head.len() - HEADER_LEN);
        }
        head[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        Outgoing { head, data: Data::None, finish }
    }
}
