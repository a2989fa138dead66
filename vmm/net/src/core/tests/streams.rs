//! Connections.

use super::played::{Guest, World, addr, tcp_frame};
use crate::config::UsernetConfig;
use crate::core::{Failure, Time};
use crate::link::{NetHeader, Offloads};
use crate::wire::tcp::{Segment, flag};

const FROM: &str = "10.0.2.15:40000";
const TO: &str = "192.0.2.1:80";
const FROM6: &str = "[fd4e:656c:6c79::15]:40000";
const TO6: &str = "[2001:db8::1]:80";

fn world() -> World {
    World::new(UsernetConfig::default(), Offloads::default())
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251).to_le_bytes()[0]).collect()
}

#[test]
fn frames_are_as_long_as_the_guest_can_take_them() {
    let all = Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6;
    let data = bytes(200_000);
    for (offloads, from, to, longest, mss) in [
        (Offloads::default(), FROM, TO, 1460, 0),
        (Offloads::CSUM, FROM, TO, 1460, 0),
        (Offloads::CSUM | Offloads::TSO6, FROM, TO, 1460, 0),
        (Offloads::TSO4, FROM, TO, 1460, 0),
        (all, FROM, TO, 1460 * 44, 1460),
        (Offloads::default(), FROM6, TO6, 1440, 0),
        (all, FROM6, TO6, 1440 * 45, 1440),
    ] {
        let mut world = World::new(UsernetConfig::default(), offloads);
        let mut guest = Guest::open(&mut world, from, to);
        guest.feed(&mut world, &data);
        let mut got = Vec::new();
        let mut most = 0;
        for message in world.all() {
            let len = message.payload.len();
            most = most.max(len);
            got.extend(message.payload);
            let cut = len > 1460;
            assert_eq!(message.header.gso_size, if cut { mss } else { 0 });
            let kind = match (cut, from == FROM) {
                (false, _) => NetHeader::GSO_NONE,
                (true, true) => NetHeader::GSO_TCPV4,
                (true, false) => NetHeader::GSO_TCPV6,
            };
            assert_eq!(message.header.gso_type, kind);
            let partial = message.header.flags == NetHeader::NEEDS_CSUM;
            assert_eq!(partial, offloads.has(Offloads::CSUM));
        }
        assert_eq!(most, longest, "{offloads:?} {from}");
        assert!(got == data);
        guest.ack = guest.ack.wrapping_add(200_000);
        guest.send(&mut world, flag::ACK, &[]);
        assert!(world.sockets[&guest.flow].ring.is_empty());
    }
}

#[test]
fn both_orders_of_closing_leave_the_table_empty() {
    for guest_first in [true, false] {
        for (from, to) in [(FROM, TO), (FROM6, TO6)] {
            let mut world = world();
            let mut guest = Guest::open(&mut world, from, to);
            let flow = guest.flow;
            if guest_first {
                guest.send(&mut world, flag::ACK | flag::FIN, b"last words");
                assert!(world.sockets[&flow].shut);
                assert_eq!(world.sockets[&flow].got, b"last words");
            }
            // What comes late is heard all the same.
            guest.feed(&mut world, &bytes(100_000));
            world.net.ended(world.now, flow);
            let (data, ended) = guest.take(&mut world);
            assert!(data == bytes(100_000) && ended);
            if !guest_first {
                guest.send(&mut world, flag::ACK, b"still here");
                guest.take(&mut world);
                guest.send(&mut world, flag::ACK | flag::FIN, &[]);
                let last = world.one().segment.unwrap();
                assert_eq!((last.flags, last.ack), (flag::ACK, guest.seq));
            }
            assert_eq!((world.net.flows(), world.closed.as_slice()), (0, &[(flow, false)][..]));
            assert!(world.net.deadline().is_none_or(|at| at >= world.now + Time::from_secs(500)));
        }
    }
}

#[test]
fn a_refusal_is_a_reset_and_an_unreachable_network_is_icmp() {
    let mut world = world();
    let guest = Guest::call(&mut world, FROM, TO);
    world.net.failed(world.now, guest.flow, Failure::Refused);
    world.act(&[]);
    let answer = world.one().segment.unwrap();
    assert_eq!((answer.flags, answer.ack), (flag::RST | flag::ACK, guest.seq));
    let guest = Guest::call(&mut world, FROM, TO);
    world.net.failed(world.now, guest.flow, Failure::HostUnreachable);
    world.act(&[]);
    let answer = world.one();
    assert_eq!((answer.protocol, &answer.payload[..2]), (1, &[3, 1][..]));
    // What it is about: the ports and the number of the guest's SYN.
    assert_eq!(answer.payload[28..36], [0x9c, 0x40, 0, 80, 0xff, 0xff, 0xff, 0]);
    assert_eq!(world.net.flows(), 0);
}

