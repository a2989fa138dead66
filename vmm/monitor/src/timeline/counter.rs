//! The guest's counter (TSC, CNTVCT) on the host's clock.

use serde::{Deserialize, Serialize};

/// One moment read on both clocks, and how fast the counter runs: with it, what a guest stamped by
/// its raw counter is put on the host's CLOCK_MONOTONIC, without an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestCounter {
    /// CLOCK_MONOTONIC, in nanoseconds, when the guest's counter showed `counter`.
    pub at_ns: u64,
    /// The guest's counter.
    pub counter: u64,
    /// Half the time that the reading took, in nanoseconds: `at_ns` is off by no more.
    pub error_ns: u64,
    /// Time between two readings of the counter, in nanoseconds of CLOCK_MONOTONIC; the longer, the
    /// more exact its speed is known.
    pub span_ns: u64,
    /// What the counter advanced in that time; more than 0.
    pub span_ticks: u64,
    /// What the hypervisor says of the counter's frequency, in kHz, which is what guests compute
    /// their own clocks by; 0: it does not.
    pub nominal_khz: u64,
}

impl GuestCounter {
    /// When the guest's counter showed `counter`: CLOCK_MONOTONIC in nanoseconds. `None` for what
    /// lies outside of it, which only a guest that lies says.
    #[must_use]
    pub fn host_ns(&self, counter: u64) -> Option<u64> {
        let ticks = i128::from(counter) - i128::from(self.counter);
        let elapsed = scale(ticks, self.span_ns, self.span_ticks)?;
        u64::try_from(i128::from(self.at_ns) + elapsed).ok()
    }

    /// What the counter showed `elapsed_ns` before `counter`, by a clock that the guest derives
    /// from it and the nominal frequency (where none is known, the measured one).
    #[must_use]
    pub fn before(&self, counter: u64, elapsed_ns: u64) -> Option<u64> {
        let elapsed = i128::from(elapsed_ns);
        let ticks = match self.nominal_khz {
            0 => scale(elapsed, self.span_ticks, self.span_ns)?,
            khz => scale(elapsed, khz, 1_000_000)?,
        };
        u64::try_from(i128::from(counter) - ticks).ok()
    }
}

/// `value * by / of`, rounded to the nearest.
fn scale(value: i128, by: u64, of: u64) -> Option<i128> {
    let (by, of) = (i128::from(by), i128::from(of));
    let product = value.checked_mul(by)?;
    let half = (of / 2) * product.signum();
    (product + half).checked_div(of)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2.5 GHz by the measure, 2 GHz by the hypervisor's word.
    const COUNTER: GuestCounter = GuestCounter {
        at_ns: 1_000_000,
        counter: 500_000,
        error_ns: 50,
        span_ns: 400_000,
        span_ticks: 1_000_000,
        nominal_khz: 2_000_000,
    };

    #[test]
    fn moments_before_and_after_the_reading() {
        assert_eq!(COUNTER.host_ns(500_000), Some(1_000_000));
        assert_eq!(COUNTER.host_ns(502_500), Some(1_001_000));
        assert_eq!(COUNTER.host_ns(0), Some(800_000));
        assert_eq!(COUNTER.before(500_000, 1_000), Some(498_000));
        assert_eq!(GuestCounter { nominal_khz: 0, ..COUNTER }.before(500_000, 1_000), Some(497_500));
        // A guest that lies, a reading that is none.
        assert_eq!(COUNTER.host_ns(u64::MAX), Some(7_378_697_629_483_820_646 + 800_000));
        assert_eq!(COUNTER.before(5, 1_000), None);
        assert_eq!(GuestCounter { at_ns: 0, ..COUNTER }.host_ns(0), None);
        assert_eq!(GuestCounter { span_ticks: 0, ..COUNTER }.host_ns(7), None);
    }

    proptest! {
        #[test]
        fn order_is_kept(a in any::<u64>(), b in any::<u64>(), at_ns in any::<u64>(), base in any::<u64>(), span_ns in 1u64.., span_ticks in 1u64..) {
            let counter = GuestCounter { at_ns, counter: base, span_ns, span_ticks, ..COUNTER };
            if let (Some(early), Some(late)) = (counter.host_ns(a.min(b)), counter.host_ns(a.max(b))) {
                prop_assert!(early <= late);
            }
        }

        #[test]
        fn there_and_back_is_within_a_tick(elapsed in 0u64..1 << 50, khz in 1_000_000u64..6_000_000) {
            // A counter whose nominal speed is its real one.
            let counter = GuestCounter { at_ns: 1 << 60, counter: 1 << 60, span_ns: 1_000_000, span_ticks: khz, nominal_khz: khz, ..COUNTER };
            let then = counter.host_ns(counter.before(1 << 60, elapsed).unwrap()).unwrap();
            prop_assert!((1u64 << 60).abs_diff(then).abs_diff(elapsed) <= 1);
        }
    }
}
