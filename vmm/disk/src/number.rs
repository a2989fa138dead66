//! Numbers that must fit.

/// `value` as another type of number. That it fits is the caller's to know, who says why in a
/// sentence: a value that is silently another one hides a bug, this shows it.
///
/// # Panics
/// It does not fit: a bug.
#[inline]
#[track_caller]
pub fn fits<T, U: TryFrom<T>>(value: T, why: &str) -> U {
    U::try_from(value).unwrap_or_else(|_| panic!("a bug: {why}"))
}

/// Numbers without a sign.
pub trait Unsigned {}

impl Unsigned for u32 {}
impl Unsigned for u64 {}
impl Unsigned for u128 {}
impl Unsigned for usize {}

/// The smaller of `value` and `most`, as the type of `most`: for a number from outside, which may
/// be any, and of which no more than `most` is wanted.
#[inline]
pub fn at_most<T: Unsigned, U: TryFrom<T> + Ord>(value: T, most: U) -> U {
    match U::try_from(value) {
        Ok(value) => value.min(most),
        Err(_) => most,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_the_same_and_what_does_not_is_a_bug() {
        assert_eq!(fits::<u64, u8>(255, "a byte"), 255);
        let beyond = std::panic::catch_unwind(|| fits::<u64, u8>(256, "every line has a byte"));
        let text = beyond.unwrap_err();
        assert_eq!(text.downcast_ref::<String>().unwrap(), "a bug: every line has a byte");
    }

    #[test]
    fn what_is_more_than_wanted_is_as_much_as_wanted() {
        assert_eq!(at_most(5_u64, 7_usize), 5);
        assert_eq!(at_most(8_u64, 7_usize), 7);
        assert_eq!(at_most(u64::MAX, 7_u8), 7);
        assert_eq!(at_most(u128::MAX, i64::MAX), i64::MAX);
    }
}
