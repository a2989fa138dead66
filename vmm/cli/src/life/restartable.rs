//! Which sandboxes `nelly start --restartable` starts: after a reboot of the host, nobody else
//! does.

use nelly_sandbox::state::record::RestartPolicy;
use nelly_sandbox::state::{Condition, SandboxState, Status};

/// Whether the policy of a sandbox in this condition wants it started. What was never started is
/// not, and what lives is its keeper's.
pub(super) fn wanted(policy: RestartPolicy, condition: Condition, state: &SandboxState) -> bool {
    let ended = matches!(condition, Condition::Unclean | Condition::Status(Status::Exited));
    ended
        && match policy {
            RestartPolicy::No => false,
            // As docker has it: also what was stopped before.
            RestartPolicy::Always => true,
            RestartPolicy::UnlessStopped => !state.stopped_by_command,
            // One that ended with a failure while its keeper lived has had its restarts.
            RestartPolicy::OnFailure(_) => condition == Condition::Unclean && !state.stopped_by_command,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_wants_what_it_would_have_started() {
        let exited = Condition::Status(Status::Exited);
        for (policy, condition, stopped, expected) in [
            (RestartPolicy::No, Condition::Unclean, false, false),
            (RestartPolicy::Always, Condition::Unclean, false, true),
            (RestartPolicy::Always, exited, true, true),
            (RestartPolicy::Always, Condition::Status(Status::Created), false, false),
            (RestartPolicy::Always, Condition::Status(Status::Running), false, false),
            (RestartPolicy::UnlessStopped, Condition::Unclean, false, true),
            (RestartPolicy::UnlessStopped, exited, false, true),
            (RestartPolicy::UnlessStopped, exited, true, false),
            (RestartPolicy::OnFailure(3), Condition::Unclean, false, true),
            (RestartPolicy::OnFailure(3), Condition::Unclean, true, false),
            (RestartPolicy::OnFailure(3), exited, false, false),
        ] {
            let state = SandboxState { stopped_by_command: stopped, ..SandboxState::created() };
            assert_eq!(wanted(policy, condition, &state), expected, "{policy} {condition:?} {stopped}");
        }
    }
}
