//! What the guest's agent is told of the network: plain data.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use nelly_net::config::UsernetConfig;
use nelly_vmm::config::{MacAddress, Mtu};
use serde::{Deserialize, Serialize};

/// The name that stands for the host in a guest.
const HOST_NAME: &str = "host.internal";

/// An address and the length of its prefix in bits, as `10.0.2.15/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GuestPrefix {
    address: IpAddr,
    bits: u8,
}

impl GuestPrefix {
    /// The address.
    #[must_use]
    pub fn address(self) -> IpAddr {
        self.address
    }
}

impl FromStr for GuestPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let no = || format!("{text:?} is not an address with its prefix: 10.0.0.2/24 and fd00::2/64 are");
        let (address, bits) = text.split_once('/').ok_or_else(no)?;
        let address: IpAddr = address.parse().map_err(|_| no())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let digits = bits.bytes().all(|byte| byte.is_ascii_digit());
        let bits = bits.parse().ok().filter(|bits| digits && *bits <= most).ok_or_else(no)?;
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
            return Err(format!("{address} cannot be the address of an interface"));
        }
        Ok(Self { address, bits })
    }
}

impl fmt::Display for GuestPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl TryFrom<String> for GuestPrefix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<GuestPrefix> for String {
    fn from(prefix: GuestPrefix) -> Self {
        prefix.to_string()
    }
}

/// The interface of the guest, and the names that containers read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestNetwork {
    /// The hardware address by which the interface is found.
    pub mac: MacAddress,
    /// Its MTU.
    pub mtu: Mtu,
    /// Its addresses.
    pub addresses: Vec<GuestPrefix>,
    /// Where everything else goes; at most one of a family.
    pub gateways: Vec<IpAddr>,
    /// For `/etc/resolv.conf`.
    pub nameservers: Vec<IpAddr>,
    /// Domains, for the same.
    pub search: Vec<String>,
    /// For `/etc/hosts`.
    pub hosts: Vec<(IpAddr, String)>,
    /// Certificates that containers trust beside those of their image, in PEM form.
    pub authorities: String,
}

impl GuestNetwork {
    /// The guest of a user-mode network.
    #[must_use]
    pub(super) fn of_user(config: &UsernetConfig, mac: MacAddress, mtu: Mtu) -> Self {
        let four = GuestPrefix { address: config.guest4.into(), bits: config.prefix4.len };
        let six = GuestPrefix { address: config.guest6.into(), bits: config.prefix6.len };
        Self {
            mac,
            mtu,
            addresses: vec![four, six],
            gateways: vec![config.gateway4.into(), config.gateway6.into()],
            // One is enough: it answers for both families, and a resolver waits for each.
            nameservers: vec![config.dns4.into()],
            search: config.search.clone(),
            hosts: vec![(config.gateway4.into(), HOST_NAME.to_owned())],
            authorities: String::new(),
        }
    }
}
