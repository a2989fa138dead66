//! Which address a guest's packet may be let out to. Pure: it is asked for the address that a host
//! socket would be connected to, after every name and translation.

mod bindings;
mod names;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::addressee::Speaks;
use crate::config::{Prefix4, Prefix6, Protocol, Rule, SecretHost, Target, UsernetConfig, Verdict};

pub use names::Naming;

/// Why something is not let out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It is a port of the host that no `allow` opens.
    Host,
    /// It is an address of the host itself.
    OwnAddress,
    /// It is loopback, multicast, broadcast, unspecified or mapped: never let out.
    Never,
    /// It is a link-local or metadata address, or one of a site's translator, that no `allow`
    /// names.
    Special,
    /// It is in the guest's own network, where nobody else is.
    Nobody,
    /// A `deny` names it: the one at this place.
    Rule(usize),
    /// No `allow` names it, and what none names is denied.
    Default,
    /// A stream is for somebody else than the name that lets it out.
    Addressee,
    /// The guest's network is isolated: no name is looked up outside of it.
    Isolated,
}

impl Reason {
    /// The reason as words for a log line.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Host => "a port of the host that is not allowed",
            Self::OwnAddress => "an address of the host itself",
            Self::Never => "loopback, multicast or no address of a single host",
            Self::Special => "a link-local, metadata or translated address that is not allowed",
            Self::Nobody => "nobody has this address in the guest's network",
            Self::Rule(_) => "denied by a rule",
            Self::Default => "not allowed by a rule",
            Self::Addressee => "not for the name that its address was allowed for",
            Self::Isolated => "not a name of the isolated network",
        }
    }
}

/// What is let out, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passage {
    /// What the host's socket is connected to.
    pub to: SocketAddr,
    /// The `allow` that lets it out, by its place; none: it is the default.
    pub by: Option<usize>,
    /// Whom its first bytes say that it is for is looked at before they go on.
    pub check: Option<Check>,
}

/// What the first bytes of a stream must say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// What they are expected to be.
    pub speaks: Speaks,
    /// They must name a host that is allowed by its name. Otherwise it is only refused if they name
    /// one that is denied.
    pub must: bool,
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
    /// Hosts whose streams are handed over to who puts secrets into them.
    secrets: Vec<SecretHost>,
    /// Names that the guest was answered with addresses for.
    asked: bindings::Bindings,
    /// Names on the way to addresses that a `deny` names.
    denied: bindings::Bindings,
}

/// Addresses at which clouds answer questions about the machine, beside those in 169.254/16.
const METADATA4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];
/// Of Amazon (the machine's and its containers' credentials), Google, Oracle and Scaleway.
const METADATA6: [Ipv6Addr; 5] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
];

const LINK_LOCAL4: Prefix4 = Prefix4 { address: Ipv4Addr::new(169, 254, 0, 0), len: 16 };
const LINK_LOCAL6: Prefix6 = Prefix6 { address: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), len: 10 };
/// Class E, broadcast included.
const RESERVED4: Prefix4 = Prefix4 { address: Ipv4Addr::new(240, 0, 0, 0), len: 4 };
const THIS4: Prefix4 = Prefix4 { address: Ipv4Addr::UNSPECIFIED, len: 8 };
/// Unspecified, loopback and what once held IPv4 addresses.
const LOW6: Prefix6 = Prefix6 { address: Ipv6Addr::UNSPECIFIED, len: 64 };
const NAT64: Prefix6 = Prefix6 { address: Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), len: 96 };
/// For translators of a site (RFC 8215): where an IPv4 address stands in it, they alone know.
const LOCAL_NAT64: Prefix6 = Prefix6 { address: Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), len: 48 };
const SIX_TO_FOUR: Prefix6 = Prefix6 { address: Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), len: 16 };