#[test]
fn a_segment_of_no_connection_is_reset() {
    let mut world = world();
    for (flags, expected) in [
        (flag::ACK, (flag::RST, 77, 0)),
        (flag::SYN | flag::ACK, (flag::RST, 77, 0)),
        (flag::FIN, (flag::RST | flag::ACK, 0, 9)),
    ] {
        let segment = Segment { seq: 5, ack: 77, flags, ..Segment::default() };
        world.send(&tcp_frame(addr(FROM), addr(TO), segment, &[1, 2, 3]));
        let got = world.one().segment.unwrap();
        let ack = if flags == flag::FIN { 5 + 3 + 1 } else { 0 };
        assert_eq!((got.flags, got.seq, got.ack), (expected.0, expected.1, ack));
    }
    let segment = Segment { seq: 5, ack: 77, flags: flag::RST, ..Segment::default() };
    world.send(&tcp_frame(addr(FROM), addr(TO), segment, &[]));
    assert!(world.all().is_empty());
}

#[test]
fn what_the_guest_drops_is_sent_again_at_growing_intervals_and_not_for_ever() {
    let mut world = world();
    let guest = Guest::open(&mut world, FROM, TO);
    guest.feed(&mut world, &bytes(10_000));
    let first = world.all();
    assert_eq!(first.len(), 7);
    let (mut waits, mut last) = (Vec::new(), world.now);
    while world.net.flows() > 0 {
        let due = world.net.deadline().unwrap();
        assert!(due > world.now, "due at once: processor time for nothing");
        world.pass(due - world.now);
        let again = world.all();
        if let [got] = &again[..]
            && !got.segment.unwrap().has(flag::RST)
        {
            assert_eq!(got.payload, first[0].payload);
            waits.push(world.now - last);
            last = world.now;
        }
    }
    assert_eq!(waits.len(), 15, "{waits:?}");
    assert!(waits.is_sorted() && waits[14] == Time::from_secs(120), "{waits:?}");
    assert_eq!(world.closed, [(guest.flow, true)]);
}

#[test]
fn one_lost_segment_is_sent_again_and_the_rest_follows() {
    let mut world = world();
    let mut guest = Guest::open(&mut world, FROM, TO);
    guest.feed(&mut world, &bytes(10_000));
    let lost = world.all();
    // The guest drops the first, and says for each of the others what it still waits for.
    for _ in &lost[1..] {
        guest.send(&mut world, flag::ACK, &[]);
    }
    let again = world.all();
    assert_eq!((again.len(), &again[0].payload), (1, &lost[0].payload));
    guest.ack = guest.ack.wrapping_add(1460);
    guest.send(&mut world, flag::ACK, &[]);
    assert!(guest.take(&mut world).0 == bytes(10_000)[1460..]);
}

#[test]
fn a_closed_window_is_looked_at_and_kept_for_ever() {
    let mut world = world();
    let mut guest = Guest::open(&mut world, FROM, TO);
    guest.window = 0;
    guest.send(&mut world, flag::ACK, &[]);
    guest.feed(&mut world, b"waits");
    assert!(world.all().is_empty());
    for _ in 0..100 {
        let due = world.net.deadline().unwrap();
        world.pass(due - world.now);
        let probes = world.all();
        assert!(probes.len() <= 1);
        if let [probe] = &probes[..] {
            assert_eq!(probe.payload, b"w");
            guest.send(&mut world, flag::ACK, &[]);
        }
    }
    assert!(world.now > Time::from_secs(3600), "looked at too often");
    guest.window = 64_000;
    guest.send(&mut world, flag::ACK, &[]);
    assert_eq!(guest.take(&mut world), (b"waits".to_vec(), false));
}

