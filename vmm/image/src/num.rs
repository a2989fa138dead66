//! Conversions between integer types.

pub(crate) use nelly_disk::number::{at_most, fits};

/// A length in memory.
pub(crate) fn to_u64(n: usize) -> u64 {
    fits(n, "memory is addressed with at most 64 bits")
}
