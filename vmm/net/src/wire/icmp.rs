//! ICMP, ICMPv6 and neighbour discovery.

use std::net::{IpAddr, Ipv6Addr};

use super::Mac;
use super::checksum::{Sum, checksum};
use super::ip::protocol;
use crate::number::be16;

/// An echo request or answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo<'a> {
    /// Whose it is.
    pub id: u16,
    /// Which one it is.
    pub seq: u16,
    /// What comes back as it is.
    pub data: &'a [u8],
}

/// Why something does not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// There is no way to its network.
    Net,
    /// Nobody answers there.
    Host,
    /// Nobody listens at the port.
    Port,
    /// It is not allowed.
    Prohibited,
}

impl Unreachable {
    /// Type and code.
    fn code(self, v4: bool) -> [u8; 2] {
        match (self, v4) {
            (Self::Net, true) => [3, 0],
            (Self::Host, true) => [3, 1],
            (Self::Port, true) => [3, 3],
            (Self::Prohibited, true) => [3, 13],
            (Self::Net, false) => [1, 0],
            (Self::Prohibited, false) => [1, 1],
            (Self::Host, false) => [1, 3],
            (Self::Port, false) => [1, 4],
        }
    }
}

/// Neighbour discovery that a router hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// Which routers are there?
    Routers,
    /// Who has this address?
    Neighbour(Ipv6Addr),
}

/// Reads an echo request. `None`: it is something else, or cut.
#[must_use]
pub fn echo_request(v4: bool, message: &[u8]) -> Option<Echo<'_>> {
    let asks = if v4 { 8 } else { 128 };
    (message.first() == Some(&asks) && message.get(1) == Some(&0)).then_some(())?;
    Some(Echo { id: be16(message, 4)?, seq: be16(message, 6)?, data: message.get(8..)? })
}

/// Reads neighbour discovery. `None`: it is something else, or cut.
#[must_use]
pub fn discovery(message: &[u8]) -> Option<Discovery> {
    match (message.first()?, message.get(1)?) {
        (133, 0) if message.len() >= 8 => Some(Discovery::Routers),
        (135, 0) => message.get(8..)?.first_chunk().map(|b: &[u8; 16]| Discovery::Neighbour((*b).into())),
        _ => None,
    }
}

/// Completes the checksum of `message`.
#[must_use]
pub fn finished(src: IpAddr, dst: IpAddr, mut message: Vec<u8>) -> Vec<u8> {
    let sum = if src.is_ipv4() {
        checksum(&message)
    } else {
        let mut sum = Sum::default();
        sum.add_pseudo(src, dst, protocol::ICMPV6, message.len());
        sum.add(&message);
        sum.finish()
    };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// An echo message, asked or answered, without its checksum.
#[must_use]
pub fn echo(v4: bool, answer: bool, echo: Echo<'_>) -> Vec<u8> {
    let kind = match (v4, answer) {
        (true, true) => 0,
        (true, false) => 8,
        (false, true) => 129,
        (false, false) => 128,
    };
    let mut message = vec![kind, 0, 0, 0];
    message.extend(echo.id.to_be_bytes());
    message.extend(echo.seq.to_be_bytes());
    message.extend(echo.data);
    message
}

/// That the packet which begins with `original` did not arrive, without its checksum.
#[must_use]
pub fn unreachable(v4: bool, why: Unreachable, original: &[u8]) -> Vec<u8> {
    // As much of it as every path can carry.
    let most = if v4 { 576 - 28 } else { 1280 - 48 };
    let mut message = why.code(v4).to_vec();
    message.extend([0; 6]);
    message.extend(&original[..original.len().min(most)]);
    message
}

/// That `address` is at `mac`, without its checksum.
#[must_use]
pub fn neighbour(address: Ipv6Addr, mac: Mac, solicited: bool) -> Vec<u8> {
    let mut message = vec![136, 0, 0, 0, 0x80 | 0x20 | if solicited { 0x40 } else { 0 }, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(mac.0);
    message
}

/// What a router says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Router {
    /// Its address on the link.
    pub mac: Mac,
    /// For how long it is a way to everywhere, in seconds; 0: it is none.
    pub lifetime: u16,
    /// The prefix of the link, 64 bits long, from which guests take addresses.
    pub prefix: Ipv6Addr,
    /// Whom to ask for names.
    pub dns: Ipv6Addr,
    /// The link's MTU, in bytes.
    pub mtu: u32,
}

impl Router {
    /// The advertisement, without its checksum.
    #[must_use]
    pub fn advertisement(&self) -> Vec<u8> {
        /// How long what is said of prefix and resolver holds, in seconds.
        const DAY: [u8; 4] = 86_400_u32.to_be_bytes();
        // Addresses, and what else there is to know, come by DHCPv6, too.
        let mut message = vec![134, 0, 0, 0, 64, 0xc0];
        message.extend(self.lifetime.to_be_bytes());
        message.extend([0; 8]);
        message.extend([1, 1]);
        message.extend(self.mac.0);
        message.extend([5, 1, 0, 0]);
        message.extend(self.mtu.to_be_bytes());
        message.extend([3, 4, 64, 0xc0]);
        message.extend(DAY);
        message.extend(DAY);
        message.extend([0; 4]);
        message.extend(self.prefix.octets());
        message.extend([25, 3, 0, 0]);
        message.extend(DAY);
        message.extend(self.dns.octets());
        message
    }
}
