//! What a machine's server gives up before its guest runs, and before it reads what a guest may
//! have written (disks, a saved state): everything is open by then.
//!
//! Threads share memory, so a guest that owns one of them owns all. What holds is what the whole
//! process gave up: the rights to more, being looked into, capabilities, the file system
//! (Landlock). It is given up before any other thread is made, for each of these counts for the
//! thread that asks, and for those that it makes. A server in an embedder's process gives up
//! nothing of this: the process is the embedder's.
//!
//! A second line is the list of system calls that each kind of thread may make (`calls`). Each
//! thread installs its own before it says that it is ready, the loop when it opens the gate. Where
//! no thread may do anything beyond what is open, their lists differ in requests to KVM alone: the
//! loop gives all of them one list then, for each list is some 0.2 ms of a start. A process of its
//! own is ended by a call that is not in the list, and says which call that was; in an embedder's
//! process the call is refused.

#[cfg(target_os = "linux")]
mod calls;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
#[path = "elsewhere.rs"]
mod linux;
#[cfg(any(test, target_os = "macos"))]
mod seatbelt;
#[cfg(feature = "testing")]
pub mod testing;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::files::Files;
use super::threads::Role;
use crate::config::{Confine, Endpoint, MachineConfig, MonitorUser, OnReset};

/// Whose process a machine's server runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// One that serves this machine and does nothing else: what it gives up, it gives up whole.
    Own,
    /// An embedder's.
    Embedder,
}

/// What was given up before the guest ran. Fields are only ever added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Confinement {
    /// What the configuration asked for.
    pub confine: Confine,
    /// The user that it is instead of root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<MonitorUser>,
    /// Its own namespaces: `network`, `ipc`, `uts`, and `mount`, in which there is no file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// No program that it could run has more rights.
    pub no_new_privs: bool,
    /// No core file, and no other process of the user traces it or reads its memory.
    pub undumpable: bool,
    /// All capabilities were dropped but these, which shared directories need as root; `None` if
    /// none was dropped.
    pub capabilities: Option<Vec<String>>,
    /// The version of Landlock that keeps it from files and more; 0 for none.
    pub landlock: u32,
    /// Each thread has a list of system calls, and makes no other.
    pub seccomp: bool,
    /// On macOS, the process has a profile of Seatbelt.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub seatbelt: bool,
}

/// What this host has of the layers that a monitor can be confined by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layers {
    /// The version of Landlock; 0 for none.
    pub landlock: u32,
    /// Lists of system calls.
    pub seccomp: bool,
    /// Profiles of Seatbelt, of macOS.
    pub seatbelt: bool,
}

impl Layers {
    /// Asks the system.
    #[must_use]
    pub fn of_host() -> Self {
        let seatbelt = cfg!(target_os = "macos");
        Self { landlock: linux::version(), seccomp: linux::has_filters(), seatbelt }
    }
}

/// A layer that a machine with `confine` `strict` cannot have, or one that failed.
#[derive(Debug, thiserror::Error)]
#[error("confine: cannot have {layer}{}", if *.strict { ", which \"strict\" asks for; \"on\" goes on without what a host does not have" } else { "" })]
pub(super) struct ConfineError {
    layer: &'static str,
    strict: bool,
    #[source]
    source: Option<std::io::Error>,
}

/// What threads of a machine do, by its configuration, that reaches beyond what is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Needs {
    /// A full log begins anew.
    names: bool,
    /// It has sockets with paths.
    sockets: bool,
    /// Its console may be a terminal.
    terminal: bool,
    /// It has networks, whose queues the host may serve.
    networks: bool,
    /// It has shared directories.
    shares: bool,
    /// It starts again when its guest resets it.
    again: bool,
}

impl Needs {
    fn of(config: &MachineConfig) -> Self {
        let is_log = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Log(_));
        let is_file = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Stdio | Endpoint::Pair { .. });
        let sockets = config.vsock.as_ref().is_some_and(|vsock| vsock.unix_socket.is_some());
        Self {
            names: sockets || is_log(&config.serial) || is_log(&config.console),
            sockets,
            terminal: is_file(&config.serial) || is_file(&config.console),
            networks: !config.networks.is_empty(),
            shares: !config.shares.is_empty(),
            again: config.on_reset == OnReset::Reboot,
        }
    }

    /// Whether no thread of the machine reaches beyond what is open.
    fn none_beyond(self) -> bool {
        !(self.names || self.sockets || self.shares || self.again)
    }
}

/// Gives up what a machine does not need, once: a machine that starts again has given it up.
#[derive(Debug)]
pub(super) struct Confiner {
    process: Process,
    wanted: Confine,
    /// The socket for the outcome, which hears of a denied system call.
    outcome: Option<RawFd>,
    done: OnceLock<(Confinement, Needs)>,
    /// The loop has its list, also when the machine starts again.
    loop_done: AtomicBool,
}

impl Confiner {
    pub(super) fn new(process: Process, wanted: Confine) -> Self {
        Self { process, wanted, outcome: None, done: OnceLock::new(), loop_done: AtomicBool::new(false) }
    }

    /// With a socket for the outcome, which stays open for as long as the machine lives.
    pub(super) fn telling(self, outcome: BorrowedFd<'_>) -> Self {
        Self { outcome: Some(outcome.as_raw_fd()), ..self }
    }

    /// To be called by the process's only thread, when all files of the machine are open.
    ///
    /// # Errors
    /// A layer is missing that must not be.
    pub(super) fn confine_process(&self, config: &MachineConfig, files: &Files) -> Result<(), ConfineError> {
        if self.done.get().is_some() {
            return Ok(());
        }
        let mut done = Confinement { confine: self.wanted, ..Confinement::default() };
        if self.process == Process::Embedder && config.monitor_user.is_some() {
            return Err(ConfineError {
                layer: "a user of its own for a thread",
                strict: false,
                source: None,
            });
        }
        if self.wanted != Confine::Off {
            match self.process {
                Process::Own => linux::confine_process(&mut done, config, files, self.outcome)?,
                // The layers of a process are its embedder's to have.
                Process::Embedder if self.wanted == Confine::Strict => {
                    return Err(ConfineError {
                        layer: "the layers of a process for a thread",
                        strict: true,
                        source: None,
                    });
                }
                Process::Embedder => done.seccomp = linux::has_filters(),
            }
        }
        // Nobody else calls it.
        let _first = self.done.set((done, Needs::of(config)));
        Ok(())
    }

    /// To be called by each thread of the machine before the guest runs, when it has made what it
    /// needs.
    ///
    /// # Errors
    /// The system's refusal.
    pub(super) fn confine_thread(&self, role: Role) -> io::Result<()> {
        let Some((Confinement { seccomp: true, .. }, needs)) = self.done.get() else { return Ok(()) };
        if role == Role::Loop && self.loop_done.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        match (self.process, needs.none_beyond(), role) {
            // The loop is the last, and no thread comes later.
            (Process::Own, true, Role::Loop) => linux::confine_threads(*needs),
            (Process::Own, true, _) => Ok(()),
            (process, ..) => linux::confine_thread(role, *needs, process),
        }
    }

    /// What was given up, if that is over.
    pub(super) fn done(&self) -> Option<Confinement> {
        self.done.get().map(|(done, _)| done.clone())
    }
}
