//! The end of processes: what the kernel tells of children, and what is cleaned up then.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::process::{ProcessPhase, drain};
use super::{ContainerData, GuestState};
use crate::registry::{ProcessExit, Status};
use crate::stdio::lock;
use crate::sys::{self, News, Reaped};

/// How long the mounts and the network of a container outlive it. The kernel takes them apart while
/// its last process ends, unless somebody else holds them; nobody should wait for that, and a
/// machine of one container ends before.
const LINGER: Duration = Duration::from_millis(50);

/// SIGPIPE.
const BROKEN_PIPE: u8 = 13;

impl GuestState {
    /// To be called for everything that there is to hear of children.
    pub fn on_news(self: &Arc<Self>, news: News) {
        match news {
            News::Ended(reaped) => self.on_reaped(reaped),
            News::BrokenPipe(thread) => {
                if !self.end_by_broken_pipe(thread) {
                    // It ignores the signal or has a handler for it; or it is gone.
                    let _ = sys::untrace(thread, libc::SIGPIPE);
                }
            }
        }
    }

    /// Ends a container's first process as its SIGPIPE would, were it any other process, if that is
    /// at its default action.
    fn end_by_broken_pipe(&self, thread: i32) -> bool {
        let Some(pid) =
            dies_of_sigpipe(&fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default())
        else {
            return false;
        };
        let process = {
            let registry = self.registry();
            let key = registry.owner(pid).cloned();
            key.and_then(|key| registry.process(&key).ok().cloned())
        };
        let Some(process) = process else { return false };
        process.broken_pipe.store(true, Ordering::Relaxed);
        process.signal(libc::SIGKILL).is_ok()
    }

    fn on_reaped(self: &Arc<Self>, mut reaped: Reaped) {
        let mut registry = self.registry();
        let Some(key) = registry.reaped(reaped.pid) else { return };
        let Ok(process) = registry.process(&key).cloned() else { return };
        let Ok(data) = registry.data(&key.container) else { return };
        if process.broken_pipe.load(Ordering::Relaxed) && i32::from(reaped.signal) == libc::SIGKILL {
            reaped.signal = BROKEN_PIPE;
        }
        let oom_kills = data.cgroup.as_ref().map_or(0, |cgroup| cgroup.oom_kills());
        if let (Some(cgroup), Some(exec)) = (&data.cgroup, &process.cgroup) {
            cgroup.remove_exec(exec.clone());
        }
        let signal = u32::from(reaped.signal);
        let code = if signal == 0 { u32::from(reaped.code) } else { 128 + signal };
        let killed = code == 128 + libc::SIGKILL.cast_unsigned();
        let exit = ProcessExit {
            code,
            signal,
            oom_killed: killed && oom_kills > process.oom_kills_before,
            at_ns: sys::boot_time_ns(),
        };
        let mut namespaces = Vec::new();
        if key.exec.is_none() {
            data.stage = None;
            namespaces = std::mem::take(&mut data.namespaces);
            if data.has_disk {
                lock(&self.with_disks).append(&mut namespaces);
            }
            if data.shares_pids
                && let Some(cgroup) = &data.cgroup
            {
                // Without cgroup.kill the processes live on, as they would in any shared namespace.
                let _ = cgroup.kill();
            }
            registry.stopped(&key.container, exit);
        }
        // An exec that the container's end killed may be the one that leaves the cgroup empty.
        let status = registry.summary(&key.container).map(|summary| summary.status);
        if status == Ok(Status::Stopped)
            && let Ok(data) = registry.data(&key.container)
        {
            tidy(data);
        }
        drop(registry);
        lock(&process.pidfd).take();
        process.phase.send_replace(ProcessPhase::Ended(exit));
        process.exited.send_replace(true);
        let guest = self.clone();
        tokio::spawn(async move {
            drain(&process).await;
            // The record first: whoever is woken finds it.
            guest.registry().exec_ended(&key, |known| Arc::ptr_eq(known, &process), exit);
            process.phase.send_replace(ProcessPhase::Finished(exit));
            drop((process, guest));
            if !namespaces.is_empty() {
                tokio::time::sleep(LINGER).await;
            }
        });
    }
}

/// Removes a stopped container's cgroup once it is empty, and keeps its last figures.
fn tidy(data: &mut ContainerData) {
    if let Some(cgroup) = &data.cgroup {
        data.last_figures = cgroup.stats();
        if cgroup.remove() {
            data.cgroup = None;
        }
    }
}

/// The process of a thread, by its `/proc/TID/status`, if SIGPIPE is at its default action there.
fn dies_of_sigpipe(status: &str) -> Option<i32> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let minds = |name: &str| {
        let set = field(name).and_then(|set| u64::from_str_radix(set, 16).ok());
        set.is_none_or(|set| set & 1 << (BROKEN_PIPE - 1) != 0)
    };
    if minds("SigIgn:") || minds("SigCgt:") { None } else { field("Tgid:")?.parse().ok() }
}
