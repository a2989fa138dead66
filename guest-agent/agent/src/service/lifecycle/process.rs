//! The agent's record of a process, from its creation to the end of its output.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::ServiceError;
use crate::cgroup::ExecCgroup;
use crate::registry::ProcessExit;
use crate::spawn::launch::Stage;
use crate::stdio::{HostStreams, Pumps, lock};
use crate::sys;

/// The phase of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProcessPhase {
    Alive,
    /// It was reaped, but its output may not be drained yet.
    Ended(ProcessExit),
    /// It was reaped, and its output is drained.
    Finished(ProcessExit),
}

/// The resources of a process.
pub(super) struct ManagedProcess {
    pub(super) pidfd: Mutex<Option<Arc<OwnedFd>>>,
    pub(super) phase: watch::Sender<ProcessPhase>,
    pub(super) exited: watch::Sender<bool>,
    pub(super) pumps: Mutex<Option<Pumps>>,
    pub(super) oom_kills_before: u64,
    /// The cgroup, if the process is an exec.
    pub(super) cgroup: Option<ExecCgroup>,
    /// The agent killed it in place of a SIGPIPE, which the kernel does not deliver to it.
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
        self.send(signal, sys::signal_pidfd)
    }

    /// Signals the process group that it leads.
    pub(super) fn signal_group(&self, signal: i32) -> Result<(), ServiceError> {
        self.send(signal, sys::signal_pidfd_group)
    }

    fn send(
        &self,
        signal: i32,
        call: impl FnOnce(BorrowedFd<'_>, i32) -> std::io::Result<()>,
    ) -> Result<(), ServiceError> {
        let Some(pidfd) = lock(&self.pidfd).clone() else { return Err(ServiceError::Ended) };
        match call(pidfd.as_fd(), signal) {
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

/// Starts copying the streams of a process. `immune` is its process id if the kernel does not
/// deliver signals with default action to it.
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

/// Waits until the output of an ended process is drained, and releases its resources.
pub(super) async fn drain(process: &ManagedProcess) {
    let drained = lock(&process.pumps).as_mut().map(Pumps::take_drained).unwrap_or_default();
    for pump in drained {
        // An error means that the pump has already ended.
        let _ = pump.await;
    }
    lock(&process.pumps).take();
}
