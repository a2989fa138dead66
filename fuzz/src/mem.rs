//! Requests of a guest to its memory device, compared with a list of blocks that does what the
//! specification says.

use nelly_vmm::memory::{Backing, Slot};
use nelly_vmm::virtio::device::Device;
use nelly_vmm::virtio::mem::{MemoryControl, MemoryDevice};
use nelly_vmm::virtio::spec::feature;
use nelly_vmm::virtio::testing::{Bench, Part};

use super::Bytes;

const START: u64 = 1 << 27;
const BLOCK: u64 = 2 << 20;
const BLOCKS: usize = 70;
/// Kinds of requests and answers (virtio 1.2, 5.15.6).
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const ACK: u16 = 0;
const NACK: u16 = 1;
const ERROR: u16 = 3;

/// Requests of six bytes each: a kind, a block, a count, what is wanted, two for what is odd.
///
/// # Panics
/// When an answer is not what the specification says, or more is plugged in than was requested.
pub fn run(data: &[u8]) {
    let _ = acknowledged(data);
}

/// As [`run`]; the requests that were acknowledged.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn acknowledged(data: &[u8]) -> usize {
    let mut input = Bytes(data);
    let slot = Slot::new(1, START, BLOCK * BLOCKS as u64, Backing::Anonymous, false).expect("a slot");
    let (mut device, control) = MemoryDevice::new(slot);
    let features = device.features() | feature::VERSION_1 | feature::INDIRECT_DESC;
    let mut bench = Bench::new(&mut device, 8, Some(features));
    let mut model = Model { plugged: [false; BLOCKS], requested: 0 };
    let mut good = 0;
    for _ in 0..2000 {
        if input.is_empty() {
            break;
        }
        let [op, block, count, a, b, c] = input.take();
        match op & 7 {
            0..=4 => {
                let kind = if op & 7 == 4 { u16::from_le_bytes([a, b]) } else { u16::from(op & 7) };
                let odd = if op & 8 == 0 { 0 } else { u64::from(a) << (b & 63) };
                let address = (START + u64::from(block) * BLOCK).wrapping_add(odd);
                let count = u16::from_le_bytes([count, if op & 16 == 0 { 0 } else { c }]);
                let Some(answer) = ask(&mut bench, (kind, address, count), c) else { break };
                assert_eq!(answer, model.serve(kind, address, count), "{kind} {address:#x} {count}");
                good += usize::from(answer.0 == ACK);
            }
            5 => model.request(&control, u64::from(block) * BLOCK + u64::from(a & 1)),
            6 => {
                let returned = bench.stop();
                device.reclaim(returned.state);
                bench.resume(&mut device, features, returned.queues);
            }
            // Too short for a request, or for its answer.
            _ => {
                let (bytes, room) = if op & 8 == 0 { (count % 24, 10) } else { (24, count % 10) };
                let parts = [Part::Read(vec![a; bytes.into()]), Part::Write(room.into())];
                bench.queues[0].add(&parts);
                bench.kick(0);
                assert_eq!(bench.interrupt.faults(), 1, "it is a fault");
                break;
            }
        }
        let plugged = model.bytes();
        assert_eq!(control.sizes(), (model.requested, plugged));
    }
    good
}

struct Model {
    plugged: [bool; BLOCKS],
    requested: u64,
}

impl Model {
    fn bytes(&self) -> u64 {
        self.plugged.iter().filter(|&&plugged| plugged).count() as u64 * BLOCK
    }

    fn request(&mut self, control: &MemoryControl, bytes: u64) {
        let sound = bytes.is_multiple_of(BLOCK) && bytes <= BLOCK * BLOCKS as u64;
        assert_eq!(control.request(bytes).is_ok(), sound);
        if sound {
            self.requested = bytes;
        }
    }

    fn serve(&mut self, kind: u16, address: u64, count: u16) -> (u16, u16) {
        if kind == UNPLUG_ALL {
            self.plugged.fill(false);
            return (ACK, 0);
        }
        let free = self.requested.checked_sub(self.bytes());
        let offset = address.wrapping_sub(START);
        let first = usize::try_from(offset / BLOCK).expect("64 bits");
        let range = first..first.saturating_add(count.into());
        let sound = address >= START && offset.is_multiple_of(BLOCK) && count > 0;
        let Some(blocks) = self.plugged.get_mut(range).filter(|_| sound) else { return (ERROR, 0) };
        let (all, none) = (blocks.iter().all(|&plugged| plugged), blocks.iter().all(|&plugged| !plugged));
        match kind {
            PLUG if !none => (ERROR, 0),
            PLUG if free.is_none_or(|free| free < u64::from(count) * BLOCK) => (NACK, 0),
            PLUG => {
                blocks.fill(true);
                (ACK, 0)
            }
            UNPLUG if !all => (ERROR, 0),
            UNPLUG => {
                blocks.fill(false);
                (ACK, 0)
            }
            STATE if all => (ACK, 0),
            STATE if none => (ACK, 1),
            STATE => (ACK, 2),
            _ => (ERROR, 0),
        }
    }
}

/// The kind and the state of the answer; `None` when the device broke.
fn ask(bench: &mut Bench, (kind, address, count): (u16, u64, u16), shape: u8) -> Option<(u16, u16)> {
    let mut request = [0; 24];
    request[..2].copy_from_slice(&kind.to_le_bytes());
    request[8..16].copy_from_slice(&address.to_le_bytes());
    request[16..18].copy_from_slice(&count.to_le_bytes());
    let (one, two) = request.split_at(1 + usize::from(shape % 23));
    let parts = [Part::Read(one.to_vec()), Part::Read(two.to_vec()), Part::Write(4), Part::Write(6)];
    bench.queues[0].add(&parts);
    bench.kick(0);
    assert_eq!(bench.interrupt.faults(), 0, "a sound request breaks nothing");
    let used = bench.queues[0].used().expect("an answer");
    assert_eq!(used.len, 10);
    let word = |at: usize| u16::from_le_bytes([used.data[at], used.data[at + 1]]);
    Some((word(0), word(8)))
}

/// Blocks that come and go, more than is wanted, states, a pause, and a request cut short.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let step = |op: u8, block: u8, count: u8| [op, block, count, 0, 0, 0];
    vec![
        [
            step(5, 20, 0),
            step(0, 0, 5),
            step(0, 60, 10),
            step(0, 5, 9),
            step(3, 0, 5),
            step(3, 0, 70),
            step(3, 20, 3),
            step(6, 0, 0),
            step(1, 62, 4),
            step(1, 61, 4),
            step(5, 3, 0),
            step(2, 0, 0),
            step(0, 69, 1),
            step(0, 69, 2),
        ]
        .concat(),
        [step(5, 70, 0), step(0, 0, 70), step(8, 1, 1), step(16, 0, 1), step(7, 0, 9)].concat(),
        [step(5, 1, 0), step(15, 0, 9)].concat(),
    ]
}
