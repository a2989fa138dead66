//! A look at a running machine: counters, faults and positions, read without a lock that a vCPU
//! could hold for long.

use super::assemble::Assembled;
use super::console::Pump;
use super::faults::faults_of;
use super::inspection::{
    BalloonState, DeviceState, DiskState, FrameState, Inspection, MemorySizes, NetworkState, QueueState,
};
use super::outcome::State;
use crate::sys::fits;
use crate::virtio::balloon::ReportCounts;
use crate::virtio::blk::{BlockControl, DiskCounts};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::mem::MemoryControl;
use crate::virtio::net::{FrameCounts, NetworkView};
use crate::virtio::spec;
use crate::virtio::tally::QueueTally;

impl<V> Assembled<V> {
    /// Looks at the machine.
    pub(super) fn inspect(&self, state: State, starts: u32) -> Inspection {
        let (requested_bytes, plugged_bytes) = self.memory.as_ref().map_or((0, 0), MemoryControl::sizes);
        let (unclaimed_port_accesses, unclaimed_memory_accesses) =
            (self.shared.buses.ports.unclaimed(), self.shared.buses.memory.unclaimed());
        Inspection {
            schema: 1,
            state,
            starts,
            memory: MemorySizes { boot_bytes: self.ram.size(), requested_bytes, plugged_bytes },
            exits: self.shared.exits(),
            vcpus: self.shared.exits_by_vcpu(),
            unclaimed_port_accesses,
            unclaimed_memory_accesses,
            devices: (0..)
                .zip(&self.interrupts)
                .map(|(slot, interrupt)| self.device(slot, interrupt))
                .collect(),
            consoles: self.pumps.iter().map(Pump::inspect).collect(),
            confinement: self.confiner.done(),
        }
    }

    /// Looks at one slot, which there is.
    pub(super) fn inspect_slot(&self, slot: usize) -> DeviceState {
        self.device(fits(slot, "a machine has less than 65536 slots"), &self.interrupts[slot])
    }

    fn device(&self, slot: u16, interrupt: &Interrupt) -> DeviceState {
        let tally = interrupt.tally();
        let identity = tally.identity();
        let id = identity.as_ref().map_or(spec::id::NONE, |identity| identity.device_id);
        let queue = |tally: &QueueTally| {
            let position = tally.position(self.ram.memory());
            QueueState {
                chains: tally.chains(),
                size: position.map(|position| position.size),
                driver_available: position.map(|position| position.driver_available),
                next_available: position.and_then(|position| position.next_available),
                next_used: position.and_then(|position| position.next_used),
            }
        };
        let vsock = self.vsock.as_ref().filter(|_| id == spec::id::VSOCK);
        DeviceState {
            slot,
            kind: spec::id::name(id).to_owned(),
            name: identity.as_ref().and_then(|identity| identity.name.clone()),
            status: tally.status(),
            needs_reset: interrupt.needs_reset(),
            waits_for_room: tally.waits_for_room(),
            interrupts: tally.interrupts(),
            ignored_accesses: tally.ignored(),
            faults: faults_of(slot, tally),
            queues: identity
                .as_ref()
                .map_or_else(Vec::new, |identity| identity.queues.iter().map(|tally| queue(tally)).collect()),
            network: self.networks.get(&slot).filter(|_| id == spec::id::NET).map(network),
            disk: self
                .disks
                .get(&slot)
                .filter(|_| id == spec::id::BLOCK)
                .and_then(BlockControl::counts)
                .map(disk),
            balloon: self
                .balloon
                .as_ref()
                .filter(|_| id == spec::id::BALLOON)
                .map(|view| balloon(view.counts())),
            connections: vsock.map(|vsock| vsock.connections() as u64),
        }
    }
}

fn disk(counts: DiskCounts) -> DiskState {
    let DiskCounts { reads, read_bytes, writes, written_bytes, flushes, discards, failed, throttled } =
        counts;
    DiskState { reads, read_bytes, writes, written_bytes, flushes, discards, failed, throttled }
}

fn balloon(counts: ReportCounts) -> BalloonState {
    let ReportCounts { reported, given_back } = counts;
    BalloonState { reported_bytes: reported, given_back_bytes: given_back }
}

fn network(view: &NetworkView) -> NetworkState {
    let frames = |counts: FrameCounts| {
        let FrameCounts { frames, bytes, bad, lost } = counts;
        view.counts_all().then_some(FrameState { frames, bytes, bad, lost })
    };
    NetworkState {
        link_up: view.is_up(),
        pairs: view.pairs(),
        kernel_pairs: view.kernel_pairs(),
        peer_pairs: view.peer_pairs(),
        sent: frames(view.sent()),
        received: frames(view.received()),
    }
}
