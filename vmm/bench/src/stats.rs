//! Statistics of samples: quantiles, confidence intervals of the median, and comparison of two
//! sets. The results are deterministic.

use nelly_vmm::sys::fits;
use serde::{Deserialize, Serialize};

/// Number of resamples for a confidence interval.
const RESAMPLES: usize = 2_000;
/// Number of permutations for a p-value.
const PERMUTATIONS: u32 = 20_000;
/// Minimum number of samples in each set for a verdict: with five in each, only 2 of 252 orders are
/// as extreme as complete separation.
pub const LEAST: usize = 5;
/// A change is significant if its p-value is below this.
pub const BELIEVED: f64 = 0.01;
/// The seed of all resampling, so that results are reproducible.
pub const SEED: u64 = 0x6e65_6c6c_7921;

/// Pseudo-random numbers (`SplitMix64`), which are sufficient for resampling and the same
/// everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A random index below `count`, which must not be zero. The bias of the multiplication is
    /// below 2^-32.
    fn below(&mut self, count: usize) -> usize {
        let high = (u128::from(self.next()) * count as u128) >> 64;
        usize::try_from(high).expect("the high half of a product with count is below count")
    }
}

/// Quantiles of a set of samples, in the unit of the samples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Number of samples.
    pub count: usize,
    /// The minimum.
    pub min: u64,
    /// The median.
    pub p50: u64,
    /// The 90th percentile.
    pub p90: u64,
    /// The 99th percentile; with fewer than a hundred samples it is close to the maximum.
    pub p99: u64,
    /// The maximum.
    pub max: u64,
    /// Lower bound of the 95 % confidence interval of the median (bootstrap).
    pub p50_low: u64,
    /// Its upper bound.
    pub p50_high: u64,
}

impl Summary {
    /// The quantiles of samples in any order; `None` if there are none.
    #[must_use]
    pub fn of(samples: &[u64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (p50_low, p50_high) = median_interval(&sorted, SEED);
        Some(Self {
            count: sorted.len(),
            min,
            p50: quantile(&sorted, 500),
            p90: quantile(&sorted, 900),
            p99: quantile(&sorted, 990),
            max,
            p50_low,
            p50_high,
        })
    }
}

/// The quantile at `permille` (0 to 1000) of sorted samples, linearly interpolated; 0 if there are
/// none.
#[must_use]
pub fn quantile(sorted: &[u64], permille: usize) -> u64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0 };
    let place = last * permille.min(1000);
    let low = sorted[place / 1000];
    let high = sorted[(place / 1000 + 1).min(last)];
    let part = u128::from(high - low) * (place % 1000) as u128 / 1000;
    low + u64::try_from(part).expect("a part of the distance between two samples is not more than it")
}

/// The median of samples in any order; 0 if there are none.
#[must_use]
pub fn median(samples: &[u64]) -> u64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    quantile(&sorted, 500)
}

/// Fills `into` with `from.len()` samples drawn from `from`, sorted, and returns their median.
fn resampled(from: &[u64], into: &mut Vec<u64>, random: &mut Random) -> u64 {
    into.clear();
    into.extend((0..from.len()).map(|_| from[random.below(from.len())]));
    into.sort_unstable();
    quantile(into, 500)
}

/// The 95 % confidence interval of the median (percentile bootstrap).
fn median_interval(samples: &[u64], seed: u64) -> (u64, u64) {
    let (mut random, mut scratch) = (Random(seed), Vec::with_capacity(samples.len()));
    let mut medians: Vec<u64> =
        (0..RESAMPLES).map(|_| resampled(samples, &mut scratch, &mut random)).collect();
    medians.sort_unstable();
    (quantile(&medians, 25), quantile(&medians, 975))
}

/// The 99 % confidence interval of the difference of the medians, `b - a`.
fn difference_interval(a: &[u64], b: &[u64], seed: u64) -> (i64, i64) {
    let (mut random, mut scratch) = (Random(seed), Vec::new());
    let mut differences: Vec<i64> = (0..RESAMPLES)
        .map(|_| {
            let from = resampled(a, &mut scratch, &mut random);
            minus(resampled(b, &mut scratch, &mut random), from)
        })
        .collect();
    differences.sort_unstable();
    (differences[RESAMPLES / 200], differences[RESAMPLES - 1 - RESAMPLES / 200])
}

