//! Whether a container is started again, and how long that waits: exponentially longer each time,
//! until a container ran long enough to be in order.

use std::time::Duration;

use crate::state::record::RestartPolicy;

/// The first wait.
const FIRST: Duration = Duration::from_millis(100);

/// The longest wait.
const LONGEST: Duration = Duration::from_mins(1);

/// A container that ran so long is in order: its next restart waits as the first.
const IN_ORDER: Duration = Duration::from_secs(10);

/// The wait before the restart that follows `restarts` others in a row.
#[must_use]
pub fn wait(restarts: u32) -> Duration {
    FIRST.saturating_mul(1 << restarts.min(20)).min(LONGEST)
}

/// How many restarts count for the next wait, after a container ran for `ran`.
#[must_use]
pub fn in_a_row(restarts: u32, ran: Duration) -> u32 {
    if ran >= IN_ORDER { 0 } else { restarts }
}

/// Whether a policy wants another start after an exit with `code`, when `restarts` in a row were
/// made before.
#[must_use]
pub fn again(policy: RestartPolicy, code: u8, restarts: u32) -> bool {
    match policy {
        RestartPolicy::No => false,
        RestartPolicy::OnFailure(most) => code != 0 && (most == 0 || restarts < most),
        RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_those_of_docker() {
        use RestartPolicy::{Always, No, OnFailure, UnlessStopped};
        for (policy, code, restarts, expected) in [
            (No, 1, 0, false),
            (OnFailure(0), 0, 0, false),
            (OnFailure(0), 1, 99, true),
            (OnFailure(2), 1, 1, true),
            (OnFailure(2), 1, 2, false),
            (Always, 0, 99, true),
            (UnlessStopped, 0, 99, true),
        ] {
            assert_eq!(again(policy, code, restarts), expected, "{policy} {code} {restarts}");
        }
    }

    #[test]
    fn waits_double_up_to_a_minute_and_begin_anew_after_a_good_run() {
        let waits: Vec<_> = (0..12).map(|restarts| wait(restarts).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000]);
        assert_eq!(wait(u32::MAX), LONGEST);
        assert_eq!(in_a_row(7, Duration::from_secs(9)), 7);
        assert_eq!(in_a_row(7, IN_ORDER), 0);
    }
}
