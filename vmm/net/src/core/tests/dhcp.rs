//! Clients of DHCP, sound ones and others, of IPv4 and IPv6.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::played::{World, addr, frame, udp_bytes};
use crate::config::UsernetConfig;
use crate::link::Offloads;
use crate::number::{be16, be32};
use crate::wire::ip::protocol;

const CLIENT: &str = "[fe80::5054:ff:fe01:203]:546";
const SERVERS: &str = "[ff02::1:2]:547";
/// The server: a link-layer address of Ethernet, `\x02nelly`.
const SERVER: [u8; 10] = *b"\x00\x03\x00\x01\x02nelly";
const DUID: &[u8] = &[0, 1, 0, 1, 9, 9, 9, 9, 0x52, 0x54, 0, 1, 2, 3];
const DAY: u32 = 86_400;

fn world() -> World {
    let config = UsernetConfig {
        search: vec!["corp.example".to_owned(), "example.org.".to_owned()],
        ..UsernetConfig::default()
    };
    let mut world = World::new(config, Offloads::default());
    while world.next().is_some() {}
    world
}

fn option(code: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(value.len()).unwrap();
    [&code.to_be_bytes(), &len.to_be_bytes(), value].concat()
}

/// An association of addresses, or of temporary ones (4), or prefixes (25).
fn association(code: u16, number: u32, addresses: &[&str]) -> Vec<u8> {
    let mut value = number.to_be_bytes().to_vec();
    if code != 4 {
        value.extend([0; 8]);
    }
    for address in addresses {
        let address: Ipv6Addr = address.parse().unwrap();
        value.extend(option(5, &[&address.octets()[..], &[0; 8]].concat()));
    }
    option(code, &value)
}

/// Sends a message of these options, and gives the payload of what it is answered by.
fn exchange(world: &mut World, from: &str, to: &str, message: &[u8]) -> Option<Vec<u8>> {
    let (from, to) = (addr(from), addr(to));
    let bytes = udp_bytes(from, to, message);
    world.send(&frame(from.ip(), to.ip(), protocol::UDP, &bytes));
    let mut all = world.all();
    assert!(all.len() <= 1, "{all:?}");
    let got = all.pop()?;
    assert_eq!(got.protocol, protocol::UDP);
    Some(got.payload)
}

/// An answer of a DHCPv6 server: its kind, and its options by code, in order.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    kind: u8,
    options: Vec<(u16, Vec<u8>)>,
}

fn options(mut rest: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut all = Vec::new();
    while !rest.is_empty() {
        let (code, len) = (be16(rest, 0).unwrap(), usize::from(be16(rest, 2).unwrap()));
        all.push((code, rest[4..4 + len].to_vec()));
        rest = &rest[4 + len..];
    }
    all
}

impl Answer {
    fn get(&self, code: u16) -> Option<&[u8]> {
        let mut all = self.options.iter().filter(|(found, _)| *found == code);
        let first = all.next();
        assert!(all.next().is_none(), "twice: {self:?}");
        first.map(|(_, value)| value.as_slice())
    }

    /// The addresses of its associations, each with how long it is good.
    fn addresses(&self) -> Vec<(u32, Vec<(String, u32)>)> {
        let all = self.options.iter().filter(|(code, _)| *code == 3);
        all.map(|(_, value)| {
            let inner = options(&value[12..]);
            let addresses = inner.iter().filter(|(code, _)| *code == 5).map(|(_, value)| {
                let address = Ipv6Addr::from(*value.first_chunk::<16>().unwrap());
                assert_eq!(value[16..20], value[20..24]);
                (address.to_string(), be32(value, 20).unwrap())
            });
            (be32(value, 0).unwrap(), addresses.collect())
        })
        .collect()
    }
}

fn ask(world: &mut World, kind: u8, parts: &[Vec<u8>]) -> Option<Answer> {
    let message = [&[kind, 7, 8, 9][..], &parts.concat()].concat();
    let answer = exchange(world, CLIENT, SERVERS, &message)?;
    assert_eq!(answer[1..4], [7, 8, 9], "another exchange");
    // It fits into one packet, whatever was asked.
    assert!(answer.len() <= 1232, "{}", answer.len());
    Some(Answer { kind: answer[0], options: options(&answer[4..]) })
}

fn client() -> Vec<u8> {
    option(1, DUID)
}

fn server() -> Vec<u8> {
    option(2, &SERVER)
}

