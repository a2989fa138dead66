//! Rules: `TARGET[:PORT[-PORT]][/tcp|/udp|/icmp]`.

use std::fmt;
use std::str::FromStr;

use super::{Domain, Prefix};

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The host itself, at the gateway's address.
    Host,
    /// Addresses.
    Net(Prefix),
    /// Every address.
    Any,
    /// Names, and the addresses that they were answered with.
    Names(Domain),
}

/// A protocol that is let out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Echo requests of ICMP and ICMPv6.
    Icmp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

/// Ports from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The first, 1 to 65,535.
    pub first: u16,
    /// The last; not below the first.
    pub last: u16,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which addresses.
    pub target: Target,
    /// Which ports; none: every port, and what has none.
    pub ports: Option<Ports>,
    /// Which protocol; none: every one.
    pub protocol: Option<Protocol>,
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let what = || {
            format!(
                "{text:?} is not a rule: host:PORT, or ADDRESS, NETWORK/BITS, NAME, *.NAME or *, then :PORT or \
                 :FIRST-LAST, then /tcp, /udp or /icmp (IPv6 with a port in brackets: [NETWORK/BITS]:PORT)"
            )
        };
        let (rest, protocol) = match text.rsplit_once('/') {
            Some((rest, "tcp")) => (rest, Some(Protocol::Tcp)),
            Some((rest, "udp")) => (rest, Some(Protocol::Udp)),
            Some((rest, "icmp")) => (rest, Some(Protocol::Icmp)),
            _ => (text, None),
        };
        let (target, ports) = if let Some(rest) = rest.strip_prefix('[') {
            let (target, behind) = rest.split_once(']').ok_or_else(what)?;
            match behind.strip_prefix(':') {
                Some(ports) => (target, Some(ports)),
                None if behind.is_empty() => (target, None),
                None => return Err(what()),
            }
        } else if rest.matches(':').count() > 1 {
            (rest, None)
        } else {
            rest.split_once(':').map_or((rest, None), |(target, ports)| (target, Some(ports)))
        };
        let ports = ports.map(|ports| ports_of(ports).ok_or_else(what)).transpose()?;
        let target = match target {
            "host" => Target::Host,
            "*" => Target::Any,
            target if is_name_like(target) => {
                Target::Names(target.parse().map_err(|why| format!("{}: {why}", what()))?)
            }
            target => Target::Net(target.parse().map_err(|why| format!("{}: {why}", what()))?),
        };
        if target == Target::Host && ports.is_none() {
            return Err(format!("{text:?}: of the host itself only ports are allowed or denied: host:PORT"));
        }
        if protocol == Some(Protocol::Icmp) && ports.is_some() {
            return Err(format!("{text:?}: icmp has no ports"));
        }
        Ok(Self { target, ports, protocol })
    }
}

/// Whether somebody meant a name: what has no letter is an address, and what has a colon or slash.
fn is_name_like(text: &str) -> bool {
    text.bytes().any(|c| !c.is_ascii_digit() && c != b'.') && !text.contains([':', '/'])
}

fn ports_of(text: &str) -> Option<Ports> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let ports = Ports { first: first.parse().ok()?, last: last.parse().ok()? };
    (ports.first != 0 && ports.first <= ports.last).then_some(ports)
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.target, self.ports) {
            (Target::Host, _) => f.write_str("host")?,
            (Target::Any, _) => f.write_str("*")?,
            (Target::Net(prefix @ Prefix::V6(_)), Some(_)) => write!(f, "[{prefix}]")?,
            (Target::Net(prefix), _) => prefix.fmt(f)?,
            (Target::Names(domain), _) => domain.fmt(f)?,
        }
        match self.ports {
            Some(Ports { first, last }) if first == last => write!(f, ":{first}")?,
            Some(Ports { first, last }) => write!(f, ":{first}-{last}")?,
            None => {}
        }
        self.protocol.map_or(Ok(()), |protocol| write!(f, "/{protocol}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_read_and_written() {
        for text in [
            "host:80",
            "host:80/tcp",
            "*",
            "*:53/udp",
            "10.0.0.0/8",
            "10.0.0.0/8:443/tcp",
            "1.2.3.4/32:1-65535",
            "fd00::/8",
            "fd00::/8/icmp",
            "[2001:db8::/32]:443",
            "example.org",
            "*.example.org:443/tcp",
            "example.org:80-90",
            "*.example.org/icmp",
        ] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
        }
        assert_eq!("1.2.3.4".parse::<Rule>().unwrap().to_string(), "1.2.3.4/32");
        for text in [
            "",
            "host",
            "host:",
            "host:0",
            "host:5-4",
            "host:65536",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "[::1",
            "[::1]x",
            "10.0.0.0/8/sctp",
            "*:1/icmp",
            "example",
            "hosts:80",
            "example.org:",
            "1.2.3",
            "ex ample.org",
            "example.org/8",
            ":80",
            "1.2.3.4:80:90",
            "host:80/tcp/udp",
        ] {
            assert!(text.parse::<Rule>().is_err(), "{text}");
        }
    }
}