impl Policy {
    /// The policy of a configuration, which knows no address of the host yet.
    #[must_use]
    pub fn new(config: &UsernetConfig) -> Self {
        Self {
            default: if config.isolated { Verdict::Deny } else { config.default },
            allow: config.allow.clone(),
            deny: config.deny.clone(),
            gateway4: config.gateway4,
            gateway6: config.gateway6,
            prefix4: config.prefix4,
            prefix6: config.prefix6,
            own: HashSet::new(),
            secrets: config.secrets.clone(),
            asked: bindings::Bindings::default(),
            denied: bindings::Bindings::default(),
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
    pub fn decide(&self, now: Duration, protocol: Protocol, to: SocketAddr) -> Result<Passage, Reason> {
        let (ip, port) = (to.ip(), to.port());
        if ip == self.gateway4 || ip == self.gateway6 {
            let named = |rules: &[Rule]| {
                rules.iter().position(|r| r.target == Target::Host && is_about(r, protocol, port))
            };
            let by = named(&self.allow);
            if named(&self.deny).is_some() || by.is_none() {
                return Err(Reason::Host);
            }
            let loopback: IpAddr =
                if ip.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            return Ok(Passage { to: SocketAddr::new(loopback, port), by, check: None });
        }
        if self.in_guests_network(ip) {
            return Err(Reason::Nobody);
        }
        let (by, must) = self.address(now, protocol, ip, port)?;
        if let Some(inner) = embedded(ip) {
            // A name was answered with the outer address alone.
            match must {
                true => _ = self.is_open(now, protocol, inner.into(), port)?,
                false => _ = self.address(now, protocol, inner.into(), port)?,
            }
        }
        let speaks = Speaks::at(port).filter(|_| protocol == Protocol::Tcp);
        let check = speaks.filter(|_| must || self.denies_names(port)).map(|speaks| Check { speaks, must });
        // Whoever speaks to such a host begins with TLS, at whatever port.
        let swaps = protocol == Protocol::Tcp && self.may_have_secrets(now, ip, port);
        let check = if swaps { Some(Check { speaks: Speaks::Tls, must }) } else { check };
        Ok(Passage { to, by, check })
    }

    fn in_guests_network(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.prefix4.contains(ip),
            IpAddr::V6(ip) => self.prefix6.contains(ip),
        }
    }

    /// Whether nothing is against this address, whatever lets it out: the `allow` that means it, if
    /// it is one that must be meant.
    fn is_open(
        &self,
        now: Duration,
        protocol: Protocol,
        ip: IpAddr,
        port: u16,
    ) -> Result<Option<usize>, Reason> {
        if is_never(ip) {
            return Err(Reason::Never);
        }
        if self.own.contains(&ip) {
            return Err(Reason::OwnAddress);
        }
        let denies = |rule: &Rule| {
            is_about(rule, protocol, port)
                && match &rule.target {
                    Target::Names(domain) => {
                        let mut names = self.asked.names(now, ip).chain(self.denied.names(now, ip));
                        names.any(|name| domain.is_about(name))
                    }
                    other => is_of(other, ip),
                }
        };
        if let Some(place) = self.deny.iter().position(denies) {
            return Err(Reason::Rule(place));
        }
        // Whoever allows everything did not mean these, and whoever allows a name even less.
        let Some(bits) = special_bits(ip) else { return Ok(None) };
        let meant = |rule: &Rule| {
            matches!(rule.target, Target::Net(prefix) if prefix.len() >= bits && prefix.contains(ip))
                && is_about(rule, protocol, port)
        };
        self.allow.iter().position(meant).map(Some).ok_or(Reason::Special)
    }

    /// The `allow` that lets it out, if it is not the default, and whether that is so by the name
    /// alone.
    fn address(
        &self,
        now: Duration,
        protocol: Protocol,
        ip: IpAddr,
        port: u16,
    ) -> Result<(Option<usize>, bool), Reason> {
        if let Some(place) = self.is_open(now, protocol, ip, port)? {
            return Ok((Some(place), false));
        }
        let by_address = |rule: &Rule| is_of(&rule.target, ip) && is_about(rule, protocol, port);
        if let Some(place) = self.allow.iter().position(by_address) {
            return Ok((Some(place), false));
        }
        if self.default == Verdict::Allow {
            return Ok((None, false));
        }
        let by_name = |rule: &Rule| {
            // Whom QUIC is for is not to be seen: whoever wants it says so.
            let hidden = protocol == Protocol::Udp && port == 443 && rule.protocol.is_none();
            let Target::Names(domain) = &rule.target else { return false };
            !hidden
                && is_about(rule, protocol, port)
                && self.asked.names(now, ip).any(|name| domain.is_about(name))
        };
        let place = self.allow.iter().position(by_name).ok_or(Reason::Default)?;
        Ok((Some(place), true))
    }

    /// The rule that a reason is, as it was written.
    #[must_use]
    pub fn denied_by(&self, reason: Reason) -> Option<&Rule> {
        match reason {
            Reason::Rule(place) => self.deny.get(place),
            _ => None,
        }
    }

    /// The rule that lets something out, as it was written.
    #[must_use]
    pub fn allowed_by(&self, by: Option<usize>) -> Option<&Rule> {
        self.allow.get(by?)
    }
}

/// Whether an address is among those that a rule names by their numbers.
fn is_of(target: &Target, ip: IpAddr) -> bool {
    match target {
        Target::Host | Target::Names(_) => false,
        Target::Any => true,
        Target::Net(prefix) => prefix.contains(ip),
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
        IpAddr::V6(ip) if LOCAL_NAT64.contains(ip) => Some(LOCAL_NAT64.len),
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
mod tests;
