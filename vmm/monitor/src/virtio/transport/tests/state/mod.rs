//! Devices saved and restored: from there on the restored one does what the saved one does.

mod kinds;
mod refused;

use std::io::Read;
use std::os::unix::net::UnixStream;

use vm_memory::{Bytes, GuestAddress};

use self::kinds::{
    balloon, console, console_request, contents, disk, disk_request, memory_device, memory_request,
    random_request, report, rng, said, sizes,
};
use super::*;
use crate::state::testing::{carry, refuses_damage, restore, written};
use crate::state::{Sections, StateError, Stateful};
use crate::virtio::device::Device;
use crate::virtio::testing::Used;

/// Memory of each queue and its buffers.
const SHARE: u64 = 128 << 10;
const QUEUE: u16 = 8;

/// A machine with one device, and its driver's ends.
struct Side {
    slot: OneSlot,
    drivers: Vec<DriverQueue>,
}

impl Stateful for Side {
    fn save(&self, name: &str, state: &mut Sections) {
        self.slot.mmio.save(name, state);
    }

    fn restore(&mut self, name: &str, state: &mut Sections) -> Result<(), StateError> {
        self.slot.mmio.restore(name, state)
    }
}

impl Side {
    fn new(device: Box<dyn Device>) -> Self {
        let queues = device.queue_sizes().len() as u64;
        let mut slot = OneSlot::new(5, usize::try_from(queues * SHARE).unwrap());
        slot.mmio.0.attach(device).unwrap();
        let drivers = (0..queues).map(|n| DriverQueue::new(&slot.memory, n * SHARE, SHARE, QUEUE)).collect();
        Self { slot, drivers }
    }

    /// Another machine with the same memory, whose driver has come as far.
    fn beside(&self, device: Box<dyn Device>) -> Self {
        let mut side = Self::new(device);
        side.slot.memory.write_slice(&self.memory(), GuestAddress(0)).unwrap();
        side.drivers = self.drivers.iter().map(|driver| driver.moved(&side.slot.memory)).collect();
        side
    }

    fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(SHARE).unwrap() * self.drivers.len()];
        self.slot.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    fn write(&mut self, offset: u64, value: u32) {
        let _ = self.slot.mmio.write(offset, &value.to_le_bytes());
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.slot.mmio.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// From a reset as far as `status`.
    fn drive(&mut self, features: u64, status: u8) {
        self.write(reg::STATUS, 0);
        self.slot.workers.turn();
        for (n, driver) in (0..).zip(&mut self.drivers) {
            *driver = DriverQueue::new(&self.slot.memory, n * SHARE, SHARE, QUEUE);
        }
        self.start(features, status);
    }

    /// From there on, with the queues where they are.
    fn start(&mut self, features: u64, status: u8) {
        for step in [ACKNOWLEDGE, DRIVEN].into_iter().filter(|step| *step <= status) {
            self.write(reg::STATUS, u32::from(step));
        }
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32 | 1)] {
            self.write(reg::DRIVER_FEATURES_SEL, select);
            self.write(reg::DRIVER_FEATURES, u32::try_from(half).unwrap());
        }
        if status < NEGOTIATED {
            return;
        }
        self.write(reg::STATUS, u32::from(NEGOTIATED));
        for n in 0..self.drivers.len() {
            let queue = self.drivers[n].config();
            self.write(reg::QUEUE_SEL, u32::try_from(n).unwrap());
            self.write(reg::QUEUE_NUM, u32::from(queue.size));
            for (register, address) in [
                (reg::QUEUE_DESC_LOW, queue.descriptors),
                (reg::QUEUE_DRIVER_LOW, queue.available),
                (reg::QUEUE_DEVICE_LOW, queue.used),
            ] {
                self.write(register, u32::try_from(address).unwrap());
            }
            self.write(reg::QUEUE_READY, 1);
        }
        if status == READY {
            self.write(reg::STATUS, u32::from(READY));
        }
    }

    fn pause(&mut self) {
        self.slot.mmio.0.pause();
        self.slot.workers.turn();
        assert!(self.slot.mmio.0.paused());
    }

    fn resume(&mut self) {
        self.slot.mmio.0.resume();
        self.slot.workers.turn();
    }

    fn take(&mut self, step: &Step, request: Request) -> Seen {
        let mut answer = [0; 8];
        let mut effect = Effect::None;
        match *step {
            Step::Read(offset, width) => self.slot.mmio.read(offset, &mut answer[..width]),
            Step::Write(offset, width, value) => {
                effect = self.slot.mmio.write(offset, &value.to_le_bytes()[..width]);
            }
            Step::Drive(features, status) => self.drive(features, status),
            Step::Request(queue, seed) => {
                let queue = queue % self.drivers.len();
                let parts = request(queue, seed);
                if self.drivers[queue].room() >= parts.len() {
                    self.drivers[queue].add(&parts);
                }
                self.write(reg::QUEUE_NOTIFY, u32::try_from(queue).unwrap());
            }
            Step::Offer(head) => self.drivers[0].offer(head),
            Step::Pause => {
                self.pause();
                self.resume();
            }
        }
        // An attack on the rings shows as chains that were never made available.
        self.slot.workers.turn();
        let used = if self.slot.mmio.0.interrupt().needs_reset() {
            Vec::new()
        } else {
            self.drivers.iter_mut().flat_map(|driver| std::iter::from_fn(|| driver.used())).collect()
        };
        let tally = self.slot.mmio.0.interrupt().tally();
        let counted = format!("{} {} {:?}", tally.ignored(), tally.interrupts(), tally.faults());
        let registers =
            [reg::STATUS, reg::INTERRUPT_STATUS, reg::CONFIG_GENERATION].map(|offset| self.read(offset));
        Seen { answer, effect, used, registers, edges: self.slot.line.take(), counted }
    }

    /// Every register that can be read, and the configuration space, by every selection.
    fn registers(&mut self) -> Vec<u32> {
        let mut found: Vec<u32> = (0..0x140).step_by(4).map(|offset| self.read(offset)).collect();
        for select in 0..4 {
            self.write(reg::QUEUE_SEL, select);
            self.write(reg::DEVICE_FEATURES_SEL, select);
            found
                .extend([reg::QUEUE_NUM_MAX, reg::QUEUE_READY, reg::DEVICE_FEATURES].map(|at| self.read(at)));
        }
        found
    }

    fn tallies(&self) -> Vec<String> {
        let transport = &self.slot.mmio.0;
        let tally = transport.interrupt().tally();
        let queues = tally.identity().unwrap();
        let queues = queues.queues.iter();
        let queues =
            queues.map(|queue| format!("{:?} {:?}", queue.chains(), queue.position(&self.slot.memory)));
        queues.chain([format!("{} {}", tally.status(), transport.interrupt().faults())]).collect()
    }
}

type Request = fn(usize, u8) -> Vec<Part>;

/// What a driver sees of one step.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    answer: [u8; 8],
    effect: Effect,
    used: Vec<Used>,
    registers: [u32; 3],
    edges: u64,
    counted: String,
}

#[derive(Clone, Debug)]
enum Step {
    Read(u64, usize),
    Write(u64, usize, u64),
    Drive(u64, u8),
    Request(usize, u8),
    Offer(u16),
    Pause,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let offset = prop_oneof![4 => (0u64..0x40).prop_map(|n| n * 4), 1 => 0u64..0x200];
    let width = prop_oneof![8 => Just(4usize), 1 => Just(1), 1 => Just(2), 1 => Just(8)];
    let value = prop_oneof![any::<u64>(), 0..32u64, Just(u64::from(READY | FAILED)), Just(11u64), Just(3u64)];
    let status =
        prop_oneof![4 => Just(READY), 1 => Just(0u8), 1 => Just(1), 1 => Just(3), 1 => Just(NEGOTIATED)];
    let features = prop_oneof![Just(0u64), Just(1 << 28 | 1 << 29), Just(1 << 9), Just(2)];
    let step = prop_oneof![
        2 => (offset.clone(), width.clone()).prop_map(|(offset, width)| Step::Read(offset, width)),
        2 => (offset, width, value).prop_map(|(offset, width, value)| Step::Write(offset, width, value)),
        3 => (features, status).prop_map(|(features, status)| Step::Drive(features, status)),
        12 => (0usize..3, any::<u8>()).prop_map(|(queue, seed)| Step::Request(queue, seed)),
        1 => prop_oneof![Just(8u16), Just(1000)].prop_map(Step::Offer),
        1 => Just(Step::Pause),
    ];
    // A ring that is written by a random address has whatever content; nobody looks at it.
    prop::collection::vec(step, 0..40)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Before,
    After,
}