fn minus(a: u64, b: u64) -> i64 {
    let difference = i128::from(a) - i128::from(b);
    fits(difference.clamp(i64::MIN.into(), i64::MAX.into()), "it was clamped to 64 bits")
}

/// The p-value of the difference of two sets: a permutation test of the sum of ranks, in which
/// equal samples share their ranks. (A test of the medians is useless if the samples of each set
/// are close together, because nearly all permutations have the same two medians.)
fn chance(a: &[u64], b: &[u64], seed: u64) -> f64 {
    let mut all: Vec<u64> = a.iter().chain(b).copied().collect();
    all.sort_unstable();
    // Twice the rank, so that shared ranks are integers.
    let rank = |value: &u64| {
        all.partition_point(|other| other < value) + all.partition_point(|other| other <= value) + 1
    };
    let mut ranks: Vec<usize> = a.iter().chain(b).map(rank).collect();
    let expected = (ranks.len() + 1) * a.len();
    let distance = |ranks: &[usize]| ranks[..a.len()].iter().sum::<usize>().abs_diff(expected);
    let seen = distance(&ranks);
    let mut random = Random(seed);
    let mut as_far = 1u32;
    for _ in 0..PERMUTATIONS {
        for place in 0..a.len() {
            let other = place + random.below(ranks.len() - place);
            ranks.swap(place, other);
        }
        as_far += u32::from(distance(&ranks) >= seen);
    }
    f64::from(as_far) / f64::from(PERMUTATIONS + 1)
}

/// The result of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Fewer than [`LEAST`] samples in one set.
    TooFew,
    /// There is no difference that is significant and large enough.
    Same,
    /// The second set is smaller.
    Less,
    /// The second set is larger.
    More,
}

/// The comparison of two sets of samples.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// The median of the first set.
    pub before: u64,
    /// The median of the second set.
    pub after: u64,
    /// Lower bound of the 99 % interval of the difference of the medians, second minus first.
    pub low: i64,
    /// Its upper bound.
    pub high: i64,
    /// The p-value, 0 to 1.
    pub chance: f64,
    /// The verdict.
    pub verdict: Verdict,
}

