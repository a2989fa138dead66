//! The network of a sandbox: what was asked for, as plain data that its record keeps.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use nelly_net::config::{Publish, Rule, Server, UsernetConfig, Verdict, is_domain};
use nelly_net::wire::Mac;
use nelly_vmm::config::{
    FileSource, MacAddress, Mtu, NetworkConfig, NetworkId, NetworkLink, TapLink, TapName,
};
use serde::{Deserialize, Serialize};

use super::SpecError;

mod addresses;
mod guest;
mod member;
mod options;
mod secret;

pub use addresses::Addresses;
pub use guest::{GuestNetwork, GuestPrefix};
pub use member::{FIRST, Member, Place, check_network_name};
pub use options::{NetworkOption, NetworkOptions, OptionError};
pub use secret::{SecretError, SecretSource, SecretSpec, SecretValues};

/// The id of the network device in the machine's configuration.
const DEVICE: &str = "net0";

/// What the guest's network device is connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case")]
pub enum Network {
    /// Nothing: the guest has loopback only.
    #[default]
    None,
    /// The user-mode network, a process `nelly-usernet` beside the machine.
    User(Box<UserNetwork>),
    /// A tap interface of the host.
    Tap(TapNetwork),
    /// A Unix stream socket with QEMU's framing, such as passt's.
    Unix(UnixNetwork),
    /// A Unix stream socket whose other end serves the device's queues itself, in guest memory.
    VhostUser(UnixNetwork),
}

/// The user-mode network of one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UserNetwork {
    /// What no rule names.
    pub default: Verdict,
    /// What may be reached although `default` or the network itself would refuse it, such as
    /// `host:PORT`.
    pub allow: Vec<Rule>,
    /// What may not be reached. Stronger than `allow`.
    pub deny: Vec<Rule>,
    /// Ports of the host that lead to the guest.
    pub publish: Vec<Publish>,
    /// Resolvers to ask; if empty, those of the host.
    pub dns: Vec<Server>,
    /// Domains to search.
    pub search: Vec<String>,
    /// The addresses of the network. Not those of a member of a network of machines, which has its
    /// place.
    #[serde(skip_serializing_if = "Addresses::is_usual")]
    pub addresses: Addresses,
    /// The MTU of the link in bytes; if absent, 1500.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Mtu>,
    /// The file that has a line for whatever the guest asks for, absolute; if absent, none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<PathBuf>,
    /// Secrets that the guest never has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretSpec>,
    /// A file of authorities that the hosts of secrets are checked against, beside those of this
    /// host, absolute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ca: Option<PathBuf>,
    /// The network of machines that it is on with others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member: Option<Member>,
}

/// A tap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapNetwork {
    /// The interface of the host.
    pub name: TapName,
    /// The host's kernel (vhost-net) is not asked to serve it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_vhost: bool,
    /// What the guest is told.
    #[serde(default)]
    pub guest: StaticGuest,
}

/// A Unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixNetwork {
    /// The socket to connect to.
    pub path: PathBuf,
    /// What the guest is told.
    #[serde(default)]
    pub guest: StaticGuest,
}

/// What the guest is told of a network that Nelly does not make. Without an address the interface
/// is up, and whoever wants one in the guest gets it there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StaticGuest {
    /// Addresses with the lengths of their prefixes.
    pub addresses: Vec<GuestPrefix>,
    /// Gateways, at most one of a family.
    pub gateways: Vec<IpAddr>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Domains to search.
    pub search: Vec<String>,
    /// The MTU in bytes; if absent, 1500.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Mtu>,
    /// The hardware address; if absent, one that belongs to the sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
}

const HINT: &str = "write none, user, tap=NAME, unix=PATH, vhost-user=PATH or the NAME of a network of machines; user takes \
                    ,prefix=PREFIX ,ip=ADDRESS ,gw=ADDRESS ,dns=ADDRESS ,search=DOMAIN ,mtu=BYTES and \
                    ,default=deny, tap, unix and vhost-user take ,ip=ADDRESS/BITS ,gw=ADDRESS ,dns=ADDRESS ,search=DOMAIN \
                    ,mtu=BYTES and ,mac=ADDRESS, tap also ,vhost=off; a network of machines ,alias=NAME and ,ip=ADDRESS";

