//! Rules of names, from the question to the last byte.

use serde_json::Value;

use super::played::{Guest, World, addr, frame, tcp_frame, udp_bytes};
use crate::config::{UsernetConfig, Verdict};
use crate::core::{FlowId, Time};
use crate::link::Offloads;
use crate::wire::ip::protocol;
use crate::wire::tcp::{Segment, flag};

const FROM: &str = "10.0.2.15:40000";
const RESOLVER: &str = "10.0.2.3:53";

pub(super) fn world(allow: &[&str], deny: &[&str], default: Verdict) -> World {
    world_with(allow, deny, default, &[])
}

/// The same with hosts of secrets.
pub(super) fn world_with(allow: &[&str], deny: &[&str], default: Verdict, secrets: &[&str]) -> World {
    let secrets = secrets.iter().map(|text| text.parse().unwrap()).collect();
    let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let dns_servers = vec!["192.0.2.53".parse().unwrap()];
    let config = UsernetConfig {
        allow: rules(allow),
        deny: rules(deny),
        default,
        secrets,
        dns_servers,
        ..UsernetConfig::default()
    };
    let mut world = World::new(config, Offloads::default());
    world.net.set_has_v6(world.now, true);
    world.pass(Time::ZERO);
    world.all();
    world
}

pub(super) fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut out = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        out.push(label.len().to_le_bytes()[0]);
        out.extend(label.as_bytes());
    }
    out.push(0);
    out.extend(kind.to_be_bytes());
    out.extend([0, 1]);
    out
}

/// The guest asks; gives what it is answered when the resolver has these records. `None`: the
/// resolver was not asked.
pub(super) fn ask(world: &mut World, name: &str, kind: u16, records: &[Vec<u8>]) -> (bool, Vec<u8>) {
    let (from, to) = (addr("10.0.2.15:5353"), addr(RESOLVER));
    let known: Vec<FlowId> = world.sockets.keys().copied().collect();
    world.send(&frame(from.ip(), to.ip(), protocol::UDP, &udp_bytes(from, to, &question(name, kind))));
    let flow = world.sockets.keys().copied().find(|id| !known.contains(id));
    if let Some(flow) = flow {
        let mut answer = world.sockets[&flow].datagrams[0].clone();
        answer[2] |= 0x80;
        answer[7] = records.len().to_le_bytes()[0];
        answer.extend(records.concat());
        world.net.datagram(world.now, flow, answer);
        world.act(&[]);
    }
    let mut answers = world.all();
    assert_eq!(answers.len(), 1);
    (flow.is_some(), answers.remove(0).payload)
}

pub(super) fn address(ip: &str) -> Vec<u8> {
    let (kind, bytes) = match ip.parse().unwrap() {
        std::net::IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        std::net::IpAddr::V6(ip) => (28, ip.octets().to_vec()),
    };
    [vec![0xc0, 12, 0, kind, 0, 1, 0, 0, 1, 44, 0, bytes.len().to_le_bytes()[0]], bytes].concat()
}

/// Another name of the first one, which has this address.
pub(super) fn alias(name: &str, ip: &str) -> [Vec<u8>; 2] {
    let wire = question(name, 1)[12..].to_vec();
    let wire = &wire[..wire.len() - 4];
    let record = [&[0xc0, 12, 0, 5, 0, 1, 0, 0, 1, 44, 0][..], &[wire.len().to_le_bytes()[0]], wire].concat();
    [record, [wire, &address(ip)[2..]].concat()]
}

fn refuses(world: &mut World, to: &str) {
    let from = addr(FROM);
    let to = addr(to);
    let from = if to.is_ipv4() { from } else { addr("[fd4e:656c:6c79::15]:40000") };
    let count = world.sockets.len();
    world.send(&tcp_frame(from, to, Segment { seq: 9, flags: flag::SYN, ..Segment::default() }, &[]));
    assert!(world.one().segment.unwrap().has(flag::RST), "{to}");
    world.send(&frame(from.ip(), to.ip(), protocol::UDP, &udp_bytes(from, to, b"x")));
    assert_eq!(world.sockets.len(), count, "{to}");
    while world.next().is_some() {}
}

fn last(world: &World) -> Value {
    serde_json::from_str(world.log.last().unwrap()).unwrap()
}

/// The record of a hello to this server (RFC 8446).
pub(super) fn hello(name: &str) -> Vec<u8> {
    let len = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    let host = [vec![0], len(name.as_bytes()), name.as_bytes().to_vec()].concat();
    let list = [len(&host), host].concat();
    let extensions = [vec![0, 0], len(&list), list].concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend([len(&extensions), extensions].concat());
    let message = [vec![1, 0], len(&body), body].concat();
    [vec![22, 3, 1], len(&message), message].concat()
}

