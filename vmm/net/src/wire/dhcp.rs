//! DHCPv4, as a server of one address speaks it.

use std::net::Ipv4Addr;

use super::Mac;
use crate::number::{be16, be32, fits};

/// The port of a server.
pub const SERVER: u16 = 67;
/// The port of a client.
pub const CLIENT: u16 = 68;

const COOKIE: [u8; 4] = [99, 130, 83, 99];

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Who has an address for me?
    Discover,
    /// I have.
    Offer,
    /// I take it.
    Request,
    /// It is yours.
    Ack,
    /// It is not.
    Nak,
    /// I have an address; what else is there to know?
    Inform,
}

/// What a client says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is for.
    pub kind: Kind,
    /// The number of the exchange.
    pub exchange: u32,
    /// The answer must be a broadcast.
    pub broadcast: bool,
    /// The client.
    pub mac: Mac,
    /// The address it has.
    pub has: Ipv4Addr,
    /// The address it wants.
    pub wants: Option<Ipv4Addr>,
    /// The server it means.
    pub server: Option<Ipv4Addr>,
}

impl Message {
    /// Reads what a client says. `None`: it is none of what a server answers, or lies.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.get(..3)? != [1, 1, 6] || bytes.get(236..240)? != COOKIE {
            return None;
        }
        let address = |bytes: &[u8], at| be32(bytes, at).map(Ipv4Addr::from_bits);
        let (mut kind, mut wants, mut server) = (None, None, None);
        let mut rest = &bytes[240..];
        while let Some((&code, behind)) = rest.split_first() {
            match code {
                0 => {
                    rest = behind;
                    continue;
                }
                255 => break,
                _ => {}
            }
            let (&len, behind) = behind.split_first()?;
            let (value, behind) = behind.split_at_checked(len.into())?;
            match (code, value) {
                (53, [1]) => kind = Some(Kind::Discover),
                (53, [3]) => kind = Some(Kind::Request),
                (53, [8]) => kind = Some(Kind::Inform),
                (50, _) => wants = address(value, 0),
                (54, _) => server = address(value, 0),
                _ => {}
            }
            rest = behind;
        }
        Some(Self {
            kind: kind?,
            exchange: be32(bytes, 4)?,
            broadcast: be16(bytes, 10)? & 0x8000 != 0,
            mac: Mac(*bytes.get(28..)?.first_chunk()?),
            has: address(bytes, 12)?,
            wants,
            server,
        })
    }
}

/// What a server gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The client's address.
    pub address: Ipv4Addr,
    /// Bits of the network.
    pub prefix: u8,
    /// The way to everywhere, and the server.
    pub gateway: Ipv4Addr,
    /// Whom to ask for names.
    pub dns: Ipv4Addr,
    /// Domains to search.
    pub search: Vec<String>,
    /// The link's MTU, in bytes.
    pub mtu: u16,
}

impl Lease {
    /// For how long, in seconds.
    const SECONDS: u32 = 86_400;

    /// The answer to `request`.
    #[must_use]
    pub fn answer(&self, request: &Message, kind: Kind) -> Vec<u8> {
        let mut out = vec![2, 1, 6, 0];
        out.extend(request.exchange.to_be_bytes());
        out.extend([0, 0, if request.broadcast { 0x80 } else { 0 }, 0]);
        out.extend(request.has.octets());
        let yours = if matches!(kind, Kind::Offer | Kind::Ack) && request.kind != Kind::Inform {
            self.address
        } else {
            Ipv4Addr::UNSPECIFIED
        };
        out.extend(yours.octets());
        out.extend(self.gateway.octets());
        out.extend([0; 4]);
        out.extend(request.mac.0);
        out.resize(236, 0);
        out.extend(COOKIE);
        let number = match kind {
            Kind::Discover => 1,
            Kind::Offer => 2,
            Kind::Request => 3,
            Kind::Ack => 5,
            Kind::Nak => 6,
            Kind::Inform => 8,
        };
        let mut option = |code: u8, value: &[u8]| {
            out.extend([code, fits(value.len(), "an option is at most 255 bytes long")]);
            out.extend(value);
        };
        option(53, &[number]);
        option(54, &self.gateway.octets());
        if kind != Kind::Nak {
            let mask = Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0));
            option(1, &mask.octets());
            option(3, &self.gateway.octets());
            option(6, &self.dns.octets());
            option(26, &self.mtu.to_be_bytes());
            if request.kind != Kind::Inform {
                option(51, &Self::SECONDS.to_be_bytes());
            }
            let mut list = Vec::new();
            for domain in &self.search {
                let name = encoded(domain);
                // What does not fit into one option is left out: resolvers that read this option
                // without its continuation are many.
                if list.len() + name.len() <= 255 {
                    list.extend(name);
                }
            }
            if !list.is_empty() {
                option(119, &list);
            }
        }
        out.push(255);
        out.resize(out.len().max(300), 0);
        out
    }
}

/// A domain as messages have it: each label behind its length, and an empty one at the end.
pub(super) fn encoded(domain: &str) -> Vec<u8> {
    let mut name = Vec::new();
    for label in domain.split('.').filter(|label| !label.is_empty()) {
        name.push(fits(label.len(), "labels are checked"));
        name.extend(label.as_bytes());
    }
    name.push(0);
    name
}