#[test]
fn a_client_has_the_guests_address_and_what_it_wants_to_know() {
    let mut world = world();
    let own = "fd4e:656c:6c79::15".to_owned();
    let given = vec![(5, vec![(own.clone(), DAY)])];
    let wants = || option(6, &[0, 23, 0, 24]);
    let solicit = [client(), association(3, 5, &[]), wants()];
    let offer = ask(&mut world, 1, &solicit).unwrap();
    assert_eq!((offer.kind, offer.addresses()), (2, given.clone()));
    assert_eq!((offer.get(1).unwrap(), offer.get(2).unwrap()), (DUID, &SERVER[..]));
    assert_eq!(offer.get(7), Some(&[255][..]));
    let dns: Ipv6Addr = "fd4e:656c:6c79::3".parse().unwrap();
    assert_eq!(offer.get(23), Some(&dns.octets()[..]));
    assert_eq!(offer.get(24), Some(&b"\x04corp\x07example\x00\x07example\x03org\x00"[..]));
    // Request, and then Renew and Rebind.
    for (kind, parts) in [
        (3, vec![client(), server(), association(3, 5, &[&own]), wants()]),
        (5, vec![client(), server(), association(3, 5, &[&own])]),
        (5, vec![client(), server(), association(3, 5, &[])]),
        (6, vec![client(), association(3, 5, &[&own]), wants()]),
    ] {
        let reply = ask(&mut world, kind, &parts).unwrap();
        assert_eq!((reply.kind, reply.addresses()), (7, given.clone()), "{kind}");
        assert_eq!((reply.get(7), reply.get(13)), (None, None));
    }
    // At once, without being asked twice.
    let reply = ask(&mut world, 1, &[client(), association(3, 5, &[]), option(14, &[])]).unwrap();
    assert_eq!((reply.kind, reply.get(14), reply.addresses()), (7, Some(&[][..]), given));
    // What else there is to know, by whoever has an address already.
    for parts in [vec![], vec![client()], vec![client(), server()]] {
        let asked = [&parts[..], &[option(6, &[0, 23, 0, 32])]].concat();
        let reply = ask(&mut world, 11, &asked).unwrap();
        assert_eq!((reply.kind, reply.get(23), reply.get(24)), (7, Some(&dns.octets()[..]), None));
        assert_eq!((reply.get(3), reply.get(32)), (None, Some(&DAY.to_be_bytes()[..])));
        assert_eq!(reply.get(1).is_some(), !parts.is_empty());
    }
    // What it has is good here, or not.
    for (addresses, status) in [
        (&[own.as_str()][..], 0),
        (&["fd4e:656c:6c79::1:2"], 0),
        (&["2001:db8::1"], 4),
        (&[&own, "fd00::1"], 4),
    ] {
        let reply = ask(&mut world, 4, &[client(), association(3, 5, addresses)]).unwrap();
        assert_eq!(reply.get(13), Some(&[0, status][..]), "{addresses:?}");
    }
    assert_eq!(ask(&mut world, 4, &[client(), association(3, 5, &[])]), None);
    for kind in [8, 9] {
        let reply = ask(&mut world, kind, &[client(), server(), association(3, 5, &[&own])]).unwrap();
        assert_eq!((reply.kind, reply.get(13), reply.get(3)), (7, Some(&[0, 0][..]), None));
    }
    assert_eq!((world.net.counters().malformed, world.net.flows()), (0, 0));
}

#[test]
fn what_there_is_not_is_refused_by_its_name() {
    let mut world = world();
    let parts = [
        client(),
        association(25, 1, &[]),
        association(4, 2, &["fd4e:656c:6c79::9"]),
        association(3, 3, &["2001:db8::7"]),
        association(3, 4, &["fd4e:656c:6c79::15"]),
    ];
    let reply = ask(&mut world, 1, &parts).unwrap();
    // One association has the address, and what a client has beside it is good no more.
    let own = "fd4e:656c:6c79::15".to_owned();
    let expected = [(3, vec![(own.clone(), DAY), ("2001:db8::7".to_owned(), 0)]), (4, vec![(own, 0)])];
    assert_eq!(reply.addresses(), expected);
    let [prefixes, temporary] = [25, 4].map(|code| reply.get(code).unwrap().to_vec());
    assert_eq!((be32(&prefixes, 0), options(&prefixes[12..])), (Some(1), vec![(13, vec![0, 6])]));
    assert_eq!((be32(&temporary, 0), options(&temporary[4..])), (Some(2), vec![(13, vec![0, 2])]));
    let last = reply.options.iter().rfind(|(code, _)| *code == 3).unwrap();
    assert!(options(&last.1[12..]).contains(&(13, vec![0, 2])));
}