impl FromStr for Network {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let refuse = |what: String| SpecError::Network { text: text.to_owned(), what };
        let mut words = text.split(',');
        let mode = words.next().unwrap_or_default();
        let (mode, value) = match mode.split_once('=') {
            Some((mode, value)) => (mode, Some(value)),
            None => (mode, None),
        };
        if value.is_none()
            && let Ok(mut member) = Member::new(mode)
        {
            words.try_for_each(|word| member.option(word)).map_err(refuse)?;
            return Ok(Self::User(Box::new(UserNetwork { member: Some(member), ..UserNetwork::default() })));
        }
        if (mode, value) == ("user", None) {
            return Ok(Self::User(Box::new(UserNetwork::of_options(words).map_err(refuse)?)));
        }
        let (mut guest, mut no_vhost) = (StaticGuest::default(), false);
        for word in words {
            match word {
                "vhost=off" if mode == "tap" => no_vhost = true,
                _ => guest.option(word).map_err(refuse)?,
            }
        }
        match (mode, value) {
            ("none", None) if guest == StaticGuest::default() => Ok(Self::None),
            ("none", None) => Err(refuse("no network has options".to_owned())),
            ("tap", Some(name)) => {
                Ok(Self::Tap(TapNetwork { name: TapName::new(name).map_err(refuse)?, no_vhost, guest }))
            }
            ("unix", Some(path)) if !path.is_empty() => {
                Ok(Self::Unix(UnixNetwork { path: path.into(), guest }))
            }
            ("vhost-user", Some(path)) if !path.is_empty() => {
                Ok(Self::VhostUser(UnixNetwork { path: path.into(), guest }))
            }
            (other, None) if other.starts_with("container:") => Err(refuse(
                "a container in the machine of another one is in its network: --in SANDBOX".to_owned(),
            )),
            ("bridge" | "host" | "default" | "container", _) => {
                Err(refuse(format!("docker's networks are not those of a machine; {HINT}")))
            }
            _ => Err(refuse(HINT.to_owned())),
        }
    }
}

impl StaticGuest {
    /// Takes one `NAME=VALUE`; an error says what is wrong.
    fn option(&mut self, word: &str) -> Result<(), String> {
        let (name, value) = word.split_once('=').ok_or_else(|| format!("{word:?} is no option; {HINT}"))?;
        let address = |value: &str| {
            value.parse::<IpAddr>().map_err(|_| format!("{name}={value}: an IPv4 or IPv6 address is needed"))
        };
        match name {
            "ip" => {
                let address: GuestPrefix = value.parse().map_err(|why| format!("ip={value}: {why}"))?;
                if self.addresses.iter().any(|other| other.address().is_ipv4() == address.address().is_ipv4())
                {
                    return Err(format!("ip={value}: there is an address of this family already"));
                }
                self.addresses.push(address);
            }
            "gw" => {
                let gateway = address(value)?;
                if self.gateways.iter().any(|other| other.is_ipv4() == gateway.is_ipv4()) {
                    return Err(format!("gw={value}: there is a gateway of this family already"));
                }
                self.gateways.push(gateway);
            }
            "dns" => self.dns.push(address(value)?),
            "search" if is_domain(value) => self.search.push(value.to_owned()),
            "search" => return Err(format!("search={value}: a domain is needed")),
            "mtu" => {
                let bytes = value.parse().map_err(|_| format!("mtu={value}: a number is needed"))?;
                self.mtu = Some(Mtu::new(bytes)?);
            }
            "mac" => self.mac = Some(value.parse()?),
            _ => return Err(format!("there is no option {name:?}; {HINT}")),
        }
        Ok(())
    }

    fn guest(&self, mac: MacAddress) -> GuestNetwork {
        GuestNetwork {
            mac,
            mtu: self.mtu.unwrap_or_default(),
            addresses: self.addresses.clone(),
            gateways: self.gateways.clone(),
            nameservers: self.dns.clone(),
            search: self.search.clone(),
            hosts: Vec::new(),
            authorities: String::new(),
        }
    }
}

impl Network {
    /// The word of the mode: `none`, `user`, `tap`, `unix` or `vhost-user`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::User(_) => "user",
            Self::Tap(_) => "tap",
            Self::Unix(_) => "unix",
            Self::VhostUser(_) => "vhost-user",
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// Whether it says something that only Nelly's agent can tell a guest: addresses and names.
    #[must_use]
    pub fn configures_guest(&self) -> bool {
        match self {
            Self::None | Self::User(_) => false,
            Self::Tap(TapNetwork { guest, .. })
            | Self::Unix(UnixNetwork { guest, .. })
            | Self::VhostUser(UnixNetwork { guest, .. }) => {
                let StaticGuest { addresses, gateways, dns, search, mtu: _, mac: _ } = guest;
                !(addresses.is_empty() && gateways.is_empty() && dns.is_empty() && search.is_empty())
            }
        }
    }

    /// The user-mode network, to add rules and ports to; `None` of any other.
    pub fn user_mut(&mut self) -> Option<&mut UserNetwork> {
        match self {
            Self::User(user) => Some(user),
            Self::None | Self::Tap(_) | Self::Unix(_) | Self::VhostUser(_) => None,
        }
    }

