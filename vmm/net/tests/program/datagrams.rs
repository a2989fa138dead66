//! Datagrams and names.

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::time::Duration;

use nelly_net::config::UsernetConfig;
use smoltcp::socket::udp;

use crate::reach::pings;
use crate::world::{World, is_root, started};

#[test]
fn datagrams_go_and_come_of_every_length_and_from_who_was_asked_only() {
    if !is_root() {
        return;
    }
    let world = World::new();
    for at in ["198.51.100.7:7", "[2001:db8:2::7]:7"] {
        let echo = world.there(move || UdpSocket::bind(at).unwrap());
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok((len, from)) = echo.recv_from(&mut buffer) {
                echo.send_to(&buffer[..len], from).unwrap();
            }
        });
    }
    let other = world.there(|| UdpSocket::bind("198.51.100.7:8").unwrap());
    let peer = world.there(|| UdpSocket::bind("198.51.100.7:9").unwrap());
    let (program, mut guest) = started(&UsernetConfig { udp_idle: 1, ..UsernetConfig::default() });
    let handle = guest.udp(5000);
    for to in ["198.51.100.7:7", "[2001:db8:2::7]:7"] {
        for len in [0_usize, 1, 2, 511, 1400, 1452] {
            let bytes = vec![len.to_le_bytes()[0]; len];
            guest.say(handle, &bytes, to);
            assert_eq!(guest.hear(handle), (bytes, to.to_owned()));
        }
    }
    // Who was not asked is not heard, even if it finds the port.
    guest.say(handle, b"hello", "198.51.100.7:9");
    guest.pass(Duration::from_millis(50));
    let mut buffer = [0; 16];
    let (len, from) = peer.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], from.ip().to_string().as_str()), (&b"hello"[..], "192.0.2.2"));
    other.send_to(b"forged", from).unwrap();
    peer.send_to(b"answer", from).unwrap();
    assert_eq!(guest.hear(handle).0, b"answer");
    // An idle flow is forgotten.
    let files = program.files();
    guest.pass(Duration::from_millis(2500));
    assert!(program.files() < files, "an idle flow has its socket still");
    // Pings of the host's system, where it lets this user have sockets for them.
    assert!(!pings(&mut guest, "198.51.100.7", Duration::from_millis(200)));
    std::fs::write("/proc/thread-self/root/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
    assert!(pings(&mut guest, "198.51.100.7", Duration::from_secs(5)));
    assert!(pings(&mut guest, "2001:db8:2::7", Duration::from_secs(5)));
}

#[test]
fn a_datagram_for_nobody_is_answered_as_unreachable() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let (_program, mut guest) = started(&UsernetConfig::default());
    let errors = guest.unreachables(5001);
    let handle = guest.udp(5001);
    for (to, code) in [("198.51.100.7:99", 3), ("127.0.0.1:53", 13), ("10.0.2.2:99", 3), ("192.0.2.2:99", 13)]
    {
        guest.say(handle, b"x", to);
        assert_eq!(guest.unreachable(errors), code, "{to}");
    }
}

/// A question for an A record.
pub(crate) fn question(id: u16, name: &str) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        out.push(label.len().try_into().unwrap());
        out.extend(label.as_bytes());
    }
    out.extend([0, 0, 1, 0, 1]);
    out
}

