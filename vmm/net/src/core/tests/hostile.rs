//! What no honest guest sends.

use super::played::{Guest, World, addr, frame, tcp_frame, udp_bytes};
use crate::config::UsernetConfig;
use crate::core::{Failure, Time};
use crate::link::{HEADER_LEN, NetHeader, Offloads};
use crate::wire::ip::{self, Fragment, protocol};
use crate::wire::tcp::{Segment, flag};

const FROM: &str = "10.0.2.15:40000";
const TO: &str = "192.0.2.1:80";

fn world() -> World {
    World::new(UsernetConfig::default(), Offloads::default())
}

#[test]
fn a_storm_of_calls_is_bounded_and_ends_no_connection() {
    let mut world = world();
    let mut open = Guest::open(&mut world, FROM, TO);
    for number in 0..100_000_u32 {
        let from = addr(&format!("10.0.2.15:{}", 1024 + number % 30_000));
        let to = addr(&format!("198.51.{}.{}:80", 1 + number % 250, number / 30_000));
        let syn = Segment { seq: number, flags: flag::SYN, window: 1000, ..Segment::default() };
        world.send(&tcp_frame(from, to, syn, &[]));
        world.closed.clear();
        assert!(world.sockets.len() <= 4096);
    }
    assert!(world.net.counters().evicted >= 95_000);
    assert!(world.log.len() < 1300, "the log is flooded");
    world.all();
    world.now += Time::from_secs(1);
    open.send(&mut world, flag::ACK, b"still there");
    assert_eq!(world.sockets[&open.flow].got, b"still there");
    let ids: Vec<_> = world.sockets.keys().copied().filter(|id| *id != open.flow).collect();
    for id in ids {
        world.net.failed(world.now, id, Failure::Refused);
        world.act(&[]);
        world.all();
    }
    assert_eq!(world.net.flows(), 1);
}

#[test]
fn ten_thousand_flows_that_the_guest_closes_leave_the_table_empty() {
    let mut world = world();
    for number in 0..10_000_u32 {
        let from = format!("10.0.2.15:{}", 1024 + number % 50_000);
        let mut guest = Guest::open(&mut world, &from, TO);
        guest.send(&mut world, flag::ACK | flag::FIN, b"bye");
        world.net.ended(world.now, guest.flow);
        assert!(guest.take(&mut world).1);
    }
    assert_eq!((world.net.flows(), world.sockets.len()), (0, 0));
    assert_eq!(world.closed.len(), 10_000);
}

#[test]
fn every_cut_and_every_lie_in_each_header_is_survived() {
    let (from, to) = (addr(FROM), addr(TO));
    let syn = Segment { flags: flag::SYN, mss: Some(1460), shift: Some(7), ..Segment::default() };
    let (six, far) = (addr("[fd4e:656c:6c79::15]:9"), addr("[2001:db8::1]:9"));
    let sound = [
        tcp_frame(from, to, syn, b"data"),
        tcp_frame(six, far, syn, b"data"),
        frame(from.ip(), to.ip(), protocol::UDP, &udp_bytes(from, to, b"data")),
        frame(from.ip(), to.ip(), protocol::ICMP, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]),
        frame(
            from.ip(),
            addr("10.0.2.3:53").ip(),
            protocol::UDP,
            &udp_bytes(from, addr("10.0.2.3:53"), &[7; 40]),
        ),
    ];
    let mut world = world();
    for message in sound {
        for cut in 0..message.len() {
            world.send(&message[..cut]);
        }
        for at in 0..message.len() {
            for value in [0, 1, 4, 5, 15, 0x40, 0x7f, 0x80, 0xf0, 0xff] {
                let mut lie = message.clone();
                lie[at] = value;
                world.send(&lie);
                // Without checksums to be looked at, the lies come further.
                lie[0] |= NetHeader::DATA_VALID;
                world.send(&lie);
                while world.next().is_some() {}
            }
        }
    }
    assert!(world.net.counters().malformed > 1000);
}

#[test]
fn forged_sources_are_dropped() {
    let mut world = world();
    for from in ["10.0.2.2:1", "10.0.2.16:1", "8.8.8.8:1", "127.0.0.1:1", "0.0.0.0:1"] {
        world.send(&tcp_frame(addr(from), addr(TO), Segment { flags: flag::SYN, ..Segment::default() }, &[]));
    }
    let to = addr("[2001:db8::1]:1");
    for from in ["[fd4e:656c:6c79::2]:1", "[fd4e:656c:6c7a::15]:1", "[2001:db8::9]:1", "[::1]:1"] {
        world.send(&tcp_frame(addr(from), to, Segment { flags: flag::SYN, ..Segment::default() }, &[]));
    }
    assert_eq!((world.net.counters().forged, world.sockets.len()), (9, 0));
    assert!(world.all().is_empty());
}

