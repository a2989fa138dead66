//! A thread of a monitor that a guest has taken over, for tests: it is confined as in a machine,
//! and does what the test says.

use std::os::fd::OwnedFd;

use super::{Confinement, Confiner, Process};
use crate::config::{Confine, FileSource, MachineConfig, OnReset, ShareConfig, ShareTag};
use crate::machine::files::Handed;
use crate::machine::threads::{Role, Work};

/// A kind of thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No list of system calls: what the process gave up holds alone.
    Process,
    /// Any of a machine none of whose threads reaches beyond what is open.
    Plain,
    /// The loop of a machine that ends when its guest resets it.
    Loop,
    /// The loop of a machine that starts again.
    LoopAgain,
    /// A vCPU.
    Vcpu,
    /// The worker of a disk.
    Disk,
    /// A thread beside it.
    Helper,
    /// The worker of a network.
    Network,
    /// The worker of a shared directory.
    Share,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Process,
        Self::Plain,
        Self::Loop,
        Self::LoopAgain,
        Self::Vcpu,
        Self::Disk,
        Self::Helper,
        Self::Network,
        Self::Share,
    ];

    fn role(self) -> Option<Role> {
        Some(match self {
            Self::Process => return None,
            Self::Plain | Self::Loop | Self::LoopAgain => Role::Loop,
            Self::Vcpu => Role::Vcpu(0),
            Self::Disk => Role::Worker(0, Work::Disk),
            Self::Helper => Role::Helper(0, 1),
            Self::Network => Role::Worker(1, Work::Network),
            Self::Share => Role::Worker(2, Work::Share),
        })
    }
}

/// Confines this process, which has one thread, as a monitor of a machine that shares the directory
/// `shared`, and its thread as one of this kind.
///
/// # Errors
/// The host lacks a layer.
pub fn enter(kind: Kind, shared: OwnedFd) -> Result<Confinement, Box<dyn std::error::Error>> {
    let mut config = MachineConfig::new(FileSource::Fd(0));
    config.confine = Confine::Strict;
    if kind != Kind::Plain {
        config.shares = vec![ShareConfig::new(ShareTag::new("shared")?, FileSource::Fd(0), false)];
    }
    if kind == Kind::LoopAgain {
        config.on_reset = OnReset::Reboot;
    }
    let confiner = Confiner::new(Process::Own, config.confine);
    confiner.confine_process(&config, &Handed::with(vec![shared]).into())?;
    if let Some(role) = kind.role() {
        confiner.confine_thread(role)?;
    }
    Ok(confiner.done().unwrap_or_default())
}
