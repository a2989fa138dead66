//! Which prefixes new networks of machines get.

use std::net::Ipv4Addr;

use nelly_net::config::Prefix4;

/// The prefixes that networks are given, each a /24: the first, and how many follow it. The later
/// ones are for hosts that have a way to all of 10.0.0.0/8.
const SUBNETS: [(Ipv4Addr, u32); 3] = [
    (Ipv4Addr::new(10, 89, 0, 0), 256),
    (Ipv4Addr::new(172, 29, 0, 0), 256),
    (Ipv4Addr::new(192, 168, 128, 0), 128),
];

/// A prefix for a new network: the first /24 of [`SUBNETS`] that neither one of `networks` nor a
/// route of this host has, as far as the system tells its routes.
#[must_use]
pub fn free_subnet(networks: impl Iterator<Item = Prefix4>) -> Option<Prefix4> {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    first_free(networks, routes_of(&routes))
}

fn first_free(networks: impl Iterator<Item = Prefix4>, routes: Vec<Prefix4>) -> Option<Prefix4> {
    // What is wider leads to everywhere, as the two halves of a VPN do.
    let routes = routes.into_iter().filter(|route| route.len >= 8);
    let taken: Vec<Prefix4> = networks.chain(routes).collect();
    let all = SUBNETS.iter().flat_map(|(first, count)| {
        (0..*count).map(|n| Prefix4 { address: Ipv4Addr::from_bits(first.to_bits() + (n << 8)), len: 24 })
    });
    let mut free = all.filter(|prefix| !taken.iter().any(|other| overlap(*prefix, *other)));
    free.next()
}

/// Whether two prefixes have an address in common.
#[must_use]
pub fn overlap(a: Prefix4, b: Prefix4) -> bool {
    a.contains(b.address) || b.contains(a.address)
}

/// The prefixes of a `/proc/net/route`, without the default route.
fn routes_of(text: &str) -> Vec<Prefix4> {
    let number = |word: &str| u32::from_str_radix(word, 16).ok().map(u32::from_be);
    let prefix = |line: &str| {
        let mut words = line.split_whitespace();
        let (address, mask) = (number(words.nth(1)?)?, number(words.nth(5)?)?);
        let len = u8::try_from(mask.leading_ones()).ok().filter(|len| *len > 0)?;
        Some(Prefix4 { address: Ipv4Addr::from_bits(address & mask), len })
    };
    text.lines().skip(1).filter_map(prefix).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_do_not_overlap_those_of_networks_and_routes() {
        let text = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                    eth0 00000000 010011AC 0003 0 0 0 00000000 0 0 0\n\
                    eth0 0000590A 00000000 0001 0 0 0 0000FFFF 0 0 0\n\
                    x 01\n";
        let routes: Vec<String> = routes_of(text).iter().map(ToString::to_string).collect();
        assert_eq!(routes, ["10.89.0.0/16"]);
        let prefix = |text: &str| text.parse::<Prefix4>().unwrap();
        assert!(overlap(prefix("10.89.0.0/16"), prefix("10.89.7.0/24")));
        assert!(overlap(prefix("10.89.7.0/24"), prefix("10.89.0.0/16")));
        assert!(!overlap(prefix("10.89.7.0/24"), prefix("10.89.8.0/24")));
        let first = free_subnet(std::iter::empty()).unwrap();
        let second = free_subnet(std::iter::once(first)).unwrap();
        assert!(!overlap(first, second));
        let found = |networks: &[&str], routes: &[&str]| {
            let all = |texts: &[&str]| texts.iter().map(|text| prefix(text)).collect::<Vec<_>>();
            first_free(all(networks).into_iter(), all(routes)).map(|prefix| prefix.to_string())
        };
        for (networks, routes, free) in [
            (&[][..], &[][..], Some("10.89.0.0/24")),
            (&["10.89.0.0/24"], &["10.89.1.0/24", "192.168.1.0/24"], Some("10.89.2.0/24")),
            // A VPN, by the halves of everything and by all of the private network.
            (&[], &["0.0.0.0/1", "128.0.0.0/1"], Some("10.89.0.0/24")),
            (&[], &["10.0.0.0/8"], Some("172.29.0.0/24")),
            (&["172.29.0.0/24"], &["10.0.0.0/8"], Some("172.29.1.0/24")),
            (&[], &["10.0.0.0/8", "172.16.0.0/12"], Some("192.168.128.0/24")),
            (&[], &["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"], None),
        ] {
            assert_eq!(found(networks, routes).as_deref(), free, "{networks:?} {routes:?}");
        }
    }
}