    /// The network of machines that it is on.
    #[must_use]
    pub fn member(&self) -> Option<&Member> {
        match self {
            Self::User(user) => user.member.as_ref(),
            Self::None | Self::Tap(_) | Self::Unix(_) | Self::VhostUser(_) => None,
        }
    }

    /// The device of the machine, with a hardware address that belongs to `seed` unless another was
    /// asked for. `user` is the socket of the user-mode network's link.
    #[must_use]
    pub fn device(&self, seed: &str, user: Option<FileSource>) -> Option<NetworkConfig> {
        let own = MacAddress::from_seed(seed);
        let (mac, mtu, link) = match self {
            Self::None => return None,
            Self::User(network) => {
                let link = user.map_or(NetworkLink::None, |socket| {
                    NetworkLink::Datagram(nelly_vmm::config::DatagramLink { socket, header: true })
                });
                (own, network.mtu, link)
            }
            Self::Tap(TapNetwork { name, no_vhost, guest }) => {
                let link = TapLink { name: Some(name.clone()), no_vhost: *no_vhost, ..TapLink::default() };
                (guest.mac.unwrap_or(own), guest.mtu, NetworkLink::Tap(link))
            }
            Self::Unix(UnixNetwork { path, guest }) => {
                let link = NetworkLink::Stream(FileSource::Path(path.clone()));
                (guest.mac.unwrap_or(own), guest.mtu, link)
            }
            Self::VhostUser(UnixNetwork { path, guest }) => {
                let link = NetworkLink::VhostUser(FileSource::Path(path.clone()));
                (guest.mac.unwrap_or(own), guest.mtu, link)
            }
        };
        let id = NetworkId::new(DEVICE).ok()?;
        let device = NetworkConfig::new(id, mac, link);
        Some(NetworkConfig { mtu: mtu.unwrap_or_default(), ..device })
    }

    /// What the guest's agent is told, with a hardware address as in [`Network::device`].
    #[must_use]
    pub fn guest(&self, seed: &str) -> Option<GuestNetwork> {
        let own = MacAddress::from_seed(seed);
        match self {
            Self::None => None,
            Self::User(user) => {
                Some(GuestNetwork::of_user(&user.config(seed), own, user.mtu.unwrap_or_default()))
            }
            Self::Tap(TapNetwork { guest, .. })
            | Self::Unix(UnixNetwork { guest, .. })
            | Self::VhostUser(UnixNetwork { guest, .. }) => Some(guest.guest(guest.mac.unwrap_or(own))),
        }
    }
}

impl UserNetwork {
    /// One with these options.
    fn of_options<'a>(words: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let (mut user, mut other) = (Self::default(), StaticGuest::default());
        for word in words {
            match word {
                "default=allow" => user.default = Verdict::Allow,
                "default=deny" => user.default = Verdict::Deny,
                _ => {
                    match word.split_once('=').map(|(name, value)| (name, user.addresses.option(name, value)))
                    {
                        Some((_, Some(taken))) => taken?,
                        Some(("mac", None)) => {
                            return Err(format!("{word}: the hardware address belongs to the sandbox"));
                        }
                        _ => other.option(word)?,
                    }
                }
            }
        }
        user.addresses.check()?;
        let StaticGuest { mtu, search, .. } = other;
        if let Some(mtu) = mtu.filter(|mtu| mtu.get() < nelly_net::config::MIN_MTU) {
            return Err(format!("its MTU is at least {}, not {}", nelly_net::config::MIN_MTU, mtu.get()));
        }
        Ok(Self { mtu, search, ..user })
    }

    /// What `nelly-usernet` is told of a guest whose hardware address belongs to `seed`.
    #[must_use]
    pub fn config(&self, seed: &str) -> UsernetConfig {
        let mut config = UsernetConfig {
            guest_mac: Some(Mac(MacAddress::from_seed(seed).bytes())),
            default: self.default,
            mtu: self.mtu.unwrap_or_default().get(),
            dns_servers: self.dns.clone(),
            search: self.search.clone(),
            allow: self.allow.clone(),
            deny: self.deny.clone(),
            publish: self.publish.clone(),
            secrets: self.secrets.iter().flat_map(|secret| secret.hosts.clone()).collect(),
            ..UsernetConfig::default()
        };
        match &self.member {
            Some(member) => member.configure(&mut config),
            None => self.addresses.configure(&mut config),
        }
        config
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(member) = self.member() {
            return f.write_str(&member.network);
        }
        match self {
            Self::None | Self::User(_) => f.write_str(self.word()),
            Self::Tap(tap) => write!(f, "tap={}", tap.name.as_str()),
            Self::Unix(unix) => write!(f, "unix={}", unix.path.display()),
            Self::VhostUser(peer) => write!(f, "vhost-user={}", peer.path.display()),
        }
    }
}

#[cfg(test)]
mod tests;
