//! Machines that tell the truth, and machines that do not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::*;
use crate::link::{ETHERNET_LEN, MAX_MESSAGE, NetHeader, Offloads};
use crate::peers::{MAX_NAMES, link_local};
use crate::wire::checksum::is_right;
use crate::wire::ip::{self, Packet, protocol};
use crate::wire::tcp::{Segment, flag};
use crate::wire::{Arp, Frame, Mac, Udp, icmp, kind, put_ethernet};

const ALL: Offloads = Offloads(0x37);
const NOW: Duration = Duration::from_secs(1);

pub(super) fn join(n: u8) -> Join {
    Join {
        id: format!("machine{n}"),
        names: vec![format!("m{n}")],
        mac: mac(n),
        address4: four(n),
        address6: six(n),
    }
}

fn mac(n: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, n])
}

fn four(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 89, 0, n)
}

fn six(n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into())
}

/// A switch with machines 1 to 3, which receive everything.
fn three() -> (Switch, [PortId; 3]) {
    let mut switch = Switch::new("dev".into());
    let ports = [1, 2, 3].map(|n| switch.join(NOW, join(n)).unwrap().port);
    for port in ports {
        hello(&mut switch, port, ALL);
    }
    (switch, ports)
}

fn hello(switch: &mut Switch, port: PortId, offloads: Offloads) {
    assert!(say(switch, port, &Hello { offloads, mtu: 1500 }.to_bytes()).is_empty());
}

fn say(switch: &mut Switch, port: PortId, message: &[u8]) -> Vec<(PortId, NetHeader, Vec<u8>)> {
    say_at(switch, NOW, port, message)
}

fn say_at(
    switch: &mut Switch,
    now: Duration,
    port: PortId,
    message: &[u8],
) -> Vec<(PortId, NetHeader, Vec<u8>)> {
    let mut heard = Vec::new();
    switch.message(now, port, message, &mut |to, head, frame| {
        let whole = [&head[..], frame].concat();
        let (header, frame) = NetHeader::parse(&whole).unwrap();
        heard.push((to, header, frame.to_vec()));
    });
    heard
}

fn counters(switch: &Switch, port: PortId) -> Counters {
    switch.ports[&port].counters
}

fn ethernet(header: NetHeader, dst: Mac, src: Mac, kind: u16) -> Vec<u8> {
    let mut message = header.to_bytes().to_vec();
    put_ethernet(&mut message, dst, src, kind);
    message
}

/// A packet of machine `from`, of this protocol.
fn packet(from: u8, to: Mac, ends: (IpAddr, IpAddr), number: u8, payload: &[u8]) -> Vec<u8> {
    let kind = if ends.0.is_ipv4() { kind::IPV4 } else { kind::IPV6 };
    let mut message = ethernet(NetHeader::default(), to, mac(from), kind);
    ip::put_header(&mut message, ends.0, ends.1, number, payload.len());
    message.extend(payload);
    message
}

fn datagram(ends: (IpAddr, IpAddr), ports: (u16, u16), data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut sum = crate::wire::checksum::Sum::default();
    sum.add_pseudo(ends.0, ends.1, protocol::UDP, Udp::LEN + data.len());
    let udp = Udp { src: ports.0, dst: ports.1 };
    let mut summed = Vec::new();
    udp.put(&mut summed, data.len(), 0);
    summed.extend(data);
    sum.add(&summed);
    udp.put(&mut bytes, data.len(), sum.finish());
    bytes.extend(data);
    bytes
}

fn arp(from: u8, dst: Mac, arp: Arp) -> Vec<u8> {
    let mut message = ethernet(NetHeader::default(), dst, mac(from), kind::ARP);
    arp.put(&mut message);
    message
}

fn asks(from: u8, address: Ipv4Addr) -> Arp {
    Arp { request: true, sender: (mac(from), four(from)), target: (Mac([0; 6]), address) }
}

fn neighbour_question(from: u8, address: Ipv6Addr, option: Mac) -> Vec<u8> {
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, address.segments()[7]);
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(address.octets());
    message.extend([1, 1]);
    message.extend(option.0);
    let ends = (IpAddr::from(six(from)), IpAddr::from(group));
    let message = icmp::finished(ends.0, ends.1, message);
    packet(from, Mac([0x33, 0x33, 0xff, 0, 0, 1]), ends, protocol::ICMPV6, &message)
}