/// Restores what `before` led to, and takes `after` on both sides. `make` makes a device, or one
/// that has the same host behind it as that of another; `host` looks at that, and may act on it
/// after the restore.
fn round_trip<H>(
    before: &[Step],
    after: &[Step],
    request: Request,
    is_random: bool,
    make: impl Fn(Option<&H>) -> (Box<dyn Device>, H),
    host: impl Fn(&H, Phase) -> Vec<u8>,
) -> Result<(), TestCaseError> {
    let (device, behind) = make(None);
    let mut saved = Side::new(device);
    saved.drive(0, READY);
    for step in before {
        saved.take(step, request);
    }
    saved.pause();
    saved.slot.line.take();
    host(&behind, Phase::Before);
    let (device, behind_restored) = make(Some(&behind));
    let mut restored = saved.beside(device);
    carry(&saved, &mut restored).unwrap();
    prop_assert_eq!(restored.slot.line.take(), 0, "to restore is no interrupt");
    prop_assert_eq!(saved.tallies(), restored.tallies());
    prop_assert!(restored.slot.mmio.0.paused());
    saved.resume();
    restored.resume();
    prop_assert_eq!(saved.slot.line.take(), restored.slot.line.take());
    for step in after {
        let (mut expected, mut found) = (saved.take(step, request), restored.take(step, request));
        if is_random {
            expected.used.iter_mut().chain(&mut found.used).for_each(|used| used.data.clear());
        }
        prop_assert_eq!(expected, found, "{:?}", step);
        prop_assert_eq!(host(&behind, Phase::After), host(&behind_restored, Phase::After));
    }
    prop_assert_eq!(saved.registers(), restored.registers());
    prop_assert_eq!(saved.tallies(), restored.tallies());
    prop_assert!(is_random || saved.memory() == restored.memory());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn an_entropy_device(before in steps(), after in steps()) {
        round_trip(&before, &after, random_request, true, rng, |(), _| Vec::new())?;
    }

    #[test]
    fn a_disk(before in steps(), after in steps()) {
        round_trip(&before, &after, disk_request, false, disk, |file, _| contents(file))?;
    }

    #[test]
    fn a_console(before in steps(), after in steps()) {
        round_trip(&before, &after, console_request, false, console, said)?;
    }

    #[test]
    fn a_memory_device(before in steps(), after in steps()) {
        round_trip(&before, &after, memory_request, false, memory_device, |control, _| sizes(control))?;
    }

    #[test]
    fn a_balloon(before in steps(), after in steps()) {
        round_trip(&before, &after, report, false, balloon, |_, _| Vec::new())?;
    }

    /// Bytes of any kind are refused, or give a device that a sound driver can use.
    #[test]
    fn hostile_sections(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        status in prop_oneof![Just(0u8), Just(3), Just(NEGOTIATED), Just(READY)],
    ) {
        let mut saved = Side::new(disk(None).0);
        saved.drive(0, status);
        saved.take(&Step::Request(0, 0), disk_request);
        saved.pause();
        let mut bytes = written(&saved).encode();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let Ok(sections) = Sections::decode(&bytes) else { return Ok(()) };
        let mut fresh = saved.beside(disk(None).0);
        if restore(&mut fresh, sections).is_ok() {
            use_it(&mut fresh);
        }
    }
}

/// Whatever was restored, a driver that begins anew is served.
fn use_it(side: &mut Side) {
    side.resume();
    side.take(&Step::Request(0, 0), disk_request);
    side.take(&Step::Pause, disk_request);
    side.drive(0, READY);
    assert_eq!(side.read(reg::STATUS), u32::from(READY));
    let seen = side.take(&Step::Request(0, 5), disk_request);
    assert_eq!((seen.used.len(), &seen.used[0].data[..4]), (1, &b"root"[..]));
}

