//! DHCPv6 (RFC 8415), as a server of one address speaks it, which remembers nothing: whoever asks
//! on the link is the guest.

use std::net::Ipv6Addr;

use super::Mac;
use crate::number::{be16, be32, len16};

/// The port of a server.
pub const SERVER: u16 = 547;
/// The port of a client.
pub const CLIENT: u16 = 546;
/// All servers and relays of the link.
pub const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// How long a client's identifier may be, in bytes (11.1): its type, and 1 to 128 bytes.
const IDENTIFIER: std::ops::RangeInclusive<usize> = 3..=130;
/// So many associations of a message are answered, and so many addresses of all of them, so that
/// an answer fits into one packet. Others are passed over, as if they were not there.
const MOST_ASSOCIATIONS: usize = 8;
const MOST_ADDRESSES: usize = 16;

/// Options (21, and RFC 3646).
mod code {
    pub(super) const CLIENT: u16 = 1;
    pub(super) const SERVER: u16 = 2;
    pub(super) const ADDRESSES: u16 = 3;
    pub(super) const TEMPORARY: u16 = 4;
    pub(super) const ADDRESS: u16 = 5;
    pub(super) const WANTED: u16 = 6;
    pub(super) const PREFERENCE: u16 = 7;
    pub(super) const STATUS: u16 = 13;
    pub(super) const RAPID: u16 = 14;
    pub(super) const RESOLVERS: u16 = 23;
    pub(super) const DOMAINS: u16 = 24;
    pub(super) const PREFIXES: u16 = 25;
    pub(super) const REFRESH: u16 = 32;
}

/// How an answer ends (21.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is as it was asked for.
    Success = 0,
    /// There is no address for this.
    NoAddress = 2,
    /// An address is none of this link.
    NotOnLink = 4,
    /// There is no prefix to be given away.
    NoPrefix = 6,
}

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Who has an address for me?
    Solicit,
    /// I take what you have.
    Request,
    /// Is what I have good here still?
    Confirm,
    /// May I keep it? To the server that gave it.
    Renew,
    /// May I keep it? To whoever is there.
    Rebind,
    /// I need it no more.
    Release,
    /// Somebody else has it.
    Decline,
    /// What else is there to know?
    Inform,
}

/// What an association is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Addresses.
    Addresses,
    /// Addresses that change often.
    Temporary,
    /// Networks of its own.
    Prefixes,
}

/// Addresses that belong together, as the client has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Association {
    /// What it is for.
    pub purpose: Purpose,
    /// Its number, the client's to choose.
    pub number: u32,
    /// Those that the client has or would like. Of prefixes none is kept.
    pub addresses: Vec<Ipv6Addr>,
}

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// What it is for.
    pub kind: Kind,
    /// The number of the exchange, of three bytes.
    pub exchange: [u8; 3],
    /// Who the client is.
    pub client: Option<&'a [u8]>,
    /// The server it means.
    pub server: Option<&'a [u8]>,
    /// It takes an address at once, without asking for it once more.
    pub rapid: bool,
    /// What it wants to know; `None`: it does not say.
    pub wanted: Option<Vec<u16>>,
    /// What it wants addresses for.
    pub associations: Vec<Association>,
}

/// Options one by one; nothing behind one that is longer than what is there.
struct Options<'a> {
    rest: &'a [u8],
    /// One was longer.
    lies: bool,
}

impl<'a> Iterator for Options<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let found = (|| {
            let (code, len) = (be16(self.rest, 0)?, be16(self.rest, 2)?);
            let (value, rest) = self.rest.get(4..)?.split_at_checked(len.into())?;
            Some((code, value, rest))
        })();
        let Some((code, value, rest)) = found else {
            (self.lies, self.rest) = (true, &[]);
            return None;
        };
        self.rest = rest;
        Some((code, value))
    }
}

