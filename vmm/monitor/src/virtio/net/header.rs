//! The header before each frame (virtio 1.2, 5.1.6), and what the two sides leave to each other by
//! it. Neither side is believed: [`Header::checked`] is for both.

use super::spec::{ETHERNET, feature, header as spec};

/// What may be left to the receiver of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// To complete the checksum. Without it there is none of the others.
    pub checksum: bool,
    /// To make packets of a segment of TCP over IPv4.
    pub tso4: bool,
    /// The same over IPv6.
    pub tso6: bool,
    /// To make packets of a segment of UDP, over IPv4 and IPv6.
    pub uso: bool,
}

impl Offloads {
    /// All of them.
    pub const ALL: Self = Self { checksum: true, tso4: true, tso6: true, uso: true };
    /// None of them.
    pub const NONE: Self = Self { checksum: false, tso4: false, tso6: false, uso: false };

    /// Features by which a device says that it takes these from the driver.
    pub(super) fn host_features(self) -> u64 {
        self.features([feature::CSUM, feature::HOST_TSO4, feature::HOST_TSO6, feature::HOST_USO])
    }

    /// Features by which a driver says that it takes these from the device.
    pub(super) fn guest_features(self) -> u64 {
        let uso = feature::GUEST_USO4 | feature::GUEST_USO6;
        self.features([feature::GUEST_CSUM, feature::GUEST_TSO4, feature::GUEST_TSO6, uso])
    }

    fn features(self, bits: [u64; 4]) -> u64 {
        let Self { checksum, tso4, tso6, uso } = self;
        [checksum, tso4, tso6, uso]
            .into_iter()
            .zip(bits)
            .filter(|(has, _)| *has)
            .fold(0, |all, (_, bit)| all | bit)
    }

    /// What the driver may leave to the device after it accepted `features`.
    pub(super) fn of_host(features: u64) -> Self {
        Self::of(features, [feature::CSUM, feature::HOST_TSO4, feature::HOST_TSO6, feature::HOST_USO])
    }

    /// What the device may leave to the driver after it accepted `features`.
    pub(super) fn of_guest(features: u64) -> Self {
        let uso = feature::GUEST_USO4 | feature::GUEST_USO6;
        Self::of(features, [feature::GUEST_CSUM, feature::GUEST_TSO4, feature::GUEST_TSO6, uso])
    }

    fn of(features: u64, bits: [u64; 4]) -> Self {
        let [checksum, tso4, tso6, uso] = bits.map(|bits| features & bits == bits);
        // Segments have no checksums yet (5.1.3.1).
        Self { checksum, tso4: checksum && tso4, tso6: checksum && tso6, uso: checksum && uso }
    }
}

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It is shorter than an Ethernet header, or longer than any frame.
    Length,
    /// It leaves to its receiver what that does not do.
    Offload,
    /// Its header contradicts itself or the frame.
    Header,
}

/// The header, without the number of buffers, which is the receiving device's to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// NEEDS_CSUM, DATA_VALID.
    pub flags: u8,
    /// What kind of segment it is.
    pub gso_type: u8,
    /// Bytes of all headers in the frame: a hint.
    pub hdr_len: u16,
    /// Bytes of payload in each packet of a segment.
    pub gso_size: u16,
    /// Where in the frame the bytes begin that the checksum is over.
    pub csum_start: u16,
    /// Where from there on the checksum stands.
    pub csum_offset: u16,
}

impl Header {
    /// Reads one.
    #[must_use]
    pub fn parse(bytes: &[u8; spec::BYTES]) -> Self {
        let [flags, gso_type, a, b, c, d, e, f, g, h, ..] = *bytes;
        let word = |low, high| u16::from_le_bytes([low, high]);
        Self {
            flags,
            gso_type,
            hdr_len: word(a, b),
            gso_size: word(c, d),
            csum_start: word(e, f),
            csum_offset: word(g, h),
        }
    }

    /// Writes it, with the number of buffers that the frame fills.
    #[must_use]
    pub fn to_bytes(self, buffers: u16) -> [u8; spec::BYTES] {
        let Self { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset } = self;
        let [[a, b], [c, d], [e, f], [g, h], [i, j]] =
            [hdr_len, gso_size, csum_start, csum_offset, buffers].map(u16::to_le_bytes);
        [flags, gso_type, a, b, c, d, e, f, g, h, i, j]
    }

