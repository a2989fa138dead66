//! Numbers that must fit.

/// `value` as another type of number. That it fits is the caller's to know, who says why in a sentence: a value that is silently another
/// one hides a bug, this shows it.
///
/// # Panics
/// It does not fit: a bug.
#[inline]
#[track_caller]
pub fn fits<T, U: TryFrom<T>>(value: T, why: &str) -> U {
    U::try_from(value).unwrap_or_else(|_| panic!("a bug: {why}"))
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
}
