//! A network device, as a machine's configuration has it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use super::{ConfigError, FileSource, FileUse};

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// Its name in messages.
    pub id: NetworkId,
    /// The guest's address.
    pub mac: MacAddress,
    /// Largest packet in bytes without the Ethernet header, as the guest is told.
    #[serde(default)]
    pub mtu: Mtu,
    /// Most pairs of queues that the guest may use. Only a tap and a peer of vhost-user have more
    /// than one.
    #[serde(default)]
    pub queues: QueuePairs,
    /// What its frames go to and come from.
    #[serde(default)]
    pub link: NetworkLink,
}

/// What is at the other end of a network device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkLink {
    /// Nothing: the link is down.
    #[default]
    None,
    /// A socket that keeps the limits of messages, one for each frame.
    Datagram(DatagramLink),
    /// A stream socket: 32 bits of length, most significant byte first, before each frame, as QEMU
    /// and passt have it. A path is that of a Unix socket to connect to.
    Stream(FileSource),
    /// A tap of the host (Linux).
    Tap(TapLink),
    /// A stream socket whose other end serves the queues itself, in guest memory, which it is given
    /// (vhost-user, Linux). A path is that of a Unix socket to connect to.
    VhostUser(FileSource),
}

/// A socket that keeps the limits of messages (`SOCK_SEQPACKET` or `SOCK_DGRAM`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatagramLink {
    /// The socket, which is connected: a descriptor.
    pub socket: FileSource,
    /// Each frame has its 12 bytes of virtio header before it, and the first message each way says
    /// which offloads its sender can receive: the link to `nelly-usernet`. Without it, frames go
    /// alone and without offloads.
    #[serde(default)]
    pub header: bool,
}

/// A tap of the host: its name, its descriptors, or both, when the name is for messages alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapLink {
    /// The interface. Without descriptors, whoever starts the machine opens it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<TapName>,
    /// One descriptor for each pair of queues, opened with `IFF_TAP`, `IFF_NO_PI` and
    /// `IFF_VNET_HDR`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<FileSource>,
    /// One descriptor of `/dev/vhost-net` for each pair of queues, or none: the host's kernel is
    /// offered the queues, and what it does not take is served by the monitor. Whoever opens the
    /// tap by its name opens these, too, where this user may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vhost: Vec<FileSource>,
    /// `/dev/vhost-net` is not opened.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_vhost: bool,
}

impl NetworkConfig {
    /// A device with this link, an MTU of 1,500 bytes and one pair of queues.
    #[must_use]
    pub fn new(id: NetworkId, mac: MacAddress, link: NetworkLink) -> Self {
        Self { id, mac, mtu: Mtu::default(), queues: QueuePairs::default(), link }
    }

    /// Whether its peer needs the guest's memory.
    pub(crate) fn shares_memory(&self) -> bool {
        matches!(self.link, NetworkLink::VhostUser(_))
    }

    /// Its descriptors, each with the field that names it, `field` being the link's.
    pub(crate) fn files(&mut self, field: &str) -> Vec<(String, FileUse, &mut FileSource)> {
        match &mut self.link {
            NetworkLink::None => Vec::new(),
            NetworkLink::Datagram(DatagramLink { socket, header: _ }) => {
                vec![(format!("{field}.datagram.socket"), FileUse::Socket, socket)]
            }
            NetworkLink::Stream(socket) => vec![(format!("{field}.stream"), FileUse::Socket, socket)],
            NetworkLink::VhostUser(socket) => {
                vec![(format!("{field}.vhost_user"), FileUse::Socket, socket)]
            }
            NetworkLink::Tap(tap) => {
                let all = [("queues", &mut tap.queues), ("vhost", &mut tap.vhost)];
                let all = all.into_iter().flat_map(|(name, files)| {
                    files.iter_mut().enumerate().map(move |(index, file)| (name, index, file))
                });
                all.map(|(name, index, file)| (format!("{field}.tap.{name}[{index}]"), FileUse::Tap, file))
                    .collect()
            }
        }
    }

    /// What no type of a field says.
    fn validate(&self, field: &str) -> Result<(), ConfigError> {
        let refuse = |part: &str, reason: String| Err(ConfigError::new(format!("{field}.{part}"), reason));
        let pairs = usize::from(self.queues.get());
        match &self.link {
            NetworkLink::Datagram(DatagramLink { socket: FileSource::Path(_), .. }) => refuse(
                "link.datagram.socket",
                "a socket of messages has no path that it is connected by: hand in a descriptor".into(),
            ),
            NetworkLink::Datagram(_) | NetworkLink::Stream(_) if pairs > 1 => {
                refuse("queues", format!("a socket serves one pair of queues, not {pairs}"))
            }
            NetworkLink::Tap(TapLink { name: None, queues, .. }) if queues.is_empty() => {
                refuse("link.tap", "it has neither a name nor descriptors".into())
            }
            NetworkLink::Tap(TapLink { queues, vhost, .. })
                if !vhost.is_empty() && vhost.len() != queues.len() =>
            {
                let (queues, vhost) = (queues.len(), vhost.len());
                refuse("link.tap.vhost", format!("the tap has {queues} descriptors and vhost-net {vhost}"))
            }
            NetworkLink::Tap(TapLink { queues, .. }) if !queues.is_empty() && queues.len() != pairs => {
                refuse(
                    "link.tap.queues",
                    format!(
                        "the device has {pairs} pairs of queues and the tap {} descriptors",
                        queues.len()
                    ),
                )
            }
            _ => Ok(()),
        }
    }
}