#[test]
fn names_are_asked_of_resolvers_that_answer_and_the_host_has_one() {
    if !is_root() {
        return;
    }
    let world = World::new();
    // The first is dead, and the second is the host's own stub, at its loopback.
    let stub = UdpSocket::bind("127.0.0.53:53").unwrap();
    let seen = std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        let mut ids = Vec::new();
        for _ in 0..20 {
            let (len, from) = stub.recv_from(&mut buffer).unwrap();
            ids.push(u16::from_be_bytes([buffer[0], buffer[1]]));
            buffer[2] |= 0x80;
            // Of an answer under another number nothing is heard.
            let mut forged = buffer[..len].to_vec();
            forged[0] ^= 1;
            stub.send_to(&forged, from).unwrap();
            // And one longer than 512 bytes passes.
            let mut answer = buffer[..len].to_vec();
            answer.resize(1200, 7);
            stub.send_to(&answer, from).unwrap();
        }
        ids
    });
    let servers = ["192.0.2.250:53", "127.0.0.53:53"].map(|text| text.parse().unwrap()).to_vec();
    let config = UsernetConfig { dns_servers: servers, ..UsernetConfig::default() };
    let (program, mut guest) = started(&config);
    let handle = guest.udp(5002);
    for (at, resolver) in [(1, "10.0.2.3:53"), (2, "[fd4e:656c:6c79::3]:53")] {
        guest.say(handle, &question(at, "host.internal"), resolver);
        let (answer, from) = guest.hear(handle);
        assert_eq!((from.as_str(), &answer[answer.len() - 4..]), (resolver, &[10, 0, 2, 2][..]));
    }
    let files = program.files();
    for at in 0..20 {
        let begun = std::time::Instant::now();
        guest.say(handle, &question(at, "example.com"), "10.0.2.3:53");
        let (answer, _) = guest.hear(handle);
        assert_eq!((answer.len(), &answer[..2]), (1200, &at.to_be_bytes()[..]));
        // A resolver that is asked and silent costs two seconds.
        assert!(at == 0 || begun.elapsed() < Duration::from_secs(2), "a dead resolver is asked first again");
    }
    let mut ids = seen.join().unwrap();
    ids.sort_unstable();
    ids.dedup();
    assert!(ids.len() > 15, "numbers that one could guess: {ids:?}");
    guest.pass(Duration::from_millis(50));
    assert_eq!(program.files(), files, "sockets are left");
    let socket = guest.sockets.get_mut::<udp::Socket>(handle);
    assert!(!socket.can_recv(), "a forged answer came through");
    drop(world);
}

#[test]
fn an_answer_that_fits_no_datagram_is_had_in_a_stream_of_a_resolver_with_ipv6() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let records: Vec<u8> =
        (0..=255).flat_map(|last| [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, last]).collect();
    let datagrams = UdpSocket::bind("[::1]:53").unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok((len, from)) = datagrams.recv_from(&mut buffer) {
            // It does not fit.
            buffer[2] |= 0x82;
            datagrams.send_to(&buffer[..len], from).unwrap();
        }
    });
    let listener = std::net::TcpListener::bind("[::1]:53").unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut len = [0; 2];
            stream.read_exact(&mut len).unwrap();
            let mut answer = vec![0; u16::from_be_bytes(len).into()];
            stream.read_exact(&mut answer).unwrap();
            answer[2] |= 0x80;
            answer[6..8].copy_from_slice(&[1, 0]);
            answer.extend(&records);
            stream.write_all(&u16::try_from(answer.len()).unwrap().to_be_bytes()).unwrap();
            for part in answer.chunks(999) {
                stream.write_all(part).unwrap();
            }
        }
    });
    // The first is dead.
    let servers = ["192.0.2.250:53", "[::1]:53"].map(|text| text.parse().unwrap()).to_vec();
    let config = UsernetConfig { dns_servers: servers, ..UsernetConfig::default() };
    let (program, mut guest) = started(&config);
    let files = program.files();
    let handle = guest.udp(5003);
    guest.say(handle, &question(7, "example.com"), "10.0.2.3:53");
    assert_eq!(guest.hear(handle).0[2] & 2, 2);
    for (id, resolver) in [(8, "10.0.2.3:53"), (9, "[fd4e:656c:6c79::3]:53")] {
        let asked = [question(id, "example.com"), question(id + 10, "host.internal")];
        let framed: Vec<u8> = asked
            .iter()
            .flat_map(|q| [&u16::try_from(q.len()).unwrap().to_be_bytes()[..], q].concat())
            .collect();
        let handle = guest.dial(resolver);
        let got = guest.exchange(handle, &framed, true);
        // What this network knows itself comes first.
        let own = 2 + asked[1].len() + 16;
        assert_eq!((&got[2..4], &got[own - 4..own]), (&(id + 10).to_be_bytes()[..], &[10, 0, 2, 2][..]));
        assert_eq!(
            (&got[own + 2..own + 4], got.len() - own),
            (&id.to_be_bytes()[..], 2 + asked[0].len() + 4096)
        );
        assert!(got.ends_with(&[192, 0, 2, 255]));
        guest.finished(handle);
    }
    guest.pass(Duration::from_millis(50));
    assert_eq!(program.files(), files, "sockets are left");
}
