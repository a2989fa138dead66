//! Readings of the counter that a guest tells the time by, beside the host's clock.

use super::{GuestCounter, now_ns};

/// How often the guest's counter is read for one answer.
const READINGS: u32 = 5;

/// The host's own counter and its clock at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    ns: u64,
    counter: u64,
}

impl Moment {
    /// Now, with what the host's counter shows.
    pub fn now(host: impl FnOnce() -> u64) -> Self {
        let counter = host();
        Self { ns: now_ns(), counter }
    }

    /// The guest's counter now, as `read` reads it; `None` if it cannot be read. The host's runs at
    /// the same speed, which is measured since this moment.
    pub fn counter(
        self,
        nominal_khz: u64,
        host: impl Fn() -> u64,
        read: impl Fn() -> Option<u64>,
    ) -> Option<GuestCounter> {
        // The narrowest of a few: the host may take the processor away in between.
        let mut best: Option<(u64, u64, Self)> = None;
        for _ in 0..READINGS {
            let before = now_ns();
            let guest = read()?;
            let after = Self::now(&host);
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
