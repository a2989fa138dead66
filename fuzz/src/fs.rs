//! Requests of a guest to its file system device, over real queues and a server that says how it
//! was asked. (`share` is what lies behind: the server over a tree of the host.)

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use nelly_disk::{ReadBuffer, WriteBuffer};
use nelly_vmm::virtio::device::Device;
use nelly_vmm::virtio::fs::{FileServer, FileSystem, spec};
use nelly_vmm::virtio::spec::feature;
use nelly_vmm::virtio::testing::{Bench, Part};

use super::Bytes;

const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;
/// Requests without an answer: FORGET, INTERRUPT, BATCH_FORGET.
const SILENT: [u32; 3] = [2, 36, 42];
const SETLK: u32 = 32;
const SETLKW: u32 = 33;
/// Of this server alone: whoever has the lock gives it back.
const UNLOCK: u32 = 7000;
const EAGAIN: i32 = -11;
/// Longest part of a request.
const PART_MAX: usize = 3000;

/// Answers with as many bytes as the request says, each what the request's last byte is.
#[derive(Default)]
struct Played {
    locked: Mutex<bool>,
    resets: Mutex<usize>,
}

impl FileServer for Played {
    fn handle(&self, request: &dyn WriteBuffer, reply: &mut dyn ReadBuffer) -> usize {
        assert!(request.size() >= IN_HEADER, "the device has looked");
        let mut bytes = vec![0; request.size()];
        request.copy_out(0, &mut bytes);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let opcode = word(4);
        assert_ne!(opcode, SETLKW, "nobody waits in the server");
        if SILENT.contains(&opcode) {
            return 0;
        }
        assert!(reply.size() >= OUT_HEADER, "the device has looked");
        let mut locked = self.locked.lock().expect("nobody panics with it");
        let error = match opcode {
            SETLK if *locked => EAGAIN,
            SETLK => {
                *locked = true;
                0
            }
            UNLOCK => {
                *locked = false;
                0
            }
            _ => 0,
        };
        let payload = match opcode {
            SETLK | UNLOCK => 0,
            _ => usize::try_from(word(16)).expect("64 bits").min(reply.size() - OUT_HEADER),
        };
        let len = OUT_HEADER + payload;
        let last = *bytes.last().expect("a header");
        let mut answer = u32::try_from(len).expect("a small buffer").to_le_bytes().to_vec();
        answer.extend(error.to_le_bytes());
        answer.extend(&bytes[8..16]);
        answer.resize(len, last);
        reply.copy_in(0, &answer);
        len
    }

    fn reset(&self) {
        *self.resets.lock().expect("nobody panics with it") += 1;
    }
}

/// What is known of a request that was made.
struct Asked {
    opcode: u32,
    unique: u64,
    room: usize,
    wanted: usize,
    last: u8,
}

/// Steps of eight bytes.
///
/// # Panics
/// When an answer is not the server's, comes to nobody, or the device breaks by what is sound.
pub fn run(data: &[u8]) {
    let _ = answers(data);
}

/// As [`run`]; how many requests were answered.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn answers(data: &[u8]) -> usize {
    let mut input = Bytes(data);
    let [choice] = input.take();
    let server = Arc::new(Played::default());
    let mut device = FileSystem::new(server.clone(), "fuzz", false);
    let mut features = device.features() | feature::VERSION_1 | feature::INDIRECT_DESC;
    if choice & 1 == 0 {
        features |= feature::EVENT_IDX;
    }
    let bench = Bench::new(&mut device, 64, Some(features));
    let mut side = Side { bench, asked: [HashMap::new(), HashMap::new()], number: 0, bytes: 0, good: 0 };
    let mut waits = 2;
    while !input.is_empty() {
        let step: [u8; 8] = input.take();
        match step[0] & 15 {
            14 if waits > 0 => {
                waits -= 1;
                side.bench.wait(Duration::from_millis(11));
                side.settle();
            }
            14 => {}
            15 => {
                let returned = side.bench.stop();
                device.reclaim(returned.state);
                side.bench.resume(&mut device, features, returned.queues);
                side.settle();
            }
            _ if !side.step(step) => break,
            _ => {}
        }
    }
    side.settle();
    // Only locks are waited for.
    for asked in side.asked.iter().flat_map(HashMap::values) {
        assert!(side.bench.interrupt.faults() > 0 || asked.opcode == SETLKW, "{} waits", asked.opcode);
    }
    let returned = side.bench.stop();
    device.reclaim(returned.state);
    device.reset();
    assert_eq!(*server.resets.lock().expect("nobody panics with it"), 1);
    side.good
}

struct Side {
    bench: Bench,
    /// By their heads, those of each queue that have no answer.
    asked: [HashMap<u16, Asked>; 2],
    number: u64,
    /// Bytes of buffers that may be in use.
    bytes: usize,
    good: usize,
}