#[test]
fn every_damaged_byte_is_refused_or_harmless() {
    for status in [0, NEGOTIATED, READY] {
        let mut saved = Side::new(disk(None).0);
        saved.drive(0, status);
        saved.take(&Step::Request(0, 0), disk_request);
        saved.pause();
        refuses_damage(&saved, || saved.beside(disk(None).0), use_it);
    }
    let mut broken = Side::new(disk(None).0);
    broken.drive(0, READY);
    broken.take(&Step::Offer(8), disk_request);
    broken.write(reg::QUEUE_NOTIFY, 0);
    broken.slot.workers.turn();
    broken.pause();
    assert!(broken.slot.mmio.0.interrupt().needs_reset());
    refuses_damage(&broken, || broken.beside(disk(None).0), use_it);
}

#[test]
fn output_that_a_full_stream_held_is_neither_lost_nor_doubled() {
    const CHUNK: usize = 60_000;
    let (device, behind) = console(None);
    let mut saved = Side::new(device);
    saved.drive(0, READY);
    let text: Vec<u8> = (0..=250).cycle().take(CHUNK).collect();
    let mut given = 0;
    loop {
        saved.drivers[1].add(&[Part::Read(text.clone())]);
        given += 1;
        saved.write(reg::QUEUE_NOTIFY, 1);
        saved.slot.workers.turn();
        if saved.drivers[1].used().is_none() {
            break;
        }
    }
    saved.pause();
    let mut sent = Vec::new();
    let mut piece = vec![0; 1 << 20];
    let mut take = |mut stream: &UnixStream, sent: &mut Vec<u8>| {
        while let Ok(len) = stream.read(&mut piece) {
            sent.extend_from_slice(&piece[..len]);
        }
    };
    take(&behind, &mut sent);
    assert_ne!(sent.len() % CHUNK, 0, "the stream took a part of the last one");
    let (device, behind) = console(None);
    let mut restored = saved.beside(device);
    carry(&saved, &mut restored).unwrap();
    restored.resume();
    while restored.drivers[1].used().is_none() {
        take(&behind, &mut sent);
        restored.slot.workers.turn();
    }
    take(&behind, &mut sent);
    assert!(sent == text.repeat(given), "{} of {}", sent.len(), CHUNK * given);
}

/// A driver that started a device whose queues it had not described.
#[test]
fn a_device_that_could_not_start_waits_for_its_reset_in_the_restored_machine_too() {
    for failed in [0, FAILED] {
        let mut saved = Side::new(disk(None).0);
        saved.drive(0, DRIVEN);
        for status in [NEGOTIATED, READY, READY | failed] {
            saved.write(reg::STATUS, u32::from(status));
        }
        saved.pause();
        let mut restored = saved.beside(disk(None).0);
        carry(&saved, &mut restored).unwrap();
        assert_eq!(restored.slot.line.take(), 0);
        assert_eq!(restored.read(reg::STATUS), u32::from(READY | NEEDS_RESET | failed));
        assert_eq!((restored.read(reg::INTERRUPT_STATUS), restored.read(reg::CONFIG_GENERATION)), (2, 1));
        assert_eq!(restored.tallies(), saved.tallies());
        assert_eq!(restored.slot.mmio.0.interrupt().tally().faults()[0].kind, "missing_queue");
        use_it(&mut restored);
    }
}

#[test]
fn an_empty_slot_is_restored_and_filled() {
    let saved = OneSlot::new(5, MIB).mmio;
    let mut restored = Side { slot: OneSlot::new(5, MIB), drivers: Vec::new() };
    carry(&saved, &mut restored).unwrap();
    refuses_damage(&saved, || OneSlot::new(5, MIB).mmio, |mmio| mmio.0.resume());
    restored.slot.mmio.0.attach(disk(None).0).unwrap();
    restored.drivers.push(DriverQueue::new(&restored.slot.memory, 0, SHARE, QUEUE));
    use_it(&mut restored);
}

#[test]
#[should_panic(expected = "while its worker is out")]
fn state_is_asked_for_when_the_machine_is_paused() {
    let mut side = Side::new(Box::new(Rng));
    side.drive(0, READY);
    let _ = written(&side);
}