#[test]
fn a_peer_that_does_not_read_closes_the_guests_window_and_opens_it_again() {
    let mut world = world();
    world.takes = false;
    let mut guest = Guest::open(&mut world, FROM, TO);
    let mut room = 65_535;
    let mut sent = 0;
    for _ in 0..2000 {
        let len = room.min(1460);
        guest.send(&mut world, flag::ACK, &vec![1; len]);
        sent += len;
        if let Some(got) = world.all().last() {
            room = usize::from(got.segment.unwrap().window) << 7;
        }
        if room == 0 {
            break;
        }
    }
    assert!((1 << 20) - 128 < sent && sent <= 1 << 20, "the window is what the network would keep");
    // What is sent beyond it is not taken.
    guest.send(&mut world, flag::ACK, &[1; 1000]);
    let sent = world.sockets[&guest.flow].got.len();
    assert_eq!(sent, 1 << 20);
    world.all();
    // A little room is not worth a packet, a lot is.
    world.sockets.get_mut(&guest.flow).unwrap().unwritten = sent - 1000;
    world.net.unwritten(world.now, guest.flow, sent - 1000);
    assert!(world.all().is_empty());
    world.sockets.get_mut(&guest.flow).unwrap().unwritten = 0;
    world.net.unwritten(world.now, guest.flow, 0);
    assert_eq!(usize::from(world.one().segment.unwrap().window) << 7, 1 << 20);
}

#[test]
fn silence_is_asked_about_and_ended_and_an_active_flow_never() {
    let config = UsernetConfig { tcp_idle: 100, ..UsernetConfig::default() };
    let mut world = World::new(config, Offloads::default());
    let mut guest = Guest::open(&mut world, FROM, TO);
    // Whoever says something, or answers, stays.
    for _ in 0..20 {
        world.pass(Time::from_secs(99));
        guest.send(&mut world, flag::ACK, b"x");
        assert_eq!(world.all().len(), 1);
    }
    world.pass(Time::from_secs(101));
    let asked = world.one().segment.unwrap();
    assert_eq!((asked.seq, asked.flags), (guest.ack.wrapping_sub(1), flag::ACK));
    guest.send(&mut world, flag::ACK, &[]);
    for _ in 0..8 {
        world.pass(Time::from_secs(50));
    }
    assert_eq!(world.net.flows(), 1);
    // And whoever does not goes.
    let before = world.now;
    while world.net.flows() > 0 {
        let due = world.net.deadline().unwrap().max(world.now + Time::from_millis(1));
        world.pass(due - world.now);
        world.all();
        assert!(world.now - before < Time::from_secs(2000), "kept for ever");
    }
    assert_eq!(world.closed, [(guest.flow, true)]);
}

#[test]
fn half_closed_and_silent_connections_end() {
    let mut world = world();
    let mut guest = Guest::open(&mut world, FROM, TO);
    guest.send(&mut world, flag::ACK | flag::FIN, &[]);
    world.all();
    world.pass(Time::from_secs(899));
    assert_eq!(world.net.flows(), 1);
    world.pass(Time::from_secs(2));
    assert_eq!(world.net.flows(), 0);
}

#[test]
fn health_checks_leave_nothing() {
    let mut world = world();
    for _ in 0..1000 {
        let mut guest = Guest::call(&mut world, FROM, TO);
        world.net.connected(world.now, guest.flow);
        assert_eq!(world.all().len(), 1);
        guest.send(&mut world, flag::RST, &[]);
        assert!(world.all().is_empty());
        assert_eq!((world.net.flows(), world.sockets.len()), (0, 0));
    }
    Guest::open(&mut world, FROM, TO);
}

#[test]
fn a_driver_that_begins_anew_finds_its_connections_again() {
    let mut world = world();
    let mut guest = Guest::open(&mut world, FROM, TO);
    guest.feed(&mut world, b"before");
    let hello = crate::link::Hello { offloads: Offloads::CSUM | Offloads::TSO4, mtu: 1500 };
    world.send(&hello.to_bytes());
    assert_eq!(guest.take(&mut world), (b"before".to_vec(), false));
}

#[test]
fn an_answer_after_the_peers_end_is_written_whole_before_the_socket_is_closed() {
    let mut world = world();
    world.takes = false;
    let mut guest = Guest::open(&mut world, FROM, TO);
    let flow = guest.flow;
    world.net.ended(world.now, flow);
    assert!(guest.take(&mut world).1);
    guest.send(&mut world, flag::ACK | flag::FIN, b"the answer");
    assert_eq!((world.net.flows(), world.closed.len()), (1, 0), "closed with bytes unwritten");
    world.net.unwritten(world.now, flow, 0);
    world.act(&[]);
    assert_eq!((world.net.flows(), world.closed.as_slice()), (0, &[(flow, false)][..]));
}

#[test]
fn an_answer_that_the_link_never_took_is_given_up() {
    let config = UsernetConfig { tcp_idle: 1, ..UsernetConfig::default() };
    let mut world = World::new(config, Offloads::default());
    let guest = Guest::call(&mut world, FROM, TO);
    world.net.connected(world.now, guest.flow);
    world.pass(Time::from_secs(2));
    assert_eq!(world.net.flows(), 0);
}