#[test]
fn under_denial_by_default_a_name_opens_its_addresses_and_nothing_else() {
    let mut world = world(&["Example.org:443", "*.example.org"], &[], Verdict::Deny);
    for to in ["198.51.100.7:443", "[2001:db8::7]:443"] {
        refuses(&mut world, to);
    }
    let (asked, answer) = ask(&mut world, "other.example", 1, &[]);
    assert!(!asked && answer[3] & 15 == 5 && answer[..2] == [0x12, 0x34], "{answer:?}");
    let line = last(&world);
    assert_eq!((&line["verdict"], &line["name"]), (&"denied".into(), &"other.example".into()));
    // Who resolves the name has its addresses, of both families, and through other names.
    let (asked, answer) = ask(&mut world, "example.ORG", 1, &[address("198.51.100.7")]);
    assert!(asked && answer.ends_with(&[198, 51, 100, 7]));
    ask(&mut world, "example.org", 28, &[address("2001:db8::7")]);
    ask(&mut world, "www.example.org", 1, &alias("edge.cdn.example", "198.51.100.8"));
    // Keys that would hide a name are not handed on.
    let (asked, answer) = ask(&mut world, "example.org", 65, &[]);
    assert!(!asked && answer[3] & 15 == 0 && answer[7] == 0);
    refuses(&mut world, "198.51.100.7:22");
    refuses(&mut world, "198.51.100.9:443");
    for (to, by) in [("198.51.100.7:443", "example.org:443"), ("198.51.100.8:22", "*.example.org")] {
        Guest::open(&mut world, FROM, to);
        let line = last(&world);
        assert_eq!((&line["verdict"], line["to"].as_str().unwrap()), (&"allowed".into(), to));
        assert_eq!(line["rule"], format!("allow {by}"), "{line}");
        assert!(line["name"].as_str().unwrap().ends_with("example.org"), "{line}");
    }
    // Its own time is over when nobody asks again, and connections go on.
    world.now += Time::from_secs(331);
    refuses(&mut world, "[2001:db8::7]:443");
}

#[test]
fn the_first_bytes_go_on_when_they_name_who_is_allowed() {
    let mut world = world(&["example.org"], &[], Verdict::Deny);
    ask(&mut world, "example.org", 1, &[address("198.51.100.7")]);
    // In many segments, and then more.
    let mut guest = Guest::open(&mut world, FROM, "198.51.100.7:443");
    let hello = hello("example.org");
    let (last_byte, first) = hello.split_last().unwrap();
    for part in first.chunks(7) {
        guest.send(&mut world, flag::ACK, part);
        assert_eq!(world.sockets[&guest.flow].got, b"", "sent before it is known to whom");
    }
    guest.send(&mut world, flag::ACK, &[*last_byte, b'x']);
    guest.send(&mut world, flag::ACK | flag::FIN, b"yz");
    let socket = &world.sockets[&guest.flow];
    assert_eq!((&socket.got, socket.shut), (&[&hello[..], b"xyz"].concat(), true));
    guest.feed(&mut world, b"answer");
    world.net.ended(world.now, guest.flow);
    assert_eq!(guest.take(&mut world), (b"answer".to_vec(), true));
    assert_eq!((world.net.flows(), world.net.unwritten), (0, 0));

    // Whoever says something else is reset, and its peer has heard nothing.
    let request = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes();
    for (port, bytes, flags, why) in [
        (443, self::hello("other.example"), 0, "other.example"),
        (443, b"SSH-2.0-x\r\n".to_vec(), 0, "does not begin"),
        (443, hello[..20].to_vec(), flag::FIN, "it ended before"),
        (80, request("other.example"), 0, "other.example"),
        (80, request("198.51.100.7"), 0, "names no host"),
        (80, hello.clone(), 0, "does not begin"),
    ] {
        let mut guest = Guest::open(&mut world, FROM, &format!("198.51.100.7:{port}"));
        world.closed.clear();
        guest.send(&mut world, flag::ACK | flags, &bytes);
        assert_eq!(world.closed, [(guest.flow, true)], "{why}");
        assert!(world.one().segment.unwrap().has(flag::RST), "{why}");
        let line = last(&world);
        assert!(line["verdict"] == "denied" && line["reason"].as_str().unwrap().contains(why), "{line}");
        assert_eq!((world.net.flows(), world.net.unwritten), (0, 0));
    }
    // A server that speaks first is not heard.
    for (port, sent) in [(443, &hello[..20]), (80, b"")] {
        let mut guest = Guest::open(&mut world, FROM, &format!("198.51.100.7:{port}"));
        guest.send(&mut world, flag::ACK, sent);
        world.all();
        world.closed.clear();
        guest.feed(&mut world, b"220 a server of mail\r\n");
        assert_eq!(world.closed, [(guest.flow, true)]);
        let heard = world.all();
        assert!(heard.iter().all(|got| got.payload.is_empty()), "it was heard");
        assert!(heard.last().unwrap().segment.unwrap().has(flag::RST));
        assert!(last(&world)["reason"].as_str().unwrap().contains("speaks before"));
        assert_eq!((world.net.flows(), world.net.unwritten), (0, 0));
    }
    let mut guest = Guest::open(&mut world, FROM, "198.51.100.7:80");
    guest.send(&mut world, flag::ACK, &request("Example.org:80"));
    assert_eq!(world.sockets[&guest.flow].got, request("Example.org:80"));
    world.all();
    // One that never says it is listened to for so long.
    let mut guest = Guest::open(&mut world, "10.0.2.15:40001", "198.51.100.7:80");
    guest.send(&mut world, flag::ACK, b"GET / HTTP/1.1\r\nX: ");
    for _ in 0..20 {
        if world.sockets.contains_key(&guest.flow) {
            assert_eq!(world.sockets[&guest.flow].got, b"");
            guest.send(&mut world, flag::ACK, &[b'x'; 1400]);
        }
    }
    assert!(!world.sockets.contains_key(&guest.flow), "it is held back for ever");
}

