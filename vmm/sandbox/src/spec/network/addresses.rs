//! The addresses of a user-mode network, where others than the usual ones are wanted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nelly_net::config::{ConfigError, Prefix, Prefix4, Prefix6, UsernetConfig};
use serde::{Deserialize, Serialize};

/// What differs from 10.0.2.0/24 and fd4e:656c:6c79::/64. What is not said has its usual number in
/// the prefix: the gateway 2, the resolver 3, the guest 15 (IPv6: hexadecimal), or 4 in an IPv4
/// prefix of fewer than 32 addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Addresses {
    /// The IPv4 network, /8 to /29.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix4: Option<Prefix4>,
    /// The gateway, which is `host.internal`, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway4: Option<Ipv4Addr>,
    /// The resolver that the guest asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns4: Option<Ipv4Addr>,
    /// The guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest4: Option<Ipv4Addr>,
    /// The IPv6 network, a /64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix6: Option<Prefix6>,
    /// As `gateway4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<Ipv6Addr>,
    /// As `dns4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns6: Option<Ipv6Addr>,
    /// As `guest4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest6: Option<Ipv6Addr>,
}

/// The number of the gateway in a prefix.
const GATEWAY: u8 = 2;
/// That of the resolver.
const RESOLVER: u8 = 3;
/// That of the guest.
const GUEST: u8 = 15;
/// That of the guest in a small IPv4 prefix.
const GUEST_OF_FEW: u8 = 4;

impl Addresses {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }

    /// Takes `prefix=`, `ip=`, `gw=` or `dns=`; `None`: `name` is another option.
    ///
    /// # Errors
    /// The value is none, or there is one of its family already.
    pub(super) fn option(&mut self, name: &str, value: &str) -> Option<Result<(), String>> {
        let word = format!("{name}={value}");
        if name == "prefix" {
            return Some(match value.parse() {
                Ok(Prefix::V4(prefix)) => set(&mut self.prefix4, prefix, &word),
                Ok(Prefix::V6(prefix)) => set(&mut self.prefix6, prefix, &word),
                Err(why) => Err(format!("{word}: {why}")),
            });
        }
        let (four, six) = match name {
            "ip" => (&mut self.guest4, &mut self.guest6),
            "gw" => (&mut self.gateway4, &mut self.gateway6),
            "dns" => (&mut self.dns4, &mut self.dns6),
            _ => return None,
        };
        Some(match value.parse() {
            Ok(IpAddr::V4(address)) => set(four, address, &word),
            Ok(IpAddr::V6(address)) => set(six, address, &word),
            Err(_) => Err(format!("{word}: an IPv4 or IPv6 address without its prefix is needed")),
        })
    }

    /// Says them to `config`.
    pub(super) fn configure(&self, config: &mut UsernetConfig) {
        if let Some(prefix) = self.prefix4 {
            let host = |number: u8| Ipv4Addr::from_bits(prefix.address.to_bits() | u32::from(number));
            let few = prefix.len > 27;
            config.prefix4 = prefix;
            (config.gateway4, config.dns4) = (host(GATEWAY), host(RESOLVER));
            config.guest4 = host(if few { GUEST_OF_FEW } else { GUEST });
        }
        if let Some(prefix) = self.prefix6 {
            // The usual address reads as the IPv4 one does: ::15.
            let host = |number: u128| Ipv6Addr::from_bits(prefix.address.to_bits() | number);
            config.prefix6 = prefix;
            (config.gateway6, config.dns6) = (host(GATEWAY.into()), host(RESOLVER.into()));
            config.guest6 = host(0x15);
        }
        let four = [
            (self.gateway4, &mut config.gateway4),
            (self.dns4, &mut config.dns4),
            (self.guest4, &mut config.guest4),
        ];
        four.into_iter().for_each(|(wanted, is)| *is = wanted.unwrap_or(*is));
        let six = [
            (self.gateway6, &mut config.gateway6),
            (self.dns6, &mut config.dns6),
            (self.guest6, &mut config.guest6),
        ];
        six.into_iter().for_each(|(wanted, is)| *is = wanted.unwrap_or(*is));
    }

    /// Whether they go together.
    ///
    /// # Errors
    /// The first that does not, by the option that says it.
    pub fn check(&self) -> Result<(), String> {
        let mut config = UsernetConfig::default();
        self.configure(&mut config);
        config.check().map_err(|ConfigError { field, what }| {
            let option = match field.trim_end_matches(['4', '6']) {
                "gateway" => "gw",
                "guest" => "ip",
                other => other,
            };
            format!("{option}: {what}")
        })
    }
}

fn set<T>(place: &mut Option<T>, value: T, word: &str) -> Result<(), String> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("{word}: there is one of this family already")),
    }
}
