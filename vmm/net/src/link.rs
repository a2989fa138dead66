//! What a monitor and this network say to each other: one message of a message socket a frame.
//!
//! The first message of the monitor is a [`Hello`]; it sends another each time the guest's driver
//! starts anew. Before the first one the network sends nothing. Every other message is a
//! [`NetHeader`] of 12 bytes (`struct virtio_net_hdr_v1`, little-endian) and an Ethernet frame.

/// The bytes of a [`Hello`].
pub const HELLO_LEN: usize = 16;
/// The bytes of a [`NetHeader`].
pub const HEADER_LEN: usize = 12;
/// The bytes of an Ethernet header.
pub const ETHERNET_LEN: usize = 14;
/// No message is longer: both headers, 65,535 bytes of a packet, and one byte of slack, so that a
/// longer one shows.
pub const MAX_MESSAGE: usize = HEADER_LEN + ETHERNET_LEN + 65_535 + 1;
/// The version of [`Hello`] that is spoken here.
pub const VERSION: u16 = 1;

const MAGIC: [u8; 4] = *b"NLNK";

/// What the guest's driver can receive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads(pub u32);

impl Offloads {
    /// Frames whose checksum is not complete.
    pub const CSUM: Self = Self(1);
    /// TCP over IPv4 that is longer than the MTU.
    pub const TSO4: Self = Self(1 << 1);
    /// TCP over IPv6 that is longer than the MTU.
    pub const TSO6: Self = Self(1 << 2);
    /// UDP over IPv4 in several datagrams.
    pub const USO4: Self = Self(1 << 4);
    /// UDP over IPv6 in several datagrams.
    pub const USO6: Self = Self(1 << 5);

    /// Whether all of `these` are among them.
    #[must_use]
    pub fn has(self, these: Self) -> bool {
        self.0 & these.0 == these.0
    }
}

impl std::ops::BitOr for Offloads {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// How a monitor begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What the guest can receive. The network sends nothing else.
    pub offloads: Offloads,
    /// The device's MTU in bytes; 0 if it has none.
    pub mtu: u32,
}

impl Hello {
    /// The message.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HELLO_LEN] {
        let mut bytes = [0; HELLO_LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.offloads.0.to_le_bytes());
        bytes[12..].copy_from_slice(&self.mtu.to_le_bytes());
        bytes
    }

    /// Reads a message. A frame is never one: it is longer.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<Self> {
        let message: &[u8; HELLO_LEN] = message.try_into().ok()?;
        let word = |at: usize| message[at..].first_chunk().map(|four| u32::from_le_bytes(*four));
        (message[..4] == MAGIC && message[4..6] == VERSION.to_le_bytes()).then_some(())?;
        Some(Self { offloads: Offloads(word(8)?), mtu: word(12)? })
    }
}

/// What stands before a frame (`struct virtio_net_hdr_v1`, without `num_buffers`, which is 0).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetHeader {
    /// [`Self::NEEDS_CSUM`], [`Self::DATA_VALID`].
    pub flags: u8,
    /// [`Self::GSO_NONE`] and its kin.
    pub gso_type: u8,
    /// The length of all headers of the frame, in bytes; a hint.
    pub hdr_len: u16,
    /// How many bytes of payload each segment has.
    pub gso_size: u16,
    /// Where in the frame the bytes begin that the checksum is over.
    pub csum_start: u16,
    /// Where from there on the checksum stands.
    pub csum_offset: u16,
}

impl NetHeader {
    /// The checksum is to be completed.
    pub const NEEDS_CSUM: u8 = 1;
    /// The checksum was found right.
    pub const DATA_VALID: u8 = 2;
    /// The frame is no longer than the MTU.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// UDP in several datagrams.
    pub const GSO_UDP_L4: u8 = 5;

    /// The header as bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        for (at, word) in
            [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset].into_iter().enumerate()
        {
            bytes[2 + 2 * at..4 + 2 * at].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads the header of `message` and gives the frame behind it. `None`: there is no whole one.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<(Self, &[u8])> {
        let (head, frame) = message.split_first_chunk::<HEADER_LEN>()?;
        let word = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let header = Self {
            flags: head[0],
            gso_type: head[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        };
        Some((header, frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The monitor has the same test over the same bytes.
    #[test]
    fn a_hello_is_these_bytes() {
        let hello = Hello { offloads: Offloads::CSUM | Offloads::TSO4 | Offloads::USO6, mtu: 65_520 };
        let bytes = *b"NLNK\x01\x00\x00\x00\x23\x00\x00\x00\xf0\xff\x00\x00";
        assert_eq!(hello.to_bytes(), bytes);
        assert_eq!(Hello::parse(&bytes), Some(hello));
        for cut in 0..HELLO_LEN {
            assert_eq!(Hello::parse(&bytes[..cut]), None);
        }
        assert_eq!(Hello::parse(b"NLNK\x02\x00\x00\x00\x23\x00\x00\x00\xf0\xff\x00\x00"), None);
        assert_eq!(Hello::parse(b"NLNK\x01\x00\x00\x00\x23\x00\x00\x00\xf0\xff\x00\x00\x00"), None);
    }

    #[test]
    fn a_header_is_twelve_little_endian_bytes() {
        let header = NetHeader {
            flags: NetHeader::NEEDS_CSUM,
            gso_type: NetHeader::GSO_TCPV4,
            hdr_len: 54,
            gso_size: 1460,
            csum_start: 34,
            csum_offset: 16,
        };
        let bytes = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0];
        assert_eq!(header.to_bytes(), bytes);
        let mut message = bytes.to_vec();
        message.push(9);
        assert_eq!(NetHeader::parse(&message), Some((header, &[9][..])));
        assert_eq!(NetHeader::parse(&bytes[..11]), None);
    }
}