#[test]
fn a_denied_name_has_no_answer_whatever_name_it_hides_behind() {
    let mut world = world(&[], &["ads.example", "*.ads.example"], Verdict::Allow);
    for (name, refused) in [("ads.example", true), ("A.ads.EXAMPLE", true), ("example", false)] {
        let (asked, answer) = ask(&mut world, name, 1, &[address("198.51.100.1")]);
        assert_eq!((asked, answer[3] & 15 == 5), (!refused, refused), "{name}");
    }
    let (asked, answer) = ask(&mut world, "first.party", 1, &alias("x.ads.example", "198.51.100.2"));
    assert!(asked && answer[3] & 15 == 5 && answer[7] == 0, "{answer:?}");
    refuses(&mut world, "198.51.100.2:443");
    let line = last(&world);
    assert_eq!((&line["protocol"], &line["rule"]), (&"udp".into(), &"deny *.ads.example".into()));
    // Its address is not known, but its name is told.
    let mut guest = Guest::open(&mut world, FROM, "198.51.100.3:443");
    guest.send(&mut world, flag::ACK, &hello("ads.example"));
    assert!(world.one().segment.unwrap().has(flag::RST));
    let mut guest = Guest::open(&mut world, FROM, "198.51.100.3:443");
    guest.send(&mut world, flag::ACK, b"something else");
    assert_eq!(world.sockets[&guest.flow].got, b"something else");
}

#[test]
fn an_answer_that_is_not_understood_is_not_handed_on_where_rules_are_about_names() {
    for (deny, code) in [(&[][..], 0), (&["ads.example"], 2)] {
        let mut world = world(&[], deny, Verdict::Allow);
        let broken = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 1].to_vec();
        let (_, answer) = ask(&mut world, "example.org", 1, &[broken]);
        assert_eq!(answer[3] & 15, code);
    }
}

#[test]
fn a_family_that_the_host_does_not_have_has_no_addresses() {
    let mut world = world(&[], &[], Verdict::Allow);
    assert!(ask(&mut world, "example.org", 28, &[address("2001:db8::7")]).0);
    world.net.set_has_v6(world.now, false);
    let (asked, answer) = ask(&mut world, "example.org", 28, &[]);
    assert!(!asked && answer[3] & 15 == 0 && answer[7] == 0);
    assert!(ask(&mut world, "example.org", 1, &[address("192.0.2.1")]).0);
    assert_eq!(ask(&mut world, "host.internal", 28, &[]).1[7], 1);
}

#[test]
fn a_question_is_asked_once_for_as_long_as_its_answer_is_good() {
    let mut world = world(&["example.org"], &[], Verdict::Deny);
    let records = [address("198.51.100.7")];
    assert!(ask(&mut world, "example.org", 1, &records).0);
    world.now += Time::from_secs(299);
    let (asked, answer) = ask(&mut world, "EXAMPLE.org", 1, &records);
    assert!(!asked && answer.ends_with(&[0, 0, 0, 1, 0, 4, 198, 51, 100, 7]), "{answer:?}");
    assert_eq!((&answer[13..20], world.net.counters().cached), (&b"EXAMPLE"[..], 1));
    assert!(ask(&mut world, "example.org", 28, &[address("2001:db8::7")]).0);
    // Its address is let out for as long as whoever was told of it uses it.
    world.now += Time::from_secs(30);
    Guest::open(&mut world, FROM, "198.51.100.7:22");
    assert!(ask(&mut world, "example.org", 1, &records).0);
}

