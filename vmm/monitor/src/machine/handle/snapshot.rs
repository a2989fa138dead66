//! Saving a machine, and having a saved one go on.

use super::ask::Pending;
use super::error::{ControlError, StartError};
use super::{Isolation, Machine, Resources, Starting};
use crate::config::MachineConfig;
use crate::machine::snapshot::Snapshot;
use crate::machine::wire::ControlRequest;

impl Machine {
    /// Writes a paused machine to files, which lose what they had. It stays paused, can
    /// [`resume`](Machine::resume) and be saved again. Both files have reached their disk when this
    /// returns, the memory first: a state that is whole has its memory.
    ///
    /// Disks are no part of it: whoever has the machine go on gives it their content as it was in
    /// the pause, to the last byte.
    ///
    /// # Errors
    /// The machine is not paused, is being saved already or has ended; it has virtualisation of its
    /// own (`nested`); a file is of the wrong kind or cannot be written. Whatever fails, the
    /// machine is paused as before, and the files are of no use.
    pub fn save(&self, snapshot: Snapshot) -> Result<(), ControlError> {
        self.begin_save(snapshot)?.done()
    }

    /// The same in two steps, with a descriptor to poll in between: [`Pending::done`] fits it.
    ///
    /// # Errors
    /// The machine has ended.
    pub fn begin_save(&self, snapshot: Snapshot) -> Result<Pending, ControlError> {
        let Snapshot { state, memory } = snapshot;
        self.control.ask(&ControlRequest::Save, &[state, memory])
    }

    /// Has a saved machine go on, in a new process or new threads. Returns once it is there, paused
    /// as it was; [`resume`](Machine::resume) lets it run. The same files serve any number of
    /// machines, one after the other or at once (each with descriptors of its own opening); nothing
    /// of them is held once this returns.
    ///
    /// `config` is that of the saved machine. Its files may be others: the kernel is read again
    /// only when the guest resets itself (`on_reset`), and a disk must have the content that it
    /// had. A machine whose slots hold anything else is refused: one that is attached or detached
    /// since cannot be restored yet.
    ///
    /// Machines that are restored from the same files have the same secrets: keys, tokens, and the
    /// state of the guest's random numbers, which nothing renews yet. They should not face each
    /// other, or the same peer, as if they were strangers.
    ///
    /// What the guest notices: connections of its vsock device are reset; its clocks go on from
    /// where they were, and know nothing of the time in between; what its consoles had for readers
    /// of the saved machine is gone. Whoever holds the machine asks anew for its streams, listeners
    /// and events, and its limit of time, counts and timeline begin anew.
    ///
    /// # Errors
    /// As of [`Machine::start`]; and the files are damaged, of another machine or of a processor
    /// that this host does not have. The sentence says what differs.
    pub fn restore(
        config: &MachineConfig,
        resources: Resources,
        snapshot: Snapshot,
        isolation: &Isolation,
    ) -> Result<Self, StartError> {
        Self::begin_restore(config, resources, snapshot, isolation)?.done()
    }

    /// The same in two steps, with a descriptor to poll in between.
    ///
    /// # Errors
    /// As of [`Machine::begin`].
    pub fn begin_restore(
        config: &MachineConfig,
        resources: Resources,
        snapshot: Snapshot,
        isolation: &Isolation,
    ) -> Result<Starting, StartError> {
        Self::begin_with(config, resources, Some(snapshot), isolation)
    }
}