impl Side {
    /// Makes a request; `false` when nothing more can come.
    fn step(&mut self, [op, queue, len, more, room, shape, a, last]: [u8; 8]) -> bool {
        let index = if queue & 0xf == 0xf { spec::HIPRIO } else { spec::REQUESTS };
        let opcode = match op & 15 {
            0..=3 => u32::from(a) + 3,
            4 => SILENT[usize::from(a) % 3],
            5 | 6 => SETLK,
            7..=9 => SETLKW,
            10 | 11 => UNLOCK,
            _ => u32::from(a) << (queue >> 4),
        };
        let payload = (usize::from(len) + usize::from(more) * 8).min(PART_MAX);
        let room = match room {
            0xff => 0,
            _ => OUT_HEADER + usize::from(room) * usize::from(1 + (shape & 15)),
        };
        let silent = SILENT.contains(&opcode);
        self.number += 1;
        let wanted = u32::from(a) * u32::from(more);
        let mut request = u32::try_from(IN_HEADER + payload).expect("a small request").to_le_bytes().to_vec();
        request.extend(opcode.to_le_bytes());
        request.extend(self.number.to_le_bytes());
        request.extend(wanted.to_le_bytes());
        request.resize(IN_HEADER + payload, last);
        let mut sound = room > 0 || silent;
        let mut room = if silent && shape & 0x10 != 0 { 0 } else { room };
        if op == 0xf0 {
            request.truncate(usize::from(last) % IN_HEADER);
            sound = false;
        } else if op == 0xe0 {
            room = usize::from(last) % OUT_HEADER;
            sound = room == 0 && silent;
        }
        // A wait for a lock on the queue for FORGET is refused, if somebody has it.
        if opcode == SETLKW && index == spec::HIPRIO {
            sound = false;
        }
        let mut parts = Vec::new();
        let cut = (1 + usize::from(shape >> 3)).min(request.len());
        let (head, tail) = request.split_at(cut);
        parts.extend(
            [head, tail].into_iter().filter(|part| !part.is_empty()).map(|part| Part::Read(part.to_vec())),
        );
        let part = |len: usize| Part::Write(u32::try_from(len).expect("a small buffer"));
        let cut = room.min(1 + usize::from(shape & 31));
        parts.extend([cut, room - cut].into_iter().filter(|&len| len > 0).map(part));
        if parts.is_empty() {
            return true;
        }
        self.bytes += request.len() + room + 128;
        let queue = &mut self.bench.queues[index];
        if queue.room() < parts.len() || self.bytes > 6 << 20 {
            return false;
        }
        let head = if shape & 0x80 != 0 { queue.add_indirect(&parts) } else { queue.add(&parts) };
        let wanted = usize::try_from(wanted).expect("64 bits");
        let last = *request.last().unwrap_or(&0);
        self.asked[index].insert(head, Asked { opcode, unique: self.number, room, wanted, last });
        if shape & 0x40 == 0 || !sound {
            self.settle();
        }
        let faults = self.bench.interrupt.faults();
        assert!(faults == 0 || !sound, "a sound request broke it: {opcode}");
        faults == 0
    }

    fn settle(&mut self) {
        for index in 0..2 {
            self.bench.kick(index);
        }
        for index in 0..2 {
            while let Some(used) = self.bench.queues[index].used() {
                let asked = self.asked[index].remove(&used.head).expect("an answer to what was asked");
                let len = usize::try_from(used.len).expect("a small buffer");
                self.good += 1;
                if SILENT.contains(&asked.opcode) {
                    assert_eq!(len, 0);
                    continue;
                }
                let says = u32::from_le_bytes(used.data[..4].try_into().expect("4 bytes"));
                assert_eq!(usize::try_from(says).ok(), Some(len), "as long as it says");
                let unique = u64::from_le_bytes(used.data[8..16].try_into().expect("8 bytes"));
                assert_eq!(unique, asked.unique, "the answer to another request");
                let wanted = match asked.opcode {
                    SETLK | SETLKW | UNLOCK => 0,
                    _ => asked.wanted.min(asked.room - OUT_HEADER),
                };
                assert_eq!(len, OUT_HEADER + wanted);
                assert!(used.data[OUT_HEADER..len].iter().all(|&byte| byte == asked.last));
                assert!(used.data[len..].iter().all(|&byte| byte == 0xa5), "nothing is written behind");
            }
        }
    }
}

/// Requests of every kind and cut, locks that are waited for, pauses, and broken ones.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let ask = |op: u8, shape: u8, a: u8| [op, 0, 8, 3, 20, shape, a, 9];
    let wait = [14, 0, 0, 0, 0, 0, 0, 0];
    let pause = [15, 0, 0, 0, 0, 0, 0, 0];
    vec![
        [&[0][..], &ask(0, 0x80, 12), &ask(1, 0x7c, 13), &ask(4, 0x10, 1), &ask(2, 0, 40), &pause].concat(),
        [&[1][..], &ask(5, 0, 0), &ask(7, 0x20, 0), &ask(6, 0, 0), &pause, &ask(10, 0, 0), &wait, &wait]
            .concat(),
        [&[0][..], &ask(4, 0, 0), &[4, 0x0f, 8, 0, 0xff, 0, 2, 1], &[0xf0, 0, 0, 0, 0, 0, 0, 7]].concat(),
        [&[0][..], &ask(3, 0, 0), &[0xe0, 0, 8, 0, 0, 0, 9, 5]].concat(),
        [&[0][..], &ask(5, 0, 0), &[7, 0x0f, 8, 0, 9, 0, 2, 1]].concat(),
    ]
}
