//! TCP headers.

use crate::number::{be16, be32, len16};

/// Flags of a segment.
pub mod flag {
    /// No more data comes.
    pub const FIN: u8 = 1;
    /// A connection begins.
    pub const SYN: u8 = 2;
    /// The connection is no more.
    pub const RST: u8 = 4;
    /// Hand it over at once.
    pub const PSH: u8 = 8;
    /// The acknowledgement is meant.
    pub const ACK: u8 = 16;
}

/// The length of a header without options, in bytes.
pub const LEN: usize = 20;
/// The largest shift of a window (RFC 7323).
pub const MAX_SHIFT: u8 = 14;

/// A segment without its ports' meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The port of who sent it.
    pub src: u16,
    /// The port it is for.
    pub dst: u16,
    /// The sequence number of its first byte.
    pub seq: u32,
    /// The next byte that is expected, if [`flag::ACK`].
    pub ack: u32,
    /// Of [`flag`].
    pub flags: u8,
    /// The window, before it is shifted.
    pub window: u16,
    /// The largest segment that may be sent back, in bytes, in a SYN.
    pub mss: Option<u16>,
    /// By how much windows are shifted, in a SYN.
    pub shift: Option<u8>,
}

impl Segment {
    /// Reads a segment: its header and its payload. `None`: it lies about itself.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let header = usize::from(*bytes.get(12)? >> 4) * 4;
        if header < LEN || header > bytes.len() {
            return None;
        }
        let (mss, shift) = options(&bytes[LEN..header]);
        let segment = Self {
            src: be16(bytes, 0)?,
            dst: be16(bytes, 2)?,
            seq: be32(bytes, 4)?,
            ack: be32(bytes, 8)?,
            flags: bytes[13] & 0x1f,
            window: be16(bytes, 14)?,
            mss,
            shift,
        };
        Some((segment, &bytes[header..]))
    }

    /// Whether all of `flags` are set.
    #[must_use]
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// The length of the header, in bytes.
    #[must_use]
    pub fn header_len(&self) -> usize {
        LEN + if self.mss.is_some() { 4 } else { 0 } + if self.shift.is_some() { 4 } else { 0 }
    }

    /// Writes the header behind `out`, with `checksum` where the checksum stands.
    pub fn put(&self, out: &mut Vec<u8>, checksum: u16) {
        out.extend(self.src.to_be_bytes());
        out.extend(self.dst.to_be_bytes());
        out.extend(self.seq.to_be_bytes());
        out.extend(self.ack.to_be_bytes());
        let words = len16(self.header_len() / 4).to_be_bytes()[1];
        out.extend([words << 4, self.flags]);
        out.extend(self.window.to_be_bytes());
        out.extend(checksum.to_be_bytes());
        out.extend([0, 0]);
        if let Some(mss) = self.mss {
            out.extend([2, 4]);
            out.extend(mss.to_be_bytes());
        }
        if let Some(shift) = self.shift {
            out.extend([1, 3, 3, shift]);
        }
    }
}

/// The options that matter. One that lies ends the list.
fn options(bytes: &[u8]) -> (Option<u16>, Option<u8>) {
    let (mut mss, mut shift, mut rest) = (None, None, bytes);
    while let Some(&kind) = rest.first() {
        let len = match kind {
            0 => break,
            1 => 1,
            _ => match rest.get(1) {
                Some(&len) if len >= 2 && usize::from(len) <= rest.len() => usize::from(len),
                _ => break,
            },
        };
        match (kind, len) {
            (2, 4) => mss = be16(rest, 2),
            (3, 3) => shift = Some(rest[2].min(MAX_SHIFT)),
            _ => {}
        }
        rest = &rest[len..];
    }
    (mss, shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_read() {
        let segment = Segment {
            src: 1,
            dst: 2,
            seq: 3,
            ack: 4,
            flags: flag::SYN | flag::ACK,
            window: 5,
            mss: Some(1460),
            shift: Some(7),
        };
        let mut bytes = Vec::new();
        segment.put(&mut bytes, 0xabcd);
        bytes.push(42);
        assert_eq!(Segment::parse(&bytes), Some((segment, &[42][..])));
        for cut in 0..28 {
            assert_eq!(Segment::parse(&bytes[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn options_that_lie_end_the_list() {
        for (bytes, expected) in [
            (&[2, 4, 5, 0xb4, 3, 3, 20][..], (Some(1460), Some(14))),
            (&[3, 0, 2, 4, 5, 0xb4], (None, None)),
            (&[3, 9, 2], (None, None)),
            (&[2], (None, None)),
            (&[1, 1, 0, 2, 4, 5, 0xb4], (None, None)),
            (&[8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 2, 4, 1, 0], (Some(256), None)),
        ] {
            assert_eq!(options(bytes), expected, "{bytes:?}");
        }
    }
}
