//! The saved state of a virtio device, changed by somebody, restored into a slot with that device.

use nelly_vmm::bus::BusDevice;
use nelly_vmm::state::Sections;
use nelly_vmm::state::testing::{NAME, restore, written};
use nelly_vmm::virtio::testing::{DriverQueue, OneSlot, Part};

use super::devices;

/// A file follows.
const FILE: u8 = 0x80;
/// The version of every section.
const VERSION: u32 = 1;
/// Guest memory of each queue.
const SHARE: u64 = 16 << 10;
/// The most queues are the five of a balloon; all are used with a size of 8 here.
const MEMORY: usize = 80 << 10;

/// Restores what follows the first byte into a slot whose device that byte chooses. With its upper
/// bit set, a whole file follows; without, the length of the slot's section (two bytes), that
/// section, and the device's, so that a change leaves the form of the file alone.
///
/// # Panics
/// When a device panics, never comes to rest, or cannot say again what it took.
pub fn run(data: &[u8]) {
    let _ = restores(data);
}

/// As [`run`]; whether the state was taken.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn restores(data: &[u8]) -> bool {
    let Some((&first, bytes)) = data.split_first() else { return false };
    let kind = first & !FILE;
    let sections = if first & FILE == 0 { sections(bytes) } else { Sections::decode(bytes).ok() };
    let Some(sections) = sections else { return false };
    let mut slot = slot(kind);
    if restore(&mut slot.mmio, sections).is_err() {
        return false;
    }
    slot.mmio.0.resume();
    slot.workers.turn();
    for queue in 0..4 {
        write(&mut slot, 0x50, queue);
    }
    slot.workers.turn();
    pause(&mut slot);
    restore(&mut self::slot(kind).mmio, written(&slot.mmio)).expect("what was taken is taken again");
    // What hostile state left behind must not keep a sound driver from the device.
    write(&mut slot, 0x70, 0);
    slot.workers.turn();
    let mut status = [0xff; 4];
    slot.mmio.read(0x70, &mut status);
    assert_eq!(status, [0; 4], "a reset puts the device back");
    true
}

fn sections(bytes: &[u8]) -> Option<Sections> {
    let (len, rest) = bytes.split_first_chunk()?;
    let (slot, device) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
    let mut sections = Sections::new();
    sections.put(NAME, VERSION, slot.to_vec());
    sections.put(&format!("{NAME}.device"), VERSION, device.to_vec());
    Some(sections)
}

fn pause(slot: &mut OneSlot) {
    slot.mmio.0.pause();
    slot.workers.turn();
    assert!(slot.mmio.0.paused(), "nothing is in flight");
}

fn write(slot: &mut OneSlot, register: u64, value: u32) {
    let _ = slot.mmio.write(register, &value.to_le_bytes());
}

fn slot(kind: u8) -> OneSlot {
    let mut slot = OneSlot::new(3, MEMORY);
    slot.mmio.0.attach(devices::device(kind)).expect("an empty slot");
    slot
}

/// Each device before it has a driver, with one that runs, and broken by it.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let mut state = |kind: u8, slot: &mut OneSlot| {
        pause(slot);
        let mut state = written(&slot.mmio);
        seeds.push([&[FILE | kind], state.encode().as_slice()].concat());
        let mut take = |name: &str| state.take(name, VERSION).expect("a section");
        let (slot, device) = (take(NAME), take(&format!("{NAME}.device")));
        let len = u16::try_from(slot.len()).expect("a small section").to_le_bytes();
        seeds.push([&[kind], &len[..], &slot, &device].concat());
    };
    for kind in 0..devices::KINDS {
        let mut slot = slot(kind);
        state(kind, &mut slot);
        let mut queues = drive(&mut slot);
        queues[0].add(&[Part::Read(vec![0; 24]), Part::Write(64)]);
        write(&mut slot, 0x50, 0);
        slot.workers.turn();
        state(kind, &mut slot);
        slot.mmio.0.resume();
        slot.workers.turn();
        queues[0].offer(9);
        write(&mut slot, 0x50, 0);
        slot.workers.turn();
        state(kind, &mut slot);
    }
    seeds
}

/// What a driver does until the device runs.
fn drive(slot: &mut OneSlot) -> Vec<DriverQueue> {
    for status in [1, 3] {
        write(slot, 0x70, status);
    }
    // VERSION_1.
    write(slot, 0x24, 1);
    write(slot, 0x20, 1);
    write(slot, 0x70, 11);
    let count = u32::try_from(slot.mmio.doorbells().count()).expect("few queues");
    let queue = |index: u32| {
        let queue = DriverQueue::new(&slot.memory, u64::from(index) * SHARE, SHARE, 8);
        write_queue(&mut slot.mmio, index, &queue);
        queue
    };
    let queues = (0..count).map(queue).collect();
    write(slot, 0x70, 15);
    slot.workers.turn();
    queues
}

fn write_queue(mmio: &mut impl BusDevice, index: u32, queue: &DriverQueue) {
    let config = queue.config();
    let low = |address: u64| u32::try_from(address).expect("memory below 4 GiB");
    for (register, value) in [
        (0x30, index),
        (0x38, u32::from(config.size)),
        (0x80, low(config.descriptors)),
        (0x90, low(config.available)),
        (0xa0, low(config.used)),
        (0x44, 1),
    ] {
        let _ = mmio.write(register, &value.to_le_bytes());
    }
}
