//! Which proxy a request takes, by the environment.

use std::net::IpAddr;

use crate::options::Environment;
use crate::resolve::is_loopback;

/// The proxy for a scheme and a host, as a URL.
pub(crate) fn proxy_for<'a>(
    environment: &'a Environment,
    https: bool,
    host: &str,
    port: u16,
) -> Option<&'a str> {
    let first = |names: [&'static str; 2]| names.into_iter().find_map(|name| environment.get(name));
    let excluded = first(["NO_PROXY", "no_proxy"]).unwrap_or_default();
    if is_loopback(host) || excluded.split(',').any(|rule| excludes(rule.trim(), host, port)) {
        return None;
    }
    first(if https { ["HTTPS_PROXY", "https_proxy"] } else { ["HTTP_PROXY", "http_proxy"] })
        .or_else(|| first(["ALL_PROXY", "all_proxy"]))
}

/// Whether a word of `NO_PROXY` means the host: `*`, a name and all below it (with a leading dot or
/// `*.`: only those), an address or a network, with an optional port.
fn excludes(rule: &str, host: &str, port: u16) -> bool {
    if rule == "*" {
        return true;
    }
    if rule.is_empty() {
        return false;
    }
    let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let rule = rule.to_ascii_lowercase();
    if let Ok(address) = host.parse::<IpAddr>() {
        if let Some((network, bits)) = rule.split_once('/') {
            return matches!((network.parse(), bits.parse()), (Ok(network), Ok(bits)) if in_network(address, network, bits));
        }
        let (bare, wanted) = split_port(&rule);
        return bare.trim_start_matches('[').trim_end_matches(']').parse() == Ok(address)
            && wanted.is_none_or(|wanted| wanted == port);
    }
    let (name, wanted) = split_port(&rule);
    if wanted.is_some_and(|wanted| wanted != port) {
        return false;
    }
    match name.strip_prefix("*.").or_else(|| name.strip_prefix('.')) {
        Some(domain) => host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
        None => host == name || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')),
    }
}

/// A word without its port, and the port.
fn split_port(word: &str) -> (&str, Option<u16>) {
    match word.rsplit_once(':') {
        Some((bare, port)) if !bare.contains(':') || bare.ends_with(']') => match port.parse() {
            Ok(port) => (bare, Some(port)),
            Err(_) => (word, None),
        },
        _ => (word, None),
    }
}

fn in_network(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    fn same(a: &[u8], b: &[u8], bits: u32) -> bool {
        let bit = |bytes: &[u8], n: u32| bytes[n as usize / 8] >> (7 - n % 8) & 1;
        (0..bits).all(|n| bit(a, n) == bit(b, n))
    }
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) if bits <= 32 => same(&a.octets(), &b.octets(), bits),
        (IpAddr::V6(a), IpAddr::V6(b)) if bits <= 128 => same(&a.octets(), &b.octets(), bits),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxy_of_the_scheme_unless_the_host_is_excluded() {
        let environment = Environment::new(|name| {
            let value = match name {
                "https_proxy" => "http://p:1",
                "HTTP_PROXY" => "http://p:2",
                "NO_PROXY" => "a.example, .b.example,10.0.0.0/8,c.example:5000",
                _ => return None,
            };
            Some(value.to_owned())
        });
        for (https, host, port, want) in [
            (true, "r.example", 443, Some("http://p:1")),
            (false, "r.example", 80, Some("http://p:2")),
            (true, "a.example", 443, None),
            (true, "x.A.example", 443, None),
            (true, "xa.example", 443, Some("http://p:1")),
            (true, "b.example", 443, Some("http://p:1")),
            (true, "x.b.example", 443, None),
            (true, "10.1.2.3", 443, None),
            (true, "11.1.2.3", 443, Some("http://p:1")),
            (true, "c.example", 443, Some("http://p:1")),
            (true, "c.example", 5000, None),
            (false, "localhost", 5000, None),
            (true, "[::1]", 5000, None),
        ] {
            assert_eq!(proxy_for(&environment, https, host, port), want, "{host}:{port}");
        }
    }

    #[test]
    fn rules_of_every_form() {
        for (rule, host, want) in [
            ("*", "h", true),
            ("", "h", false),
            ("*.h", "x.h", true),
            ("fd00::/8", "[fd12::1]", true),
            ("fd00::/999", "[fd12::1]", false),
            ("[fd12::1]:443", "[fd12::1]", true),
            ("fd12::1", "[fd12::1]", true),
            ("10.0.0.1:80", "10.0.0.1", false),
            ("10.0.0.0/x", "10.0.0.1", false),
        ] {
            assert_eq!(excludes(rule, host, 443), want, "{rule}");
        }
    }
}
