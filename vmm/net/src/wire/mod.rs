//! The headers of a frame: read with every length checked, written with every checksum right.

pub mod checksum;
pub mod dhcp;
pub mod dhcp6;
pub mod icmp;
pub mod ip;
pub mod tcp;

use std::fmt;
use std::net::Ipv4Addr;

use crate::number::{be16, be32};

/// What an Ethernet frame holds.
pub mod kind {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// The address of an Ethernet device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Everybody.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it names one device, and no group.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::str::FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = [0; 6];
        let mut words = text.split(':');
        for byte in &mut bytes {
            let word = words.next().filter(|word| word.len() == 2);
            *byte = word
                .and_then(|word| u8::from_str_radix(word, 16).ok())
                .ok_or_else(|| format!("{text:?} is not an address of the form 52:54:00:01:02:03"))?;
        }
        match words.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(format!("{text:?} is longer than an address of the form 52:54:00:01:02:03")),
        }
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An Ethernet frame.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Whom it is for.
    pub dst: Mac,
    /// Who sent it.
    pub src: Mac,
    /// Of [`kind`].
    pub kind: u16,
    /// What is behind the header.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads a frame. `None`: it is shorter than its header.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (dst, rest) = bytes.split_first_chunk()?;
        let (src, rest) = rest.split_first_chunk()?;
        let (kind, payload) = rest.split_first_chunk()?;
        Some(Self { dst: Mac(*dst), src: Mac(*src), kind: u16::from_be_bytes(*kind), payload })
    }
}

/// Writes the header of a frame behind `out`.
pub fn put_ethernet(out: &mut Vec<u8>, dst: Mac, src: Mac, kind: u16) {
    out.extend(dst.0);
    out.extend(src.0);
    out.extend(kind.to_be_bytes());
}

/// An ARP request or answer for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// It asks.
    pub request: bool,
    /// Who sent it.
    pub sender: (Mac, Ipv4Addr),
    /// Who is asked for, or answered.
    pub target: (Mac, Ipv4Addr),
}

impl Arp {
    const HEAD: [u8; 6] = [0, 1, 8, 0, 6, 4];

    /// Reads it. `None`: it is another kind, or cut.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&Self::HEAD)?;
        let request = match be16(rest, 0)? {
            1 => true,
            2 => false,
            _ => return None,
        };
        let mac = |at: usize| rest.get(at..)?.first_chunk().map(|six| Mac(*six));
        let address = |at: usize| be32(rest, at).map(Ipv4Addr::from_bits);
        Some(Self { request, sender: (mac(2)?, address(8)?), target: (mac(12)?, address(18)?) })
    }

    /// Writes it behind `out`.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.extend(Self::HEAD);
        out.extend([0, if self.request { 1 } else { 2 }]);
        for (mac, address) in [self.sender, self.target] {
            out.extend(mac.0);
            out.extend(address.octets());
        }
    }
}

/// A UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp {
    /// The port of who sent it.
    pub src: u16,
    /// The port it is for.
    pub dst: u16,
}

impl Udp {
    /// The length of a header, in bytes.
    pub const LEN: usize = 8;

    /// Reads a datagram: its header and its payload. A length of 0 is that of what is there (a
    /// datagram that is yet to be cut into several). `None`: it lies about itself.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let len = match usize::from(be16(bytes, 4)?) {
            0 => bytes.len(),
            len => len,
        };
        let payload = bytes.get(Self::LEN..len)?;
        Some((Self { src: be16(bytes, 0)?, dst: be16(bytes, 2)? }, payload))
    }

    /// Writes the header for `len` bytes of payload behind `out`.
    pub fn put(&self, out: &mut Vec<u8>, len: usize, checksum: u16) {
        out.extend(self.src.to_be_bytes());
        out.extend(self.dst.to_be_bytes());
        out.extend(crate::number::len16(Self::LEN + len).to_be_bytes());
        out.extend(checksum.to_be_bytes());
    }
}
