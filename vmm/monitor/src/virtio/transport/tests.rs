//! The transport through its registers, with a loop of workers that turns when the test says so.

mod detach;
mod state;

use proptest::prelude::*;

use super::*;
use crate::bus::{BusDevice, Effect};
use crate::virtio::queue::QueueConfig;
use crate::virtio::rng::Rng;
use crate::virtio::spec::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET};
use crate::virtio::spec::{feature, id, register as reg};
use crate::virtio::testing::{DriverQueue, MIB, OneSlot, Part};

const DRIVEN: u8 = ACKNOWLEDGE | DRIVER;
const NEGOTIATED: u8 = DRIVEN | FEATURES_OK;
const READY: u8 = NEGOTIATED | DRIVER_OK;

struct Machine {
    slot: OneSlot,
    driver: DriverQueue,
}

impl Machine {
    fn empty() -> Self {
        let slot = OneSlot::new(5, MIB);
        let driver = DriverQueue::new(&slot.memory, 0, MIB as u64, 64);
        Self { slot, driver }
    }

    fn transport(&mut self) -> &mut Transport {
        &mut self.slot.mmio.0
    }

    fn with_rng() -> Self {
        let mut machine = Self::empty();
        machine.transport().attach(Box::new(Rng)).unwrap();
        machine
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0xa5; 4];
        self.slot.mmio.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, value: u32) {
        assert_eq!(self.slot.mmio.write(offset, &value.to_le_bytes()), Effect::None);
    }

    fn status(&mut self) -> u8 {
        u8::try_from(self.read(reg::STATUS)).unwrap()
    }

    fn set_status(&mut self, status: u8) {
        self.write(reg::STATUS, u32::from(status));
    }

    fn turn(&mut self) {
        self.slot.workers.turn();
    }

    fn negotiate(&mut self, features: u64) {
        self.set_status(ACKNOWLEDGE);
        self.set_status(DRIVEN);
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.write(reg::DRIVER_FEATURES_SEL, select);
            self.write(reg::DRIVER_FEATURES, u32::try_from(half).unwrap());
        }
        self.set_status(NEGOTIATED);
    }

    fn describe(&mut self, index: u32, queue: QueueConfig) {
        self.write(reg::QUEUE_SEL, index);
        self.write(reg::QUEUE_NUM, u32::from(queue.size));
        for (register, address) in [
            (reg::QUEUE_DESC_LOW, queue.descriptors),
            (reg::QUEUE_DRIVER_LOW, queue.available),
            (reg::QUEUE_DEVICE_LOW, queue.used),
        ] {
            self.write(register, u32::try_from(address & 0xffff_ffff).unwrap());
            self.write(register + 4, u32::try_from(address >> 32).unwrap());
        }
        self.write(reg::QUEUE_READY, 1);
    }

    /// What a driver does from reset on, with a fresh ring.
    fn drive(&mut self) {
        self.driver = DriverQueue::new(&self.slot.memory, 0, MIB as u64, 64);
        self.negotiate(feature::VERSION_1);
        self.describe(0, self.driver.config());
        self.set_status(READY);
        assert_eq!(self.status(), READY);
    }

    /// One request through the whole device; the interrupt is acknowledged.
    fn use_it(&mut self) {
        self.slot.line.take();
        self.driver.add(&[Part::Write(32)]);
        self.write(reg::QUEUE_NOTIFY, 0);
        self.turn();
        assert_eq!(self.driver.used().expect("an answer").len, 32);
        assert_eq!((self.slot.line.take(), self.read(reg::INTERRUPT_STATUS)), (1, 1));
        self.write(reg::INTERRUPT_ACK, 1);
        assert_eq!(self.read(reg::INTERRUPT_STATUS), 0);
    }

    fn reset(&mut self) {
        self.set_status(0);
        self.turn();
        assert_eq!(self.status(), 0);
    }
}