#[test]
fn messages_that_lie_are_counted_and_answered_by_nothing() {
    let mut world = world();
    let lies: [(u8, Vec<Vec<u8>>); 22] = [
        // Without a client's identifier, or with one that is none.
        (1, vec![association(3, 5, &[])]),
        (1, vec![option(1, &[0, 1])]),
        (1, vec![option(1, &[7; 131])]),
        (1, vec![client(), client()]),
        // To a server that it cannot know yet, or that it does not name.
        (1, vec![client(), server()]),
        (4, vec![client(), server(), association(3, 5, &["fd4e:656c:6c79::15"])]),
        (6, vec![client(), server()]),
        (3, vec![client()]),
        (5, vec![client()]),
        (8, vec![client()]),
        (9, vec![client()]),
        (3, vec![client(), server(), server()]),
        // It asks for an address where there is none.
        (11, vec![client(), association(3, 5, &[])]),
        // Options that end before they should.
        (1, vec![client(), vec![0]]),
        (1, vec![client(), vec![0, 6, 0]]),
        (1, vec![client(), vec![0, 6, 0, 2, 0]]),
        (1, vec![client(), option(6, &[0])]),
        (1, vec![client(), option(6, &[0, 23]), option(6, &[0, 23])]),
        (1, vec![client(), option(3, &[0; 11])]),
        (1, vec![client(), option(4, &[0; 3])]),
        (1, vec![client(), option(3, &[&[0; 12][..], &[0, 5, 0, 25], &[0; 24]].concat())]),
        (1, vec![client(), option(3, &[&[0; 12][..], &option(5, &[0; 23])].concat())]),
    ];
    for (place, (kind, parts)) in lies.iter().enumerate() {
        assert_eq!(ask(&mut world, *kind, parts), None, "{place}");
        assert_eq!(world.net.counters().malformed, u64::try_from(place).unwrap() + 1, "{place}");
    }
    let before = world.net.counters().malformed;
    // A server's messages, a relay's, and what is none.
    for kind in [0, 2, 7, 10, 12, 13, 255] {
        assert_eq!(ask(&mut world, kind, &[client()]), None);
    }
    for cut in 0..4 {
        assert_eq!(exchange(&mut world, CLIENT, SERVERS, &[1, 7, 8, 9][..cut]), None);
    }
    assert_eq!(world.net.counters().malformed, before + 11);
    // For another server: no lie, and none of ours.
    assert_eq!(ask(&mut world, 3, &[client(), option(2, &[0, 3, 0, 1, 9, 9, 9, 9, 9, 9])]), None);
    assert_eq!(ask(&mut world, 3, &[client(), option(2, &[])]), None);
    assert_eq!(world.net.counters().malformed, before + 11);
    // A client asks all servers, from its address on the link.
    let solicit = [&[1, 7, 8, 9][..], &client()].concat();
    assert_eq!(exchange(&mut world, "[fd4e:656c:6c79::15]:546", SERVERS, &solicit), None);
    let gateway = "[fd4e:656c:6c79::2]:547";
    let answer = exchange(&mut world, CLIENT, gateway, &solicit);
    assert_eq!(answer, None);
    while world.next().is_some() {}
    // The answer goes where clients listen, wherever the question came from.
    let from: SocketAddr = CLIENT.parse().unwrap();
    let other = SocketAddr::new(from.ip(), 40_000);
    let to: SocketAddr = SERVERS.parse().unwrap();
    world.send(&frame(other.ip(), to.ip(), protocol::UDP, &udp_bytes(other, to, &solicit)));
    let got = world.all().pop().unwrap();
    assert_eq!(be16(&got.frame, 14 + 40 + 2), Some(546));
    assert!(matches!(got.src, IpAddr::V6(src) if src.is_unicast_link_local()));
}

#[test]
fn many_clients_take_the_address_from_nobody() {
    let mut world = world();
    for number in 0..2_000_u32 {
        let duid = option(1, &[&[0, 2][..], &number.to_be_bytes()].concat());
        let many: Vec<u8> = (0..20)
            .flat_map(|number| association(3, number, &["fd4e:656c:6c79::15", "2001:db8::1"]))
            .collect();
        let reply = ask(&mut world, 1, &[duid, many, option(14, &[])]).unwrap();
        let addresses = reply.addresses();
        // A bound of what is answered, and the address is there each time.
        assert_eq!(addresses.len(), 8);
        assert_eq!(addresses[0].1[0], ("fd4e:656c:6c79::15".to_owned(), DAY));
        let mac = [0x02, 0, number.to_be_bytes()[0], 1, 2, number.to_be_bytes()[3]];
        assert_eq!(v4(&mut world, 1, mac, &[]).unwrap().address, [10, 0, 2, 15]);
        assert_eq!(v4(&mut world, 3, mac, &[(50, &[10, 0, 2, 15])]).unwrap().kind, 5);
    }
    assert_eq!((world.net.flows(), world.net.counters().malformed), (0, 0));
}