#[test]
fn a_datagram_in_fragments_arrives_and_goes_back_in_fragments() {
    let mut world = world();
    let (from, to) = (addr(FROM), addr("192.0.2.1:7"));
    let data: Vec<u8> = (0..65_507_u32).map(|i| (i % 241).to_le_bytes()[0]).collect();
    let whole = udp_bytes(from, to, &data);
    for (at, piece) in whole.chunks(1480).enumerate() {
        let offset = at * 1480;
        let fragment = Fragment { id: 7, offset, more: offset + piece.len() < whole.len() };
        let mut message = frame(from.ip(), to.ip(), protocol::UDP, &[])[..HEADER_LEN + 14].to_vec();
        ip::put_part(&mut message, (from.ip(), to.ip()), protocol::UDP, piece.len(), Some(fragment));
        message.extend(piece);
        world.send(&message);
    }
    let (&flow, socket) = world.sockets.iter().next().unwrap();
    assert!(socket.datagrams == [data.clone()]);
    world.net.datagram(world.now, flow, data.clone());
    let parts = world.all();
    assert_eq!(parts.len(), 45);
    let back: Vec<u8> = parts.iter().flat_map(|part| part.payload.clone()).collect();
    assert!(back[8..] == data);
    assert!(parts.iter().all(|part| part.frame.len() <= 1514 && part.src == to.ip()));
}

#[test]
fn a_datagram_of_several_is_cut_as_the_guest_says() {
    let mut world = world();
    let (from, to) = (addr(FROM), addr("192.0.2.1:7"));
    let mut message = frame(from.ip(), to.ip(), protocol::UDP, &udp_bytes(from, to, &[5; 3000]));
    let header = NetHeader {
        flags: NetHeader::NEEDS_CSUM,
        gso_type: NetHeader::GSO_UDP_L4,
        gso_size: 1400,
        ..NetHeader::default()
    };
    message[..HEADER_LEN].copy_from_slice(&header.to_bytes());
    world.send(&message);
    let lens: Vec<usize> = world.sockets.values().next().unwrap().datagrams.iter().map(Vec::len).collect();
    assert_eq!(lens, [1400, 1400, 200]);
}

#[test]
fn udp_flows_end_in_silence_only() {
    let mut world = world();
    let (from, to) = (addr(FROM), addr("192.0.2.1:7"));
    let message = frame(from.ip(), to.ip(), protocol::UDP, &udp_bytes(from, to, &[]));
    for _ in 0..10 {
        world.send(&message);
        world.pass(Time::from_secs(59));
        assert_eq!(world.net.flows(), 1);
    }
    assert_eq!(world.sockets.values().next().unwrap().datagrams.len(), 10, "a zero length is a datagram");
    world.pass(Time::from_secs(2));
    assert_eq!(world.net.flows(), 0);
}

#[test]
fn a_guest_that_takes_nothing_costs_bounded_memory() {
    let mut world = world();
    let (from, to) = (addr(FROM), addr("192.0.2.1:7"));
    world.send(&frame(from.ip(), to.ip(), protocol::UDP, &udp_bytes(from, to, b"x")));
    let flow = *world.sockets.keys().next().unwrap();
    for _ in 0..10_000 {
        world.net.datagram(world.now, flow, vec![0; 1400]);
    }
    assert!(!world.net.has_room());
    assert!(world.net.counters().lost > 9000);
    assert!(world.all().len() <= 256);
    assert!(world.net.has_room());
}

