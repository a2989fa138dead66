//! Who answers, and what may be reached.

use std::net::TcpListener;
use std::time::Duration;

use nelly_net::config::UsernetConfig;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{dhcpv4, icmp};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress};

use crate::guest::Guest;
use crate::world::{World, is_root, start, started};

/// Whether a ping is answered.
pub(crate) fn pings(guest: &mut Guest, to: &str, wait: Duration) -> bool {
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 8], vec![0; 4096]);
    let mut socket = icmp::Socket::new(buffer(), buffer());
    socket.bind(icmp::Endpoint::Ident(77)).unwrap();
    let to: std::net::IpAddr = to.parse().unwrap();
    let checksums = ChecksumCapabilities::default();
    match to {
        std::net::IpAddr::V4(_) => {
            let repr = Icmpv4Repr::EchoRequest { ident: 77, seq_no: 3, data: b"nelly" };
            let bytes = socket.send(repr.buffer_len(), to.into()).unwrap();
            repr.emit(&mut Icmpv4Packet::new_unchecked(bytes), &checksums);
        }
        std::net::IpAddr::V6(six) => {
            let repr = Icmpv6Repr::EchoRequest { ident: 77, seq_no: 3, data: b"nelly" };
            let bytes = socket.send(repr.buffer_len(), to.into()).unwrap();
            let own = "fd4e:656c:6c79::15".parse().unwrap();
            repr.emit(&own, &six, &mut Icmpv6Packet::new_unchecked(bytes), &checksums);
        }
    }
    let handle = guest.sockets.add(socket);
    let end = std::time::Instant::now() + wait;
    let mut answered = false;
    while !answered && std::time::Instant::now() < end {
        guest.pass(Duration::from_millis(10));
        let socket = guest.sockets.get_mut::<icmp::Socket>(handle);
        if let Ok((bytes, from)) = socket.recv() {
            assert_eq!(from, IpAddress::from(to));
            assert_eq!(&bytes[bytes.len() - 5..], b"nelly");
            answered = matches!(bytes[0], 0 | 129);
        }
    }
    guest.sockets.remove(handle);
    answered
}

#[test]
fn the_gateway_and_the_resolver_answer_pings_and_nobody_else_does() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let (program, mut guest) = started(&UsernetConfig::default());
    for address in ["10.0.2.2", "10.0.2.3", "fd4e:656c:6c79::2", "fd4e:656c:6c79::3"] {
        assert!(pings(&mut guest, address, Duration::from_secs(5)), "{address}");
    }
    for address in ["10.0.2.9", "fd4e:656c:6c79::9", "192.0.2.2", "127.0.0.1"] {
        assert!(!pings(&mut guest, address, Duration::from_millis(200)), "{address}");
    }
    drop(guest);
    program.ends_well();
}

#[test]
fn a_dhcp_client_has_its_address_router_and_resolver() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let (_program, mut guest) = started(&UsernetConfig::default());
    guest.interface.update_ip_addrs(|all| all.clear());
    let handle = guest.sockets.add(dhcpv4::Socket::new());
    let (address, router, dns) =
        guest.until("a lease", |guest| match guest.sockets.get_mut::<dhcpv4::Socket>(handle).poll() {
            Some(dhcpv4::Event::Configured(lease)) => {
                Some((lease.address, lease.router, lease.dns_servers.to_vec()))
            }
            _ => None,
        });
    assert_eq!(address.to_string(), "10.0.2.15/24");
    assert_eq!(router.unwrap().to_string(), "10.0.2.2");
    assert_eq!(dns[0].to_string(), "10.0.2.3");
}

#[test]
fn a_server_of_the_host_is_reached_by_none_of_its_addresses() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let everywhere = TcpListener::bind("[::]:8080").unwrap();
    let (_program, mut guest) = started(&UsernetConfig::default());
    let mut refuses = |to: &str| {
        let handle = guest.dial(to);
        assert!(!guest.answered(handle), "{to} is reached");
    };
    for to in [
        "10.0.2.2:8080",
        "[fd4e:656c:6c79::2]:8080",
        "10.0.2.3:8080",
        "127.0.0.1:8080",
        "192.0.2.2:8080",
        "[2001:db8:1::2]:8080",
        "[::1]:8080",
        // The IPv4 addresses as IPv6 has them.
        "[::ffff:127.0.0.1]:8080",
        "[::ffff:192.0.2.2]:8080",
        "[64:ff9b::192.0.2.2]:8080",
        "169.254.169.254:8080",
    ] {
        refuses(to);
    }
    // An address that the host has only now.
    let output =
        std::process::Command::new("ip").args(["addr", "add", "203.0.113.5/32", "dev", "lo"]).status();
    assert!(output.unwrap().success());
    refuses("203.0.113.5:8080");
    // Networks that are routed to the host itself, whichever of its addresses is the source.
    for route in [
        "local 10.9.0.0/16 dev lo",
        "local 10.10.0.0/16 dev lo src 192.0.2.2",
        "local 2001:db8:9::/48 dev lo",
    ] {
        let words = ["route", "add"].into_iter().chain(route.split_whitespace());
        assert!(std::process::Command::new("ip").args(words).status().unwrap().success(), "{route}");
    }
    for to in ["10.9.1.2:8080", "10.10.1.2:8080", "[2001:db8:9::1]:8080"] {
        refuses(to);
    }
    everywhere.set_nonblocking(true).unwrap();
    assert!(everywhere.accept().is_err(), "a connection came through");
    drop(world);
}

#[test]
fn a_port_of_the_host_is_reached_when_it_is_allowed() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let listener = TcpListener::bind("127.0.0.1:8081").unwrap();
    let allow = vec!["host:8081".parse().unwrap()];
    let (_program, mut guest) = started(&UsernetConfig { allow, ..UsernetConfig::default() });
    let handle = guest.dial("10.0.2.2:8081");
    assert!(guest.answered(handle));
    let (_stream, peer) = listener.accept().unwrap();
    assert!(peer.ip().is_loopback());
    let handle = guest.dial("10.0.2.2:8082");
    assert!(!guest.answered(handle));
}

#[test]
fn what_cannot_begin_says_why_and_leaves_nothing() {
    for (config, words) in [
        ("{", "configuration"),
        (r#"{"schema":1,"mtu":5}"#, "mtu: 5 is not between"),
        (r#"{"schema":1,"log_fd":999999}"#, "log_fd"),
    ] {
        let said = start(config).err().unwrap();
        assert!(said.contains(words), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let said = start(&format!(r#"{{"schema":1,"publish":["{port}:80"]}}"#)).err().unwrap();
    let own = format!("is taken by process {} (", std::process::id());
    assert!(said.contains(&format!("port {port} of 127.0.0.1")) && said.contains(&own), "{said}");
}
