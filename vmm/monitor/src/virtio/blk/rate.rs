//! Limits of a disk's rates: pure, with the time as an argument.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::sys::at_most;

const SECOND: u128 = 1_000_000_000;
/// How far ahead of its rate a disk may be: what is not used is saved up for so long.
const BURST: u64 = 100_000_000;

/// A bucket of tokens: so many a second, those of a tenth of a second at most saved up. A request
/// is let through when the bucket is not in debt, whatever it costs, so that no request is too
/// large; what follows pays for it.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    per_second: NonZeroU64,
    /// Nanoseconds, on the caller's clock, at which all that was taken has been paid for.
    paid_at: u64,
}

impl Bucket {
    pub(super) fn new(per_second: NonZeroU64) -> Self {
        Self { per_second, paid_at: 0 }
    }

    /// How long it is until something may be taken; zero: now.
    fn wait(&self, now: u64) -> Duration {
        Duration::from_nanos(self.paid_at.saturating_sub(now).saturating_sub(BURST))
    }

    fn take(&mut self, now: u64, tokens: u64) {
        let costs = u128::from(tokens) * SECOND / u128::from(self.per_second.get());
        self.paid_at = self.paid_at.max(now).saturating_add(at_most(costs, u64::MAX));
    }
}

/// The limits of a disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Limiter {
    pub(super) bytes: Option<Bucket>,
    pub(super) operations: Option<Bucket>,
    /// The first request was told to wait.
    pub(super) held: bool,
}

impl Limiter {
    /// Whether there is any limit.
    pub(super) fn limits(&self) -> bool {
        self.bytes.is_some() || self.operations.is_some()
    }

    /// Takes what one request of `bytes` costs, or says how long it must wait.
    pub(super) fn take(&mut self, now: u64, bytes: u64) -> Result<(), Duration> {
        let buckets = [&self.bytes, &self.operations];
        let wait = buckets.into_iter().flatten().map(|bucket| bucket.wait(now)).max().unwrap_or_default();
        if wait > Duration::ZERO {
            return Err(wait);
        }
        for (bucket, tokens) in [(&mut self.bytes, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.take(now, tokens);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(bytes: u64, operations: u64) -> Limiter {
        let bucket = |rate| NonZeroU64::new(rate).map(Bucket::new);
        Limiter { bytes: bucket(bytes), operations: bucket(operations), held: false }
    }

    /// Requests of `bytes` that get through in `seconds`, when each waits as long as it is told.
    fn served(limiter: &mut Limiter, bytes: u64, seconds: u64) -> u64 {
        // The clock is no longer at its beginning.
        let start = 77_000_000_000;
        let (mut now, mut count) = (start, 0);
        while now < start + seconds * 1_000_000_000 {
            match limiter.take(now, bytes) {
                Ok(()) => count += 1,
                Err(wait) => now += u64::try_from(wait.as_nanos()).unwrap(),
            }
        }
        count
    }

    #[test]
    fn rates_are_kept_in_the_long_run_and_a_tenth_of_a_second_at_once() {
        let mib = 1 << 20;
        for (bytes, operations, each, expected) in [
            // A tenth of a second's worth more than ten seconds', and the one that makes the debt.
            (10 * mib, 0, mib, 101),
            (0, 50, mib, 505),
            (10 * mib, 50, mib, 101),
            (100 * mib, 50, mib, 505),
            // One request is more than a second may have.
            (mib, 0, 4 * mib, 3),
        ] {
            let count = served(&mut limiter(bytes, operations), each, 10);
            assert!(count.abs_diff(expected) <= 1, "{bytes} {operations} {each}: {count}");
        }
    }

    #[test]
    fn what_is_not_used_is_not_saved_up_for_long_and_extremes_are_no_bugs() {
        let mut one = limiter(0, 10);
        assert_eq!(one.take(0, 0), Ok(()));
        // An hour later two come through at once, and not a thousand.
        let hour = 3_600_000_000_000;
        assert_eq!([one.take(hour, 0), one.take(hour, 0)], [Ok(()), Ok(())]);
        assert_eq!(one.take(hour, 0), Err(Duration::from_millis(100)));
        assert_eq!(one.take(hour + 100_000_000, 0), Ok(()));
        // A clock that goes back, and amounts that do not fit.
        assert!(one.take(0, 0).is_err());
        let mut slow = limiter(1, 0);
        assert_eq!(slow.take(0, u64::MAX), Ok(()));
        assert!(slow.take(u64::MAX - 1, 1).is_ok() || slow.take(0, 1).is_err());
        assert!(!Limiter::default().limits() && slow.limits());
        assert_eq!(Limiter::default().take(0, u64::MAX), Ok(()));
    }
}
