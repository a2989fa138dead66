//! The end of the guest.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::process::{ManagedProcess, ProcessPhase};
use super::{GuestState, ShutdownRequest};
use crate::registry::ProcessKey;

impl GuestState {
    /// Asks for the machine's end.
    pub(in crate::service) fn request_end(&self, end: ShutdownRequest) {
        self.ending.store(true, Ordering::Relaxed);
        // The receiver lives as long as the agent; in a test it may be gone, and then nothing ends.
        let _ = self.end.send(end);
    }

    /// SIGTERM to every container's first process, `grace`, SIGKILL to the rest, and at most as
    /// long again.
    pub async fn stop_containers(&self, grace: Duration) {
        let everything = |signal: i32| {
            let mut registry = self.registry();
            let mut alive = Vec::new();
            for id in registry.ids() {
                if self.no_init(&ProcessKey::new(&id, "")).is_err() {
                    continue;
                }
                let Ok(process) = registry.process(&ProcessKey::new(&id, "")).cloned() else { continue };
                if *process.phase.borrow() != ProcessPhase::Alive {
                    continue;
                }
                if signal == libc::SIGKILL
                    && let Ok(Some(cgroup)) = registry.data(&id).map(|data| data.cgroup.clone())
                {
                    // The signal by pidfd below does it, too, where there is no cgroup.kill.
                    let _ = cgroup.kill();
                }
                let _ = process.signal(signal);
                alive.push(process);
            }
            alive
        };
        let all_ended = |processes: Vec<Arc<ManagedProcess>>| async move {
            for process in processes {
                process.ended().await;
            }
        };
        let alive = everything(libc::SIGTERM);
        if tokio::time::timeout(grace, all_ended(alive)).await.is_err() {
            let alive = everything(libc::SIGKILL);
            // A process that even SIGKILL cannot end hangs in the kernel: the machine ends without
            // it.
            let _ = tokio::time::timeout(Duration::from_secs(2), all_ended(alive)).await;
        }
    }
}
