//! How a paused machine is written down. The threads of vCPUs say their states; the loop adds what
//! everything else says; then the thread of vCPU 0, which has nothing else to do in a pause, writes
//! the files. So the loop waits for no disk, and no thread is made for it.

use std::fs::File;
use std::io::{self, Seek, Write};

use super::holder::Refusal;
use super::lifecycle::Unfit;
use super::outcome::State;
use super::running::Loop;
use super::snapshot::Snapshot;
use super::vcpu::Command;
use super::wire::Reply;
use crate::hv::{HvError, Vm};
use crate::memory::{GuestRam, ImageError};
use crate::state::Sections;
use crate::virtio::net::NetworkView;

/// Why a machine was not saved. It is paused as before.
#[derive(Debug, thiserror::Error)]
pub(super) enum SaveError {
    #[error("cannot read the machine's state")]
    Hypervisor(#[from] HvError),
    #[error(transparent)]
    Memory(#[from] ImageError),
    #[error(
        "a machine with shared directories cannot be saved: which files of the host its guest has open cannot be written down"
    )]
    Shares,
    #[error(
        "a machine whose vhost-user peer has not said that it stopped cannot be saved: the peer may still write to its memory; start the machine again"
    )]
    Peer,
    #[error("the file of the state is not a regular file")]
    Kind,
    #[error("cannot write the file of the state")]
    State(#[source] io::Error),
}

/// A save under way.
pub(super) struct Saving {
    reply: Reply,
    /// Until the thread of vCPU 0 has them.
    snapshot: Option<Snapshot>,
    /// By the numbers of the vCPUs.
    vcpus: Vec<Option<Sections>>,
}

/// What is left to do when everything but the memory has said its state.
pub(super) struct Writing {
    state: Vec<u8>,
    snapshot: Snapshot,
    ram: GuestRam,
}

impl<V: Vm> Loop<V> {
    /// Begins to save the machine; it answers when the files are written.
    pub(super) fn save(&mut self, snapshot: Snapshot, reply: Reply) -> Result<(), (Reply, Refusal)> {
        let state = self.life.state();
        if state != State::Paused {
            return Err((reply, Unfit(state).into()));
        }
        if self.saving.is_some() {
            return Err((reply, Refusal::Saving));
        }
        if self.machine.has_shares() {
            return Err((reply, SaveError::Shares.into()));
        }
        if self.machine.networks.values().any(NetworkView::is_astray) {
            return Err((reply, SaveError::Peer.into()));
        }
        self.saves += 1;
        let vcpus = (0..self.cpus).map(|_| None).collect();
        self.saving = Some(Saving { reply, snapshot: Some(snapshot), vcpus });
        // All of them wait there.
        self.machine.shared.gate.set(Command::Save(self.saves));
        Ok(())
    }

    /// A vCPU has said its state. The last one's completes the machine's.
    pub(super) fn vcpu_saved(&mut self, index: u32, number: u64, state: Result<Sections, HvError>) {
        // What comes late belongs to a save that failed.
        let Some(saving) = self.saving.as_mut().filter(|_| number == self.saves) else { return };
        let state = match state {
            Ok(state) => state,
            Err(error) => return self.saved(Err(error.into())),
        };
        if let Some(vcpu) = usize::try_from(index).ok().and_then(|index| saving.vcpus.get_mut(index)) {
            *vcpu = Some(state);
        }
        if saving.vcpus.iter().any(Option::is_none) {
            return;
        }
        let vcpus: Vec<_> = saving.vcpus.drain(..).flatten().collect();
        let Some(snapshot) = saving.snapshot.take() else { return };
        let state = match self.machine.save(&vcpus) {
            Ok(state) => state,
            Err(error) => return self.saved(Err(error.into())),
        };
        let shared = &self.machine.shared;
        shared.set_writing(Writing { state, snapshot, ram: self.machine.ram.clone() });
        shared.gate.set(Command::Write(number));
    }

    /// The files are written, or not.
    pub(super) fn written(&mut self, number: u64, result: Result<(), SaveError>) {
        if number == self.saves {
            self.saved(result);
        }
    }

    fn saved(&mut self, result: Result<(), SaveError>) {
        let Some(Saving { reply, .. }) = self.saving.take() else { return };
        match result {
            Ok(()) => reply.done(),
            Err(error) => reply.failed(&error),
        }
    }
}

impl Writing {
    /// Writes both files. The state comes last: a state that is whole has its memory. Between two
    /// pieces it asks whether it shall `go_on`.
    pub(super) fn carry_out(self, go_on: impl Fn() -> bool) -> Result<(), SaveError> {
        let Self { state, snapshot: Snapshot { state: file, memory }, ram } = self;
        let file = File::from(file);
        // One that cannot be written, or waits for a reader, is refused before the memory is
        // written.
        begin(&file)?;
        ram.write_image(&memory.into(), go_on)?;
        write(&file, &state).map_err(SaveError::State)
    }
}

/// Empties the file of a state. The sync keeps an older state from being found whole after a crash
/// of the host, beside memory that was written over.
fn begin(mut file: &File) -> Result<(), SaveError> {
    // Writing to anything else could wait for a reader for ever.
    if !crate::sys::files::is_regular(file).map_err(SaveError::State)? {
        return Err(SaveError::Kind);
    }
    file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.sync_data()).map_err(SaveError::State)
}

fn write(mut file: &File, state: &[u8]) -> io::Result<()> {
    file.write_all(state)?;
    file.sync_data()
}
