//! Networks: an address and how many of its bits count.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An IPv4 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix4 {
    /// Its first address.
    pub address: Ipv4Addr,
    /// The bits that all its addresses have in common, 0 to 32.
    pub len: u8,
}

impl Prefix4 {
    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.len)).unwrap_or(0)
    }

    /// Whether it holds `address`.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (address.to_bits() ^ self.address.to_bits()) & self.mask() == 0
    }

    /// Its last address.
    #[must_use]
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !self.mask())
    }
}

/// An IPv6 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix6 {
    /// Its first address.
    pub address: Ipv6Addr,
    /// The bits that all its addresses have in common, 0 to 128.
    pub len: u8,
}

impl Prefix6 {
    /// Whether it holds `address`.
    #[must_use]
    pub fn contains(self, address: Ipv6Addr) -> bool {
        let mask = u128::MAX.checked_shl(128 - u32::from(self.len)).unwrap_or(0);
        (address.to_bits() ^ self.address.to_bits()) & mask == 0
    }
}

/// A network of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// IPv4.
    V4(Prefix4),
    /// IPv6.
    V6(Prefix6),
}

impl Prefix {
    /// Whether it holds `address`.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4(prefix), IpAddr::V4(address)) => prefix.contains(address),
            (Self::V6(prefix), IpAddr::V6(address)) => prefix.contains(address),
            _ => false,
        }
    }

    /// Its first address.
    #[must_use]
    pub fn first(self) -> IpAddr {
        match self {
            Self::V4(prefix) => prefix.address.into(),
            Self::V6(prefix) => prefix.address.into(),
        }
    }

    /// The bits that count.
    #[must_use]
    pub fn len(self) -> u8 {
        match self {
            Self::V4(prefix) => prefix.len,
            Self::V6(prefix) => prefix.len,
        }
    }

    /// Whether it holds every address of its family.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (text, None),
        };
        let address: IpAddr =
            address.parse().map_err(|_| format!("{address:?} is not an IPv4 or IPv6 address"))?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let len = match len {
            None => most,
            Some(len) => len
                .parse()
                .ok()
                .filter(|&len| len <= most)
                .ok_or_else(|| format!("{text:?}: {len:?} is not a number of bits, 0 to {most}"))?,
        };
        let (prefix, last) = match address {
            IpAddr::V4(address) => {
                let prefix = Prefix4 { address, len };
                (Self::V4(prefix), IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & prefix.mask())))
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
                let first = Ipv6Addr::from_bits(address.to_bits() & mask);
                (Self::V6(Prefix6 { address, len }), IpAddr::V6(first))
            }
        };
        if last != address {
            return Err(format!("{text:?} is no network: its first address is {last}"));
        }
        Ok(prefix)
    }
}

impl FromStr for Prefix4 {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse()? {
            Prefix::V4(prefix) => Ok(prefix),
            Prefix::V6(_) => Err(format!("{text:?} is not an IPv4 network")),
        }
    }
}

impl FromStr for Prefix6 {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse()? {
            Prefix::V6(prefix) => Ok(prefix),
            Prefix::V4(_) => Err(format!("{text:?} is not an IPv6 network")),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first(), self.len())
    }
}

impl fmt::Display for Prefix4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Prefix::V4(*self).fmt(f)
    }
}

impl fmt::Display for Prefix6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Prefix::V6(*self).fmt(f)
    }
}