    /// What of it may be passed on with a frame of `len` bytes to somebody who does no more than
    /// `allowed`: fields that mean nothing are 0.
    ///
    /// # Errors
    /// The frame may not be passed on.
    pub fn checked(self, len: u32, allowed: Offloads) -> Result<Self, Flaw> {
        if !(ETHERNET..=super::spec::FRAME_MAX).contains(&len) {
            return Err(Flaw::Length);
        }
        let mut passed = Self::default();
        if self.flags & spec::NEEDS_CSUM != 0 {
            if !allowed.checksum {
                return Err(Flaw::Offload);
            }
            let (start, offset) = (u32::from(self.csum_start), u32::from(self.csum_offset));
            if start < ETHERNET || start + offset + 2 > len {
                return Err(Flaw::Header);
            }
            passed.flags = spec::NEEDS_CSUM;
            (passed.csum_start, passed.csum_offset) = (self.csum_start, self.csum_offset);
        } else if self.flags & spec::DATA_VALID != 0 && allowed.checksum {
            passed.flags = spec::DATA_VALID;
        }
        let is_allowed = match self.gso_type {
            spec::GSO_NONE => return Ok(passed),
            spec::GSO_TCPV4 => allowed.tso4,
            spec::GSO_TCPV6 => allowed.tso6,
            spec::GSO_UDP_L4 => allowed.uso,
            _ => false,
        };
        if !is_allowed {
            return Err(Flaw::Offload);
        }
        if self.gso_size == 0 || passed.flags & spec::NEEDS_CSUM == 0 {
            return Err(Flaw::Header);
        }
        (passed.gso_type, passed.gso_size) = (self.gso_type, self.gso_size);
        // A hint that lies is none.
        if u32::from(self.hdr_len) <= len {
            passed.hdr_len = self.hdr_len;
        }
        Ok(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: Header =
        Header { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 1448, csum_start: 34, csum_offset: 16 };

    #[test]
    fn a_header_is_twelve_little_endian_bytes() {
        // The network at the other end of a link has the same test over the same bytes.
        let header = Header { gso_size: 1460, ..SOUND };
        let bytes = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0];
        assert_eq!((header.to_bytes(0), Header::parse(&bytes)), (bytes, header));
        assert_eq!(header.to_bytes(0x102)[10..], [2, 1]);
    }

    #[test]
    fn what_is_sound_passes_and_what_means_nothing_is_zero() {
        assert_eq!(SOUND.checked(3000, Offloads::ALL), Ok(SOUND));
        let plain = Header { flags: 0, gso_type: 0, ..SOUND };
        assert_eq!(plain.checked(60, Offloads::NONE), Ok(Header::default()));
        // Flags that nobody knows are ignored, and a hint that lies is none.
        let odd = Header { flags: 0xf9, hdr_len: 3001, ..SOUND };
        assert_eq!(odd.checked(3000, Offloads::ALL), Ok(Header { hdr_len: 0, ..SOUND }));
        let valid = Header { flags: spec::DATA_VALID, ..Header::default() };
        assert_eq!(valid.checked(60, Offloads::ALL), Ok(valid));
        assert_eq!(valid.checked(60, Offloads::NONE), Ok(Header::default()));
    }

    #[test]
    fn every_lie_is_found() {
        let lies: [(Header, u32, Flaw); 12] = [
            (Header::default(), 13, Flaw::Length),
            (Header::default(), 65_550, Flaw::Length),
            (Header { csum_start: 13, ..SOUND }, 3000, Flaw::Header),
            (Header { csum_start: 2990, ..SOUND }, 3000, Flaw::Header),
            (Header { csum_offset: 2965, ..SOUND }, 3000, Flaw::Header),
            (Header { csum_start: u16::MAX, csum_offset: u16::MAX, ..SOUND }, 65_549, Flaw::Header),
            (Header { gso_size: 0, ..SOUND }, 3000, Flaw::Header),
            (Header { flags: 0, ..SOUND }, 3000, Flaw::Header),
            (Header { gso_type: 2, ..SOUND }, 3000, Flaw::Offload),
            (Header { gso_type: 3, ..SOUND }, 3000, Flaw::Offload),
            (Header { gso_type: 0x80, ..SOUND }, 3000, Flaw::Offload),
            (Header { gso_type: 0x81, ..SOUND }, 3000, Flaw::Offload),
        ];
        for (header, len, flaw) in lies {
            assert_eq!(header.checked(len, Offloads::ALL), Err(flaw), "{header:?}");
        }
        let without = |change: fn(&mut Offloads)| {
            let mut allowed = Offloads::ALL;
            change(&mut allowed);
            allowed
        };
        for (gso_type, allowed) in [
            (0, without(|allowed| allowed.checksum = false)),
            (1, without(|allowed| allowed.tso4 = false)),
            (4, without(|allowed| allowed.tso6 = false)),
            (5, without(|allowed| allowed.uso = false)),
        ] {
            let header = Header { gso_type, ..SOUND };
            assert_eq!(header.checked(3000, allowed), Err(Flaw::Offload), "{gso_type}");
            assert!(header.checked(3000, Offloads::ALL).is_ok(), "{gso_type}");
        }
    }

    #[test]
    fn offloads_are_features_and_segments_need_checksums() {
        for offloads in [Offloads::ALL, Offloads::NONE, Offloads { uso: false, ..Offloads::ALL }] {
            assert_eq!(Offloads::of_host(offloads.host_features()), offloads);
            assert_eq!(Offloads::of_guest(offloads.guest_features()), offloads);
        }
        let segments = Offloads::ALL.guest_features() & !feature::GUEST_CSUM;
        assert_eq!(Offloads::of_guest(segments), Offloads::NONE);
        // One version of IP is not both.
        let half = Offloads::ALL.guest_features() & !feature::GUEST_USO6;
        assert_eq!(Offloads::of_guest(half), Offloads { uso: false, ..Offloads::ALL });
    }
}