#[test]
fn a_driver_finds_drives_and_leaves_a_device() {
    let mut machine = Machine::with_rng();
    assert_eq!((machine.read(reg::MAGIC), machine.read(reg::VERSION)), (0x7472_6976, 2));
    assert_eq!((machine.read(reg::DEVICE_ID), machine.read(reg::QUEUE_NUM_MAX)), (id::ENTROPY, 64));
    machine.write(reg::DEVICE_FEATURES_SEL, 1);
    assert_eq!(machine.read(reg::DEVICE_FEATURES), 1, "VERSION_1");
    machine.write(reg::DEVICE_FEATURES_SEL, 2);
    assert_eq!(machine.read(reg::DEVICE_FEATURES), 0);
    machine.write(reg::QUEUE_SEL, 1);
    assert_eq!((machine.read(reg::QUEUE_NUM_MAX), machine.read(reg::QUEUE_READY)), (0, 0));
    assert_eq!((machine.read(reg::SHM_LEN_LOW), machine.read(reg::SHM_LEN_LOW + 4)), (u32::MAX, u32::MAX));
    for _ in 0..3 {
        machine.drive();
        machine.write(reg::QUEUE_SEL, 0);
        assert_eq!(machine.read(reg::QUEUE_READY), 1);
        machine.use_it();
        machine.use_it();
        machine.reset();
        assert_eq!(machine.read(reg::QUEUE_READY), 0);
    }
    assert_eq!((machine.transport().ignored(), machine.transport().interrupt().faults()), (0, 0));
}

#[test]
fn only_the_steps_of_the_table_are_taken() {
    for from in [0, ACKNOWLEDGE, DRIVEN, NEGOTIATED, READY] {
        for to in 1..=255u8 {
            let mut machine = Machine::with_rng();
            match from {
                NEGOTIATED => machine.negotiate(feature::VERSION_1),
                READY => machine.drive(),
                other => machine.set_status(other),
            }
            assert_eq!(machine.status(), from);
            if to & !NEEDS_RESET == NEGOTIATED {
                machine.write(reg::DRIVER_FEATURES_SEL, 1);
                machine.write(reg::DRIVER_FEATURES, 1);
            }
            machine.set_status(to);
            // The driver may echo NEEDS_RESET, it cannot set it.
            let asked = to & !NEEDS_RESET;
            let allowed = matches!(
                (from, asked),
                (0, ACKNOWLEDGE | DRIVEN)
                    | (ACKNOWLEDGE, DRIVEN)
                    | (DRIVEN, NEGOTIATED)
                    | (NEGOTIATED, READY)
            ) || asked == from | FAILED;
            let wanted = if allowed { asked } else { from };
            // A queue was never described: the step to DRIVER_OK is taken and the device cannot
            // start.
            let broken = if (from, asked) == (NEGOTIATED, READY) { NEEDS_RESET } else { 0 };
            assert_eq!(machine.status(), wanted | broken, "{from:#x} to {to:#x}");
        }
    }
}

#[test]
fn features_are_negotiated_once_and_need_version_1() {
    let sound = feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC;
    let cases = [
        (sound, true),
        (feature::VERSION_1, true),
        (0, false),
        (sound & !feature::VERSION_1, false),
        (sound | 1, false),
        (u64::MAX, false),
    ];
    for (features, accepted) in cases {
        let mut machine = Machine::with_rng();
        machine.negotiate(features);
        assert_eq!(machine.status() == NEGOTIATED, accepted, "{features:#x}");
        // Too late.
        machine.write(reg::DRIVER_FEATURES_SEL, 1);
        machine.write(reg::DRIVER_FEATURES, 0xffff);
        assert_eq!(machine.status() == NEGOTIATED, accepted);
        machine.reset();
        machine.drive();
        machine.use_it();
    }
}

#[test]
fn a_reset_does_not_block_and_shows_when_it_is_done() {
    let mut machine = Machine::with_rng();
    machine.drive();
    machine.turn();
    machine.set_status(0);
    for _ in 0..3 {
        assert_eq!(machine.status(), READY, "the worker has not come home");
    }
    machine.set_status(0);
    machine.write(reg::QUEUE_NOTIFY, 0);
    machine.turn();
    assert_eq!(machine.status(), 0);
    assert_eq!(machine.slot.workers.stops(), 1, "asked once");
    machine.drive();
    machine.use_it();
}

#[test]
fn what_is_written_during_a_reset_is_to_be_written_again() {
    let mut machine = Machine::with_rng();
    machine.drive();
    machine.turn();
    machine.write(reg::QUEUE_SEL, 0);
    machine.set_status(0);
    // As Linux does: it goes on at once, and does not look whether the reset is done.
    let writes = [(reg::STATUS, ACKNOWLEDGE), (reg::DRIVER_FEATURES, 1), (reg::QUEUE_READY, 0)];
    for (register, value) in writes {
        let write = machine.slot.mmio.write(register, &u32::from(value).to_le_bytes());
        assert_eq!(write, Effect::Again, "{register:#x}");
    }
    assert_eq!(machine.read(reg::QUEUE_READY), 1, "the device may still use the rings");
    machine.turn();
    assert_eq!(machine.read(reg::QUEUE_READY), 0);
    machine.set_status(ACKNOWLEDGE);
    assert_eq!((machine.status(), machine.transport().ignored()), (ACKNOWLEDGE, 0));
}

