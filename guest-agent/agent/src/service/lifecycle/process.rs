//! One process: what the agent holds of it from its making to the end of its output.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::ServiceError;
use crate::cgroup::ExecCgroup;
use crate::registry::ProcessExit;
use crate::spawn::launch::Stage;
use crate::stdio::{HostStreams, Pumps, lock};
use crate::sys;

/// Where a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProcessPhase {
    Alive,
    /// Reaped; its output may still be on its way.
    Ended(ProcessExit),
    /// Its output is on its way no more.
    Finished(ProcessExit),
}

/// What the agent holds of a process.
pub(super) struct ManagedProcess {
    pub(super) pidfd: Mutex<Option<Arc<OwnedFd>>>,
    pub(super) phase: watch::Sender<ProcessPhase>,
    pub(super) exited: watch::Sender<bool>,
    pub(super) pumps: Mutex<Option<Pumps>>,
    pub(super) oom_kills_before: u64,
    /// That of an exec.
    pub(super) cgroup: Option<ExecCgroup>,
    /// It was ended for a SIGPIPE that the kernel does not give it.
    pub(super) broken_pipe: AtomicBool,
}

impl ManagedProcess {
    pub(super) fn new(pidfd: Arc<OwnedFd>, oom_kills_before: u64, cgroup: Option<ExecCgroup>) -> Arc<Self> {
        Arc::new(Self {
            pidfd: Mutex::new(Some(pidfd)),
            phase: watch::Sender::new(ProcessPhase::Alive),
            exited: watch::Sender::new(false),
            pumps: Mutex::new(None),
            oom_kills_before,
            cgroup,
            broken_pipe: AtomicBool::new(false),
        })
    }

    pub(super) fn signal(&self, signal: i32) -> Result<(), ServiceError> {
        let Some(pidfd) = lock(&self.pidfd).clone() else { return Err(ServiceError::Ended) };
        match sys::signal_pidfd(pidfd.as_fd(), signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(ServiceError::Ended),
            Err(error) => Err(ServiceError::Kernel(format!("cannot send signal {signal}"), error)),
            Ok(()) => Ok(()),
        }
    }

    pub(super) async fn ended(&self) {
        // The sender lives as long as `self`.
        let _ = self.phase.subscribe().wait_for(|phase| *phase != ProcessPhase::Alive).await;
    }

    pub(super) async fn finished(&self) -> Option<ProcessExit> {
        match *self
            .phase
            .subscribe()
            .wait_for(|phase| matches!(phase, ProcessPhase::Finished(_)))
            .await
            .ok()?
        {
            ProcessPhase::Finished(exit) | ProcessPhase::Ended(exit) => Some(exit),
            ProcessPhase::Alive => None,
        }
    }
}

/// Sets the pumps of a process going; `immune` is its number if the kernel gives it no signal at
/// its default action.
pub(super) fn start_pumps(
    process: &ManagedProcess,
    host: HostStreams,
    stage: &mut Stage,
    immune: Option<i32>,
) -> Result<(), ServiceError> {
    let pumps = host.start(stage.take_console(), &process.exited.subscribe(), immune);
    let pumps = pumps.map_err(|error| ServiceError::Kernel("cannot watch the terminal".to_owned(), error))?;
    *lock(&process.pumps) = Some(pumps);
    Ok(())
}

/// Waits for the output of a process that ended, and lets go of everything it had.
pub(super) async fn drain(process: &ManagedProcess) {
    let drained = lock(&process.pumps).as_mut().map(Pumps::take_drained).unwrap_or_default();
    for pump in drained {
        // A pump that is gone has nothing more to move either.
        let _ = pump.await;
    }
    lock(&process.pumps).take();
}
