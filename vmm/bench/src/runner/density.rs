//! Machines side by side until a limit: what one more of them costs.

use super::boot::record;
use super::sandbox::{SandboxSetup, block_on, shut_down};
use super::{Progress, RunnerError};
use crate::host::Environment;
use crate::memory_use::{self, MemoryUse, available_bytes};
use crate::plan::{DensityLimit, Rounds, SandboxPlan};
use crate::record::{DensityStep, Record};
use crate::sys;

use std::time::Duration;

use nelly_sandbox::instance::Sandbox;

/// Between a machine's answer and its weighing: what it does at its start is over then.
const SETTLE: Duration = Duration::from_millis(200);
/// What the host keeps beside the next machine's guest memory.
const RESERVE: u64 = 128 << 20;

/// Starts machines until `limit`, weighs each, and ends them all.
///
/// # Errors
/// A machine did not start, the host failed, or a signal came: all of them have ended then.
pub fn density(
    plan: &SandboxPlan,
    limit: &DensityLimit,
    environment: Environment,
    progress: Progress<'_>,
) -> Result<Record, RunnerError> {
    let setup = SandboxSetup::new(plan)?.shown();
    let rounds = Rounds { counted: limit.count, warm_up: 0, limit: Duration::MAX };
    let mut record = record("density", "ready", &rounds, setup.guest(), environment);
    let guest_bytes = plan.memory.get();
    let (mut steps, mut stopped) = (Vec::<DensityStep>::new(), None);
    block_on(async {
        // Dropped, and with it ended, on every way out.
        let mut sandboxes: Vec<Sandbox> = Vec::new();
        for machines in 1..=limit.count {
            let before = steps.last().map_or(0, |step| step.all_pss_bytes);
            if available_bytes() < guest_bytes + RESERVE {
                stopped = Some("the host has too little free memory for another one".to_owned());
                break;
            }
            progress(&format!("machine {machines} of {}", limit.count));
            let (start_ns, sandbox) = setup.start(&format!("bench-{machines}")).await?;
            let start_ns = sys::now_ns() - start_ns;
            sandboxes.push(sandbox);
            tokio::time::sleep(SETTLE).await;
            let (held, all_pss_bytes) = measure_memory(&sandboxes, guest_bytes)?;
            steps.push(DensityStep {
                machines,
                start_ns,
                held,
                all_pss_bytes,
                marginal_pss_bytes: all_pss_bytes
                    .checked_signed_diff(before)
                    .expect("a host has less than 2^63 bytes of memory"),
                available_bytes: available_bytes(),
            });
            if limit.memory_bytes.is_some_and(|most| all_pss_bytes >= most) {
                stopped = Some("the machines use as much memory as --memory-limit allows".to_owned());
                break;
            }
        }
        progress(&format!("ending {} machines", sandboxes.len()));
        for sandbox in &sandboxes {
            shut_down(sandbox).await;
        }
        Ok(())
    })?;
    record.steps = steps;
    if let Some(why) = stopped {
        let count = record.steps.len();
        record.warnings.push(format!("stopped after {count} of {} machines: {why}", limit.count));
    }
    record.finish();
    Ok(record)
}

/// What the newest holds, and all of them together.
fn measure_memory(sandboxes: &[Sandbox], guest_bytes: u64) -> Result<(MemoryUse, u64), RunnerError> {
    let mut all = 0;
    let mut newest = MemoryUse::default();
    for sandbox in sandboxes {
        let Some(id) = sandbox.machine().process_id() else { continue };
        newest = memory_use::measure(id, guest_bytes)
            .map_err(RunnerError::host("cannot measure the memory use of a machine"))?;
        all += newest.pss_bytes;
    }
    Ok((newest, all))
}
