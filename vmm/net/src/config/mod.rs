//! What `nelly-usernet` is told: JSON of schema 1, every error of which names its field.

mod domain;
mod prefix;
mod publish;
mod rule;
mod secret;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use crate::wire::Mac;
pub use domain::Domain;
pub use prefix::{Prefix, Prefix4, Prefix6};
pub use publish::{MOST_OF_RANGE, Publish};
pub use rule::{Ports, Protocol, Rule, Target};
pub use secret::{
    Handover, MOST_SECRETS, PLACEHOLDER, Secret, SecretHost, SecretValue, SecretsConfig, is_secret_name,
};

/// The schema that is read here.
pub const SCHEMA: u32 = 1;
/// The smallest MTU, in bytes: IPv6 takes no smaller one.
pub const MIN_MTU: u16 = 1280;
/// The largest MTU, in bytes: what an IPv4 packet holds, rounded.
pub const MAX_MTU: u16 = 65_520;
/// The largest number of flows.
pub const MAX_FLOWS: u32 = 65_536;
/// The longest limit of idleness, in seconds: ten years.
pub const MAX_IDLE: u32 = 315_360_000;

/// What is wrong with a configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {what}")]
pub struct ConfigError {
    /// The field, as in `dns_servers[1]`; `configuration` for all of it.
    pub field: String,
    /// The rest of the sentence.
    pub what: String,
}

impl ConfigError {
    fn new(field: impl Into<String>, what: impl Into<String>) -> Self {
        Self { field: field.into(), what: what.into() }
    }
}

/// Whether what no rule names is allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is, except for the host itself and its like.
    #[default]
    Allow,
    /// It is not.
    Deny,
}

/// Whether the program is confined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confine {
    /// It is.
    #[default]
    On,
    /// It is not, to find out what it was denied.
    Off,
}

/// The network of one guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UsernetConfig {
    /// 1.
    pub schema: u32,
    /// The guest's IPv4 network; at most /29, so that all four addresses fit.
    pub prefix4: Prefix4,
    /// The way to everywhere, `host.internal`.
    pub gateway4: Ipv4Addr,
    /// The resolver.
    pub dns4: Ipv4Addr,
    /// The guest.
    pub guest4: Ipv4Addr,
    /// The guest's IPv6 network, a /64.
    pub prefix6: Prefix6,
    /// As `gateway4`.
    pub gateway6: Ipv6Addr,
    /// As `dns4`.
    pub dns6: Ipv6Addr,
    /// The guest's address that published ports lead to; it may take others of the prefix too.
    pub guest6: Ipv6Addr,
    /// The guest's address on the link, if it is known before the guest sends something: published
    /// ports lead to it then, and wait otherwise.
    pub guest_mac: Option<Mac>,
    /// The link's MTU, [`MIN_MTU`] to [`MAX_MTU`] bytes.
    pub mtu: u16,
    /// Resolvers to ask, with ports or without (53). Empty: those of the host's `resolv.conf`.
    pub dns_servers: Vec<Server>,
    /// Domains to search.
    pub search: Vec<String>,
    /// What no rule names.
    pub default: Verdict,
    /// What may be reached: `host:PORT`, and what `default` or the network itself would refuse.
    pub allow: Vec<Rule>,
    /// What may not. Stronger than `allow`.
    pub deny: Vec<Rule>,
    /// Ports of the host that lead to the guest.
    pub publish: Vec<Publish>,
    /// The number of flows at once, 16 to [`MAX_FLOWS`].
    pub max_flows: u32,
    /// Memory for what streams have in flight, in MiB, 1 to 4096.
    pub memory_mib: u32,
    /// Seconds after which a silent TCP connection is probed, and ended if nobody answers.
    pub tcp_idle: u32,
    /// Seconds after which a silent TCP connection that one side has closed is ended.
    pub tcp_half_closed_idle: u32,
    /// Seconds after which a silent UDP flow or ping is forgotten.
    pub udp_idle: u32,
    /// The descriptor that log lines go to; none: nowhere.
    pub log_fd: Option<u32>,
    /// Whether the program gives up what it does not need before the guest is heard.
    pub confine: Confine,
    /// The guest is on a network of machines: a port on its switch comes with the configuration,
    /// and frames for other machines are passed on to it.
    pub peers: bool,
    /// Whoever holds the machine asks things while it runs: a message socket for that comes with
    /// the configuration, behind the port on a switch.
    pub control: bool,
    /// Hosts whose streams are given to a process that puts secrets into them: a message socket of
    /// that comes with the configuration then, behind that of whoever holds the machine.
    pub secrets: Vec<SecretHost>,
    /// There is no way out, for names neither: only what `allow` names, and the network's own
    /// names.
    pub isolated: bool,
}

