//! What the host is like, looked at anew from time to time, but never without a reason.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net;

use super::reader::Reader;
use super::socket::{internet, open};
use crate::config::Protocol;
use crate::core::{Net, Time};
use crate::sys::Routes;

/// How often the resolvers and the addresses of the host are looked at, at most.
const OFTEN: Time = Time::from_secs(1);
/// How often it is looked at whether the host has a way to the IPv6 Internet, at most.
const SELDOM: Time = Time::from_secs(10);
/// How long the reader of `resolv.conf` is waited for: less than a question takes that goes to the
/// resolvers known until then.
const PATIENCE: Time = Time::from_millis(10);

/// An address of the IPv6 Internet that is asked for the way to it, and sent nothing.
const SOMEWHERE: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1)), 9);

/// The host as it was seen last.
#[derive(Debug)]
pub(super) struct Host {
    /// Who reads `resolv.conf`; nobody, where the configuration names resolvers.
    reader: Option<Reader>,
    often: Option<Time>,
    seldom: Option<Time>,
    /// Sockets that are connected to find out from which address that would be, and send nothing.
    probes: [Option<OwnedFd>; 2],
    routes: Routes,
}

impl Host {
    pub(super) fn new(reader: Option<Reader>) -> Self {
        let probe = |address: &str| open(Protocol::Udp, address.parse().ok()?).ok();
        Self {
            reader,
            often: None,
            seldom: None,
            probes: [probe("0.0.0.0:1"), probe("[::]:1")],
            routes: Routes::open(),
        }
    }

    /// Tells the core of the host, if that is some time ago.
    pub(super) fn refresh(&mut self, now: Time, net: &mut Net) {
        let past = |at: Option<Time>, every| at.is_none_or(|at| at + every <= now);
        if past(self.often, OFTEN) {
            self.often = Some(now);
            if let Some(text) = self.reader.as_mut().and_then(|reader| reader.read(PATIENCE)) {
                net.set_upstreams(resolvers(&text));
            }
            if let Some(addresses) = own_addresses() {
                net.set_own_addresses(addresses);
            }
        }
        if past(self.seldom, SELDOM) {
            self.seldom = Some(now);
            net.set_has_v6(now, self.source(SOMEWHERE).is_some_and(is_heard_everywhere));
        }
    }

    /// From which address the host would send to this one. `None`: it has no way there.
    fn source(&self, to: SocketAddr) -> Option<IpAddr> {
        let probe = self.probes[usize::from(to.is_ipv6())].as_ref()?;
        net::connect_unspec(probe).ok()?;
        source(probe, to)
    }

    /// Whether this is an address of the host itself, as its routes have it now.
    pub(super) fn is_own(&mut self, to: SocketAddr) -> bool {
        // A route to the host itself may have another of its addresses as the source.
        self.source(to) == Some(to.ip()) || self.routes.is_own(to.ip())
    }
}

/// The resolvers of a `resolv.conf`. Without the file there is none, as without a line in it.
fn resolvers(text: &[u8]) -> Vec<SocketAddr> {
    let servers = crate::dns::nameservers(&String::from_utf8_lossy(text));
    servers.into_iter().map(|address| SocketAddr::new(address, crate::dns::PORT)).collect()
}

/// Connects a socket of datagrams, and says from which address it would send.
fn source(probe: &OwnedFd, to: SocketAddr) -> Option<IpAddr> {
    net::connect(probe, &to).ok()?;
    net::getsockname(probe).ok().and_then(internet).map(|address| address.ip())
}

/// Whether the host has a way to the IPv6 Internet, on which answers come back. Asks the host's
/// routes, and sends nothing.
#[must_use]
pub fn reaches_ipv6() -> bool {
    let probe = open(Protocol::Udp, SOMEWHERE).ok();
    probe.and_then(|probe| source(&probe, SOMEWHERE)).is_some_and(is_heard_everywhere)
}

/// Whether answers to this address of the host come back from the Internet, perhaps through a
/// translator. A route alone does not make it so: some networks have a router that announces itself
/// and no addresses.
fn is_heard_everywhere(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(source) => !source.is_loopback() && !source.is_link_local() && !source.is_unspecified(),
        IpAddr::V6(source) => {
            !source.is_loopback() && !source.is_unicast_link_local() && !source.is_unspecified()
        }
    }
}

/// The addresses of all interfaces. `None`: the system does not tell.
fn own_addresses() -> Option<Vec<IpAddr>> {
    let all = nix::ifaddrs::getifaddrs().ok()?;
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        if let Some(four) = address.as_sockaddr_in() {
            return Some(IpAddr::V4(four.ip()));
        }
        address.as_sockaddr_in6().map(|six| IpAddr::V6(six.ip()))
    };
    Some(all.filter_map(address).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_from_an_address_of_the_link_is_no_way_out() {
        for (source, out) in [
            ("fe80::1", false),
            ("febf::1", false),
            ("::1", false),
            ("::", false),
            ("2001:db8::1", true),
            ("fd00::1", true),
            ("127.0.0.1", false),
            ("169.254.1.1", false),
            ("192.168.1.1", true),
        ] {
            assert_eq!(is_heard_everywhere(source.parse().unwrap()), out, "{source}");
        }
    }
}