/// A TCP segment with `len` bytes of data whose checksum is unfinished; cut where `size` is not 0.
pub(super) fn segment(from: u8, to: u8, v4: bool, len: usize, size: u16) -> Vec<u8> {
    let ends: (IpAddr, IpAddr) =
        if v4 { (four(from).into(), four(to).into()) } else { (six(from).into(), six(to).into()) };
    let tcp =
        Segment { src: 1000, dst: 80, seq: 0xffff_fff0, flags: flag::ACK | flag::PSH, ..Segment::default() };
    let start = ETHERNET_LEN + ip::header_len(ends.0);
    let header = NetHeader {
        flags: NetHeader::NEEDS_CSUM,
        gso_type: match (size, v4) {
            (0, _) => NetHeader::GSO_NONE,
            (_, true) => NetHeader::GSO_TCPV4,
            (_, false) => NetHeader::GSO_TCPV6,
        },
        hdr_len: 0xffff,
        gso_size: size,
        csum_start: u16::try_from(start).unwrap(),
        csum_offset: 16,
    };
    let mut message = ethernet(header, mac(to), mac(from), if v4 { kind::IPV4 } else { kind::IPV6 });
    ip::put_header(&mut message, ends.0, ends.1, protocol::TCP, 20 + len);
    tcp.put(&mut message, 0);
    message.extend((0..len).map(|i| (i % 251).to_le_bytes()[0]));
    message
}

#[test]
fn a_frame_goes_to_whom_it_is_for_alone() {
    let (mut switch, [one, two, _]) = three();
    let ends = (IpAddr::from(four(1)), IpAddr::from(four(2)));
    let message = packet(1, mac(2), ends, protocol::UDP, &datagram(ends, (9, 9), b"hi"));
    assert_eq!(
        say(&mut switch, one, &message),
        [(two, NetHeader::default(), message[HEADER_LEN..].to_vec())]
    );
    for (nobody, counted) in [(mac(9), 1), (mac(1), 2)] {
        let message = packet(1, nobody, ends, protocol::UDP, &datagram(ends, (9, 9), b"hi"));
        assert!(say(&mut switch, one, &message).is_empty());
        assert_eq!(counters(&switch, one).nobody, counted);
    }
    switch.leave(two);
    assert!(say(&mut switch, one, &message).is_empty());
    assert_eq!((switch.len(), switch.by_mac.len(), switch.by_address.len()), (2, 2, 6));
}

#[test]
fn who_has_an_address_is_asked_alone_and_answers_for_itself_alone() {
    let (mut switch, [one, two, three]) = three();
    let heard = say(&mut switch, one, &arp(1, Mac::BROADCAST, asks(1, four(3))));
    assert_eq!(heard.iter().map(|(to, ..)| *to).collect::<Vec<_>>(), [three]);
    assert!(say(&mut switch, one, &arp(1, Mac::BROADCAST, asks(1, four(9)))).is_empty());
    let answer = Arp { request: false, sender: (mac(2), four(2)), target: (mac(1), four(1)) };
    assert_eq!(say(&mut switch, two, &arp(2, mac(1), answer)).len(), 1);
    for forged in [
        Arp { sender: (mac(2), four(3)), ..answer },
        Arp { sender: (mac(3), four(2)), ..answer },
        Arp { sender: (mac(2), Ipv4Addr::new(10, 89, 0, 1)), ..answer },
    ] {
        assert!(say(&mut switch, two, &arp(2, mac(1), forged)).is_empty());
    }
    assert_eq!(counters(&switch, two).forged, 3);
    let heard = say(&mut switch, one, &neighbour_question(1, six(2), mac(1)));
    assert_eq!(heard.iter().map(|(to, ..)| *to).collect::<Vec<_>>(), [two]);
    let heard = say(&mut switch, one, &neighbour_question(1, link_local(mac(3)), mac(1)));
    assert_eq!(heard.iter().map(|(to, ..)| *to).collect::<Vec<_>>(), [three]);
    assert!(say(&mut switch, one, &neighbour_question(1, six(2), mac(3))).is_empty());
    assert_eq!(counters(&switch, one).forged, 1);
    // Neighbour advertisements: of its own addresses, with its own address of the link.
    let ends = (IpAddr::from(six(2)), IpAddr::from(six(1)));
    for (address, at, passes) in [
        (six(2), mac(2), true),
        (link_local(mac(2)), mac(2), true),
        (six(3), mac(2), false),
        (six(2), mac(3), false),
    ] {
        let message = icmp::finished(ends.0, ends.1, icmp::neighbour(address, at, true));
        let message = packet(2, mac(1), ends, protocol::ICMPV6, &message);
        assert_eq!(!say(&mut switch, two, &message).is_empty(), passes, "{address} {at}");
    }
}

