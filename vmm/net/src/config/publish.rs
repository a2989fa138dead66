//! Published ports: `[BIND:]HOST:GUEST[/tcp|/udp]`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use super::Protocol;

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

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let what = || {
            format!(
                "{text:?} is not a published port: [BIND:]HOST:GUEST, then /tcp (which is meant if nothing is said) \
                 or /udp; HOST 0 is a free port, BIND an address (IPv6 in brackets), 127.0.0.1 if nothing is said"
            )
        };
        let (rest, protocol) = match text.rsplit_once('/') {
            Some((rest, "tcp")) => (rest, Protocol::Tcp),
            Some((rest, "udp")) => (rest, Protocol::Udp),
            Some(_) => return Err(what()),
            None => (text, Protocol::Tcp),
        };
        let (rest, guest) = rest.rsplit_once(':').ok_or_else(what)?;
        let (bind, host) = match rest.rsplit_once(':') {
            Some((bind, host)) => {
                let bare = bind.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
                let address: IpAddr = bare.unwrap_or(bind).parse().map_err(|_| what())?;
                if address.is_ipv6() != bare.is_some() {
                    return Err(what());
                }
                (address, host)
            }
            None => (Ipv4Addr::LOCALHOST.into(), rest),
        };
        let port = |text: &str| text.parse::<u16>().map_err(|_| what());
        let guest = port(guest)?;
        if guest == 0 {
            return Err(what());
        }
        Ok(Self { bind: SocketAddr::new(bind, port(host)?), guest, protocol })
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
        ] {
            assert!(text.parse::<Publish>().is_err(), "{text}");
        }
    }
}
