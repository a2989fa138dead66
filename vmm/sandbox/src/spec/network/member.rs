//! A machine's place on a network of machines: plain data that its record keeps.

use std::net::{Ipv4Addr, Ipv6Addr};

use nelly_net::config::{Prefix4, Prefix6, UsernetConfig};
use nelly_net::peers::{MAX_NAMES, is_name};
use serde::{Deserialize, Serialize};

/// What a network of machines cannot be called: modes of `--net`, and docker's networks.
const RESERVED: [&str; 8] = ["none", "user", "tap", "unix", "bridge", "host", "default", "container"];
/// Aliases of one machine: its name and its id are names, too.
const MOST_ALIASES: usize = MAX_NAMES - 2;

/// What a machine is on a network of machines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The network's name.
    pub network: String,
    /// Names that lead to it beside its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The IPv4 address that it is to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<Ipv4Addr>,
    /// What it was given, once it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
}

/// What a machine was given on its network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The network's id.
    pub network_id: String,
    /// Its IPv4 prefix.
    pub subnet: Prefix4,
    /// Its IPv6 prefix.
    pub subnet6: Prefix6,
    /// The machine's IPv4 address.
    pub address4: Ipv4Addr,
    /// Its IPv6 address.
    pub address6: Ipv6Addr,
    /// There is no way out of the network.
    #[serde(default)]
    pub isolated: bool,
}

/// Whether a network of machines may have this name.
///
/// # Errors
/// Why not.
pub fn check_network_name(name: &str) -> Result<(), String> {
    if RESERVED.contains(&name) {
        return Err(format!("{name:?} has a meaning of its own for --net"));
    }
    if is_name(name) {
        return Ok(());
    }
    Err(format!("{name:?} is not a name of a network: [a-z0-9][a-z0-9_.-]*, at most 63 characters"))
}

impl Member {
    /// A machine on the network with this name.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn new(network: &str) -> Result<Self, String> {
        check_network_name(network)?;
        Ok(Self { network: network.to_owned(), ..Self::default() })
    }

    /// Takes one option: `alias=NAME` or `ip=ADDRESS`.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn option(&mut self, word: &str) -> Result<(), String> {
        match word.split_once('=') {
            Some(("alias", name)) => self.add_alias(name),
            Some(("ip", address)) if self.wanted.is_none() => {
                let address = address.parse().map_err(|_| format!("{word}: an IPv4 address is needed"))?;
                self.wanted = Some(address);
                Ok(())
            }
            Some(("ip", _)) => Err(format!("{word}: there is an address already")),
            _ => Err(format!("a network of machines takes alias=NAME and ip=ADDRESS, not {word:?}")),
        }
    }

    /// Adds a name that leads to it.
    ///
    /// # Errors
    /// It is none, or there are too many.
    pub fn add_alias(&mut self, name: &str) -> Result<(), String> {
        if !is_name(name) {
            return Err(format!("{name:?} is not a name: [a-z0-9][a-z0-9_.-]*, at most 63 characters"));
        }
        if self.aliases.len() >= MOST_ALIASES {
            return Err(format!("more than {MOST_ALIASES} aliases are given"));
        }
        if !self.aliases.iter().any(|other| other == name) {
            self.aliases.push(name.to_owned());
        }
        Ok(())
    }

    /// Says to `config` what the machine was given.
    pub(super) fn configure(&self, config: &mut UsernetConfig) {
        let Some(place) = &self.place else { return };
        (config.prefix4, config.prefix6) = (place.subnet, place.subnet6);
        (config.gateway4, config.gateway6) = (place.host4(GATEWAY), place.host6(GATEWAY));
        (config.dns4, config.dns6) = (place.host4(RESOLVER), place.host6(RESOLVER));
        (config.guest4, config.guest6) = (place.address4, place.address6);
        (config.peers, config.isolated) = (true, place.isolated);
    }
}

/// The number of the gateway in each network.
const GATEWAY: u32 = 1;
/// The number of the resolver.
const RESOLVER: u32 = 2;
/// The number of the first machine.
pub const FIRST: u32 = 3;

impl Place {
    fn host4(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet.address.to_bits() | number)
    }

    fn host6(&self, number: u32) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.subnet6.address.to_bits() | u128::from(number))
    }

    /// The place with this number on a network. The IPv6 address has the number of the IPv4 one.
    #[must_use]
    pub fn new(
        network_id: String,
        (subnet, subnet6): (Prefix4, Prefix6),
        isolated: bool,
        number: u32,
    ) -> Self {
        let mut place = Self {
            network_id,
            subnet,
            subnet6,
            address4: Ipv4Addr::UNSPECIFIED,
            address6: Ipv6Addr::UNSPECIFIED,
            isolated,
        };
        (place.address4, place.address6) = (place.host4(number), place.host6(number));
        place
    }
}
