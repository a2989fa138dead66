//! A machine written down: which one it is, and the state of everything in it. Its memory is a file
//! of its own.
//!
//! The state's sections are `machine` (which machine it is, as JSON), `vm` (what belongs to no
//! vCPU), `vcpu.N`, `slot.N`, those of the board's devices and what consoles heard. Whoever takes
//! it back has made the same machine of a config before: what differs is refused, by a sentence
//! that says what.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::plan::Plan;
use crate::arch::Address;
use crate::config::CpuCount;
use crate::memory::ImageError;
use crate::state::{Sections, StateError};
use crate::virtio::spec;

/// The two files of a saved machine.
#[derive(Debug)]
pub struct Snapshot {
    /// What the machine is, and the state of its vCPUs and devices: a regular file.
    pub state: OwnedFd,
    /// Its memory: a regular file, in which memory that is zero is a hole.
    pub memory: OwnedFd,
}

const MACHINE: &str = "machine";
const VM: &str = "vm";
/// The form of these sections, and of those that hold sections themselves.
const VERSION: u32 = 1;
/// Longest file of a state. A vCPU has some 10 KiB, a device less.
const STATE_BYTES_MAX: u64 = 16 << 20;

/// Why a saved machine is not taken back.
#[derive(Debug, thiserror::Error)]
pub(super) enum RestoreError {
    #[error("the file of the state is no regular file, or longer than {STATE_BYTES_MAX} bytes")]
    File,
    #[error("cannot read the file of the state")]
    Read(#[source] io::Error),
    #[error(transparent)]
    State(#[from] StateError),
    /// What differs.
    #[error("{0}")]
    Differs(String),
    #[error(transparent)]
    Memory(#[from] ImageError),
}

/// Which machine it is: what a guest has found out once and relies on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Description {
    architecture: String,
    hypervisor: String,
    vcpus: u32,
    /// First byte and length of each range.
    memory: Vec<(u64, u64)>,
    hotplug: Option<(u64, u64)>,
    legacy_timer: bool,
    lines: u32,
    serial: Place,
    slots: Vec<Slot>,
}

/// Where a device is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    port: bool,
    address: u64,
    line: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Slot {
    place: Place,
    /// The virtio device id, and what the device is called beside that; none in an empty slot.
    device: Option<(u32, Option<String>)>,
}

impl Place {
    fn new(address: Address, line: crate::arch::InterruptLine) -> Self {
        let (port, address) = match address {
            Address::Memory(address) => (false, address),
            Address::Port(port) => (true, port.into()),
        };
        Self { port, address, line: line.number() }
    }
}

impl Slot {
    fn holds(&self) -> String {
        match &self.device {
            None => "nothing".into(),
            Some((id, None)) => spec::id::name(*id).into(),
            Some((id, Some(name))) => format!("{} {name:?}", spec::id::name(*id)),
        }
    }
}

impl Description {
    /// Of a machine of this plan, on the hypervisor of this name, with these devices in its slots.
    pub(super) fn new(
        plan: &Plan,
        hypervisor: &str,
        devices: impl Iterator<Item = Option<(u32, Option<String>)>>,
    ) -> Self {
        let slot = |(slot, device): (&super::plan::SlotPlan, _)| Slot {
            place: Place::new(Address::Memory(slot.mmio.address), slot.mmio.line),
            device,
        };
        Self {
            architecture: plan.board.architecture().into(),
            hypervisor: hypervisor.into(),
            vcpus: plan.cpus(),
            memory: plan.memory.ranges.clone(),
            hotplug: plan.memory.hotplug,
            legacy_timer: plan.interrupts.legacy_timer,
            lines: plan.interrupts.lines,
            serial: Place::new(plan.serial.base, plan.serial.line),
            slots: plan.slots.iter().zip(devices).map(slot).collect(),
        }
    }

    /// The first thing in which `here` is another machine, as a sentence.
    fn difference(&self, here: &Self) -> Option<String> {
        // A new field must be looked at too.
        let Self { architecture, hypervisor, vcpus, memory, hotplug, legacy_timer, lines, serial, slots } =
            self;
        let bytes =
            |ranges: &[(u64, u64)]| ranges.iter().fold(0u64, |sum, (_, len)| sum.saturating_add(*len));
        let plugged = |range: &Option<(u64, u64)>| range.map_or(0, |(_, len)| len);
        let said = |saved: String, here: String| Some(format!("the saved machine {saved}, this one {here}"));
        if (architecture, hypervisor) != (&here.architecture, &here.hypervisor) {
            return said(
                format!("ran on {hypervisor} of {architecture}"),
                format!("runs on {} of {}", here.hypervisor, here.architecture),
            );
        }
        if *vcpus != here.vcpus {
            let plural = if *vcpus == 1 { "" } else { "s" };
            return said(format!("has {vcpus} vCPU{plural}"), format!("has {}", here.vcpus));
        }
        if bytes(memory) != bytes(&here.memory) {
            let here = format!("has {}", bytes(&here.memory));
            return said(format!("has {} bytes of memory", bytes(memory)), here);
        }
        if plugged(hotplug) != plugged(&here.hotplug) {
            let here = format!("has {}", plugged(&here.hotplug));
            return said(format!("can have {} bytes more of memory", plugged(hotplug)), here);
        }
        if slots.len() != here.slots.len() {
            return said(format!("has {} virtio slots", slots.len()), format!("has {}", here.slots.len()));
        }
        for (number, (slot, here)) in slots.iter().zip(&here.slots).enumerate() {
            if slot.device != here.device {
                let saved = format!("has in slot {number} {}", slot.holds());
                return said(saved, format!("has {}", here.holds()));
            }
        }
        let board = (memory, hotplug, legacy_timer, lines, serial);
        let other = (&here.memory, &here.hotplug, &here.legacy_timer, &here.lines, &here.serial);
        let moved = slots.iter().zip(&here.slots).any(|(slot, here)| slot.place != here.place);
        (board != other || moved).then(|| {
            "the saved machine has its memory, devices or interrupt lines at other places than this one"
                .into()
        })
    }
}

/// The section `machine`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    machine: Description,
    says_kernel: bool,
    /// The guest was told of a power button. One that was saved before there was such a button was
    /// not.
    #[serde(default)]
    has_button: bool,
}

/// State under way to its file.
pub(super) fn write(
    machine: Description,
    (says_kernel, has_button): (bool, bool),
    vm: &Sections,
    vcpus: &[Sections],
    devices: impl FnOnce(&mut Sections),
) -> Vec<u8> {
    let mut state = Sections::new();
    let head = Head { machine, says_kernel, has_button };
    state.put(MACHINE, VERSION, serde_json::to_vec(&head).expect("it is numbers and words"));
    state.put(VM, VERSION, vm.encode());
    for (index, vcpu) in (0..).zip(vcpus) {
        state.put(&vcpu_name(index), VERSION, vcpu.encode());
    }
    devices(&mut state);
    state.encode()
}

/// What the state of a slot is called.
pub(super) fn slot_name(number: usize) -> String {
    format!("slot.{number}")
}

fn vcpu_name(index: u32) -> String {
    format!("vcpu.{index}")
}

/// State from its file.
#[derive(Debug)]
pub(super) struct Saved {
    machine: Description,
    /// See [`Remains`](super::assemble::Remains).
    pub(super) says_kernel: bool,
    /// See [`Beginning`](super::begin::Beginning).
    pub(super) has_button: bool,
    pub(super) vm: Sections,
    pub(super) vcpus: Vec<Sections>,
    /// What is left is of devices.
    pub(super) devices: Sections,
}

impl Saved {
    /// Reads the file of a state, from its beginning.
    pub(super) fn read(file: &File) -> Result<Self, RestoreError> {
        let meta = file.metadata().map_err(RestoreError::Read)?;
        if !meta.is_file() || meta.len() > STATE_BYTES_MAX {
            return Err(RestoreError::File);
        }
        let mut bytes = Vec::new();
        let mut file = file;
        file.rewind().map_err(RestoreError::Read)?;
        // It may grow meanwhile.
        file.take(STATE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(RestoreError::Read)?;
        Ok(Self::decode(&bytes)?)
    }

    fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let mut state = Sections::decode(bytes)?;
        let head = serde_json::from_slice(&state.take(MACHINE, VERSION)?);
        let Head { machine, says_kernel, has_button } =
            head.map_err(|error| StateError::unfit(MACHINE, error.to_string()))?;
        let vm = Sections::decode(&state.take(VM, VERSION)?)?;
        // More than a machine can have are not looked at: `check` refuses them.
        let count = machine.vcpus.min(CpuCount::MAX.into());
        let vcpu = |index| Sections::decode(&state.take(&vcpu_name(index), VERSION)?);
        let vcpus = (0..count).map(vcpu).collect::<Result<_, StateError>>()?;
        Ok(Self { machine, says_kernel, has_button, vm, vcpus, devices: state })
    }