/// Checks what two devices may not have in common, and each of them.
pub(super) fn validate(networks: &[NetworkConfig]) -> Result<(), ConfigError> {
    for (index, network) in networks.iter().enumerate() {
        for other in &networks[..index] {
            if other.id == network.id {
                let reason = format!("two networks have the id {:?}", network.id.as_str());
                return Err(ConfigError::new(format!("networks[{index}].id"), reason));
            }
            if other.mac == network.mac {
                let reason = format!("{} is the address of {:?} too", network.mac, other.id.as_str());
                return Err(ConfigError::new(format!("networks[{index}].mac"), reason));
            }
        }
        network.validate(&format!("networks[{index}]"))?;
    }
    Ok(())
}

/// An Ethernet address of one station: not zero, and not that of a group. In JSON it is the text of
/// six hexadecimal bytes with colons, or `{"seed": TEXT}`, see [`MacAddress::from_seed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(into = "String")]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// The address of these bytes.
    ///
    /// # Errors
    /// It is zero or that of a group.
    pub fn new(bytes: [u8; 6]) -> Result<Self, String> {
        if bytes == [0; 6] || bytes[0] & 1 != 0 {
            let text = Self(bytes);
            return Err(format!("the address {text} is not that of one station: it is zero or a group's"));
        }
        Ok(Self(bytes))
    }

    /// A locally administered address that belongs to `seed`: always the same one, and another seed
    /// has another one, except for one pair in 2^46.
    #[must_use]
    pub fn from_seed(seed: &str) -> Self {
        // FNV-1a, and a last mixing so that every bit of the text is in all that is kept.
        let mut hash = seed.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        for (shift, factor) in [(30, 0xbf58_476d_1ce4_e5b9_u64), (27, 0x94d0_49bb_1331_11eb), (31, 1)] {
            hash = (hash ^ (hash >> shift)).wrapping_mul(factor);
        }
        let [a, b, c, d, e, f, ..] = hash.to_le_bytes();
        Self([a & 0xfc | 2, b, c, d, e, f])
    }

    /// Its bytes, in the order in which they are sent.
    #[must_use]
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let no = || format!("{text:?} is not an Ethernet address: six bytes like 52:54:00:12:34:56 are");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2 && part.is_ascii()).ok_or_else(no)?;
            // A sign is not a digit.
            if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(no());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| no())?;
        }
        if parts.next().is_some() { Err(no()) } else { Self::new(bytes) }
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "an address is a text, or {\"seed\": TEXT}")]
        enum Form {
            Text(String),
            Seed(Seed),
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Seed {
            seed: String,
        }
        match Form::deserialize(deserializer)? {
            Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
            Form::Seed(Seed { seed }) => Ok(Self::from_seed(&seed)),
        }
    }
}

/// Bytes of the largest packet, without the Ethernet header: 68 to 65,520.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Mtu(u16);

impl Mtu {
    /// The least that IPv4 demands. IPv6 needs 1,280.
    pub const MIN: u16 = 68;
    /// The most.
    pub const MAX: u16 = 65_520;

    /// Packets of `bytes`.
    ///
    /// # Errors
    /// It is out of range.
    pub fn new(bytes: u64) -> Result<Self, String> {
        match u16::try_from(bytes) {
            Ok(bytes) if (Self::MIN..=Self::MAX).contains(&bytes) => Ok(Self(bytes)),
            _ => Err(format!("an MTU of {bytes} bytes is out of range: {} to {}", Self::MIN, Self::MAX)),
        }
    }

    /// In bytes.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

impl Default for Mtu {
    fn default() -> Self {
        Self(1500)
    }
}

/// Pairs of a receive and a transmit queue, 1 to 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct QueuePairs(u8);

impl QueuePairs {
    /// The most.
    pub const MAX: u8 = 8;

    /// So many pairs.
    ///
    /// # Errors
    /// It is out of range.
    pub fn new(pairs: u64) -> Result<Self, String> {
        match u8::try_from(pairs) {
            Ok(pairs) if (1..=Self::MAX).contains(&pairs) => Ok(Self(pairs)),
            _ => Err(format!("{pairs} pairs of queues are out of range: 1 to {}", Self::MAX)),
        }
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }
}

impl Default for QueuePairs {
    fn default() -> Self {
        Self(1)
    }
}

/// A network's name: 1 to 64 of `a-z A-Z 0-9 . _ -`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetworkId(String);

impl NetworkId {
    /// The id `text`.
    ///
    /// # Errors
    /// It has other characters, none, or more than 64.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        super::values::name(text.into()).map(Self)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of an interface of the host: 1 to 15 bytes without `/`, `:`, `%`, white space and
/// control characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TapName(String);

impl TapName {
    /// Most bytes: a name has a NUL behind it in 16.
    pub const MAX: usize = 15;

    /// The interface `text`.
    ///
    /// # Errors
    /// It is not a name that an interface can have.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        let text = text.into();
        // The system would make a name of its own of one with a format.
        let is_odd = |c: char| c.is_whitespace() || c.is_control() || "/:%".contains(c);
        if text.is_empty() || text.len() > Self::MAX || text == "." || text == ".." || text.contains(is_odd) {
            return Err(format!(
                "{text:?} is not the name of an interface: 1 to {} bytes without white space, '/', ':' and '%'",
                Self::MAX
            ));
        }
        Ok(Self(text))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

super::values::number!(Mtu, QueuePairs);
super::values::text!(NetworkId, TapName);
