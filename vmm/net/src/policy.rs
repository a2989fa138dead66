//! Which address a guest's packet may be let out to. Pure: it is asked for the address that a host
//! socket would be connected to, after every name and translation.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::{Prefix4, Prefix6, Protocol, Rule, Target, UsernetConfig, Verdict};

/// Why something is not let out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It is a port of the host that no `allow` opens.
    Host,
    /// It is an address of the host itself.
    OwnAddress,
    /// It is loopback, multicast, broadcast, unspecified or mapped: never let out.
    Never,
    /// It is a link-local or metadata address that no `allow` names.
    Special,
    /// It is in the guest's own network, where nobody else is.
    Nobody,
    /// A `deny` names it.
    Rule,
    /// No `allow` names it, and what none names is denied.
    Default,
}

impl Reason {
    /// The reason as words for a log line.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Host => "a port of the host that is not allowed",
            Self::OwnAddress => "an address of the host itself",
            Self::Never => "loopback, multicast or no address of a single host",
            Self::Special => "a link-local or metadata address that is not allowed",
            Self::Nobody => "nobody has this address in the guest's network",
            Self::Rule => "denied by a rule",
            Self::Default => "not allowed by a rule",
        }
    }
}

/// What may be reached.
#[derive(Clone, Debug)]
pub struct Policy {
    default: Verdict,
    allow: Vec<Rule>,
    deny: Vec<Rule>,
    gateway4: Ipv4Addr,
    gateway6: Ipv6Addr,
    prefix4: Prefix4,
    prefix6: Prefix6,
    own: HashSet<IpAddr>,
}

/// Addresses at which clouds answer questions about the machine, beside those in 169.254/16.
const METADATA4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];
const METADATA6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

const LINK_LOCAL4: Prefix4 = Prefix4 { address: Ipv4Addr::new(169, 254, 0, 0), len: 16 };
const LINK_LOCAL6: Prefix6 = Prefix6 { address: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), len: 10 };
/// Class E, broadcast included.
const RESERVED4: Prefix4 = Prefix4 { address: Ipv4Addr::new(240, 0, 0, 0), len: 4 };
const THIS4: Prefix4 = Prefix4 { address: Ipv4Addr::UNSPECIFIED, len: 8 };
/// Unspecified, loopback and what once held IPv4 addresses.
const LOW6: Prefix6 = Prefix6 { address: Ipv6Addr::UNSPECIFIED, len: 64 };
const NAT64: Prefix6 = Prefix6 { address: Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), len: 96 };
const SIX_TO_FOUR: Prefix6 = Prefix6 { address: Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), len: 16 };

impl Policy {
    /// The policy of a configuration, which knows no address of the host yet.
    #[must_use]
    pub fn new(config: &UsernetConfig) -> Self {
        Self {
            default: config.default,
            allow: config.allow.clone(),
            deny: config.deny.clone(),
            gateway4: config.gateway4,
            gateway6: config.gateway6,
            prefix4: config.prefix4,
            prefix6: config.prefix6,
            own: HashSet::new(),
        }
    }

    /// The addresses of the host's interfaces, in place of those known before.
    pub fn set_own(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.own = addresses.into_iter().collect();
    }

    /// What a host socket may be connected to when the guest addresses `to`: `to` itself, or for
    /// the gateway the host's loopback. Pings have port 0.
    ///
    /// # Errors
    /// Why it is not let out.
    pub fn decide(&self, protocol: Protocol, to: SocketAddr) -> Result<SocketAddr, Reason> {
        let (ip, port) = (to.ip(), to.port());
        if ip == self.gateway4 || ip == self.gateway6 {
            let named = |rules: &[Rule]| {
                rules.iter().any(|r| r.target == Target::Host && is_about(r, protocol, port))
            };
            if named(&self.deny) || !named(&self.allow) {
                return Err(Reason::Host);
            }
            let loopback: IpAddr =
                if ip.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            return Ok(SocketAddr::new(loopback, port));
        }
        if self.in_guests_network(ip) {
            return Err(Reason::Nobody);
        }
        self.address(protocol, ip, port)?;
        if let Some(inner) = embedded(ip) {
            self.address(protocol, inner.into(), port)?;
        }
        Ok(SocketAddr::new(ip, port))
    }

    fn in_guests_network(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.prefix4.contains(ip),
            IpAddr::V6(ip) => self.prefix6.contains(ip),
        }
    }

    fn address(&self, protocol: Protocol, ip: IpAddr, port: u16) -> Result<(), Reason> {
        if is_never(ip) {
            return Err(Reason::Never);
        }
        if self.own.contains(&ip) {
            return Err(Reason::OwnAddress);
        }
        let matching = |rule: &&Rule| {
            let about = match rule.target {
                Target::Host => false,
                Target::Any => true,
                Target::Net(prefix) => prefix.contains(ip),
            };
            about && is_about(rule, protocol, port)
        };
        if self.deny.iter().any(|rule| matching(&rule)) {
            return Err(Reason::Rule);
        }
        let mut allowing = self.allow.iter().filter(matching);
        match special_bits(ip) {
            // Whoever allows everything did not mean these.
            Some(bits) => {
                let meant = |rule: &Rule| matches!(rule.target, Target::Net(prefix) if prefix.len() >= bits);
                if allowing.any(meant) { Ok(()) } else { Err(Reason::Special) }
            }
            None if self.default == Verdict::Allow || allowing.next().is_some() => Ok(()),
            None => Err(Reason::Default),
        }
    }
}

