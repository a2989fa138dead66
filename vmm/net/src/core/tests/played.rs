//! The players.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use crate::config::UsernetConfig;
use crate::core::{Action, Data, FlowId, Net, OWN_MAC, Time};
use crate::link::{Hello, NetHeader, Offloads};
use crate::wire::checksum::{Sum, is_right};
use crate::wire::ip::{self, Packet, protocol};
use crate::wire::tcp::{Segment, flag};
use crate::wire::{Frame, Mac, Udp, kind, put_ethernet};

pub(super) const GUEST: Mac = Mac([0x52, 0x54, 0, 1, 2, 3]);

/// A socket of the host.
#[derive(Debug, Default)]
pub(super) struct Socket {
    /// What the guest sent.
    pub(super) got: Vec<u8>,
    /// What the guest does not have yet.
    pub(super) ring: Vec<u8>,
    /// Of `got`, what the socket is said not to have taken.
    pub(super) unwritten: usize,
    pub(super) shut: bool,
    /// Whom it was handed over for, before anything was written.
    pub(super) handed: Option<String>,
    pub(super) datagrams: Vec<Vec<u8>>,
}

/// A message for the guest, taken apart.
#[derive(Clone, Debug)]
pub(super) struct Got {
    pub(super) header: NetHeader,
    pub(super) src: IpAddr,
    pub(super) protocol: u8,
    pub(super) segment: Option<Segment>,
    pub(super) payload: Vec<u8>,
    pub(super) frame: Vec<u8>,
}

/// All of it.
pub(super) struct World {
    pub(super) net: Net,
    pub(super) now: Time,
    pub(super) sockets: HashMap<FlowId, Socket>,
    pub(super) closed: Vec<(FlowId, bool)>,
    pub(super) log: Vec<String>,
    /// What a socket takes of each write.
    pub(super) takes: bool,
}

pub(super) fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A frame of the guest around `payload` of IP, with its checksum complete.
pub(super) fn frame(src: IpAddr, dst: IpAddr, number: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = NetHeader::default().to_bytes().to_vec();
    put_ethernet(&mut out, OWN_MAC, GUEST, if src.is_ipv4() { kind::IPV4 } else { kind::IPV6 });
    ip::put_header(&mut out, src, dst, number, payload.len());
    out.extend(payload);
    out
}

pub(super) fn tcp_frame(from: SocketAddr, to: SocketAddr, segment: Segment, data: &[u8]) -> Vec<u8> {
    let segment = Segment { src: from.port(), dst: to.port(), ..segment };
    let mut bytes = Vec::new();
    segment.put(&mut bytes, 0);
    bytes.extend(data);
    let mut sum = Sum::default();
    sum.add_pseudo(from.ip(), to.ip(), protocol::TCP, bytes.len());
    sum.add(&bytes);
    bytes[16..18].copy_from_slice(&sum.finish().to_be_bytes());
    frame(from.ip(), to.ip(), protocol::TCP, &bytes)
}

pub(super) fn udp_bytes(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Udp { src: from.port(), dst: to.port() }.put(&mut bytes, data.len(), 0);
    bytes.extend(data);
    let mut sum = Sum::default();
    sum.add_pseudo(from.ip(), to.ip(), protocol::UDP, bytes.len());
    sum.add(&bytes);
    bytes[6..8].copy_from_slice(&sum.finish().to_be_bytes());
    bytes
}

