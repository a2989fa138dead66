//! Questions to the resolver in streams.

use super::played::{Guest, World, addr, frame, tcp_frame, udp_bytes};
use super::rules::{address, question, world as ruled};
use crate::config::{UsernetConfig, Verdict};
use crate::core::{Failure, FlowId, Time};
use crate::link::Offloads;
use crate::wire::ip::protocol;
use crate::wire::tcp::{Segment, flag};

fn world() -> World {
    ruled(&["example.org"], &[], Verdict::Deny)
}

/// A stream to the resolver, which needs nobody to be open.
fn talk(world: &mut World, from: &str) -> Guest {
    let (from, to) = (addr(from), addr("10.0.2.3:53"));
    let known: Vec<FlowId> = world.sockets.keys().copied().collect();
    let syn = Segment {
        seq: 99,
        flags: flag::SYN,
        window: 64_000,
        mss: Some(1460),
        shift: Some(7),
        ..Segment::default()
    };
    world.send(&tcp_frame(from, to, syn, &[]));
    let flow = *world.sockets.keys().find(|id| !known.contains(id)).unwrap();
    let answer = world.one().segment.unwrap();
    assert_eq!((answer.flags, answer.ack), (flag::SYN | flag::ACK, 100));
    let mut guest = Guest { from, to, flow, seq: 100, ack: answer.seq.wrapping_add(1), window: 64_000 };
    guest.send(world, flag::ACK, &[]);
    guest
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
}

/// The flow that asks a resolver of the host, which is not among these.
fn asks(world: &World, known: &[FlowId]) -> FlowId {
    *world.sockets.keys().find(|id| !known.contains(id)).unwrap()
}

#[test]
fn what_is_asked_in_a_stream_is_answered_there_by_the_same_rules() {
    let mut world = world();
    let mut guest = talk(&mut world, "10.0.2.15:4000");
    // A question in parts, and two in one.
    let host = framed(&question("host.internal", 1));
    let (a, b) = host.split_at(1);
    guest.send(&mut world, flag::ACK, a);
    guest.send(&mut world, flag::ACK, &b[..9]);
    assert!(world.sockets[&guest.flow].ring.is_empty());
    guest.send(&mut world, flag::ACK, &b[9..]);
    let (answer, ended) = guest.take(&mut world);
    assert!(!ended && answer[..4] == [0, 47, 0x12, 0x34] && answer.ends_with(&[10, 0, 2, 2]), "{answer:?}");
    guest.send(&mut world, flag::ACK, &[host, framed(&question("other.example", 1))].concat());
    let (answer, _) = guest.take(&mut world);
    assert_eq!((answer[49 + 2 + 3] & 15, answer.len()), (5, 49 + 2 + 12 + 19));

    // A resolver of the host is asked in a stream, too.
    guest.send(&mut world, flag::ACK, &framed(&question("example.org", 1)));
    let upstream = asks(&world, &[guest.flow]);
    assert_eq!(world.sockets[&upstream].got, b"", "asked before it is connected");
    world.net.connected(world.now, upstream);
    world.act(&[]);
    let asked = world.sockets[&upstream].got.clone();
    assert_eq!((usize::from(asked[1]), &asked[4..]), (asked.len() - 2, &question("example.org", 1)[2..]));
    let mut answer = asked[2..].to_vec();
    (answer[2], answer[7]) = (0x81, 100);
    answer.extend((0..100).flat_map(|last| address(&format!("198.51.100.{last}"))));
    let answer = framed(&answer);
    world.net.answer_part(world.now, upstream, &answer[..1]);
    world.net.answer_part(world.now, upstream, &answer[1..700]);
    // The guest asks no more, and hears the answer.
    guest.send(&mut world, flag::ACK | flag::FIN, &[]);
    assert_eq!(guest.take(&mut world), (vec![], false));
    world.net.answer_part(world.now, upstream, &answer[700..]);
    world.act(&[]);
    let (got, ended) = guest.take(&mut world);
    assert!(ended && got.len() == answer.len() && got.ends_with(&[198, 51, 100, 99]));
    assert_eq!((world.net.flows(), world.sockets.len(), world.net.unread), (0, 0, 0));
    Guest::open(&mut world, "10.0.2.15:40000", "198.51.100.99:22");
}