impl<'a> Message<'a> {
    /// Reads what a client says. `None`: it is none of what a server answers, or lies.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (&[kind, a, b, c], rest) = bytes.split_first_chunk()?;
        let kind = match kind {
            1 => Kind::Solicit,
            3 => Kind::Request,
            4 => Kind::Confirm,
            5 => Kind::Renew,
            6 => Kind::Rebind,
            8 => Kind::Release,
            9 => Kind::Decline,
            11 => Kind::Inform,
            _ => return None,
        };
        let mut message = Self {
            kind,
            exchange: [a, b, c],
            client: None,
            server: None,
            rapid: false,
            wanted: None,
            associations: Vec::new(),
        };
        let mut options = Options { rest, lies: false };
        let mut addresses = 0;
        for (code, value) in &mut options {
            message.take(code, value, &mut addresses)?;
        }
        (!options.lies && message.is_sound()).then_some(message)
    }

    /// Takes one option. `None`: it lies.
    fn take(&mut self, code: u16, value: &'a [u8], addresses: &mut usize) -> Option<()> {
        match code {
            // Each of these comes once (21.2, 21.3, 21.7).
            code::CLIENT if self.client.is_none() && IDENTIFIER.contains(&value.len()) => {
                self.client = Some(value);
            }
            code::SERVER if self.server.is_none() => self.server = Some(value),
            code::WANTED if self.wanted.is_none() && value.len().is_multiple_of(2) => {
                let codes = value.chunks_exact(2).filter_map(|code| be16(code, 0));
                // What is known here is far less.
                self.wanted = Some(codes.take(256).collect());
            }
            code::CLIENT | code::SERVER | code::WANTED => return None,
            code::RAPID => self.rapid = true,
            code::ADDRESSES | code::TEMPORARY | code::PREFIXES => {
                let (purpose, head) = match code {
                    code::ADDRESSES => (Purpose::Addresses, 12),
                    code::TEMPORARY => (Purpose::Temporary, 4),
                    _ => (Purpose::Prefixes, 12),
                };
                let mut association = Association { purpose, number: be32(value, 0)?, addresses: Vec::new() };
                let mut inner = Options { rest: value.get(head..)?, lies: false };
                for (code, value) in &mut inner {
                    if code == code::ADDRESS && purpose != Purpose::Prefixes {
                        let address: [u8; 16] = *value.first_chunk()?;
                        // Two lifetimes stand behind it.
                        value.get(16..24)?;
                        if *addresses < MOST_ADDRESSES {
                            *addresses += 1;
                            association.addresses.push(address.into());
                        }
                    }
                }
                if inner.lies {
                    return None;
                }
                if self.associations.len() < MOST_ASSOCIATIONS {
                    self.associations.push(association);
                }
            }
            _ => {}
        }
        Some(())
    }

    /// Whether everything is there that has to be, and nothing that must not (16).
    fn is_sound(&self) -> bool {
        match self.kind {
            Kind::Solicit | Kind::Confirm | Kind::Rebind => self.client.is_some() && self.server.is_none(),
            Kind::Request | Kind::Renew | Kind::Release | Kind::Decline => {
                self.client.is_some() && self.server.is_some()
            }
            Kind::Inform => self.associations.is_empty(),
        }
    }
}

/// What a server gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The client's address, for the first association that asks for one.
    pub address: Ipv6Addr,
    /// The network, a /64.
    pub prefix: Ipv6Addr,
    /// The server's address on the link, by which it is told from others.
    pub server: Mac,
    /// Whom to ask for names.
    pub dns: Ipv6Addr,
    /// Domains to search.
    pub search: Vec<String>,
}

impl Lease {
    /// For how long, in seconds; it is asked for anew after half of that.
    const SECONDS: u32 = 86_400;

    /// Who the server is: a link-layer address (11.4) of Ethernet.
    #[must_use]
    pub fn identifier(&self) -> [u8; 10] {
        let [a, b, c, d, e, f] = self.server.0;
        [0, 3, 0, 1, a, b, c, d, e, f]
    }