#[test]
fn sources_that_are_not_its_own_are_dropped() {
    let (mut switch, [one, ..]) = three();
    let sources: [(Mac, IpAddr); 6] = [
        (mac(2), four(1).into()),
        (mac(1), four(2).into()),
        (mac(1), Ipv4Addr::new(8, 8, 8, 8).into()),
        (mac(1), six(2).into()),
        (mac(1), link_local(mac(2)).into()),
        (Mac::BROADCAST, four(1).into()),
    ];
    for (at, source) in sources {
        let to: IpAddr = if source.is_ipv4() { four(3).into() } else { six(3).into() };
        let mut message =
            packet(1, mac(3), (source, to), protocol::UDP, &datagram((source, to), (9, 9), b"hi"));
        message[HEADER_LEN + 6..HEADER_LEN + 12].copy_from_slice(&at.0);
        assert!(say(&mut switch, one, &message).is_empty(), "{at} {source}");
    }
    assert_eq!(counters(&switch, one).forged, 6);
    assert_eq!(counters(&switch, one).malformed, 0);
}

#[test]
fn nobody_plays_the_router_or_gives_addresses() {
    let (mut switch, [one, ..]) = three();
    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let ends = (IpAddr::from(link_local(mac(1))), IpAddr::from(all));
    for kind in [130, 131, 132, 133, 134, 137, 143] {
        let message = icmp::finished(ends.0, ends.1, [vec![kind, 0, 0, 0], vec![0; 60]].concat());
        let message = packet(1, Mac([0x33, 0x33, 0, 0, 0, 1]), ends, protocol::ICMPV6, &message);
        assert!(say(&mut switch, one, &message).is_empty(), "{kind}");
        // Nor behind a header of a fragment.
        let mut hidden = ethernet(NetHeader::default(), mac(2), mac(1), kind::IPV6);
        let fragment = ip::Fragment { id: 1, offset: 0, more: true };
        ip::put_part(&mut hidden, ends, protocol::ICMPV6, 64, Some(fragment));
        hidden.extend([vec![kind, 0, 0, 0], vec![0; 60]].concat());
        assert!(say(&mut switch, one, &hidden).is_empty(), "{kind}");
        // Nor behind that of a fragment that is whole, and other options.
        let mut hidden = ethernet(NetHeader::default(), mac(2), mac(1), kind::IPV6);
        ip::put_part(&mut hidden, ends, 60, 72, Some(ip::Fragment { id: 1, offset: 0, more: false }));
        hidden
            .extend([vec![protocol::ICMPV6, 0, 1, 4, 0, 0, 0, 0], vec![kind, 0, 0, 0], vec![0; 60]].concat());
        assert!(say(&mut switch, one, &hidden).is_empty(), "{kind}");
    }
    for kind in [5, 9, 10] {
        let ends = (IpAddr::from(four(1)), IpAddr::from(four(2)));
        let message = packet(1, mac(2), ends, protocol::ICMP, &[vec![kind, 0, 0, 0], vec![0; 60]].concat());
        assert!(say(&mut switch, one, &message).is_empty(), "{kind}");
    }
    for (src, dst) in [(67, 68), (68, 67), (9, 68), (67, 9)] {
        let ends = (IpAddr::from(four(1)), IpAddr::from(four(2)));
        let message = packet(1, mac(2), ends, protocol::UDP, &datagram(ends, (src, dst), b"lease"));
        assert!(say(&mut switch, one, &message).is_empty());
    }
    let ends = (IpAddr::from(six(1)), IpAddr::from(six(2)));
    let message = packet(1, mac(2), ends, protocol::UDP, &datagram(ends, (547, 546), b"lease"));
    assert!(say(&mut switch, one, &message).is_empty());
    let mut other = ethernet(NetHeader::default(), mac(2), mac(1), 0x8100);
    other.extend([0; 60]);
    assert!(say(&mut switch, one, &other).is_empty());
    assert_eq!(counters(&switch, one).forged, 0);
}

