//! The life cycle of containers and processes: creation, waiting, signals, clean-up.

mod calls;
mod limit;
mod look;
mod machine;
mod process;
mod reap;
mod relay;
mod start;
mod stop;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use process::ManagedProcess;
use relay::Relays;
use thiserror::Error;
use tokio::io::Interest;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::cgroup::{Cgroup, CgroupError, CgroupStats};
use crate::network::Names;
use crate::registry::{Registry, RegistryError};
use crate::relay::RelayError;
use crate::spawn::StageFailure;
use crate::spawn::launch::{LaunchError, Launcher, Stage};
use crate::spawn::plan::PlanError;
use crate::spawn::seccomp::SeccompFilter;
use crate::stdio::{Promises, StdioError, lock};
use crate::timeline::Marks;
use crate::{sys, touch};

/// Why a call failed.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// An unknown id, or a container in the wrong state.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The request is invalid.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The streams of the process cannot be created.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The cgroup cannot be created or configured.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The process cannot be created.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The set-up of a container failed before its program was to be executed.
    #[error("cannot create the container: {}", .0.message)]
    Create(StageFailure),
    /// A system call failed; the text says what was tried.
    #[error("{0}")]
    Kernel(String, #[source] io::Error),
    /// A connection between the host and a container.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// Not a signal number.
    #[error("{0} is not a signal number (1 to 64)")]
    Signal(u32),
    /// The process has ended.
    #[error("the process has ended")]
    Ended,
    /// The process has no terminal.
    #[error("the process has no terminal")]
    NoTerminal,
    /// Too many look into containers.
    #[error("too many calls look into containers at a time; try again when one has ended")]
    Busy,
    /// The container uses more memory than it was to have.
    #[error("the container uses {used} bytes of memory, more than the limit of {limit} bytes")]
    InUse {
        /// Bytes in use.
        used: u64,
        /// The limit that was asked for.
        limit: u64,
    },
    /// A shutdown is in progress.
    #[error("the guest is shutting down")]
    Ending,
    /// The agent is a service of a guest with an init of its own.
    #[error("the agent of this machine is one of its services, and {0}")]
    Machine(&'static str),
}

/// A request to end the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShutdownRequest {
    /// Reboot instead of powering off.
    pub reboot: bool,
    /// Milliseconds between SIGTERM and SIGKILL.
    pub grace_ms: u32,
}

/// The configuration of the agent.
#[derive(Debug, Clone)]
pub struct Config {
    /// Creates processes.
    pub launcher: Launcher,
    /// Mount point of the cgroup v2 hierarchy.
    pub cgroup_root: PathBuf,
    /// CLOCK_BOOTTIME when the agent started, in nanoseconds.
    pub boot_ns: u64,
    /// CLOCK_BOOTTIME when the agent began to listen, in nanoseconds.
    pub ready_ns: u64,
    /// The agent's timeline stamps.
    pub marks: Arc<Marks>,
}

/// The resources of a container.
#[derive(Default)]
struct ContainerData {
    cgroup: Option<Arc<Cgroup>>,
    stage: Option<Stage>,
    /// Its mount and network namespaces, kept open for a moment after its end.
    namespaces: Vec<File>,
    /// It has mounted a disk for its writable layer or its volumes.
    has_disk: bool,
    filter: Option<SeccompFilter>,
    /// The device of its image, and the file system on it.
    image: Option<(String, String)>,
    /// Its PID namespace belongs to another container, so its processes do not end automatically
    /// with the first one.
    shares_pids: bool,
    last_figures: CgroupStats,
}

type Containers = Registry<ContainerData, Arc<ManagedProcess>>;

/// The state of the guest, shared by the calls of all connections.
pub struct GuestState {
    config: Config,
    promises: Arc<Promises>,
    registry: Mutex<Containers>,
    end: mpsc::UnboundedSender<ShutdownRequest>,
    ending: AtomicBool,
    /// Processes that look into containers.
    looking: AtomicUsize,
    /// One limit is changed at a time.
    limiting: tokio::sync::Mutex<()>,
    /// Namespaces in which a disk is mounted: they hold it to the machine's end, also after its
    /// container's. Where the host's disk is full, the last writes of an unmount fail; Linux 6.12
    /// marks the journal as replayed all the same, and the file system is lost. What was never
    /// unmounted is replayed by the next start.
    with_disks: Mutex<Vec<File>>,
    /// What containers in the guest's network read; nothing without a network.
    names: Mutex<Names>,
    /// Connections between the host and containers.
    relays: Relays,
    /// Shared directories are touched one after the other.
    touching: tokio::sync::Mutex<()>,
    /// Connections that are served.
    callers: Arc<AtomicUsize>,
    /// The guest's own init, if it has one: it is then served as a whole, and has no containers.
    init: OnceLock<OwnedFd>,
}

impl GuestState {
    /// A guest without containers. Streams of processes are claimed through `promises`. The second
    /// value receives requests to end the machine.
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
                looking: AtomicUsize::new(0),
                limiting: tokio::sync::Mutex::default(),
                with_disks: Mutex::default(),
                names: Mutex::default(),
                relays: Relays::default(),
                touching: tokio::sync::Mutex::default(),
                callers: Arc::default(),
                init: OnceLock::new(),
            }),
            ends,
        )
    }

    /// The configuration of the agent.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Tells whoever watches a shared directory that the host has changed something in it. One
    /// process at a time does it.
    pub(in crate::service) async fn touch(
        &self,
        tag: String,
        paths: Vec<Vec<u8>>,
    ) -> Result<(), ServiceError> {
        let _turn = self.touching.lock().await;
        let failed = |error| ServiceError::Kernel(format!("cannot touch the shared directory {tag}"), error);
        let pidfd = touch::launch(&tag, &paths).map_err(failed)?;
        let pidfd = sys::watch(pidfd, Interest::READABLE).map_err(failed)?;
        if timeout(touch::PATIENCE, pidfd.readable()).await.is_err() {
            let _ = sys::signal_pidfd(pidfd.get_ref().as_fd(), libc::SIGKILL);
            return Err(failed(io::ErrorKind::TimedOut.into()));
        }
        Ok(())
    }

    /// Says what later containers in the guest's network read.
    pub(in crate::service) fn set_names(&self, names: Names) {
        *lock(&self.names) = names;
    }

    fn not_ending(&self) -> Result<(), ServiceError> {
        if self.ending.load(Ordering::Relaxed) { Err(ServiceError::Ending) } else { Ok(()) }
    }

    fn registry(&self) -> MutexGuard<'_, Containers> {
        lock(&self.registry)
    }
}