#[test]
fn a_broken_ring_shows_as_needs_reset_and_a_reset_mends_it() {
    let good = Machine::with_rng().driver.config();
    let bad = [
        QueueConfig { size: 0, ..good },
        QueueConfig { size: 65, ..good },
        QueueConfig { size: 128, ..good },
        QueueConfig { descriptors: 8, ..good },
        QueueConfig { available: 1, ..good },
        QueueConfig { used: 2, ..good },
        QueueConfig { descriptors: MIB as u64 - 16, ..good },
        QueueConfig { available: MIB as u64, ..good },
        QueueConfig { used: !3, ..good },
    ];
    let mut machine = Machine::with_rng();
    for (n, queue) in (1..).zip(bad) {
        machine.negotiate(feature::VERSION_1);
        machine.describe(0, queue);
        machine.slot.line.take();
        machine.set_status(READY);
        assert_eq!(machine.status(), READY | NEEDS_RESET, "{queue:?}");
        assert_eq!(
            (machine.slot.line.take(), machine.read(reg::INTERRUPT_STATUS)),
            (1, 2),
            "the driver is told"
        );
        assert_eq!(machine.transport().interrupt().faults(), n);
        machine.write(reg::QUEUE_NOTIFY, 0);
        machine.reset();
        assert_eq!(machine.read(reg::INTERRUPT_STATUS), 0);
    }
    machine.drive();
    machine.use_it();
}

#[test]
fn a_broken_chain_shows_as_needs_reset_and_a_reset_mends_it() {
    let mut machine = Machine::with_rng();
    for _ in 0..3 {
        machine.drive();
        machine.driver.offer(1000);
        machine.write(reg::QUEUE_NOTIFY, 0);
        machine.turn();
        assert_eq!(machine.status(), READY | NEEDS_RESET);
        machine.write(reg::QUEUE_NOTIFY, 0);
        machine.turn();
        machine.reset();
    }
    assert_eq!(machine.transport().interrupt().faults(), 3);
    machine.drive();
    machine.use_it();
}

#[test]
fn queues_are_described_only_between_negotiation_and_start() {
    let mut machine = Machine::with_rng();
    let config = machine.driver.config();
    machine.describe(0, config);
    assert_eq!(machine.read(reg::QUEUE_READY), 0);
    machine.drive();
    machine.turn();
    machine.describe(0, QueueConfig { descriptors: u64::MAX, ..config });
    machine.write(reg::QUEUE_READY, 0);
    machine.use_it();
    machine.transport().pause();
    machine.turn();
    machine.transport().paused();
    machine.transport().resume();
    machine.use_it();
}

#[test]
fn an_empty_slot_is_filled_while_the_guest_runs() {
    let mut machine = Machine::empty();
    assert_eq!(
        (machine.read(reg::MAGIC), machine.read(reg::VERSION), machine.read(reg::DEVICE_ID)),
        (0x7472_6976, 2, 0)
    );
    machine.set_status(ACKNOWLEDGE);
    assert_eq!((machine.status(), machine.slot.mmio.doorbells().count()), (0, 0));
    machine.transport().attach(Box::new(Rng)).unwrap();
    assert!(matches!(machine.transport().attach(Box::new(Rng)), Err(AttachError::Occupied(5))));
    assert_eq!(machine.read(reg::DEVICE_ID), id::ENTROPY);
    machine.drive();
    machine.use_it();
}

#[test]
fn the_short_cut_and_the_exit_ring_the_same_bell() {
    let mut machine = Machine::with_rng();
    machine.drive();
    machine.turn();
    machine.driver.add(&[Part::Write(8)]);
    let (offset, value, bell) = machine.slot.mmio.doorbells().next().unwrap();
    assert_eq!((offset, value), (reg::QUEUE_NOTIFY, 0));
    bell.notify().unwrap();
    machine.turn();
    assert!(machine.driver.used().is_some());
    machine.use_it();
    for beyond in [1, 2, 0xffff_ffff] {
        machine.write(reg::QUEUE_NOTIFY, beyond);
    }
    assert_eq!(machine.transport().ignored(), 3);
}

#[test]
fn a_pause_keeps_everything() {
    let mut machine = Machine::with_rng();
    machine.drive();
    machine.use_it();
    machine.transport().pause();
    assert!(!machine.transport().paused());
    machine.turn();
    assert!(machine.transport().paused());
    machine.driver.add(&[Part::Write(8)]);
    machine.transport().resume();
    machine.turn();
    assert!(machine.driver.used().is_some(), "what was made available before the pause ended is served");
    machine.write(reg::INTERRUPT_ACK, 1);
    machine.use_it();
    assert_eq!(machine.status(), READY);
}