    /// The answer to `message`. `None`: it is for another server, or needs none.
    #[must_use]
    pub fn answer(&self, message: &Message<'_>) -> Option<Vec<u8>> {
        if message.server.is_some_and(|server| server != self.identifier()) {
            return None;
        }
        let rapid = message.kind == Kind::Solicit && message.rapid;
        // Advertise, or Reply.
        let number = if message.kind == Kind::Solicit && !rapid { 2 } else { 7 };
        let mut out = vec![number];
        out.extend(message.exchange);
        put(&mut out, code::SERVER, &self.identifier());
        if let Some(client) = message.client {
            put(&mut out, code::CLIENT, client);
        }
        match message.kind {
            Kind::Confirm => {
                let mut addresses = message.associations.iter().flat_map(|one| &one.addresses).peekable();
                // Without addresses there is nothing to say (18.3.3).
                addresses.peek()?;
                let here = addresses.all(|address| self.is_here(*address));
                put_status(&mut out, if here { Status::Success } else { Status::NotOnLink });
                return Some(out);
            }
            Kind::Release | Kind::Decline => {
                put_status(&mut out, Status::Success);
                return Some(out);
            }
            Kind::Solicit | Kind::Request | Kind::Renew | Kind::Rebind => {
                // A client that has one that is always answered need not wait for others.
                if number == 2 {
                    put(&mut out, code::PREFERENCE, &[255]);
                }
                if rapid {
                    put(&mut out, code::RAPID, &[]);
                }
                let mut is_first = true;
                for association in &message.associations {
                    self.put_association(&mut out, association, &mut is_first);
                }
            }
            Kind::Inform => {}
        }
        self.put_knowledge(&mut out, message);
        Some(out)
    }

    fn is_here(&self, address: Ipv6Addr) -> bool {
        address.octets()[..8] == self.prefix.octets()[..8]
    }

    fn put_association(&self, out: &mut Vec<u8>, association: &Association, is_first: &mut bool) {
        let mut value = association.number.to_be_bytes().to_vec();
        match association.purpose {
            Purpose::Addresses => {
                let gives = std::mem::take(is_first);
                // When to ask anew: after half of the time, and after four fifths (21.4).
                let seconds = if gives { Self::SECONDS } else { 0 };
                value.extend((seconds / 2).to_be_bytes());
                value.extend((seconds / 5 * 4).to_be_bytes());
                if gives {
                    put_address(&mut value, self.address, Self::SECONDS);
                } else {
                    put_status(&mut value, Status::NoAddress);
                }
                for &address in &association.addresses {
                    // What it has beside that is nobody's (18.3.4).
                    if !(gives && address == self.address) {
                        put_address(&mut value, address, 0);
                    }
                }
                put(out, code::ADDRESSES, &value);
            }
            Purpose::Temporary => {
                put_status(&mut value, Status::NoAddress);
                put(out, code::TEMPORARY, &value);
            }
            Purpose::Prefixes => {
                value.extend([0; 8]);
                put_status(&mut value, Status::NoPrefix);
                put(out, code::PREFIXES, &value);
            }
        }
    }

    /// Resolver and domains, where they are asked for.
    fn put_knowledge(&self, out: &mut Vec<u8>, message: &Message<'_>) {
        let asks = |code| message.wanted.as_ref().is_none_or(|wanted| wanted.contains(&code));
        if asks(code::RESOLVERS) {
            put(out, code::RESOLVERS, &self.dns.octets());
        }
        if asks(code::DOMAINS) {
            let mut list = Vec::new();
            for domain in &self.search {
                let name = super::dhcp::encoded(domain);
                // An answer fits into one packet.
                if list.len() + name.len() <= 255 {
                    list.extend(name);
                }
            }
            if !list.is_empty() {
                put(out, code::DOMAINS, &list);
            }
        }
        // Nobody else says when what was told is to be asked for anew (21.23).
        if message.kind == Kind::Inform && asks(code::REFRESH) {
            put(out, code::REFRESH, &Self::SECONDS.to_be_bytes());
        }
    }
}

fn put(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    out.extend(code.to_be_bytes());
    out.extend(len16(value.len()).to_be_bytes());
    out.extend(value);
}

fn put_status(out: &mut Vec<u8>, status: Status) {
    put(out, code::STATUS, &(status as u16).to_be_bytes());
}

fn put_address(out: &mut Vec<u8>, address: Ipv6Addr, seconds: u32) {
    let mut value = address.octets().to_vec();
    // Preferred, and valid.
    value.extend(seconds.to_be_bytes());
    value.extend(seconds.to_be_bytes());
    put(out, code::ADDRESS, &value);
}
