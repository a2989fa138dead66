//! State of another machine, or of none.

use super::kinds::{disk, disk_of};
use super::*;
use crate::virtio::device::{ActivateError, Activation, Worker};

/// Why a slot with `device` does not take what a disk of sixteen sectors with a driver said.
fn refused(device: Option<Box<dyn Device>>) -> String {
    let mut saved = Side::new(disk(None).0);
    saved.drive(0, READY);
    saved.pause();
    let mut fresh = match device {
        Some(device) => saved.beside(device),
        None => Side { slot: OneSlot::new(5, MIB), drivers: Vec::new() },
    };
    why(restore(&mut fresh, written(&saved)))
}

fn why(result: Result<(), StateError>) -> String {
    let error = result.unwrap_err().to_string();
    error.split_once("does not fit: ").expect("it does not fit").1.to_owned()
}

#[test]
fn queues_that_are_not_in_memory_are_refused() {
    let mut saved = Side::new(disk(None).0);
    saved.drive(0, READY);
    saved.pause();
    let mut small = Side { slot: OneSlot::new(5, 4096), drivers: Vec::new() };
    small.slot.mmio.0.attach(disk(None).0).unwrap();
    assert_eq!(restore(&mut small, written(&saved)), Ok(()), "rings of eight fit a page");
    let mut saved = Side::new(disk(None).0);
    saved.drivers[0] = DriverQueue::new(&saved.slot.memory, SHARE / 2, SHARE / 2, QUEUE);
    saved.start(0, READY);
    saved.pause();
    let mut small = Side { slot: OneSlot::new(5, 4096), drivers: Vec::new() };
    small.slot.mmio.0.attach(disk(None).0).unwrap();
    let expected =
        "queue 0 is not usable: descriptor table at 0x10000 with 128 bytes is not inside the guest's memory";
    assert_eq!(why(restore(&mut small, written(&saved))), expected);
}

/// What a fresh disk says to the state of another one whose section was written over at some byte.
fn changed(status: u8, features: u64, at: usize, bytes: &[u8]) -> String {
    let mut saved = Side::new(disk(None).0);
    saved.drive(features, status);
    saved.pause();
    let mut state = written(&saved);
    let mut section = state.take("device", 1).unwrap();
    section[at..at + bytes.len()].copy_from_slice(bytes);
    state.put("device", 1, section);
    why(restore(&mut saved.beside(disk(None).0), state))
}

#[test]
fn registers_that_no_driver_leaves_are_refused_with_a_sentence() {
    // The section begins with device id (4 bytes), status (1), two selections (4 each), features
    // (8), the queue's selection (4), and the list of queues: its length (4), then of each largest
    // size, size (2 each), whether it is enabled (1) and three addresses (8 each).
    const STATUS: usize = 4;
    const FEATURES: usize = 13;
    const QUEUES: usize = 29;
    const RINGS: usize = QUEUES + 5;
    let cases: [(u8, u64, usize, &[u8], &str); 9] = [
        (READY, 0, 0, &[4], "its device is entropy, and the slot's is block"),
        (READY, 0, STATUS, &[7], "no driver brings a device to status 0x7"),
        (READY, 0, STATUS, &[NEGOTIATED], "its life and its status contradict each other"),
        (NEGOTIATED, 0, STATUS, &[READY], "its life and its status contradict each other"),
        (
            READY,
            0,
            STATUS,
            &[0],
            "its driver has accepted the features 0x100000000, which it cannot have here",
        ),
        (
            READY,
            0,
            FEATURES,
            &[1],
            "its driver has accepted the features 0x100000001, which it cannot have here",
        ),
        (READY, 0, FEATURES + 4, &[0], "its driver has accepted the features 0x0, which it cannot have here"),
        (READY, 0, QUEUES, &[128], "its device has other queues"),
        (READY, 0, RINGS, &[1], "queue 0 is not usable: descriptor table at 0x1 is not aligned to 16 bytes"),
    ];
    for (status, features, at, bytes, expected) in cases {
        assert_eq!(changed(status, features, at, bytes), expected, "{status:#x} at {at}");
    }
    let described = changed(NEGOTIATED, 0, STATUS, &[DRIVEN]);
    assert_eq!(described, "its driver has described queues before it negotiated features");
    assert_eq!(changed(READY, 0, QUEUES + 4, &[0]), "queue 0 is in use or not, but not both");
}

#[test]
fn a_queue_that_stands_where_no_device_does_is_refused() {
    let mut saved = Side::new(disk(None).0);
    saved.drive(0, READY);
    saved.pause();
    let sound = written(&saved);
    let len = sound.clone().take("device", 1).unwrap().len();
    // At the end: three indices (2 each), then chains (8).
    for at in [len - 14, len - 12, len - 10] {
        let mut state = sound.clone();
        let mut section = state.take("device", 1).unwrap();
        section[at] = 1;
        state.put("device", 1, section);
        let found = why(restore(&mut saved.beside(disk(None).0), state));
        assert_eq!(found, "no device stands in queue 0 where it says");
    }
}

#[test]
fn another_device_or_disk_is_refused_with_a_sentence() {
    let bytes = vec![0; 16 * 512];
    let cases: [(Option<Box<dyn Device>>, &str); 6] = [
        (None, "its device is block, and the slot's is none"),
        (Some(Box::new(Rng)), "its device is block, and the slot's is entropy"),
        (Some(disk_of(&bytes, "data", false).0), "it is that of the disk \"root\", and here is \"data\""),
        (Some(disk_of(&bytes[512..], "root", false).0), "the disk had 16 sectors, and has 15 here"),
        (Some(disk_of(&bytes, "root", true).0), "one of the two disks is read-only, and the other is not"),
        (Some(Box::new(Wide(Rng))), "its device has other queues"),
    ];
    for (device, why) in cases {
        assert_eq!(refused(device), why);
    }
}

/// A block device by name, with other queues.
struct Wide(Rng);

impl Stateful for Wide {
    fn save(&self, name: &str, state: &mut Sections) {
        self.0.save(name, state);
    }

    fn restore(&mut self, name: &str, state: &mut Sections) -> Result<(), StateError> {
        self.0.restore(name, state)
    }
}

impl Device for Wide {
    fn id(&self) -> u32 {
        id::BLOCK
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[128]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        self.0.activate(activation)
    }

    fn reclaim(&mut self, _state: Box<dyn std::any::Any + Send>) {}
}
