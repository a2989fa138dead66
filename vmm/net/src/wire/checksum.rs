//! The Internet checksum (RFC 1071).

use std::net::IpAddr;

/// A sum that grows by pieces.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    sum: u64,
    /// Whether an odd number of bytes was added.
    odd: bool,
}

impl Sum {
    /// Adds bytes that follow those added so far.
    pub fn add(&mut self, bytes: &[u8]) {
        let (mut bytes, mut sum) = (bytes, 0_u64);
        if self.odd
            && let Some((&first, rest)) = bytes.split_first()
        {
            sum += u64::from(first);
            (bytes, self.odd) = (rest, false);
        }
        let (words, rest) = bytes.as_chunks::<4>();
        // At most 2^32 words of 32 bits fit: buffers are far smaller.
        for word in words {
            sum += u64::from(u32::from_be_bytes(*word));
        }
        let (pairs, last) = rest.as_chunks::<2>();
        for pair in pairs {
            sum += u64::from(u16::from_be_bytes(*pair));
        }
        if let [last] = last {
            sum += u64::from(*last) << 8;
            self.odd = true;
        }
        self.sum = fold(self.sum) + fold(sum);
    }

    /// Adds one 16-bit number. Only where an even number of bytes was added.
    pub fn add16(&mut self, number: u16) {
        self.sum += u64::from(number);
    }

    /// Adds what TCP, UDP and ICMPv6 sum besides themselves.
    pub fn add_pseudo(&mut self, src: IpAddr, dst: IpAddr, protocol: u8, len: usize) {
        for address in [src, dst] {
            match address {
                IpAddr::V4(address) => self.add(&address.octets()),
                IpAddr::V6(address) => self.add(&address.octets()),
            }
        }
        self.add16(protocol.into());
        self.add16(crate::number::len16(len));
    }

    /// The sum itself, as stands where a checksum is to be completed.
    #[must_use]
    pub fn partial(self) -> u16 {
        crate::number::fits(fold(self.sum), "folded to 16 bits")
    }

    /// The checksum.
    #[must_use]
    pub fn finish(self) -> u16 {
        !self.partial()
    }
}

fn fold(sum: u64) -> u64 {
    let mut sum = sum;
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// The checksum of `bytes` alone.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = Sum::default();
    sum.add(bytes);
    sum.finish()
}

/// Whether the checksum of TCP, UDP or ICMPv6 in `segment` is right.
#[must_use]
pub fn is_right(src: IpAddr, dst: IpAddr, protocol: u8, segment: &[u8]) -> bool {
    let mut sum = Sum::default();
    sum.add_pseudo(src, dst, protocol, segment.len());
    sum.add(segment);
    sum.finish() == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_does_not_depend_on_where_it_is_cut() {
        let bytes: Vec<u8> = (0..1001_u32).map(|i| (i * 7 % 251).to_le_bytes()[0]).collect();
        let mut slow = 0_u64;
        for pair in bytes.chunks(2) {
            slow += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
        let expected = !u16::try_from(fold(slow)).unwrap();
        for a in (0..1001).step_by(13) {
            for b in (a..1001).step_by(17) {
                let mut sum = Sum::default();
                sum.add(&bytes[..a]);
                sum.add(&bytes[a..b]);
                sum.add(&bytes[b..]);
                assert_eq!(sum.finish(), expected, "{a} {b}");
            }
        }
    }

    #[test]
    fn the_example_of_the_rfc() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }
}
