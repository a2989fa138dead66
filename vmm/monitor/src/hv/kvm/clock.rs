//! The counter that a guest tells the time by, beside the host's clock.

use super::own;
use crate::timeline::{GuestCounter, now_ns};

/// How often the guest's counter is read for one answer.
const READINGS: u32 = 5;

/// Both of the host's clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    ns: u64,
    counter: u64,
}

impl Moment {
    pub(super) fn now() -> Self {
        let counter = own::host_counter();
        Self { ns: now_ns(), counter }
    }

    /// The guest's counter now, as `read` reads it. The host's runs at the same speed, which is
    /// measured since this moment.
    pub(super) fn counter(self, nominal_khz: u64, read: impl Fn() -> Option<u64>) -> Option<GuestCounter> {
        // The narrowest of a few: the host may take the processor away in between.
        let mut best: Option<(u64, u64, Self)> = None;
        for _ in 0..READINGS {
            let before = now_ns();
            let guest = read()?;
            let after = Self::now();
            let took = after.ns.saturating_sub(before);
            if best.is_none_or(|(_, narrowest, _)| took < narrowest) {
                best = Some((guest, took, after));
            }
        }
        let (counter, took, after) = best?;
        let span_ticks = after.counter.checked_sub(self.counter).filter(|&ticks| ticks > 0)?;
        Some(GuestCounter {
            at_ns: after.ns - took / 2,
            counter,
            error_ns: took.div_ceil(2),
            span_ns: after.ns.saturating_sub(self.ns),
            span_ticks,
            nominal_khz,
        })
    }
}