impl World {
    pub(super) fn new(config: UsernetConfig, offloads: Offloads) -> Self {
        // Lines are made for somebody only.
        let config = UsernetConfig { log_fd: Some(9), ..config };
        let mut state = 1_u64;
        let random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 16
        };
        let mut world = Self {
            net: Net::new(config, random).unwrap(),
            now: Time::from_secs(100),
            sockets: HashMap::new(),
            closed: Vec::new(),
            log: Vec::new(),
            takes: true,
        };
        world.net.message(world.now, &Hello { offloads, mtu: 1500 }.to_bytes());
        world.pass(Time::ZERO);
        world
    }

    /// Does what the core says.
    pub(super) fn act(&mut self, message: &[u8]) {
        while let Some(action) = self.net.take_action() {
            match action {
                Action::Connect { flow, .. } => {
                    assert!(self.sockets.insert(flow, Socket::default()).is_none(), "connected twice");
                }
                Action::Local { flow } => {
                    assert!(self.sockets.insert(flow, Socket::default()).is_none(), "begun twice");
                }
                Action::Feed { flow, bytes } => self.sockets.get_mut(&flow).unwrap().ring.extend(bytes),
                Action::Write { flow, range } => {
                    let socket = self.sockets.get_mut(&flow).unwrap();
                    socket.got.extend(&message[range.clone()]);
                    if !self.takes {
                        socket.unwritten += range.len();
                    }
                    let left = socket.unwritten;
                    self.net.unwritten(self.now, flow, left);
                }
                Action::WriteHeld { flow, bytes } => {
                    let socket = self.sockets.get_mut(&flow).unwrap();
                    socket.got.extend(bytes);
                    let left = socket.unwritten;
                    self.net.unwritten(self.now, flow, left);
                }
                Action::HandOver { flow, name, from, to } => {
                    let socket = self.sockets.get_mut(&flow).unwrap();
                    assert!(socket.got.is_empty(), "something was sent before");
                    socket.handed = Some(format!("{name} {from} {to}"));
                }
                Action::Datagram { flow, bytes } => {
                    self.sockets.get_mut(&flow).unwrap().datagrams.push(bytes);
                }
                Action::Shutdown { flow } => {
                    let socket = self.sockets.get_mut(&flow).unwrap();
                    assert!(!std::mem::replace(&mut socket.shut, true), "shut twice");
                    let left = socket.unwritten;
                    self.net.unwritten(self.now, flow, left);
                }
                Action::Free { flow, len } => {
                    let ring = &mut self.sockets.get_mut(&flow).unwrap().ring;
                    ring.drain(..crate::number::index(len));
                }
                Action::Close { flow, abort } => {
                    self.sockets.remove(&flow);
                    self.closed.push((flow, abort));
                }
                Action::Log(line) => self.log.push(line),
                Action::Peers => {}
            }
        }
    }

    /// The guest sends a message.
    pub(super) fn send(&mut self, message: &[u8]) {
        self.net.message(self.now, message);
        self.act(message);
    }

    /// Time passes, and what is due is done.
    pub(super) fn pass(&mut self, time: Time) {
        self.now += time;
        self.net.tick(self.now);
        self.act(&[]);
    }

    /// The next message for the guest, with every checksum looked at.
    pub(super) fn next(&mut self) -> Option<Got> {
        let mut message = self.net.next_frame(self.now)?;
        let data = match &message.data {
            Data::None => Vec::new(),
            Data::Bytes(bytes) => bytes.clone(),
            Data::Stream { flow, offset, len } => self.sockets[flow].ring[*offset..offset + len].to_vec(),
        };
        message.complete(&[&data]);
        let bytes = [message.head, data].concat();
        let (header, frame) = NetHeader::parse(&bytes).unwrap();
        let ethernet = Frame::parse(frame).unwrap();
        assert_eq!(ethernet.src, OWN_MAC);
        let packet = match ethernet.kind {
            kind::IPV4 => Packet::parse_v4(ethernet.payload).unwrap(),
            kind::IPV6 => Packet::parse_v6(ethernet.payload).unwrap(),
            _ => {
                let frame = frame.to_vec();
                let src = "0.0.0.0".parse().unwrap();
                return Some(Got { header, src, protocol: 0, segment: None, payload: Vec::new(), frame });
            }
        };
        if header.flags & NetHeader::NEEDS_CSUM == 0
            && packet.fragment.is_none()
            && packet.protocol != protocol::ICMP
        {
            assert!(is_right(packet.src, packet.dst, packet.protocol, packet.payload), "a wrong checksum");
        } else if header.flags & NetHeader::NEEDS_CSUM != 0 {
            // Completed as a driver does it, it is right.
            let start = usize::from(header.csum_start);
            let mut whole = frame.to_vec();
            let mut sum = Sum::default();
            sum.add(&whole[start..]);
            let at = start + usize::from(header.csum_offset);
            whole[at..at + 2].copy_from_slice(&sum.finish().to_be_bytes());
            let from = whole.len() - packet.payload.len();
            assert_eq!(start, from);
            assert!(is_right(packet.src, packet.dst, packet.protocol, &whole[from..]));
        }
        let (segment, payload) = match packet.protocol {
            protocol::TCP => {
                let (segment, payload) = Segment::parse(packet.payload).unwrap();
                (Some(segment), payload)
            }
            protocol::UDP if packet.fragment.is_none() => (None, Udp::parse(packet.payload).unwrap().1),
            _ => (None, packet.payload),
        };
        let (src, number, payload) = (packet.src, packet.protocol, payload.to_vec());
        Some(Got { header, src, protocol: number, segment, payload, frame: frame.to_vec() })
    }

    /// All messages for the guest but those of discovery.
    pub(super) fn all(&mut self) -> Vec<Got> {
        let all = std::iter::from_fn(|| self.next()).collect::<Vec<_>>();
        all.into_iter().filter(|got| got.protocol != protocol::ICMPV6).collect()
    }

    /// The one message for the guest, a segment.
    pub(super) fn one(&mut self) -> Got {
        let mut all = self.all();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }
}