impl Default for UsernetConfig {
    fn default() -> Self {
        let six = |last: u16| Ipv6Addr::new(0xfd4e, 0x656c, 0x6c79, 0, 0, 0, 0, last);
        Self {
            schema: SCHEMA,
            prefix4: Prefix4 { address: Ipv4Addr::new(10, 0, 2, 0), len: 24 },
            gateway4: Ipv4Addr::new(10, 0, 2, 2),
            dns4: Ipv4Addr::new(10, 0, 2, 3),
            guest4: Ipv4Addr::new(10, 0, 2, 15),
            prefix6: Prefix6 { address: six(0), len: 64 },
            gateway6: six(2),
            dns6: six(3),
            guest6: six(0x15),
            guest_mac: None,
            mtu: 1500,
            dns_servers: Vec::new(),
            search: Vec::new(),
            default: Verdict::Allow,
            allow: Vec::new(),
            deny: Vec::new(),
            publish: Vec::new(),
            max_flows: 4096,
            memory_mib: 64,
            tcp_idle: 7200,
            tcp_half_closed_idle: 900,
            udp_idle: 60,
            log_fd: None,
            confine: Confine::On,
            peers: false,
            control: false,
            secrets: Vec::new(),
            isolated: false,
        }
    }
}

/// A resolver: an address, with a port or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server(pub SocketAddr);

