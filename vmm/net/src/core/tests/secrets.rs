//! Which streams are handed over to who has the secrets.

use super::played::{Guest, World};
use super::rules::{address, alias, ask, hello, world_with};
use crate::config::Verdict;
use crate::wire::tcp::flag;

/// Whom the stream is handed over for that goes to this address and begins so; and that it goes on
/// in any case.
fn handed(world: &mut World, to: &str, first: &[u8]) -> Option<String> {
    let mut guest = Guest::open(world, "10.0.2.15:40000", to);
    for part in first.chunks(50) {
        guest.send(world, flag::ACK, part);
    }
    guest.send(world, flag::ACK, b"more");
    let socket = &world.sockets[&guest.flow];
    assert_eq!(socket.got, [first, b"more"].concat(), "{to}");
    let handed = socket.handed.clone();
    guest.send(world, flag::RST, b"");
    world.all();
    handed
}

#[test]
fn a_stream_is_handed_over_where_resolver_and_hello_name_the_host() {
    let hosts = ["api.example", "*.below.example:8443"];
    let mut world = world_with(&[], &[], Verdict::Allow, &hosts);
    let api = hello("api.example");
    // Nobody was asked for the name.
    assert_eq!(handed(&mut world, "198.51.100.7:443", &api), None);
    ask(&mut world, "API.example", 1, &[address("198.51.100.7")]);
    ask(&mut world, "shared.example", 1, &[address("198.51.100.7")]);
    ask(&mut world, "api.example", 28, &[address("2001:db8::7")]);
    ask(&mut world, "x.below.example", 1, &alias("edge.cdn.example", "198.51.100.8"));
    for (to, first, expected) in [
        ("198.51.100.7:443", api.clone(), Some("api.example 10.0.2.15:40000 198.51.100.7:443")),
        ("198.51.100.7:443", hello("Api.Example"), Some("api.example 10.0.2.15:40000 198.51.100.7:443")),
        (
            "198.51.100.8:8443",
            hello("x.below.example"),
            Some("x.below.example 10.0.2.15:40000 198.51.100.8:8443"),
        ),
        // Another port, address, or name at the same address; and no TLS.
        ("198.51.100.7:8443", api.clone(), None),
        ("198.51.100.7:80", b"GET / HTTP/1.1\r\nHost: api.example\r\n\r\n".to_vec(), None),
        ("198.51.100.9:443", api.clone(), None),
        ("198.51.100.7:443", hello("shared.example"), None),
        ("198.51.100.7:443", hello("evil.api.example"), None),
        ("198.51.100.8:443", hello("x.below.example"), None),
        ("198.51.100.8:8443", hello("y.below.example"), None),
        ("198.51.100.8:8443", hello("edge.cdn.example"), None),
        ("198.51.100.7:443", b"GET / HTTP/1.1\r\nHost: api.example\r\n\r\n".to_vec(), None),
    ] {
        assert_eq!(handed(&mut world, to, &first).as_deref(), expected, "{to}");
    }
}

#[test]
fn what_is_denied_is_not_handed_over() {
    let mut world = world_with(&["other.example"], &[], Verdict::Deny, &["api.example"]);
    let (asked, answer) = ask(&mut world, "api.example", 1, &[address("198.51.100.7")]);
    assert!(!asked && answer[3] & 15 == 5, "{answer:?}");
    // An address of an allowed name does not let the host of secrets out.
    ask(&mut world, "other.example", 1, &[address("198.51.100.7")]);
    let mut guest = Guest::open(&mut world, "10.0.2.15:40000", "198.51.100.7:443");
    world.closed.clear();
    guest.send(&mut world, flag::ACK, &hello("api.example"));
    assert_eq!(world.closed, [(guest.flow, true)]);

    let mut world = world_with(&["api.example:443"], &[], Verdict::Deny, &["api.example"]);
    ask(&mut world, "api.example", 1, &[address("198.51.100.7")]);
    assert!(handed(&mut world, "198.51.100.7:443", &hello("api.example")).is_some());
}
