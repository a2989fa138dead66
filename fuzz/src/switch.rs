//! Frames of machines to the switch of their network, which come and go.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use nelly_net::link::{Hello, NetHeader, Offloads};
use nelly_net::peers::{Join, Names};
use nelly_net::switch::{MTU, PortId, Switch};
use nelly_net::wire::ip::{self, Packet, protocol};
use nelly_net::wire::{Arp, Frame, Mac, kind, put_ethernet};

use super::Bytes;

fn machine(n: u8) -> Join {
    let n = n & 3;
    Join {
        id: format!("m{n}"),
        names: vec![format!("m{n}"), "all".to_owned()],
        mac: Mac([0x52, 0x54, 0, 0, 0, n]),
        address4: Ipv4Addr::new(10, 89, 0, 3 + n),
        address6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3 + u16::from(n)),
    }
}

/// Gives the switch what the input describes: an operation and a machine, and what it needs behind
/// them.
///
/// # Panics
/// When a frame comes out that is not of who sent it, is too long for its receiver, or comes back.
pub fn run(data: &[u8]) {
    let mut input = Bytes(&data[..data.len().min(8192)]);
    let mut switch = Switch::new("dev".to_owned());
    let mut ports: [Option<PortId>; 4] = [None; 4];
    let mut offloads = [0_u8; 4];
    let mut now = Duration::ZERO;
    while !input.is_empty() {
        let [operation, which] = input.take();
        let place = usize::from(which & 3);
        match operation & 7 {
            0 => {
                let joined = switch.join(now, machine(which)).expect("its addresses are its own");
                assert_eq!(joined.instead_of, ports[place]);
                ports[place] = Some(joined.port);
                offloads[place] = which >> 2;
                let hello = Hello { offloads: Offloads(offloads[place].into()), mtu: 1500 };
                switch.message(now, joined.port, &hello.to_bytes(), &mut |_, _, _| {
                    panic!("a hello is no frame")
                });
            }
            1 if which & 0x80 != 0 => ports[place].take().into_iter().for_each(|port| switch.leave(port)),
            2 => now += Duration::from_millis(which.into()),
            _ => {
                let Some(port) = ports[place] else { continue };
                let message = frame(operation, which, &mut input);
                switch.message(now, port, &message, &mut |to, head, frame| {
                    assert_ne!(to, port, "a frame came back");
                    let receiver = ports.iter().position(|other| *other == Some(to)).expect("a port");
                    judge(&machine(which), offloads[receiver], head, frame);
                });
            }
        }
        assert_eq!(switch.len(), ports.iter().flatten().count());
    }
    assert_eq!(Names::parse(&switch.names().to_bytes()), Some(switch.names()));
}

fn judge(sender: &Join, offloads: u8, head: &[u8; 12], frame: &[u8]) {
    let (header, _) = NetHeader::parse(head).expect("it is whole");
    let parsed = Frame::parse(frame).expect("it is whole");
    assert_eq!(parsed.src, sender.mac);
    let source: IpAddr = match parsed.kind {
        kind::IPV4 => Packet::parse_v4(parsed.payload).expect("it is sound").src,
        kind::IPV6 => Packet::parse_v6(parsed.payload).expect("it is sound").src,
        _ => Arp::parse(parsed.payload).expect("it is sound").sender.1.into(),
    };
    assert!(sender.addresses().contains(&source));
    let offloads = Offloads(offloads.into());
    if header.flags != 0 {
        assert!(offloads.has(Offloads::CSUM), "an unfinished checksum for who takes none");
    }
    if header.gso_type == NetHeader::GSO_NONE {
        assert!(frame.len() <= 14 + MTU, "{} bytes for who takes no long frames", frame.len());
    }
}

/// A frame: what it is like, who it is for, how it is to be cut, and bytes that lie over it.
fn frame(operation: u8, which: u8, input: &mut Bytes<'_>) -> Vec<u8> {
    let [to, len, size, at, value] = input.take();
    let (from, to_whom) = (machine(which), machine(to));
    let v4 = operation & 8 == 0;
    let (src, dst): (IpAddr, IpAddr) = if v4 {
        (from.address4.into(), to_whom.address4.into())
    } else {
        (from.address6.into(), to_whom.address6.into())
    };
    let start = if v4 { 34 } else { 54 };
    let mut header = NetHeader::default();
    let number = [protocol::TCP, protocol::UDP, protocol::ICMPV6, 44][usize::from(operation >> 6)];
    if operation & 16 != 0 {
        header.flags = NetHeader::NEEDS_CSUM;
        header.csum_start = start;
        header.csum_offset = if number == protocol::TCP { 16 } else { 6 };
        if size != 0 {
            header.gso_size = u16::from(size) * 8;
            header.gso_type = match (number, v4) {
                (protocol::TCP, true) => NetHeader::GSO_TCPV4,
                (protocol::TCP, false) => NetHeader::GSO_TCPV6,
                _ => NetHeader::GSO_UDP_L4,
            };
        }
    }
    let mut message = header.to_bytes().to_vec();
    let mac = if to & 0x80 != 0 { Mac::BROADCAST } else { to_whom.mac };
    if operation & 32 != 0 {
        put_ethernet(&mut message, mac, from.mac, kind::ARP);
        let sender = (from.mac, from.address4);
        Arp { request: to & 64 == 0, sender, target: (mac, to_whom.address4) }.put(&mut message);
    } else {
        put_ethernet(&mut message, mac, from.mac, if v4 { kind::IPV4 } else { kind::IPV6 });
        let whole = 20 + usize::from(len) * 40;
        ip::put_header(&mut message, src, dst, number, whole);
        let first = message.len();
        message.resize(first + whole, len);
        if number == protocol::TCP {
            message[first + 12] = 5 << 4;
        }
    }
    if value != 0 {
        let at = usize::from(at) % message.len();
        message[at] ^= value;
    }
    message
}

/// Sound inputs.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let (one, two) = ([0, 0x3c << 2], [0, 1]);
    let datagram = [0x43, 0, 1, 3, 0, 0, 0];
    let long = [0x13, 0, 1, 100, 125, 0, 0];
    let long_six = [0x1b, 0, 1, 100, 125, 0, 0];
    let cut_datagram = [0x53, 0, 1, 20, 50, 0, 0];
    let asks = [0x23, 0, 0x81, 0, 0, 0, 0];
    vec![
        [&one[..], &two, &datagram, &asks, &[1, 0x81], &datagram].concat(),
        [&one[..], &two, &long, &long_six, &cut_datagram, &[2, 100], &long].concat(),
        [&two[..], &[0, 0xf1], &one, &long, &long_six, &cut_datagram, &two].concat(),
    ]
}
