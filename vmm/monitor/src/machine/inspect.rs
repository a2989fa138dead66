//! What a running machine shows of itself: counters, faults and positions, read without a lock that a vCPU could hold for long.

use serde::{Deserialize, Serialize};

use super::assemble::Assembled;
use super::console::Pump;
use super::outcome::{DeviceFaults, ExitCounts, State};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::mem::MemoryControl;
use crate::virtio::queue::QueueTally;
use crate::virtio::spec;
use crate::virtio::tally::{Fault, Identity, Tally};

/// A machine at one moment, as one JSON value: `schema` 1, fields are only ever added. Counts of parts that run meanwhile may lag behind
/// each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// 1.
    pub schema: u32,
    /// Where it is in its life.
    pub state: State,
    /// Times that the guest was started.
    pub starts: u32,
    /// Its memory.
    pub memory: MemorySizes,
    /// What made all vCPUs leave the guest since the last start.
    pub exits: ExitCounts,
    /// The same of each.
    pub vcpus: Vec<ExitCounts>,
    /// Port accesses that no device answers to.
    pub unclaimed_port_accesses: u64,
    /// The same in memory.
    pub unclaimed_memory_accesses: u64,
    /// The virtio devices, by slot.
    pub devices: Vec<DeviceState>,
    /// Serial port and console.
    pub consoles: Vec<ConsoleState>,
}

/// Guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemorySizes {
    /// There from the start.
    pub boot_bytes: u64,
    /// What the holder wants the guest to have beyond that.
    pub requested_bytes: u64,
    /// What the guest has plugged in of it.
    pub plugged_bytes: u64,
}

/// A virtio device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Its slot.
    pub slot: u16,
    /// What it is: `block`, `vsock`, ...; `none` for an empty slot.
    pub kind: String,
    /// A disk's id.
    pub name: Option<String>,
    /// The device status register without NEEDS_RESET (15: the driver is ready).
    pub status: u8,
    /// It cannot go on until the driver resets it.
    pub needs_reset: bool,
    /// Interrupts since the last start.
    pub interrupts: u64,
    /// Accesses that the specification forbids; they were ignored.
    pub ignored_accesses: u64,
    /// What the driver broke, by kind.
    pub faults: Vec<DeviceFaults>,
    /// Its queues, in order.
    pub queues: Vec<QueueState>,
    /// Connections of the socket device now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
}

/// A queue. Indices run freely from 0 to 65535; they are `null` while the driver does not use the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Requests given back since the last start.
    pub chains: u64,
    /// Entries of its rings.
    pub size: Option<u16>,
    /// The driver's available index. Ahead of `next_available` by the requests that the device has not taken.
    pub driver_available: Option<u16>,
    /// What the device takes next. Ahead of `next_used` by the requests that it works on.
    pub next_available: Option<u16>,
    /// What the device gives back next.
    pub next_used: Option<u16>,
}

/// A console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// `serial` or `console`.
    pub port: String,
    /// Bytes of the guest so far.
    pub output_bytes: u64,
    /// Bytes that the guest sent although it was held back, and that were dropped.
    pub lost_bytes: u64,
    /// Bytes that wait for the reader.
    pub waiting_output_bytes: u64,
    /// Bytes that wait for the guest.
    pub waiting_input_bytes: u64,
}

impl<V> Assembled<V> {
    /// Looks at the machine.
    pub(super) fn inspect(&self, state: State, starts: u32) -> Inspection {
        let (requested_bytes, plugged_bytes) = self.memory.as_ref().map_or((0, 0), MemoryControl::sizes);
        let (unclaimed_port_accesses, unclaimed_memory_accesses) =
            (self.shared.pio.unclaimed(), self.shared.mmio.unclaimed());
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
        }
    }

    fn device(&self, slot: u16, interrupt: &Interrupt) -> DeviceState {
        let tally = interrupt.tally();
        let identity = tally.identity();
        let id = identity.map_or(spec::id::NONE, |identity| identity.device_id);
        let queue = |tally: &QueueTally| {
            let position = tally.position(self.ram.memory());
            QueueState {
                chains: tally.chains(),
                size: position.map(|position| position.size),
                driver_available: position.map(|position| position.driver_available),
                next_available: position.map(|position| position.next_available),
                next_used: position.map(|position| position.next_used),
            }
        };
        let vsock = self.vsock.as_ref().filter(|_| id == spec::id::VSOCK);
        DeviceState {
            slot,
            kind: spec::id::name(id).to_owned(),
            name: identity.and_then(|identity| identity.name.clone()),
            status: tally.status(),
            needs_reset: interrupt.needs_reset(),
            interrupts: tally.interrupts(),
            ignored_accesses: tally.ignored(),
            faults: faults_of(slot, tally),
            queues: identity
                .map_or_else(Vec::new, |identity| identity.queues.iter().map(|tally| queue(tally)).collect()),
            connections: vsock.map(|vsock| vsock.connections() as u64),
        }
    }

    /// A fault of the device in `slot` that was the first of its kind, as it is told.
    pub(super) fn told(&self, slot: u16, fault: Fault) -> DeviceFaults {
        let tally = self.interrupts.get(usize::from(slot)).map(Interrupt::tally);
        named(slot, tally.and_then(Tally::identity), fault)
    }
}

/// What the drivers broke so far, by slot.
pub(super) fn faults(interrupts: &[Interrupt]) -> Vec<DeviceFaults> {
    (0..).zip(interrupts).flat_map(|(slot, interrupt)| faults_of(slot, interrupt.tally())).collect()
}

fn faults_of(slot: u16, tally: &Tally) -> Vec<DeviceFaults> {
    tally.faults().into_iter().map(|fault| named(slot, tally.identity(), fault)).collect()
}

fn named(slot: u16, identity: Option<&Identity>, fault: Fault) -> DeviceFaults {
    let Fault { kind, first, count } = fault;
    DeviceFaults { slot, device: label(identity), kind: kind.to_owned(), first, count }
}

/// What people call the device: its kind, and a disk's id.
fn label(identity: Option<&Identity>) -> String {
    let Some(identity) = identity else { return spec::id::name(spec::id::NONE).to_owned() };
    let kind = spec::id::name(identity.device_id);
    match &identity.name {
        Some(name) => format!("{kind} {name}"),
        None => kind.to_owned(),
    }
}
