//! Published ports: `[BIND:]HOST:GUEST[/tcp|/udp]`, and ranges of them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::Protocol;

/// The most ports of one range.
pub const MOST_OF_RANGE: usize = 256;

/// A port of the host that leads to one of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Where the host listens: loopback unless it is said. Port 0: a free one.
    pub bind: SocketAddr,
    /// The guest's port, 1 to 65,535.
    pub guest: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl Publish {
    /// Reads a port, or as many as two ranges of the same length have: `8000-8009:80-89`. HOST 0 is
    /// a free port for each of the guest's.
    ///
    /// # Errors
    /// It is neither, or a range is longer than [`MOST_OF_RANGE`].
    pub fn all(text: &str) -> Result<Vec<Self>, String> {
        let wrong = || wrong(text);
        let (rest, protocol) = match text.rsplit_once('/') {
            Some((rest, "tcp")) => (rest, Protocol::Tcp),
            Some((rest, "udp")) => (rest, Protocol::Udp),
            Some(_) => return Err(wrong()),
            None => (text, Protocol::Tcp),
        };
        let (rest, guest) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let (address, host) = match rest.rsplit_once(':') {
            Some((bind, host)) => {
                let bare = bind.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
                let address: IpAddr = bare.unwrap_or(bind).parse().map_err(|_| wrong())?;
                if address.is_ipv6() != bare.is_some() {
                    return Err(wrong());
                }
                (address, host)
            }
            None => (Ipv4Addr::LOCALHOST.into(), rest),
        };
        let (host, guest) = (range(host).ok_or_else(wrong)?, range(guest).ok_or_else(wrong)?);
        let (many, free) = (guest.clone().count(), host == (0..=0));
        if *guest.start() == 0 || (*host.start() == 0 && !free) {
            return Err(wrong());
        }
        if many > MOST_OF_RANGE {
            return Err(format!("{text:?}: {many} ports are more than {MOST_OF_RANGE}"));
        }
        if !free && host.clone().count() != many {
            return Err(format!(
                "{text:?}: {} ports of the host cannot lead to {many} of the guest",
                host.count()
            ));
        }
        let one = |(place, guest): (usize, u16)| {
            let port = host.clone().nth(if free { 0 } else { place })?;
            Some(Self { bind: SocketAddr::new(address, port), guest, protocol })
        };
        Ok(guest.enumerate().filter_map(one).collect())
    }
}

/// `PORT` or `FIRST-LAST`; `None`: it is neither.
fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = first.parse().ok()?..=last.parse().ok()?;
    (!range.is_empty()).then_some(range)
}

fn wrong(text: &str) -> String {
    format!(
        "{text:?} is not a published port: [BIND:]HOST:GUEST, then /tcp (which is meant if nothing is said) or /udp; \
         HOST and GUEST may be ranges, FIRST-LAST; HOST 0 is a free port, BIND an address (IPv6 in brackets), \
         127.0.0.1 if nothing is said"
    )
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match Self::all(text)?[..] {
            [one] => Ok(one),
            _ => Err(format!("{text:?}: one port is needed, not a range")),
        }
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.bind, self.guest, self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_read_and_written() {
        for (text, written) in [
            ("8080:80", "127.0.0.1:8080:80/tcp"),
            ("0:80/tcp", "127.0.0.1:0:80/tcp"),
            ("0.0.0.0:8080:80/udp", "0.0.0.0:8080:80/udp"),
            ("[::1]:8080:80", "[::1]:8080:80/tcp"),
        ] {
            assert_eq!(text.parse::<Publish>().unwrap().to_string(), written);
            assert_eq!(written.parse::<Publish>().unwrap().to_string(), written);
        }
        for text in [
            "",
            "80",
            "80:",
            ":80",
            "80:0",
            "80:65536",
            "::1:80:80",
            "x:80:80",
            "80:80/icmp",
            "80:80/",
            "[1.2.3.4]:1:1",
            "80-81:80-81",
        ] {
            assert!(text.parse::<Publish>().is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_are_as_many_ports() {
        for (text, ports) in [
            ("80:81", &["127.0.0.1:80:81/tcp"][..]),
            ("80-80:81", &["127.0.0.1:80:81/tcp"]),
            ("[::1]:7-8:9-10/udp", &["[::1]:7:9/udp", "[::1]:8:10/udp"]),
            ("0:65534-65535", &["127.0.0.1:0:65534/tcp", "127.0.0.1:0:65535/tcp"]),
        ] {
            let all: Vec<String> = Publish::all(text).unwrap().iter().map(ToString::to_string).collect();
            assert_eq!(all, ports, "{text}");
        }
        assert_eq!(Publish::all("1-256:1-256").unwrap().len(), MOST_OF_RANGE);
        for text in [
            "1-257:1-257",
            "0-65535:0-65535",
            "1-65535:1-65535",
            "0:1-65535",
            "80-81:80",
            "80:80-81",
            "81-80:81-80",
            "0-1:1-2",
            "1-2-3:1-3",
            "-1:1",
            "1-:1",
            "1:-",
        ] {
            assert!(Publish::all(text).is_err(), "{text}");
        }
    }
}
