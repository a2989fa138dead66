//! Numbers that must fit, and those in network order.

/// `value` as another type of number. That it fits is the caller's to know, who says why.
///
/// # Panics
/// It does not fit: a bug.
#[inline]
#[track_caller]
pub fn fits<T, U: TryFrom<T>>(value: T, why: &str) -> U {
    U::try_from(value).unwrap_or_else(|_| panic!("a bug: {why}"))
}

/// The length of something that one frame holds.
///
/// # Panics
/// It is longer than any frame: a bug.
#[inline]
#[track_caller]
#[must_use]
pub fn len16(len: usize) -> u16 {
    fits(len, "what lies in a frame is at most 65,535 bytes long")
}

/// The length of something that a buffer of at most some megabytes holds.
///
/// # Panics
/// It is 4 GiB or more: a bug.
#[inline]
#[track_caller]
#[must_use]
pub fn len32(len: usize) -> u32 {
    fits(len, "buffers are smaller than 4 GiB")
}

/// A 32-bit number as an index.
#[inline]
#[must_use]
pub fn index(number: u32) -> usize {
    fits(number, "an address has at least 32 bits")
}

/// Two bytes of `bytes` from `at` on, in network order. `None` where they end before.
#[inline]
#[must_use]
pub fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|two| u16::from_be_bytes(*two))
}

/// Four bytes of `bytes` from `at` on, in network order. `None` where they end before.
#[inline]
#[must_use]
pub fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|four| u32::from_be_bytes(*four))
}

/// `number`, or the largest that 16 bits hold.
#[inline]
#[must_use]
pub fn at_most16(number: u32) -> u16 {
    fits(number.min(u16::MAX.into()), "it is cut")
}
