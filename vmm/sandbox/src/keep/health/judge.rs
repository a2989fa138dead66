//! What the probes of a container say of its health, and when the next one is due. As docker's
//! rules; no clock, no process.

use std::collections::VecDeque;
use std::time::Duration;

use crate::spec::HealthCheck;
use crate::state::Timestamp;
use crate::state::record::HealthStatus;

/// How many results are held.
const HELD: usize = 5;

/// Bytes of the output of a result that are held, the first of them. A guest's sentence about a
/// probe that did not start may be of any length.
const OUTPUT_HELD: usize = 4 << 10;

/// How a probe ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// When it began.
    pub started: Timestamp,
    /// When it had ended, or was given up.
    pub ended: Timestamp,
    /// Its exit code; `None` if it was killed because its time was over, or could not be asked.
    pub code: Option<u8>,
    /// The last of what it wrote, or what went wrong; 4 KiB at most are held. The container's
    /// bytes: not fit for a terminal.
    pub output: Vec<u8>,
}

/// The health of a container since its start.
#[derive(Clone, Debug)]
pub struct Judge {
    check: HealthCheck,
    status: HealthStatus,
    failures: u32,
    results: VecDeque<Probed>,
}

impl Judge {
    /// Of a container that has just started.
    #[must_use]
    pub fn new(check: HealthCheck) -> Self {
        Self { check, status: HealthStatus::Starting, failures: 0, results: VecDeque::new() }
    }

    /// What is known now.
    #[must_use]
    pub fn status(&self) -> HealthStatus {
        self.status
    }

    /// How many probes failed in a row, without those that do not count.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The latest results, the oldest first.
    #[must_use]
    pub fn results(&self) -> impl ExactSizeIterator<Item = &Probed> {
        self.results.iter()
    }

    /// How long to wait for the next probe, at a moment so long after the container's start.
    #[must_use]
    pub fn wait(&self, since_start: Duration) -> Duration {
        let starts = self.status == HealthStatus::Starting && since_start < self.check.start_period();
        if starts { self.check.start_interval() } else { self.check.interval() }
    }

    /// Takes the result of a probe that began so long after the container's start. Returns the
    /// status if it is another now.
    pub fn take(&mut self, mut probed: Probed, since_start: Duration) -> Option<HealthStatus> {
        let before = self.status;
        // Its beginning says what went wrong, where that is said.
        probed.output.truncate(OUTPUT_HELD);
        probed.output.shrink_to_fit();
        if probed.code == Some(0) {
            self.failures = 0;
            self.status = HealthStatus::Healthy;
        } else if before != HealthStatus::Starting || since_start >= self.check.start_period() {
            self.failures = self.failures.saturating_add(1);
            if self.failures >= self.check.retries {
                self.status = HealthStatus::Unhealthy;
            }
        }
        if self.results.len() == HELD {
            self.results.pop_front();
        }
        self.results.push_back(probed);
        (self.status != before).then_some(self.status)
    }
}

#[cfg(test)]
mod tests {
    use HealthStatus::{Healthy, Starting, Unhealthy};

    use super::*;

    fn check(start_period: u64, retries: u32) -> HealthCheck {
        HealthCheck {
            command: vec!["x".into()],
            interval_ms: 30_000,
            timeout_ms: 1000,
            start_period_ms: start_period * 1000,
            start_interval_ms: 2000,
            retries,
        }
    }

    fn probed(code: Option<u8>) -> Probed {
        let now = Timestamp::default();
        Probed { started: now, ended: now, code, output: Vec::new() }
    }

    #[test]
    fn results_and_their_times_make_the_status() {
        let (good, bad, late) = (Some(0), Some(1), None);
        // Start period, retries; and of each probe its second, its code, the status after it,
        // whether that is new, the failures, and the seconds until the next one.
        type Step = (u64, Option<u8>, HealthStatus, bool, u32, u64);
        let table: [(u64, u32, &[Step]); 7] = [
            (0, 3, &[(30, good, Healthy, true, 0, 30), (60, good, Healthy, false, 0, 30)]),
            (
                0,
                3,
                &[
                    (30, bad, Starting, false, 1, 30),
                    (60, late, Starting, false, 2, 30),
                    (90, bad, Unhealthy, true, 3, 30),
                    (120, bad, Unhealthy, false, 4, 30),
                    (150, good, Healthy, true, 0, 30),
                ],
            ),
            // One that is healthy stays so until the last failure.
            (
                0,
                2,
                &[
                    (30, good, Healthy, true, 0, 30),
                    (60, bad, Healthy, false, 1, 30),
                    (90, good, Healthy, false, 0, 30),
                    (120, bad, Healthy, false, 1, 30),
                    (150, bad, Unhealthy, true, 2, 30),
                ],
            ),
            // Failures of the start period do not count, and probes are more frequent in it.
            (
                10,
                1,
                &[
                    (2, bad, Starting, false, 0, 2),
                    (9, late, Starting, false, 0, 2),
                    (10, bad, Unhealthy, true, 1, 30),
                ],
            ),
            // After a success they count, and the interval is the usual one.
            (60, 1, &[(2, good, Healthy, true, 0, 30), (32, bad, Unhealthy, true, 1, 30)]),
            (60, 2, &[(2, good, Healthy, true, 0, 30), (32, bad, Healthy, false, 1, 30)]),
            // 127 and 126 are failures as any other.
            (0, 2, &[(30, Some(127), Starting, false, 1, 30), (60, Some(126), Unhealthy, true, 2, 30)]),
        ];
        for (index, (start_period, retries, steps)) in table.into_iter().enumerate() {
            let mut judge = Judge::new(check(start_period, retries));
            let first = if start_period > 0 { 2 } else { 30 };
            assert_eq!(judge.wait(Duration::ZERO), Duration::from_secs(first), "{index}");
            for (second, code, status, new, failures, wait) in steps.iter().copied() {
                let at = Duration::from_secs(second);
                assert_eq!(judge.take(probed(code), at), new.then_some(status), "{index} {second}");
                assert_eq!((judge.status(), judge.failures()), (status, failures), "{index} {second}");
                assert_eq!(judge.wait(at), Duration::from_secs(wait), "{index} {second}");
            }
        }
    }

    #[test]
    fn no_result_is_held_that_is_longer_than_four_kibibytes() {
        let mut judge = Judge::new(check(0, 1));
        let long = Probed { output: vec![b'x'; 4 << 20], ..probed(None) };
        judge.take(long, Duration::ZERO);
        let held = judge.results().next().unwrap();
        assert_eq!(held.output, vec![b'x'; 4096]);
        assert_eq!(held.output.capacity(), 4096);
    }

    #[test]
    fn a_start_period_that_is_over_changes_the_interval() {
        let judge = Judge::new(check(10, 3));
        let waits = [0, 9, 10, 11].map(|second| judge.wait(Duration::from_secs(second)).as_secs());
        assert_eq!(waits, [2, 2, 30, 30]);
    }

    #[test]
    fn the_latest_five_results_are_held_and_failures_do_not_overflow() {
        let mut judge = Judge::new(check(0, 1));
        for code in 1..=9 {
            judge.take(probed(Some(code)), Duration::ZERO);
        }
        let codes: Vec<_> = judge.results().map(|one| one.code.unwrap()).collect();
        assert_eq!((codes, judge.failures()), (vec![5, 6, 7, 8, 9], 9));
        judge.failures = u32::MAX;
        judge.take(probed(None), Duration::ZERO);
        assert_eq!(judge.failures(), u32::MAX);
    }
}