#[test]
fn what_is_for_everybody_is_bounded_in_time() {
    let (mut switch, [one, two, three]) = three();
    let ends = (IpAddr::from(four(1)), IpAddr::from(Ipv4Addr::new(224, 0, 0, 251)));
    let message =
        packet(1, Mac([1, 0, 0x5e, 0, 0, 251]), ends, protocol::UDP, &datagram(ends, (5353, 5353), b"?"));
    let heard = say(&mut switch, one, &message);
    assert_eq!(heard.iter().map(|(to, ..)| *to).collect::<Vec<_>>(), [two, three]);
    for _ in 1..BURST {
        assert_eq!(say(&mut switch, one, &message).len(), 2);
    }
    assert!(say(&mut switch, one, &message).is_empty());
    // Others are not held to it, and it recovers.
    let ends = (IpAddr::from(four(2)), IpAddr::from(Ipv4Addr::BROADCAST));
    let other = packet(2, Mac::BROADCAST, ends, protocol::UDP, &datagram(ends, (9, 9), b"?"));
    assert_eq!(say(&mut switch, two, &other).len(), 2);
    for step in 1..5 {
        let now = NOW + EVERY * step + Duration::from_millis(3);
        assert_eq!(say_at(&mut switch, now, one, &message).len(), 2);
        assert!(say_at(&mut switch, now, one, &message).is_empty());
    }
    let later = NOW + Duration::from_secs(1000);
    let passed = (0..1000).filter(|_| !say_at(&mut switch, later, one, &message).is_empty()).count();
    assert_eq!(u32::try_from(passed).unwrap(), BURST);
}

#[test]
fn nobody_hears_before_its_driver_has_begun() {
    let (mut switch, [one, two, _]) = three();
    switch.leave(two);
    let two = switch.join(NOW, join(2)).unwrap().port;
    let message = segment(1, 2, true, 10, 0);
    assert!(say(&mut switch, one, &message).is_empty());
    assert_eq!(counters(&switch, two).lost, 1);
    hello(&mut switch, two, ALL);
    assert_eq!(say(&mut switch, one, &message).len(), 1);
}

#[test]
fn who_takes_long_frames_gets_them_and_others_get_whole_ones() {
    for v4 in [true, false] {
        for (offloads, parts) in [(ALL, 1), (Offloads::CSUM, 3), (Offloads::default(), 3)] {
            let (mut switch, [one, two, _]) = three();
            hello(&mut switch, two, offloads);
            let message = segment(1, 2, v4, 2500, 1000);
            let heard = say(&mut switch, one, &message);
            assert_eq!(heard.len(), parts, "{v4} {offloads:?}");
            if parts == 1 {
                let (_, header, frame) = &heard[0];
                assert_eq!(frame[..], message[HEADER_LEN..]);
                assert_eq!(usize::from(header.hdr_len), ETHERNET_LEN + if v4 { 40 } else { 60 });
                continue;
            }
            let mut data: Vec<u8> = Vec::new();
            for (at, (_, header, frame)) in heard.iter().enumerate() {
                assert_eq!(*header, NetHeader::default());
                let frame = Frame::parse(frame).unwrap();
                let parsed =
                    if v4 { Packet::parse_v4(frame.payload) } else { Packet::parse_v6(frame.payload) };
                let packet = parsed.unwrap();
                assert!(is_right(packet.src, packet.dst, protocol::TCP, packet.payload));
                let (segment, payload) = Segment::parse(packet.payload).unwrap();
                assert_eq!(segment.seq, 0xffff_fff0_u32.wrapping_add(u32::try_from(1000 * at).unwrap()));
                assert_eq!(segment.has(flag::PSH), at == 2);
                data.extend(payload);
            }
            assert_eq!(data[..], message[message.len() - 2500..]);
        }
        let (mut switch, [one, two, _]) = three();
        hello(&mut switch, two, Offloads::default());
        let heard = say(&mut switch, one, &segment(1, 2, v4, 100, 0));
        let frame = Frame::parse(&heard[0].2).unwrap();
        let parsed = if v4 { Packet::parse_v4(frame.payload) } else { Packet::parse_v6(frame.payload) };
        let packet = parsed.unwrap();
        assert_eq!((heard.len(), heard[0].1), (1, NetHeader::default()));
        assert!(is_right(packet.src, packet.dst, protocol::TCP, packet.payload));
    }
}

