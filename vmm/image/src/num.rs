//! Conversions between integer types.

/// `value` in another type. `why` says why it fits; that it does not is a bug of this crate.
#[track_caller]
pub(crate) fn fits<T, U: TryFrom<T>>(value: T, why: &str) -> U {
    U::try_from(value).unwrap_or_else(|_| panic!("{why}"))
}

/// A length in memory.
pub(crate) fn to_u64(n: usize) -> u64 {
    fits(n, "memory is addressed with at most 64 bits")
}

/// The smaller of `n` and `most`.
pub(crate) fn at_most(n: u64, most: usize) -> usize {
    usize::try_from(n).map_or(most, |n| n.min(most))
}