impl std::str::FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let alone = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53));
        alone.or_else(|_| text.parse()).map(Self).map_err(|_| {
            format!("{text:?} is not an address of a resolver: 1.2.3.4, 1.2.3.4:53, ::1 or [::1]:53")
        })
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Serializes by `Display`, and reads by `FromStr`.
macro_rules! as_text {
    ($($name:ty),*) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

as_text!(Server, Prefix4, Prefix6, Rule, Publish, Mac, SecretHost);

impl UsernetConfig {
    /// Reads a configuration. Fields that are not there have their default.
    ///
    /// # Errors
    /// What is wrong, with its field.
    pub fn from_json(text: &[u8]) -> Result<Self, ConfigError> {
        let map: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(text).map_err(|e| ConfigError::new("configuration", e.to_string()))?;
        let mut config = Self::default();
        let mut schema = None;
        for (name, value) in map {
            let field = name.as_str();
            match field {
                "schema" => schema = Some(one::<u32>(field, value)?),
                "prefix4" => config.prefix4 = one(field, value)?,
                "gateway4" => config.gateway4 = one(field, value)?,
                "dns4" => config.dns4 = one(field, value)?,
                "guest4" => config.guest4 = one(field, value)?,
                "prefix6" => config.prefix6 = one(field, value)?,
                "gateway6" => config.gateway6 = one(field, value)?,
                "dns6" => config.dns6 = one(field, value)?,
                "guest6" => config.guest6 = one(field, value)?,
                "guest_mac" => config.guest_mac = one(field, value)?,
                "mtu" => config.mtu = one(field, value)?,
                "dns_servers" => config.dns_servers = list(field, value)?,
                "search" => config.search = list(field, value)?,
                "default" => config.default = one(field, value)?,
                "allow" => config.allow = list(field, value)?,
                "deny" => config.deny = list(field, value)?,
                "publish" => config.publish = list(field, value)?,
                "max_flows" => config.max_flows = one(field, value)?,
                "memory_mib" => config.memory_mib = one(field, value)?,
                "tcp_idle" => config.tcp_idle = one(field, value)?,
                "tcp_half_closed_idle" => config.tcp_half_closed_idle = one(field, value)?,
                "udp_idle" => config.udp_idle = one(field, value)?,
                "log_fd" => config.log_fd = one(field, value)?,
                "confine" => config.confine = one(field, value)?,
                "peers" => config.peers = one(field, value)?,
                "control" => config.control = one(field, value)?,
                "secrets" => config.secrets = list(field, value)?,
                "isolated" => config.isolated = one(field, value)?,
                _ => return Err(ConfigError::new(field, "there is no such field")),
            }
        }
        match schema {
            Some(SCHEMA) => config.check().map(|()| config),
            Some(other) => {
                Err(ConfigError::new("schema", format!("{other} is not known here, only {SCHEMA}")))
            }
            None => Err(ConfigError::new("schema", "is missing")),
        }
    }

    /// Whether all fields go together.
    ///
    /// # Errors
    /// The first field that does not.
    pub fn check(&self) -> Result<(), ConfigError> {
        let range = |field: &str, value: u32, least: u32, most: u32| {
            let what = || format!("{value} is not between {least} and {most}");
            if (least..=most).contains(&value) { Ok(()) } else { Err(ConfigError::new(field, what())) }
        };
        range("mtu", self.mtu.into(), MIN_MTU.into(), MAX_MTU.into())?;
        range("max_flows", self.max_flows, 16, MAX_FLOWS)?;
        range("memory_mib", self.memory_mib, 1, 4096)?;
        range("tcp_idle", self.tcp_idle, 1, MAX_IDLE)?;
        range("tcp_half_closed_idle", self.tcp_half_closed_idle, 1, MAX_IDLE)?;
        range("udp_idle", self.udp_idle, 1, MAX_IDLE)?;
        if !(8..=29).contains(&self.prefix4.len) {
            return Err(ConfigError::new("prefix4", format!("{} is not between /8 and /29", self.prefix4)));
        }
        if self.prefix6.len != 64 {
            return Err(ConfigError::new("prefix6", format!("{} is not a /64", self.prefix6)));
        }
        if let Some(mac) = self.guest_mac.filter(|mac| !mac.is_unicast()) {
            return Err(ConfigError::new("guest_mac", format!("{mac} is not the address of one device")));
        }
        self.check_addresses()?;
        for (at, domain) in self.search.iter().enumerate() {
            if !is_domain(domain) {
                let what = format!("{domain:?} is not the name of a domain");
                return Err(ConfigError::new(format!("search[{at}]"), what));
            }
        }
        Ok(())
    }

    fn check_addresses(&self) -> Result<(), ConfigError> {
        let four = [("gateway4", self.gateway4), ("dns4", self.dns4), ("guest4", self.guest4)];
        for (at, (field, address)) in four.into_iter().enumerate() {
            let prefix = self.prefix4;
            if !prefix.contains(address) || address == prefix.address || address == prefix.broadcast() {
                return Err(ConfigError::new(field, format!("{address} is no host of {prefix}")));
            }
            if four[..at].iter().any(|(_, other)| *other == address) {
                return Err(ConfigError::new(field, format!("{address} is taken by another field")));
            }
        }
        // Nothing begins with 0, and what begins with 224 and more is for many, or reserved.
        let special =
            |a: Ipv4Addr| a.is_loopback() || a.is_link_local() || a.octets()[0] == 0 || a.octets()[0] >= 224;
        if special(self.prefix4.address) {
            return Err(ConfigError::new("prefix4", format!("{} is no network of hosts", self.prefix4)));
        }
        let six = [("gateway6", self.gateway6), ("dns6", self.dns6), ("guest6", self.guest6)];
        for (at, (field, address)) in six.into_iter().enumerate() {
            if !self.prefix6.contains(address) || address == self.prefix6.address {
                return Err(ConfigError::new(field, format!("{address} is no host of {}", self.prefix6)));
            }
            if six[..at].iter().any(|(_, other)| *other == address) {
                return Err(ConfigError::new(field, format!("{address} is taken by another field")));
            }
        }
        let prefix = self.prefix6.address;
        if prefix.is_multicast() || prefix.is_unspecified() || prefix.is_unicast_link_local() {
            return Err(ConfigError::new("prefix6", format!("{} is no network of hosts", self.prefix6)));
        }
        Ok(())
    }
}

/// One value.
fn one<T: DeserializeOwned>(field: &str, value: serde_json::Value) -> Result<T, ConfigError> {
    serde_json::from_value(value).map_err(|e| ConfigError::new(field, e.to_string()))
}

/// At most 1024 values; an error has the place of the one that is wrong.
fn list<T: DeserializeOwned>(field: &str, value: serde_json::Value) -> Result<Vec<T>, ConfigError> {
    let values: Vec<serde_json::Value> = one(field, value)?;
    if values.len() > 1024 {
        return Err(ConfigError::new(field, format!("{} entries are more than 1024", values.len())));
    }
    values.into_iter().enumerate().map(|(at, value)| one(&format!("{field}[{at}]"), value)).collect()
}

/// Whether `name` is one of letters, digits, `-` and `_` in labels of 1 to 63.
#[must_use]
pub fn is_domain(name: &str) -> bool {
    crate::dns::is_name(name.strip_suffix('.').unwrap_or(name))
}

#[cfg(test)]
mod tests;