impl Change {
    /// Compares `after` with `before`. A change is reported if its p-value is below [`BELIEVED`],
    /// the interval of the difference of the medians does not contain zero, and the difference is
    /// at least `least_permille` of the first median. `None` without samples.
    #[must_use]
    pub fn between(before: &[u64], after: &[u64], least_permille: u64) -> Option<Self> {
        if before.is_empty() || after.is_empty() {
            return None;
        }
        let (from, to) = (median(before), median(after));
        let (low, high) = difference_interval(before, after, SEED);
        let chance = chance(before, after, SEED);
        let large = u128::from(from.abs_diff(to)) * 1000 >= u128::from(from) * u128::from(least_permille);
        let verdict = if before.len().min(after.len()) < LEAST {
            Verdict::TooFew
        } else if chance >= BELIEVED || !large || from == to {
            Verdict::Same
        } else if low > 0 {
            Verdict::More
        } else if high < 0 {
            Verdict::Less
        } else {
            Verdict::Same
        };
        Some(Self { before: from, after: to, low, high, chance, verdict })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantiles_by_a_table() {
        let table: &[(&[u64], usize, u64)] = &[
            (&[], 500, 0),
            (&[7], 0, 7),
            (&[7], 990, 7),
            (&[1, 2], 500, 1),
            (&[10, 20], 500, 15),
            (&[1, 2, 3], 500, 2),
            (&[0, 10, 20, 30, 40], 900, 36),
            (&[0, 10, 20, 30, 40], 1000, 40),
            (&[0, u64::MAX], 500, u64::MAX / 2),
        ];
        for (samples, permille, wanted) in table {
            assert_eq!(quantile(samples, *permille), *wanted, "{samples:?} {permille}");
        }
        assert_eq!(Summary::of(&[]), None);
        let one = Summary::of(&[5]).unwrap();
        assert_eq!((one.min, one.p50, one.p99, one.max, one.p50_low, one.p50_high), (5, 5, 5, 5, 5, 5));
    }

    /// Numbers round `middle`, the same each time.
    fn noisy(count: usize, middle: u64, spread: usize, seed: u64) -> Vec<u64> {
        let mut random = Random(seed);
        (0..count).map(|_| middle + random.below(spread + 1) as u64).collect()
    }

    #[test]
    fn the_interval_holds_the_median_and_narrows() {
        let few = Summary::of(&noisy(10, 1000, 200, 1)).unwrap();
        let many = Summary::of(&noisy(1000, 1000, 200, 1)).unwrap();
        assert!(few.p50_low <= few.p50 && few.p50 <= few.p50_high);
        assert!(many.p50_high - many.p50_low < few.p50_high - few.p50_low);
        assert_eq!(few, Summary::of(&noisy(10, 1000, 200, 1)).unwrap());
    }

    #[test]
    fn verdicts_by_a_table() {
        let verdict = |a: &[u64], b: &[u64]| Change::between(a, b, 50).unwrap().verdict;
        let same = [40, 40, 40, 40, 40];
        // Virtual time: the same to the nanosecond, or 10 ms more.
        assert_eq!(verdict(&same, &same), Verdict::Same);
        assert_eq!(verdict(&same, &[50; 5]), Verdict::More);
        assert_eq!(verdict(&[50; 5], &same), Verdict::Less);
        assert_eq!(verdict(&same, &[50; 4]), Verdict::TooFew);
        // Sure, but smaller than what is asked for.
        assert_eq!(verdict(&[1000; 20], &[1049; 20]), Verdict::Same);
        assert_eq!(verdict(&[1000; 20], &[1050; 20]), Verdict::More);
        assert_eq!(verdict(&[0; 5], &[0; 5]), Verdict::Same);
        assert_eq!(Change::between(&[], &[1], 0), None);
    }

    #[test]
    fn a_shift_is_seen_through_noise_and_noise_alone_is_not() {
        let mut flagged = 0;
        for seed in 0..40 {
            let (a, b) = (noisy(20, 40_000, 8_000, seed), noisy(20, 40_000, 8_000, seed + 1000));
            flagged += u32::from(Change::between(&a, &b, 20).unwrap().verdict != Verdict::Same);
            let slower: Vec<u64> = b.iter().map(|value| value + 10_000).collect();
            assert_eq!(Change::between(&a, &slower, 20).unwrap().verdict, Verdict::More);
        }
        assert!(flagged <= 1, "{flagged} of 40 pairs of one source were flagged");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn quantiles_are_in_order(samples in proptest::collection::vec(any::<u64>(), 1..60)) {
            let s = Summary::of(&samples).unwrap();
            prop_assert!(s.min <= s.p50 && s.p50 <= s.p90 && s.p90 <= s.p99 && s.p99 <= s.max);
            prop_assert!(s.min <= s.p50_low && s.p50_low <= s.p50_high && s.p50_high <= s.max);
        }

        #[test]
        fn a_comparison_turned_round_says_the_opposite(
            a in proptest::collection::vec(0u64..1000, 5..20), b in proptest::collection::vec(0u64..1000, 5..20)
        ) {
            let (there, back) = (Change::between(&a, &b, 0).unwrap(), Change::between(&b, &a, 0).unwrap());
            prop_assert!((0.0..=1.0).contains(&there.chance));
            prop_assert_eq!(there.before, back.after);
            // Resampling is by the same seed but another order: only opposite verdicts would be a
            // contradiction.
            prop_assert!(!(there.verdict == Verdict::More && back.verdict == Verdict::More));
            prop_assert_eq!(Change::between(&a, &a, 0).unwrap().verdict, Verdict::Same);
        }
    }
}