/// An answer of a DHCPv4 server.
#[derive(Debug)]
struct Answer4 {
    kind: u8,
    address: [u8; 4],
    options: Vec<(u8, Vec<u8>)>,
}

fn message4(mac: [u8; 6], options: &[u8]) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4];
    message.resize(28, 0);
    message.extend(mac);
    message.resize(236, 0);
    message.extend([99, 130, 83, 99]);
    message.extend(options);
    message
}

fn v4(world: &mut World, kind: u8, mac: [u8; 6], more: &[(u8, &[u8])]) -> Option<Answer4> {
    let mut options = vec![53, 1, kind];
    for (code, value) in more {
        options.extend([*code, u8::try_from(value.len()).unwrap()]);
        options.extend(*value);
    }
    options.push(255);
    let message = message4(mac, &options);
    let answer = exchange(world, "0.0.0.0:68", "255.255.255.255:67", &message)?;
    assert_eq!((answer[4..8].to_vec(), &answer[28..34]), (vec![1, 2, 3, 4], &mac[..]));
    let (mut found, mut rest) = (Vec::new(), &answer[240..]);
    while rest[0] != 255 {
        let len = usize::from(rest[1]);
        found.push((rest[0], rest[2..2 + len].to_vec()));
        rest = &rest[2 + len..];
    }
    Some(Answer4 { kind: found[0].1[0], address: *answer[16..].first_chunk().unwrap(), options: found })
}

#[test]
fn a_client_of_ipv4_that_lies_is_answered_by_nothing_or_refused() {
    let mut world = world();
    let mac = [2, 0, 0, 0, 0, 1];
    let offer = v4(&mut world, 1, mac, &[]).unwrap();
    assert_eq!((offer.kind, offer.address), (2, [10, 0, 2, 15]));
    let has = |code: u8, value: &[u8]| offer.options.contains(&(code, value.to_vec()));
    assert!(has(1, &[255, 255, 255, 0]) && has(3, &[10, 0, 2, 2]) && has(6, &[10, 0, 2, 3]));
    assert!(has(51, &DAY.to_be_bytes()) && has(54, &[10, 0, 2, 2]) && has(26, &1500_u16.to_be_bytes()));
    // Addresses that are not its to have. An option too short to hold one is as if it were not
    // there.
    for wanted in [&[10, 0, 2, 16][..], &[10, 0, 2, 2], &[255; 4], &[0; 4], &[10, 0, 2], &[]] {
        let answer = v4(&mut world, 3, mac, &[(50, wanted)]).unwrap();
        assert_eq!((answer.kind, answer.address), (6, [0; 4]), "{wanted:?}");
    }
    // Another server's client, and messages that no client sends.
    assert!(v4(&mut world, 3, mac, &[(50, &[10, 0, 2, 15]), (54, &[10, 0, 2, 9])]).is_none());
    for kind in [0, 2, 4, 5, 6, 7, 9, 255] {
        assert!(v4(&mut world, kind, mac, &[]).is_none(), "{kind}");
    }
    let before = world.net.counters().malformed;
    let sound = message4(mac, &[53, 1, 1, 255]);
    let cut: Vec<Vec<u8>> = (0..sound.len() - 1).map(|len| sound[..len].to_vec()).collect();
    let mut others = vec![
        message4(mac, &[53, 2, 1, 255]),
        message4(mac, &[53, 0, 255]),
        message4(mac, &[53]),
        message4(mac, &[53, 1, 1, 50, 200, 1]),
        message4(mac, &[53, 1, 1, 61, 255]),
        message4(mac, &[255, 53, 1, 1]),
        message4(mac, &[]),
    ];
    for (at, value) in [(0, 2), (1, 6), (2, 7), (2, 255), (236, 98)] {
        let mut wrong = sound.clone();
        wrong[at] = value;
        others.push(wrong);
    }
    // A message that ends behind its kind has all that counts.
    let whole = cut.len() - 1;
    for message in cut[..whole].iter().chain(&others) {
        assert_eq!(exchange(&mut world, "0.0.0.0:68", "255.255.255.255:67", message), None, "{message:?}");
    }
    let lies = u64::try_from(whole + others.len()).unwrap();
    assert_eq!((world.net.counters().malformed - before, world.net.flows()), (lies, 0));
}