#[test]
fn a_day_of_lookups_leaves_nothing_and_the_last_is_as_good_as_the_first() {
    let mut world = world(&[], &[], Verdict::Allow);
    for minute in 0..24 * 60 {
        // One name again and again, which is forgotten when its five minutes are over, and others.
        let (asked, answer) = ask(&mut world, "www.example.org", 1, &[address("198.51.100.7")]);
        assert_eq!(asked, minute % 5 == 0, "{minute}");
        assert!(answer.ends_with(&[198, 51, 100, 7]), "{minute}");
        for other in 0..10 {
            let name = format!("n{minute}-{other}.example.org");
            assert!(ask(&mut world, &name, 1, &[address("198.51.100.8")]).0, "{name}");
        }
        world.pass(Time::from_secs(60));
        world.all();
    }
    assert_eq!((world.net.flows(), world.sockets.len()), (0, 0));
}

/// Asks from a port of its own, under a number of its own. Gives what was answered at once.
fn asks_from(world: &mut World, n: u16, name: &str, kind: u16) -> Vec<Vec<u8>> {
    let (from, to) = (addr(&format!("10.0.2.15:{}", 6000 + n)), addr(RESOLVER));
    let mut message = question(name, kind);
    message[..2].copy_from_slice(&n.to_be_bytes());
    world.send(&frame(from.ip(), to.ip(), protocol::UDP, &udp_bytes(from, to, &message)));
    world.all().into_iter().map(|got| got.payload).collect()
}

#[test]
fn the_same_question_of_many_is_asked_once_and_all_are_answered() {
    let mut world = world(&[], &[], Verdict::Allow);
    for n in 0..256 {
        // The last one asks again while it waits.
        for _ in 0..=n / 255 {
            assert!(
                asks_from(&mut world, n, if n % 2 == 0 { "example.org" } else { "EXAMPLE.org" }, 1)
                    .is_empty()
            );
        }
    }
    // So many wait for one that all their answers find room on their way.
    let asked = 256_usize.div_ceil(21);
    assert_eq!((world.sockets.len(), world.net.flows()), (asked, asked));
    // Another kind of record is another question.
    assert!(asks_from(&mut world, 300, "example.org", 16).is_empty());
    assert_eq!(world.sockets.len(), asked + 1);
    let is_same = |message: &[u8]| message.ends_with(&[1, 0, 1]);
    let questions = world.sockets.iter().map(|(&flow, socket)| (flow, socket.datagrams[0].clone()));
    let questions: Vec<_> = questions.filter(|(_, message)| is_same(message)).collect();
    let mut answers = Vec::new();
    for (flow, mut answer) in questions {
        (answer[2], answer[7]) = (answer[2] | 0x80, 1);
        answer.extend(address("198.51.100.7"));
        world.net.datagram(world.now, flow, answer);
        world.act(&[]);
        answers.extend(world.all());
    }
    assert_eq!((answers.len(), world.sockets.len()), (256, 1));
    answers.sort_by_key(|got| got.payload[..2].to_vec());
    for (n, got) in (0..256_u16).zip(answers) {
        let name: &[u8] = if n % 2 == 0 { b"example" } else { b"EXAMPLE" };
        assert_eq!((&got.payload[..2], &got.payload[13..20]), (&n.to_be_bytes()[..], name));
        assert!(got.payload.ends_with(&[198, 51, 100, 7]));
    }
}

#[test]
fn who_waits_for_an_answer_that_does_not_come_is_told_and_not_too_many_wait() {
    let mut world = world(&[], &[], Verdict::Allow);
    for n in 0..21 {
        assert!(asks_from(&mut world, n, "example.org", 1).is_empty(), "{n}");
    }
    assert_eq!(world.sockets.len(), 1);
    world.pass(Time::from_secs(1));
    // One more is asked by itself.
    assert!(asks_from(&mut world, 21, "example.org", 1).is_empty());
    assert_eq!(world.sockets.len(), 2);
    // Four resolvers have two seconds each.
    for (seconds, answered) in [(6, 0), (1, 21), (1, 1)] {
        let mut answers = Vec::new();
        for _ in 0..seconds {
            assert!(answers.is_empty());
            world.pass(Time::from_secs(1));
            answers.extend(world.all());
        }
        assert_eq!(answers.len(), answered);
        assert!(answers.iter().all(|got| got.payload[3] & 15 == 2));
    }
    assert_eq!((world.net.flows(), world.sockets.len()), (0, 0));
}