#[test]
fn datagrams_are_cut_too() {
    let (mut switch, [one, two, _]) = three();
    hello(&mut switch, two, Offloads::CSUM);
    let ends = (IpAddr::from(six(1)), IpAddr::from(six(2)));
    let mut message = packet(1, mac(2), ends, protocol::UDP, &datagram(ends, (9, 10), &[7; 250]));
    let header = NetHeader {
        flags: NetHeader::NEEDS_CSUM,
        gso_type: NetHeader::GSO_UDP_L4,
        gso_size: 100,
        csum_start: 54,
        csum_offset: 6,
        hdr_len: 0,
    };
    message[..HEADER_LEN].copy_from_slice(&header.to_bytes());
    let heard = say(&mut switch, one, &message);
    let lens: Vec<usize> = heard
        .iter()
        .map(|(_, _, frame)| {
            let packet = Packet::parse_v6(Frame::parse(frame).unwrap().payload).unwrap();
            assert!(is_right(packet.src, packet.dst, protocol::UDP, packet.payload));
            Udp::parse(packet.payload).unwrap().1.len()
        })
        .collect();
    assert_eq!(lens, [100, 100, 50]);
}

#[test]
fn what_is_asked_for_fits_the_frame_or_it_is_dropped() {
    let (mut switch, [one, ..]) = three();
    let good = NetHeader::parse(&segment(1, 2, true, 2500, 1000)).unwrap().0;
    let changes: [fn(&mut NetHeader); 9] = [
        |h| h.flags = 0,
        |h| h.csum_start += 1,
        |h| h.csum_start = 0xffff,
        |h| h.csum_offset = 6,
        |h| h.gso_size = 0,
        |h| h.gso_size = 1461,
        |h| h.gso_type = NetHeader::GSO_TCPV6,
        |h| h.gso_type = NetHeader::GSO_UDP_L4,
        |h| h.gso_type = 0x81,
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let mut header = good;
        change(&mut header);
        let mut message = segment(1, 2, true, 2500, 1000);
        message[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        assert!(say(&mut switch, one, &message).is_empty(), "{at}");
        assert_eq!(counters(&switch, one).malformed, u64::try_from(at).unwrap() + 1);
    }
    // Long, and not to be cut.
    assert!(say(&mut switch, one, &segment(1, 2, true, 2500, 0)).is_empty());
    // To be cut into one part: an ordinary frame.
    let heard = say(&mut switch, one, &segment(1, 2, true, 10, 1000));
    assert_eq!((heard[0].1.gso_type, heard[0].1.gso_size), (NetHeader::GSO_NONE, 0));
    // Thousands of parts.
    assert!(say(&mut switch, one, &segment(1, 2, true, 60_000, 10)).is_empty());
}

#[test]
fn every_cut_and_every_lie_is_no_panic_and_no_forged_frame() {
    let ends4 = (IpAddr::from(four(1)), IpAddr::from(four(2)));
    let messages = [
        arp(1, Mac::BROADCAST, asks(1, four(3))),
        packet(1, mac(2), ends4, protocol::UDP, &datagram(ends4, (9, 9), b"hello")),
        segment(1, 2, true, 300, 100),
        segment(1, 2, false, 300, 100),
        neighbour_question(1, six(2), mac(1)),
    ];
    for message in messages {
        let (mut switch, [one, two, _]) = three();
        hello(&mut switch, two, Offloads::default());
        for cut in 0..message.len() {
            say(&mut switch, one, &message[..cut]);
            for value in [0, 1, 0x44, 0x60, 0x7f, 0x80, 0xff] {
                let mut lie = message.clone();
                lie[cut] = value;
                for (to, header, frame) in say(&mut switch, one, &lie) {
                    assert_ne!(to, one);
                    let frame = Frame::parse(&frame).unwrap();
                    assert_eq!(frame.src, mac(1));
                    let source = match frame.kind {
                        kind::IPV4 => Packet::parse_v4(frame.payload).unwrap().src,
                        kind::IPV6 => Packet::parse_v6(frame.payload).unwrap().src,
                        _ => Arp::parse(frame.payload).unwrap().sender.1.into(),
                    };
                    assert!(join(1).addresses().contains(&source));
                    assert!(header.flags & !NetHeader::NEEDS_CSUM == 0);
                }
            }
        }
        for len in [0, 1, 11, 12, 13, 25, 26, 27, MAX_MESSAGE] {
            say(&mut switch, one, &vec![0xff; len]);
        }
        assert_eq!(switch.len(), 3);
    }
}

#[test]
fn addresses_are_assigned_once() {
    let (mut switch, [one, ..]) = three();
    let changes: [fn(&mut Join); 5] = [
        |join| join.mac = mac(1),
        |join| join.address4 = four(2),
        |join| join.address6 = six(3),
        |join| join.mac = crate::core::OWN_MAC,
        |join| join.names = vec!["UPPER".into()],
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let mut wrong = join(4);
        change(&mut wrong);
        assert!(switch.join(NOW, wrong).is_err(), "{at}");
        assert_eq!((switch.len(), switch.by_mac.len(), switch.by_address.len()), (3, 3, 9));
    }
    // The same machine again, with another address: the old port is no more.
    let again = switch.join(NOW, Join { address4: four(9), ..join(1) }).unwrap();
    assert_eq!(again.instead_of, Some(one));
    assert!(say(&mut switch, one, &arp(1, Mac::BROADCAST, asks(1, four(2)))).is_empty());
    assert_eq!((switch.len(), switch.by_address.len()), (3, 9));
    assert_eq!(switch.names().addresses("m1.dev").unwrap()[0], IpAddr::from(four(9)));
}

#[test]
fn machines_and_names_are_bounded_and_a_storm_leaves_nothing() {
    let mut switch = Switch::new("dev".into());
    let many = |n: u16| {
        let [high, low] = n.to_be_bytes();
        Join {
            id: format!("m{n}"),
            names: Vec::new(),
            mac: Mac([2, 0, 0, 0, high, low]),
            address4: Ipv4Addr::new(10, 1, high, low),
            address6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n + 1),
        }
    };
    let most = u16::try_from(MAX_PORTS).unwrap();
    for n in 0..most {
        switch.join(NOW, many(n)).unwrap();
    }
    assert!(switch.join(NOW, many(most)).unwrap_err().contains("512 machines"));
    switch.join(NOW, many(5)).expect("one that is here may come again");
    for id in switch.ports.keys().copied().collect::<Vec<_>>() {
        switch.leave(id);
        switch.leave(id);
    }
    assert_eq!((switch.len(), switch.by_mac.len(), switch.by_address.len()), (0, 0, 0));
    let named = |n: u16| Join {
        names: (0..MAX_NAMES).map(|i| format!("n{n}-{i}-{}", "x".repeat(50))).collect(),
        ..many(n)
    };
    let joined = (0..100).take_while(|n| switch.join(NOW, named(*n)).is_ok()).count();
    assert!((10..=16).contains(&joined), "{joined}");
    let message = switch.names().to_bytes();
    assert!(message.len() <= MAX_NAMES_MESSAGE);
    assert_eq!(Names::parse(&message), Some(switch.names()));
    for n in 0..10_000 {
        let port = switch.join(NOW, Join { id: "storm".into(), ..many(most + n % 50) }).unwrap().port;
        hello(&mut switch, port, ALL);
        if n % 3 == 0 {
            switch.leave(port);
        }
    }
    assert!(switch.len() <= joined + 1);
}
