//! The life of containers and processes: makes them, waits for them, cleans up after them.

mod calls;
mod process;
mod reap;
mod start;
mod stop;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use process::ManagedProcess;
use thiserror::Error;
use tokio::sync::mpsc;

use crate::cgroup::{Cgroup, CgroupError, CgroupStats};
use crate::registry::{Registry, RegistryError};
use crate::spawn::StageFailure;
use crate::spawn::launch::{LaunchError, Launcher, Stage};
use crate::spawn::plan::PlanError;
use crate::spawn::seccomp::SeccompFilter;
use crate::stdio::{Promises, StdioError, lock};
use crate::timeline::Marks;

/// Why a call failed.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// Ids and states.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The request.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Streams.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// Limits.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The stage.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// What a stage could not do before its gate.
    #[error("cannot create the container: {}", .0.message)]
    Create(StageFailure),
    /// What the guest's kernel refused, in words.
    #[error("{0}")]
    Kernel(String, #[source] io::Error),
    /// Not a signal.
    #[error("{0} is not a signal number (1 to 64)")]
    Signal(u32),
    /// The process is gone.
    #[error("the process has ended")]
    Ended,
    /// The process has none.
    #[error("the process has no terminal")]
    NoTerminal,
    /// Shutdown was called.
    #[error("the guest is shutting down")]
    Ending,
}

/// How the machine is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShutdownRequest {
    /// Start again.
    pub reboot: bool,
    /// Milliseconds between SIGTERM and SIGKILL.
    pub grace_ms: u32,
}

/// Where things are.
#[derive(Debug, Clone)]
pub struct Config {
    /// Makes stages.
    pub launcher: Launcher,
    /// Mount of cgroup version 2.
    pub cgroup_root: PathBuf,
    /// CLOCK_BOOTTIME when the agent began.
    pub boot_ns: u64,
    /// CLOCK_BOOTTIME when it listened.
    pub ready_ns: u64,
    /// The agent's stamps.
    pub marks: Arc<Marks>,
}

/// What the agent holds of a container.
#[derive(Default)]
struct ContainerData {
    cgroup: Option<Arc<Cgroup>>,
    stage: Option<Stage>,
    /// Its mounts and its network, held a little longer than it.
    namespaces: Vec<File>,
    filter: Option<SeccompFilter>,
    /// Its PID namespace is another's, so its processes do not end with its first one by
    /// themselves.
    shares_pids: bool,
    last_figures: CgroupStats,
}

type Containers = Registry<ContainerData, Arc<ManagedProcess>>;

/// The guest: everything that the calls of all connections share.
pub struct GuestState {
    config: Config,
    promises: Arc<Promises>,
    registry: Mutex<Containers>,
    end: mpsc::UnboundedSender<ShutdownRequest>,
    ending: AtomicBool,
}

impl GuestState {
    /// A guest without containers, whose processes' streams come to `promises`. The second value
    /// tells when the machine is to end.
    #[must_use]
    pub fn new(
        config: Config,
        promises: Arc<Promises>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<ShutdownRequest>) {
        let (end, ends) = mpsc::unbounded_channel();
        (
            Arc::new(Self {
                config,
                promises,
                registry: Mutex::default(),
                end,
                ending: AtomicBool::new(false),
            }),
            ends,
        )
    }

    /// Where things are.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn not_ending(&self) -> Result<(), ServiceError> {
        if self.ending.load(Ordering::Relaxed) { Err(ServiceError::Ending) } else { Ok(()) }
    }

    fn registry(&self) -> MutexGuard<'_, Containers> {
        lock(&self.registry)
    }
}