#[test]
fn many_peers_that_take_nothing_cost_bounded_memory_and_lose_nothing() {
    const FLOWS: u16 = 200;
    const MIB: usize = 1;
    let config = UsernetConfig { memory_mib: 1, ..UsernetConfig::default() };
    let mut world = World::new(config, Offloads::default());
    world.takes = false;
    // A frame is as long as any that a driver leaves to be cut.
    let data: Vec<u8> = (0..60_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let mut guests: Vec<Guest> =
        (0..FLOWS).map(|n| Guest::open(&mut world, &format!("10.0.2.15:{}", 2000 + n), TO)).collect();
    let begin = guests[0].seq;
    for _ in 0..3 {
        for guest in &mut guests {
            guest.seq = begin;
            guest.send(&mut world, flag::ACK | flag::FIN, &data);
        }
        let kept: usize = world.sockets.values().map(|socket| socket.got.len()).sum();
        assert!(kept <= (MIB << 20) + usize::from(FLOWS) * (16 << 10), "{kept} bytes");
        world.all();
    }
    // When peers take something again, the guest's next trials arrive whole.
    world.takes = true;
    let flows: Vec<_> = guests.iter().map(|guest| guest.flow).collect();
    for flow in flows {
        world.sockets.get_mut(&flow).unwrap().unwritten = 0;
        world.net.unwritten(world.now, flow, 0);
    }
    for guest in &mut guests {
        let has = world.sockets[&guest.flow].got.len();
        guest.seq = begin.wrapping_add(crate::number::len32(has));
        guest.send(&mut world, flag::ACK | flag::FIN, &data[has..]);
        let socket = &world.sockets[&guest.flow];
        assert!(socket.got == data && socket.shut, "{} bytes", socket.got.len());
    }
}

#[test]
fn flows_that_end_while_the_link_takes_nothing_do_not_pile_up() {
    let mut world = world();
    for _ in 0..5000 {
        let mut guest = Guest::call(&mut world, FROM, TO);
        world.net.connected(world.now, guest.flow);
        // The guest takes back its call before it has heard the answer.
        guest.send(&mut world, flag::RST, &[]);
        assert!(world.net.ready.len() <= 1000);
    }
    assert_eq!(world.net.flows(), 0);
}

#[test]
fn callers_of_a_published_datagram_port_end_no_connection() {
    let mut world = world();
    let mut open = Guest::open(&mut world, FROM, TO);
    for _ in 0..20_000 {
        world.now += Time::from_millis(1);
        world.net.heard_of(world.now, true, 53).unwrap();
        world.act(&[]);
    }
    assert!(world.net.flows() <= 4096);
    open.send(&mut world, flag::ACK, b"still there");
    assert_eq!(world.sockets[&open.flow].got, b"still there");
}

#[test]
fn what_turns_out_to_be_the_host_itself_is_counted_and_told() {
    let mut world = world();
    let (from, to) = (addr(FROM), addr("192.0.2.1:7"));
    let ping = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
    for (count, (message, what)) in [
        (
            tcp_frame(from, to, Segment { flags: flag::SYN, ..Segment::default() }, &[]),
            r#""to":"192.0.2.1:7""#,
        ),
        (frame(from.ip(), to.ip(), protocol::UDP, &udp_bytes(from, to, b"data")), r#""to":"192.0.2.1:7""#),
        (frame(from.ip(), to.ip(), protocol::ICMP, &ping), r#""to":"192.0.2.1""#),
    ]
    .into_iter()
    .enumerate()
    {
        world.send(&message);
        let flow = *world.sockets.keys().next().unwrap();
        world.net.failed(world.now, flow, Failure::OwnAddress);
        world.act(&[]);
        assert_eq!((world.net.flows(), world.all().len()), (0, 1), "{what}");
        assert_eq!(world.net.counters().refused, u64::try_from(count).unwrap() + 1, "{what}");
        let line = world.log.last().unwrap();
        assert!(line.contains(what) && line.contains("the host itself"), "{line}");
    }
}

#[test]
fn callers_beyond_the_gateways_ports_are_lost_and_end_nothing() {
    let config = UsernetConfig { max_flows: 65_536, ..UsernetConfig::default() };
    let mut world = World::new(config, Offloads::default());
    Guest::open(&mut world, FROM, TO);
    let taken = (0..17_000).filter(|_| world.net.heard_of(world.now, true, 53).is_some()).count();
    assert!((14_000..=16_384).contains(&taken), "{taken}");
    // Another port of the guest has peers of its own, and so has another protocol or family.
    assert!(world.net.heard_of(world.now, true, 54).is_some());
    assert!(world.net.accepted(world.now, true, 53).is_some());
    assert!(world.net.heard_of(world.now, false, 53).is_some());
    assert_eq!(world.net.flows(), 1 + taken + 3);
    let lost = 17_000 - u64::try_from(taken).unwrap();
    assert_eq!((world.net.counters().lost, world.net.counters().evicted), (lost, 0));
}

#[test]
fn whoever_asks_by_dhcp_is_told_of_the_one_address() {
    let mut world = world();
    let (from, to) = (addr("0.0.0.0:68"), addr("255.255.255.255:67"));
    for number in 0..10_000_u32 {
        let mut message = vec![0; 240];
        message[..3].copy_from_slice(&[1, 1, 6]);
        message[4..8].copy_from_slice(&number.to_be_bytes());
        // Another client each time.
        message[28..34].copy_from_slice(&[&[0x52, 0x54][..], &number.to_be_bytes()].concat());
        message[236..240].copy_from_slice(&[99, 130, 83, 99]);
        message.extend([53, 1, 1, 255]);
        world.send(&frame(from.ip(), to.ip(), protocol::UDP, &udp_bytes(from, to, &message)));
        let offer = world.one().payload;
        assert_eq!((&offer[4..8], &offer[16..20]), (&number.to_be_bytes()[..], &[10, 0, 2, 15][..]));
    }
    assert_eq!((world.net.flows(), world.sockets.len()), (0, 0));
}