/// The guest's end of a connection.
pub(super) struct Guest {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) flow: FlowId,
    /// The next number to send.
    pub(super) seq: u32,
    /// The next number that is expected.
    pub(super) ack: u32,
    pub(super) window: u16,
}

impl Guest {
    /// A SYN, and the flow that it began.
    pub(super) fn call(world: &mut World, from: &str, to: &str) -> Self {
        let (from, to) = (addr(from), addr(to));
        let seq = 0xffff_ff00;
        let known: Vec<FlowId> = world.sockets.keys().copied().collect();
        let syn = Segment {
            seq,
            flags: flag::SYN,
            window: 64_000,
            mss: Some(1460),
            shift: Some(7),
            ..Segment::default()
        };
        world.send(&tcp_frame(from, to, syn, &[]));
        let flow = *world.sockets.keys().find(|id| !known.contains(id)).unwrap();
        Self { from, to, flow, seq: seq.wrapping_add(1), ack: 0, window: 64_000 }
    }

    /// A connection that is open.
    pub(super) fn open(world: &mut World, from: &str, to: &str) -> Self {
        let mut guest = Self::call(world, from, to);
        assert!(world.all().is_empty(), "answered before the peer has");
        world.net.connected(world.now, guest.flow);
        let answer = world.one().segment.unwrap();
        assert_eq!((answer.flags, answer.ack), (flag::SYN | flag::ACK, guest.seq));
        guest.ack = answer.seq.wrapping_add(1);
        guest.send(world, flag::ACK, &[]);
        assert!(world.all().is_empty());
        guest
    }

    /// Sends a segment.
    pub(super) fn send(&mut self, world: &mut World, flags: u8, data: &[u8]) {
        let segment =
            Segment { seq: self.seq, ack: self.ack, flags, window: self.window, ..Segment::default() };
        world.send(&tcp_frame(self.from, self.to, segment, data));
        let ends = u32::from(flags & (flag::FIN | flag::SYN) != 0);
        self.seq = self.seq.wrapping_add(crate::number::len32(data.len()) + ends);
    }

    /// The host's socket has these bytes for the guest.
    pub(super) fn feed(&self, world: &mut World, data: &[u8]) {
        world.sockets.get_mut(&self.flow).unwrap().ring.extend(data);
        world.net.received(world.now, self.flow, data.len());
        world.act(&[]);
    }

    /// Takes all that comes, in order, and acknowledges it. Gives the data and whether it ended.
    pub(super) fn take(&mut self, world: &mut World) -> (Vec<u8>, bool) {
        let (mut data, mut ended) = (Vec::new(), false);
        loop {
            let mut news = false;
            for got in world.all() {
                let Some(segment) = got.segment else { continue };
                assert!(!segment.has(flag::RST), "reset");
                if segment.seq == self.ack {
                    self.ack = self.ack.wrapping_add(crate::number::len32(got.payload.len()));
                    data.extend(&got.payload);
                    news |= !got.payload.is_empty();
                    if segment.has(flag::FIN) {
                        self.ack = self.ack.wrapping_add(1);
                        (ended, news) = (true, true);
                    }
                }
            }
            if !news {
                return (data, ended);
            }
            self.send(world, flag::ACK, &[]);
        }
    }
}
