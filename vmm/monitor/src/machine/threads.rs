//! The threads of a machine. All are made here, and each has a [`Role`]: what it does, and so what
//! it may be allowed to do.
//!
//! They are made while the machine is built, and wait before its guest runs: the machine opens the
//! gate when each has said that it is ready (see `running`). After that, until the guest is started
//! again (`on_reset`) and the machine assembled once more, no thread is made; and of the file
//! system nothing is reached by a name but the next file of a full log, below its directory's
//! descriptor (see `output`), and the sockets of `unix_socket`.
//!
//! # Order of waiting
//! Whoever holds the handle may wait for the loop and for vCPUs. A vCPU may wait for the loop, at
//! the gate: for a command, or for a worker that a reset called home. It holds no lock meanwhile. A
//! worker on a thread of its own waits for what its device serves, and for orders. The loop waits
//! for nobody: what takes time (vCPUs leaving the guest, workers going home) is asked for and comes
//! back as a message. What waits for a disk in a pause, writing the machine to files, is done by
//! the thread of vCPU 0, which has nothing else to do then (see `saving`). Only at the machine's
//! end, when every other thread was told to end, the loop waits for all of them.
//!
//! # Order of locks
//! The outermost first: one device on a bus, never two; then one of the line of a console and the
//! I/O APIC; then the leaves, which are the gate, the mailbox, a worker's orders, what a worker
//! leaves behind and what devices count. Whoever holds one of them waits for no thread, no peer and
//! no descriptor.

use std::io;
use std::thread::{Builder, JoinHandle};

/// What a thread of a machine does. Plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The event loop: everything that neither blocks nor runs the guest.
    Loop,
    /// A vCPU of this number, and device models when the guest reaches for them. The first one
    /// also writes the files of a machine that is saved.
    Vcpu(u32),
    /// The worker of the device in this slot, whose requests block.
    Worker(u16, Work),
    /// One of those that serve requests beside the worker of this slot.
    Helper(u16, u8),
}

/// What a worker on a thread of its own serves. Plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// A disk, or a slot that may get one.
    Disk,
    Network,
    /// A shared directory.
    Share,
}

impl Role {
    /// The thread's name: no more than 15 bytes, which is what Linux keeps.
    pub(super) fn name(self) -> String {
        match self {
            Self::Loop => "nelly-loop".into(),
            Self::Vcpu(index) => format!("nelly-cpu-{index}"),
            Self::Worker(slot, _) => format!("nelly-dev-{slot}"),
            Self::Helper(slot, number) => format!("nelly-dev-{slot}.{number}"),
        }
    }

    /// Bytes of its stack. Device models run on those of vCPUs and workers, which have no more than
    /// they need.
    fn stack_bytes(self) -> usize {
        match self {
            Self::Loop => 256 << 10,
            Self::Vcpu(_) | Self::Worker(..) | Self::Helper(..) => 128 << 10,
        }
    }
}

/// Makes a thread. Before its first wait it says what it gives up, see `confine`.
///
/// # Errors
/// The host has no room for one more.
pub(super) fn spawn(role: Role, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(role.name()).stack_size(role.stack_bytes()).spawn(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_has_the_name_of_its_role() {
        for role in [
            Role::Loop,
            Role::Vcpu(u32::from(crate::config::CpuCount::MAX) - 1),
            Role::Worker(18, Work::Share),
            Role::Helper(63, 15),
        ] {
            let thread = spawn(role, move || {
                let name = std::thread::current().name().map(str::to_owned);
                assert_eq!(name, Some(role.name()));
                assert!(role.name().len() <= 15, "{role:?}");
            });
            thread.unwrap().join().unwrap();
        }
    }
}