#[test]
fn a_resolver_that_fails_in_a_stream_is_none() {
    for how in 0..4 {
        let mut world = world();
        let mut guest = talk(&mut world, "10.0.2.15:4000");
        guest.send(&mut world, flag::ACK, &framed(&question("example.org", 1)));
        for _ in 0..4 {
            let upstream = asks(&world, &[guest.flow]);
            if how > 0 {
                world.net.connected(world.now, upstream);
                world.act(&[]);
            }
            match how {
                0 => world.net.failed(world.now, upstream, Failure::Refused),
                1 => world.net.ended(world.now, upstream),
                2 => world.net.broken(upstream),
                _ => world.net.answer_part(world.now, upstream, &framed(&question("example.net", 1))),
            }
            world.pass(Time::ZERO);
        }
        let (answer, _) = guest.take(&mut world);
        assert_eq!((answer.len(), answer[2 + 3] & 15), (2 + 12 + 17, 2), "{how}");
        assert_eq!(world.net.flows(), 1);
    }
}

#[test]
fn a_stream_of_questions_costs_bounded_memory() {
    let mut world = world();
    let mut guest = talk(&mut world, "10.0.2.15:4000");
    guest.send(&mut world, flag::ACK, &[0x10, 1]);
    assert!(world.one().segment.unwrap().has(flag::RST), "a question of 4097 bytes is waited for");
    // Answers that nobody takes. Another stream is none the worse for them.
    let questions = framed(&question("host.internal", 1)).repeat(40);
    let mut other = talk(&mut world, "10.0.2.15:4002");
    let mut guest = talk(&mut world, "10.0.2.15:4001");
    let mut most = 0;
    for _ in 0..4000 {
        if !world.sockets.contains_key(&guest.flow) {
            break;
        }
        guest.send(&mut world, flag::ACK, &questions);
        // They are on their way, and not acknowledged.
        while world.next().is_some() {}
        most = most.max(world.sockets.get(&guest.flow).map_or(0, |socket| socket.ring.len()));
        assert!(most <= 256 << 10);
    }
    assert!(most > 192 << 10);
    other.send(&mut world, flag::ACK, &framed(&question("host.internal", 1)));
    assert_eq!(other.take(&mut world).0.len(), 49);
    assert_eq!((world.net.flows(), world.net.unread), (1, 0));
    // Of many such streams it is all together that is bounded.
    for port in 5000..5020 {
        let mut guest = talk(&mut world, &format!("10.0.2.15:{port}"));
        for _ in 0..100 {
            if world.sockets.get(&guest.flow).is_some_and(|socket| socket.ring.len() < 240 << 10) {
                guest.send(&mut world, flag::ACK, &questions);
                while world.next().is_some() {}
            }
        }
        assert!(world.net.unread <= 4 << 20);
    }
    assert!(world.net.unread > 3 << 20);
}

#[test]
fn a_question_that_has_to_make_room_is_answered() {
    let config = UsernetConfig {
        max_flows: 16,
        dns_servers: vec!["192.0.2.53".parse().unwrap()],
        ..UsernetConfig::default()
    };
    let mut world = World::new(config, Offloads::default());
    let mut guest = talk(&mut world, "10.0.2.15:4000");
    guest.send(&mut world, flag::ACK, &framed(&question("example.org", 1)));
    assert_eq!(world.net.flows(), 2);
    let to = addr("10.0.2.3:53");
    for port in 6000..6015 {
        let from = addr(&format!("10.0.2.15:{port}"));
        let asked = udp_bytes(from, to, &question(&format!("n{port}.example.net"), 1));
        world.send(&frame(from.ip(), to.ip(), protocol::UDP, &asked));
    }
    let (answer, ended) = guest.take(&mut world);
    assert_eq!((answer.len(), answer.get(2 + 3).map(|code| code & 15), ended), (2 + 12 + 17, Some(2), false));
    assert_eq!(world.net.flows(), 16);
}
