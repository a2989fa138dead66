//! Addresses of host names.
//!
//! `nelly` is a static program, and the C library of one cannot load the host's name services (nss
//! modules are shared libraries of one exact version). So names are looked up by `getent`, which is
//! the host's own: it follows `/etc/nsswitch.conf`, `/etc/hosts` and the local resolver.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use crate::cancel::Cancel;
use crate::program;

/// Most addresses of a host that are tried.
const MOST: usize = 8;

/// Resolves with `getent`.
pub(crate) struct HostResolver {
    pub(crate) cancel: Cancel,
    pub(crate) most: Duration,
}

impl fmt::Debug for HostResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostResolver")
    }
}

impl Resolver for HostResolver {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let bad = || ureq::Error::BadUri(uri.to_string());
        let host = uri.host().ok_or_else(bad)?;
        let port = match (uri.port_u16(), uri.scheme_str()) {
            (Some(port), _) => port,
            (None, Some("https")) => 443,
            (None, Some("http")) => 80,
            (None, _) => return Err(bad()),
        };
        let mut found = self.empty();
        for address in self.addresses(host).map_err(ureq::Error::Io)?.into_iter().take(MOST) {
            found.push(SocketAddr::new(address, port));
        }
        if found.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(found) }
    }
}

impl HostResolver {
    fn addresses(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        if let Some(known) = without_lookup(host) {
            return Ok(known);
        }
        let output =
            program::run(OsStr::new("getent"), &["ahosts", "--", host], b"", self.most, &self.cancel)
                .map_err(|error| {
                    let why = format!("cannot look up the host with getent (of the C library): {error}");
                    io::Error::new(error.kind(), why)
                })?;
        Ok(parse(&String::from_utf8_lossy(&output.stdout)))
    }
}

/// Addresses that need no lookup.
fn without_lookup(host: &str) -> Option<Vec<IpAddr>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse() {
        return Some(vec![address]);
    }
    // RFC 6761, 6.3
    host.eq_ignore_ascii_case("localhost")
        .then(|| vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()])
}

/// Whether a host (without a port) is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    without_lookup(host).is_some_and(|addresses| addresses.iter().all(IpAddr::is_loopback))
}

/// The addresses of `getent ahosts`, each once.
fn parse(text: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for address in text.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_getent() {
        let text =
            "93.184.216.34   STREAM example.com\n93.184.216.34   DGRAM  \n2606:2800::1 STREAM\njunk\n\n";
        let addresses: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["93.184.216.34", "2606:2800::1"]);
    }

    #[test]
    fn this_machine_by_name_and_number() {
        for (host, loopback) in [
            ("localhost", true),
            ("LOCALHOST", true),
            ("127.0.0.1", true),
            ("127.8.9.10", true),
            ("[::1]", true),
            ("10.0.0.1", false),
            ("localhost.example", false),
            ("127.0.0.1.example", false),
        ] {
            assert_eq!(is_loopback(host), loopback, "{host}");
        }
    }

    #[test]
    fn the_host_looks_names_up() {
        let resolver = HostResolver { cancel: Cancel::new(), most: Duration::from_secs(60) };
        assert_eq!(resolver.addresses("-x.invalid").unwrap(), [] as [IpAddr; 0]);
    }
}
