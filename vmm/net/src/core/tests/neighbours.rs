//! A guest that is not alone on its network.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::played::{GUEST, World, addr, frame};
use crate::config::UsernetConfig;
use crate::core::{Action, OWN_MAC};
use crate::link::{HEADER_LEN, Hello, NetHeader, Offloads};
use crate::peers::Names;
use crate::wire::ip::protocol;
use crate::wire::{Arp, Mac, Udp, kind, put_ethernet};

const OTHER: Mac = Mac([0x52, 0x54, 0, 9, 9, 9]);

fn world(config: UsernetConfig) -> World {
    let mut world = World::new(UsernetConfig { peers: true, ..config }, Offloads::default());
    world.net.message(world.now, &Hello { offloads: Offloads::default(), mtu: 1500 }.to_bytes());
    while world.net.take_action().is_some() {}
    world
}

/// Whether a frame of the guest is passed on.
fn passes(world: &mut World, message: &[u8]) -> bool {
    world.net.message(world.now, message);
    std::iter::from_fn(|| world.net.take_action()).filter(|action| *action == Action::Peers).count() == 1
}

fn to(dst: Mac, mut message: Vec<u8>) -> Vec<u8> {
    message[HEADER_LEN..HEADER_LEN + 6].copy_from_slice(&dst.0);
    message
}

fn asks(address: Ipv4Addr) -> Vec<u8> {
    let mut message = NetHeader::default().to_bytes().to_vec();
    put_ethernet(&mut message, Mac::BROADCAST, GUEST, kind::ARP);
    let sender = (GUEST, Ipv4Addr::new(10, 0, 2, 15));
    Arp { request: true, sender, target: (Mac([0; 6]), address) }.put(&mut message);
    message
}

#[test]
fn what_is_for_others_is_passed_on_and_what_is_for_the_gateway_is_not() {
    let mut world = world(UsernetConfig::default());
    let plain = frame(addr("10.0.2.15:1").ip(), addr("10.0.2.16:1").ip(), protocol::UDP, &[0; 8]);
    assert!(passes(&mut world, &to(OTHER, plain.clone())));
    assert!(!passes(&mut world, &to(OWN_MAC, plain.clone())));
    assert!(passes(&mut world, &asks(Ipv4Addr::new(10, 0, 2, 16))));
    for own in [2, 3] {
        assert!(!passes(&mut world, &asks(Ipv4Addr::new(10, 0, 2, own))));
    }
    let group = frame(addr("10.0.2.15:1").ip(), addr("224.0.0.251:1").ip(), protocol::UDP, &[0; 8]);
    assert!(passes(&mut world, &to(Mac([1, 0, 0x5e, 0, 0, 251]), group.clone())));
    // Without others on the network nothing is.
    let mut alone = World::new(UsernetConfig::default(), Offloads::default());
    assert!(!passes(&mut alone, &to(OTHER, plain.clone())));
    // What comes of others is for the guest, and not of itself or of the gateway.
    let from = |src: Mac, dst: Mac| {
        let mut message = to(dst, plain.clone());
        message[HEADER_LEN + 6..HEADER_LEN + 12].copy_from_slice(&src.0);
        world.net.is_from_peer(&message)
    };
    assert!(from(OTHER, GUEST) && from(OTHER, Mac::BROADCAST));
    assert!(!from(OTHER, Mac([2; 6])) && !from(OWN_MAC, GUEST) && !from(GUEST, GUEST));
    assert!(!world.net.is_from_peer(&[0; HEADER_LEN + 13]) && !world.net.is_from_peer(&[]));
}

/// A question to the resolver, and the code and the number of records of its answer; `None`: it is
/// asked elsewhere.
fn answered(world: &mut World, name: &str, kind: u16) -> Option<(u8, u8)> {
    let mut question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    // One that is being asked is not asked again.
    question[1] = u8::try_from(name.len()).unwrap();
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).unwrap());
        question.extend(label.bytes());
    }
    question.push(0);
    question.extend(kind.to_be_bytes());
    question.extend([0, 1]);
    let mut bytes = Vec::new();
    Udp { src: 5000, dst: 53 }.put(&mut bytes, question.len(), 0);
    bytes.extend(question);
    let message = frame(addr("10.0.2.15:1").ip(), addr("10.0.2.3:1").ip(), protocol::UDP, &bytes);
    world.net.message(world.now, &message);
    let asked = std::iter::from_fn(|| world.net.take_action()).any(|a| matches!(a, Action::Connect { .. }));
    let got = world.next().filter(|got| got.src == addr("10.0.2.3:1").ip());
    assert_eq!(asked, got.is_none(), "{name} is asked elsewhere and answered, or neither");
    got.map(|got| (got.payload[3] & 15, got.payload[7]))
}

#[test]
fn names_of_the_network_are_answered_here_and_others_elsewhere() {
    let mut world = world(UsernetConfig::default());
    world.net.set_upstreams(vec![addr("192.0.2.53:53")]);
    let six = Ipv6Addr::new(0xfd4e, 0x656c, 0x6c79, 0, 0, 0, 0, 16);
    let entries = [("web", 16), ("front", 16), ("front", 17)];
    let entries = entries.map(|(name, last)| (name.to_owned(), Ipv4Addr::new(10, 0, 2, last), six));
    world.net.set_names(Names::new("dev".into(), entries));
    for (name, kind, answer) in [
        ("web", 1, Some((0, 1))),
        ("WEB.dev", 28, Some((0, 1))),
        ("front", 1, Some((0, 2))),
        ("web", 15, Some((0, 0))),
        ("16.2.0.10.in-addr.arpa", 12, Some((0, 1))),
        ("db", 1, None),
        ("99.2.0.10.in-addr.arpa", 12, None),
    ] {
        assert_eq!(answered(&mut world, name, kind), answer, "{name}");
    }
    world.net.set_names(Names::default());
    assert_eq!(answered(&mut world, "web", 1), None);
}

#[test]
fn an_isolated_network_asks_nobody_and_leads_nowhere() {
    let mut world = world(UsernetConfig { isolated: true, ..UsernetConfig::default() });
    world.net.set_upstreams(vec![addr("192.0.2.53:53")]);
    assert_eq!(answered(&mut world, "example.com", 1), Some((5, 0)));
    assert_eq!(answered(&mut world, "host.internal", 1), Some((0, 1)));
    let traffic = world.net.counters().traffic();
    assert_eq!((traffic.names_denied, traffic.names_allowed, traffic.denied), (1, 0, 0));
    let ends: [(&str, &str); 3] =
        [("10.0.2.15:9", "192.0.2.1:80"), ("10.0.2.15:9", "10.0.2.3:53"), ("10.0.2.15:9", "10.0.2.2:80")];
    for (from, to) in ends {
        let segment = crate::wire::tcp::Segment { seq: 5, flags: 2, ..Default::default() };
        world.net.message(world.now, &super::played::tcp_frame(addr(from), addr(to), segment, &[]));
        while let Some(action) = world.net.take_action() {
            assert!(!matches!(action, Action::Connect { .. }), "{to}");
        }
        let reset = std::iter::from_fn(|| world.next()).any(|got| got.src == addr(to).ip());
        assert!(reset, "{to}");
    }
}