    /// Says that it is a machine like `here`.
    pub(super) fn check(&self, here: &Description) -> Result<(), RestoreError> {
        match self.machine.difference(here) {
            Some(difference) => Err(RestoreError::Differs(difference)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{FileSource, MachineConfig};

    fn description() -> Description {
        let mut config = MachineConfig::new(FileSource::Fd(0));
        config.rng = true;
        let devices = std::iter::once(Some((spec::id::ENTROPY, None)));
        Description::new(&Plan::of(&config), "a hypervisor", devices)
    }

    fn written() -> Vec<u8> {
        let mut vcpu = Sections::new();
        vcpu.put("registers", 1, vec![1, 2, 3]);
        write(description(), (true, true), &Sections::new(), &[vcpu], |state| state.put("slot.0", 1, vec![4]))
    }

    #[test]
    fn what_was_written_is_read_and_fits_the_same_machine() {
        let saved = Saved::decode(&written()).unwrap();
        saved.check(&description()).unwrap();
        assert_eq!((saved.says_kernel, saved.has_button, saved.vcpus.len()), (true, true, 1));
        let mut devices = saved.devices;
        assert_eq!(devices.take(&slot_name(0), 1), Ok(vec![4]));
        assert_eq!(devices.finish(), Ok(()));
    }

    /// What makes it another machine.
    type Change = fn(&mut Description);

    #[test]
    fn each_difference_is_a_sentence() {
        let table: [(Change, &str); 4] = [
            (
                |here| here.hypervisor = "another".into(),
                "the saved machine ran on a hypervisor of x86_64, this one runs on another of x86_64",
            ),
            (|here| here.vcpus = 4, "the saved machine has 1 vCPU, this one has 4"),
            (
                |here| here.slots[0].device = None,
                "the saved machine has in slot 0 entropy, this one has nothing",
            ),
            (
                |here| here.slots[0].place.line += 1,
                "the saved machine has its memory, devices or interrupt lines at other places than this one",
            ),
        ];
        for (change, sentence) in table {
            let mut here = description();
            here.architecture = "x86_64".into();
            let mut saved = Saved::decode(&written()).unwrap();
            saved.machine.architecture = "x86_64".into();
            change(&mut here);
            assert_eq!(saved.check(&here).unwrap_err().to_string(), sentence);
        }
    }

    #[test]
    fn a_state_without_all_its_vcpus_is_damaged() {
        let state = write(description(), (true, true), &Sections::new(), &[], |_| {});
        assert_eq!(Saved::decode(&state).unwrap_err(), StateError::Missing("vcpu.0".into()));
        let other = Sections::new().encode();
        assert_eq!(Saved::decode(&other).unwrap_err(), StateError::Missing(MACHINE.into()));
    }
}