/// Whether protocol and port are those of a rule.
fn is_about(rule: &Rule, protocol: Protocol, port: u16) -> bool {
    rule.protocol.is_none_or(|only| only == protocol)
        && rule
            .ports
            .is_none_or(|ports| protocol != Protocol::Icmp && (ports.first..=ports.last).contains(&port))
}

fn is_never(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            ip.is_loopback() || ip.is_multicast() || THIS4.contains(ip) || RESERVED4.contains(ip)
        }
        IpAddr::V6(ip) => ip.is_multicast() || LOW6.contains(ip),
    }
}

/// The bits that a rule must name to mean an address that is refused unless it is meant.
fn special_bits(ip: IpAddr) -> Option<u8> {
    match ip {
        IpAddr::V4(ip) if LINK_LOCAL4.contains(ip) => Some(LINK_LOCAL4.len),
        IpAddr::V4(ip) => METADATA4.contains(&ip).then_some(32),
        IpAddr::V6(ip) if LINK_LOCAL6.contains(ip) => Some(LINK_LOCAL6.len),
        IpAddr::V6(ip) => METADATA6.contains(&ip).then_some(128),
    }
}

/// The IPv4 address that translators on the way would make of an IPv6 address.
fn embedded(ip: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(ip) = ip else { return None };
    let [_, a, b, _, _, _, c, d] = ip.segments();
    let of = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    if NAT64.contains(ip) { Some(of(c, d)) } else { SIX_TO_FOUR.contains(ip).then(|| of(a, b)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(allow: &[&str], deny: &[&str], default: Verdict) -> Policy {
        let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let mut policy = Policy::new(&UsernetConfig {
            allow: rules(allow),
            deny: rules(deny),
            default,
            ..UsernetConfig::default()
        });
        policy.set_own(["203.0.113.7".parse().unwrap(), "2001:db8::7".parse().unwrap()]);
        policy
    }

    #[test]
    fn what_is_no_hosts_business_is_refused_by_default() {
        let policy = policy(&["*", "0.0.0.0/0", "::/0"], &[], Verdict::Allow);
        for (to, reason) in [
            ("10.0.2.2:80", Reason::Host),
            ("[fd4e:656c:6c79::2]:80", Reason::Host),
            ("10.0.2.9:80", Reason::Nobody),
            ("203.0.113.7:80", Reason::OwnAddress),
            ("[2001:db8::7]:80", Reason::OwnAddress),
            ("[64:ff9b::203.0.113.7]:80", Reason::OwnAddress),
            ("[2002:cb00:7107::1]:80", Reason::OwnAddress),
            ("127.0.0.1:80", Reason::Never),
            ("127.9.9.9:80", Reason::Never),
            ("0.0.0.0:80", Reason::Never),
            ("255.255.255.255:80", Reason::Never),
            ("240.0.0.1:80", Reason::Never),
            ("224.0.0.251:5353", Reason::Never),
            ("[::]:80", Reason::Never),
            ("[::1]:80", Reason::Never),
            ("[::ffff:127.0.0.1]:80", Reason::Never),
            ("[::ffff:8.8.8.8]:80", Reason::Never),
            ("[::8.8.8.8]:80", Reason::Never),
            ("[64:ff9b::127.0.0.1]:80", Reason::Never),
            ("[ff02::fb]:5353", Reason::Never),
            ("169.254.1.1:80", Reason::Special),
            ("169.254.169.254:80", Reason::Special),
            ("168.63.129.16:80", Reason::Special),
            ("[fe80::1]:80", Reason::Special),
            ("[fd00:ec2::254]:80", Reason::Special),
            ("[64:ff9b::169.254.169.254]:80", Reason::Special),
        ] {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
                assert_eq!(policy.decide(protocol, to.parse().unwrap()), Err(reason), "{to}");
            }
        }
        for to in ["8.8.8.8:53", "192.168.1.1:80", "[2606::1]:443", "[64:ff9b::8.8.8.8]:1"] {
            let to = to.parse().unwrap();
            assert_eq!(policy.decide(Protocol::Tcp, to), Ok(to));
        }
    }

    #[test]
    fn rules_open_what_they_name_and_nothing_else() {
        let allow = ["host:8080/tcp", "169.254.169.254:80", "1.2.3.0/24:443", "host:53"];
        let policy = policy(&allow, &["1.2.3.9", "host:54"], Verdict::Deny);
        let decide = |protocol, to: &str| policy.decide(protocol, to.parse().unwrap());
        let yes = |text: &str| Ok(text.parse().unwrap());
        assert_eq!(decide(Protocol::Tcp, "10.0.2.2:8080"), yes("127.0.0.1:8080"));
        assert_eq!(decide(Protocol::Tcp, "[fd4e:656c:6c79::2]:8080"), yes("[::1]:8080"));
        assert_eq!(decide(Protocol::Udp, "10.0.2.2:8080"), Err(Reason::Host));
        assert_eq!(decide(Protocol::Udp, "10.0.2.2:53"), yes("127.0.0.1:53"));
        assert_eq!(decide(Protocol::Icmp, "10.0.2.2:0"), Err(Reason::Host));
        assert_eq!(decide(Protocol::Tcp, "169.254.169.254:80"), yes("169.254.169.254:80"));
        assert_eq!(decide(Protocol::Tcp, "169.254.169.254:81"), Err(Reason::Special));
        assert_eq!(decide(Protocol::Tcp, "1.2.3.4:443"), yes("1.2.3.4:443"));
        assert_eq!(decide(Protocol::Tcp, "1.2.3.9:443"), Err(Reason::Rule));
        assert_eq!(decide(Protocol::Tcp, "1.2.3.4:80"), Err(Reason::Default));
        assert_eq!(decide(Protocol::Icmp, "1.2.3.4:0"), Err(Reason::Default));
    }
}
