//! The names that containers in the guest's network read: pure.

use std::net::IpAddr;

use nelly_protocol::messages as m;

use super::{NetworkError, value};

/// Most of each in a request.
const MOST_NAMESERVERS: usize = 8;
const MOST_DOMAINS: usize = 32;
const MOST_HOSTS: usize = 256;
/// Most bytes of certificates.
const MOST_AUTHORITIES: usize = 64 << 10;

/// What a container in the guest's network reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// The text of /etc/resolv.conf, if there is a name server.
    pub resolver: Option<String>,
    /// Lines of /etc/hosts.
    pub hosts: Vec<String>,
    /// The guest's own address, which a container's host name stands for.
    pub own: Option<IpAddr>,
    /// Certificates in PEM form that are added to those that the container trusts.
    pub authorities: String,
}

/// Checks the names of a request.
pub(super) fn check(network: &m::Network, own: Option<IpAddr>) -> Result<Names, NetworkError> {
    let counts = [network.nameservers.len(), network.search.len(), network.hosts.len()];
    if counts.into_iter().zip([MOST_NAMESERVERS, MOST_DOMAINS, MOST_HOSTS]).any(|(count, most)| count > most)
    {
        let rule = "at most 8, 32 and 256 are allowed";
        return Err(value("nameservers, .search and .hosts", &format!("{counts:?}"), rule));
    }
    let mut resolver = String::new();
    for server in &network.nameservers {
        let server: IpAddr =
            server.parse().map_err(|_| value("nameservers", server, "an IPv4 or IPv6 address is needed"))?;
        resolver.push_str(&format!("nameserver {server}\n"));
    }
    if let Some(bad) = network.search.iter().find(|domain| !plain(domain)) {
        return Err(value("search", bad, "a domain is needed"));
    }
    if !network.search.is_empty() && !resolver.is_empty() {
        resolver.push_str(&format!("search {}\n", network.search.join(" ")));
    }
    let line = |line: &String| {
        host_line(line).ok_or_else(|| value("hosts", line, "an address, a space and a name are needed"))
    };
    Ok(Names {
        resolver: Some(resolver).filter(|text| !text.is_empty()),
        hosts: network.hosts.iter().map(line).collect::<Result<_, _>>()?,
        own,
        authorities: authorities(&network.authorities)?,
    })
}

/// Certificates, and nothing else.
fn authorities(text: &str) -> Result<String, NetworkError> {
    let good = |line: &str| {
        let marks = ["-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"];
        marks.contains(&line) || line.chars().all(|c| c.is_ascii_alphanumeric() || "+/=".contains(c))
    };
    if text.len() > MOST_AUTHORITIES || !text.lines().all(good) {
        return Err(value("authorities", "a text", "certificates in PEM form are needed, of 64 KiB at most"));
    }
    Ok(text.to_owned())
}

fn plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// A line of /etc/hosts of `ADDRESS NAME`; nothing if it is anything else.
#[must_use]
pub fn host_line(text: &str) -> Option<String> {
    let (address, name) = text.split_once(' ')?;
    let good = address.parse::<IpAddr>().is_ok() && plain(name);
    good.then(|| format!("{address}\t{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_as_the_files_have_them() {
        let mut network = m::Network {
            nameservers: vec!["10.0.2.3".into(), "fd00::3".into()],
            search: vec!["lan".into(), "example.org".into()],
            hosts: vec!["10.0.2.2 host.internal".into()],
            ..Default::default()
        };
        let own = "10.0.2.15".parse().ok();
        let names = check(&network, own).expect("good");
        let resolver = "nameserver 10.0.2.3\nnameserver fd00::3\nsearch lan example.org\n";
        assert_eq!((names.resolver.as_deref(), names.own), (Some(resolver), own));
        assert_eq!(names.hosts, ["10.0.2.2\thost.internal"]);
        assert_eq!(check(&m::Network::default(), None).expect("good"), Names::default());

        network.nameservers.clear();
        assert_eq!(check(&network, own).expect("good").resolver, None);
        for (nameserver, domain, host) in [
            ("10.0.2", "lan", "10.0.2.2 a"),
            ("10.0.2.3\nnameserver 1.2.3.4", "lan", "10.0.2.2 a"),
            ("10.0.2.3", "a b", "10.0.2.2 a"),
            ("10.0.2.3", "a\noptions x", "10.0.2.2 a"),
            ("10.0.2.3", "", "10.0.2.2 a"),
            ("10.0.2.3", "lan", "10.0.2.2"),
            ("10.0.2.3", "lan", "10.0.2.2 a\n1.2.3.4 b"),
        ] {
            network.nameservers = vec![nameserver.into()];
            network.search = vec![domain.into()];
            network.hosts = vec![host.into()];
            assert!(check(&network, own).is_err(), "{nameserver:?} {domain:?} {host:?}");
        }
        let pem = "-----BEGIN CERTIFICATE-----\nMIIB+/=\n-----END CERTIFICATE-----\n";
        for (text, good) in [
            (pem.to_owned(), true),
            (format!("{pem}# a line\n"), false),
            ("A".repeat(64 << 10), true),
            ("A".repeat((64 << 10) + 1), false),
        ] {
            network = m::Network { authorities: text.clone(), ..Default::default() };
            let checked = check(&network, own).map(|names| names.authorities);
            assert_eq!(checked.ok(), good.then_some(text));
        }
        network = m::Network { nameservers: vec!["10.0.2.3".into(); 9], ..Default::default() };
        assert!(check(&network, own).is_err());
    }
}
