//! When a guest that waits is to go on by its virtual timer. Pure.

use std::time::Duration;

/// CNTV_CTL_EL0: the timer is on.
const ENABLED: u64 = 1;
/// Its interrupt is held back.
const MASKED: u64 = 1 << 1;
/// It is due.
const DUE: u64 = 1 << 2;

/// How long until the timer interrupts, of its control and deadline, the guest's virtual counter
/// and the ticks a second: `None` if it does not.
pub(super) fn remaining(control: u64, deadline: u64, counter: u64, hz: u64) -> Option<Duration> {
    if control & (ENABLED | MASKED) != ENABLED {
        return None;
    }
    let ticks = u128::from(deadline.saturating_sub(counter));
    let ns = ticks * 1_000_000_000 / u128::from(hz.max(1));
    Some(u64::try_from(ns).map_or(Duration::MAX, Duration::from_nanos))
}

/// Whether its interrupt is raised now.
pub(super) fn interrupts(control: u64) -> bool {
    control & (ENABLED | MASKED | DUE) == ENABLED | DUE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HZ: u64 = 24_000_000;

    #[test]
    fn only_a_timer_that_is_on_ends_a_wait() {
        for (control, deadline, expected) in [
            (0, 0, None),
            (MASKED, 0, None),
            (ENABLED | MASKED, 0, None),
            (DUE, 0, None),
            (ENABLED, 1000, Some(Duration::ZERO)),
            (ENABLED, 10, Some(Duration::ZERO)),
            (ENABLED | DUE, 10, Some(Duration::ZERO)),
            (ENABLED, 1000 + HZ, Some(Duration::from_secs(1))),
            (ENABLED, 1024, Some(Duration::from_micros(1))),
            // Never, as Linux writes it.
            (ENABLED, u64::MAX, Some(Duration::from_nanos(u64::MAX)).map(|_| Duration::MAX)),
        ] {
            assert_eq!(remaining(control, deadline, 1000, HZ), expected, "{control:#b} {deadline}");
        }
        assert!(interrupts(ENABLED | DUE));
        assert!(!interrupts(ENABLED) && !interrupts(ENABLED | DUE | MASKED) && !interrupts(DUE));
    }

    proptest! {
        #[test]
        fn a_later_deadline_never_comes_sooner(a: u64, b: u64, counter: u64, hz: u64) {
            let (early, late) = (a.min(b), a.max(b));
            prop_assert!(remaining(ENABLED, early, counter, hz) <= remaining(ENABLED, late, counter, hz));
        }
    }
}