#[test]
fn a_broken_device_stays_broken_over_a_pause() {
    let mut machine = Machine::with_rng();
    machine.drive();
    machine.driver.offer(64);
    machine.write(reg::QUEUE_NOTIFY, 0);
    machine.turn();
    machine.transport().pause();
    machine.turn();
    assert!(machine.transport().paused());
    machine.transport().resume();
    machine.turn();
    assert_eq!(machine.status(), READY | NEEDS_RESET);
    machine.reset();
    machine.drive();
    machine.use_it();
}

#[test]
fn a_pause_during_a_reset_ends_in_the_reset() {
    let mut machine = Machine::with_rng();
    machine.drive();
    machine.turn();
    machine.set_status(0);
    machine.transport().pause();
    machine.turn();
    assert!(machine.transport().paused());
    machine.transport().resume();
    assert_eq!(machine.status(), 0);
    machine.drive();
    machine.use_it();
}

#[test]
fn every_offset_and_width_in_every_state_does_no_harm() {
    for state in [0, DRIVEN, NEGOTIATED, READY] {
        let mut machine = Machine::with_rng();
        match state {
            READY => machine.drive(),
            NEGOTIATED => machine.negotiate(feature::VERSION_1),
            other => machine.set_status(other),
        }
        for offset in 0..0x200u64 {
            for width in [1usize, 2, 4, 8] {
                let mut data = [0xa5; 8];
                machine.slot.mmio.read(offset, &mut data[..width]);
                let odd = width != 4 || !offset.is_multiple_of(4);
                assert!(!odd || data[..width].iter().all(|&byte| byte == 0), "{offset:#x} {width}");
                for byte in [0xff, 0x5a, 1] {
                    // Status is written in the tests above.
                    if offset != reg::STATUS {
                        let _ = machine.slot.mmio.write(offset, &[byte; 8][..width]);
                    }
                }
            }
        }
        machine.turn();
        machine.reset();
        machine.drive();
        machine.use_it();
    }
}

#[derive(Clone, Debug)]
enum Step {
    Read(u64, usize),
    Write(u64, usize, u64),
    Turn,
    Pause,
    Resume,
    Describe,
    Offer(u16),
    Attach,
}

fn step() -> impl Strategy<Value = Step> {
    let offset = prop_oneof![
        4 => (0u64..0x40).prop_map(|n| n * 4),
        1 => 0u64..0x1000,
        3 => Just(reg::STATUS),
    ];
    let width = prop_oneof![8 => Just(4usize), 1 => Just(1), 1 => Just(2), 1 => Just(8)];
    let value =
        prop_oneof![any::<u64>(), 0..32u64, Just(u64::from(READY)), Just(u64::from(NEGOTIATED)), Just(3u64)];
    prop_oneof![
        2 => (offset.clone(), width.clone()).prop_map(|(o, w)| Step::Read(o, w)),
        8 => (offset, width, value).prop_map(|(o, w, v)| Step::Write(o, w, v)),
        3 => Just(Step::Turn),
        1 => Just(Step::Pause),
        1 => Just(Step::Resume),
        2 => Just(Step::Describe),
        1 => (0..80u16).prop_map(Step::Offer),
        1 => Just(Step::Attach),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Whatever a guest does to the registers and the machine beside it, a reset and proper use
    /// work afterwards.
    #[test]
    fn any_history_ends_well_after_a_reset(steps in prop::collection::vec(step(), 0..60)) {
        let mut machine = Machine::empty();
        for step in steps {
            match step {
                Step::Read(offset, width) => machine.slot.mmio.read(offset, &mut [0; 8][..width]),
                Step::Write(offset, width, value) => {
                    let _ = machine.slot.mmio.write(offset, &value.to_le_bytes()[..width]);
                }
                Step::Turn => machine.turn(),
                Step::Pause => machine.transport().pause(),
                Step::Resume => {
                    machine.turn();
                    machine.transport().paused();
                    machine.transport().resume();
                }
                Step::Describe => {
                    machine.turn();
                    machine.negotiate(feature::VERSION_1);
                    machine.describe(0, machine.driver.config());
                    machine.set_status(READY);
                }
                Step::Offer(head) => machine.driver.offer(head),
                Step::Attach => drop(machine.transport().attach(Box::new(Rng))),
            }
        }
        drop(machine.transport().attach(Box::new(Rng)));
        machine.turn();
        machine.transport().paused();
        machine.transport().resume();
        machine.turn();
        machine.reset();
        machine.drive();
        machine.use_it();
    }
}
