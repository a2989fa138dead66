//! What the guest is told of the way to the IPv6 Internet.

use super::played::{Guest, World};
use crate::config::UsernetConfig;
use crate::core::Time;
use crate::link::Offloads;
use crate::wire::ip::protocol;

/// For how many seconds each advertisement that waits names a default route.
fn lifetimes(world: &mut World) -> Vec<u16> {
    let all = std::iter::from_fn(|| world.next()).filter(|got| got.protocol == protocol::ICMPV6);
    all.map(|got| {
        assert_eq!(got.payload[0], 134);
        u16::from_be_bytes([got.payload[6], got.payload[7]])
    })
    .collect()
}

#[test]
fn a_default_route_is_named_only_while_the_host_has_one() {
    let mut world = World::new(UsernetConfig::default(), Offloads::default());
    Guest::open(&mut world, "10.0.2.15:40000", "192.0.2.1:80");
    world.pass(Time::from_secs(600));
    assert_eq!(lifetimes(&mut world), [0]);
    for (has, told) in [(false, &[][..]), (true, &[1800][..]), (true, &[]), (false, &[0]), (true, &[1800])] {
        world.net.set_has_v6(world.now, has);
        world.pass(Time::from_millis(1));
        assert_eq!(lifetimes(&mut world), told);
    }
    world.pass(Time::from_secs(600));
    assert_eq!(lifetimes(&mut world), [1800], "an advertisement is not repeated before it ends");
}
