//! Requests of a guest to a disk, over a real queue. What the disk holds is compared with a list of
//! bytes that does what the specification says.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;

use nelly_disk::RawDisk;
use nelly_vmm::config::SectorSize;
use nelly_vmm::virtio::blk::{Block, spec};
use nelly_vmm::virtio::device::Device;
use nelly_vmm::virtio::spec::feature;
use nelly_vmm::virtio::testing::{Bench, Part, Used};

use super::Bytes;

const SECTOR: usize = 512;
const SECTORS: usize = 128;
const QUEUE: u16 = 64;
/// Descriptors of one request at most.
const PARTS: usize = 40;
/// The disk's name, longer than the 20 bytes that a driver gets.
const NAME: &str = "a disk with a rather long name";

/// The first byte chooses the disk (bit 0: read-only, bit 1: the driver asks for no flush, bit 2:
/// sectors of 4 KiB); requests of eight bytes follow.
///
/// # Panics
/// When an answer or the disk is not what the specification says, or a device breaks by what is
/// sound.
pub fn run(data: &[u8]) {
    let _ = served(data);
}

/// As [`run`]; the requests that succeeded.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn served(data: &[u8]) -> usize {
    let mut input = Bytes(data);
    let [choice] = input.take();
    let mut side = Side::new(choice);
    while !input.is_empty() && !side.broken {
        side.step(input.take());
    }
    side.settle();
    let mut bytes = vec![0; SECTORS * SECTOR];
    side.file.read_exact_at(&mut bytes, 0).expect("a memory file");
    assert!(bytes == side.model, "the disk is what was written");
    side.good
}

/// What an answer has to be.
enum Asked {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Flush,
    Name(usize),
    /// Ranges, raw, and whether they are to be zeroed for good.
    Ranges(Vec<u8>, bool),
    Unknown,
    /// Too short for a header or a status: the driver broke the device.
    Broken,
}

struct Side {
    device: Block,
    bench: Bench,
    features: u64,
    file: File,
    model: Vec<u8>,
    read_only: bool,
    pending: VecDeque<(u16, Asked)>,
    broken: bool,
    good: usize,
}

impl Side {
    fn new(choice: u8) -> Self {
        let fd = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).expect("a memory file");
        let file = File::from(fd);
        let model: Vec<u8> = (0..SECTORS * SECTOR).map(|at| (at / SECTOR + at).to_le_bytes()[0]).collect();
        file.write_all_at(&model, 0).expect("a memory file");
        let read_only = choice & 1 != 0;
        let disk = RawDisk::new(file.try_clone().expect("a descriptor"), read_only).expect("a disk");
        let mut device = Block::new(Box::new(disk), NAME);
        if choice & 4 != 0 {
            device = device.with_sectors(SectorSize::new(4096).expect("a size")).expect("whole sectors");
        }
        let mut features = device.features() | feature::VERSION_1 | feature::INDIRECT_DESC;
        if choice & 2 != 0 {
            features &= !spec::F_FLUSH;
        } else {
            features |= feature::EVENT_IDX;
        }
        let bench = Bench::new(&mut device, QUEUE, Some(features));
        let pending = VecDeque::new();
        Self { device, bench, features, file, model, read_only, pending, broken: false, good: 0 }
    }

    /// One request: what, which sectors, how the chain is cut.
    fn step(&mut self, [op, low, high, count, shape, fill, a, b]: [u8; 8]) {
        let sector = match high {
            ..0x80 => u64::from(low),
            _ => u64::from(low).rotate_left(u32::from(high)),
        };
        let odd = if shape & 0x80 == 0 { 0 } else { usize::from(a) };
        let len = usize::from(count & 63) * SECTOR + odd;
        let mut status = true;
        let (kind, body, room, asked) = match op & 15 {
            0..=3 => (spec::T_IN, vec![], len, Asked::Read(sector, len)),
            4..=6 => {
                let bytes: Vec<u8> =
                    (0..len).map(|at| fill.wrapping_add((at / 7).to_le_bytes()[0])).collect();
                (spec::T_OUT, bytes.clone(), 0, Asked::Write(sector, bytes))
            }
            7 => (spec::T_FLUSH, vec![], 0, Asked::Flush),
            8 => (spec::T_GET_ID, vec![], usize::from(count), Asked::Name(count.into())),
            kind @ 9..=11 => {
                let mut ranges = Vec::new();
                for index in 0..u64::from(a & 3) + 1 {
                    let sector = sector.wrapping_add(index * u64::from(b));
                    ranges.extend_from_slice(&sector.to_le_bytes());
                    let count = if fill & 0x80 == 0 { u32::from(count) } else { 0xfff0 + u32::from(count) };
                    ranges.extend_from_slice(&count.to_le_bytes());
                    let flags = if index < 2 { fill >> (2 * index) & 3 } else { 0 };
                    ranges.extend_from_slice(&u32::from(flags).to_le_bytes());
                }
                ranges.truncate(ranges.len() - usize::from(shape >> 7));
                let zero = kind != 9;
                let kind = if zero { spec::T_WRITE_ZEROES } else { spec::T_DISCARD };
                (kind, ranges.clone(), 0, Asked::Ranges(ranges, zero))
            }
            12 => (u32::from(fill) << (a & 31) | 0x40, vec![b; len], 0, Asked::Unknown),
            13 => (spec::T_IN, vec![], len, Asked::Broken),
            14 => {
                status = false;
                (spec::T_OUT, vec![fill; len], 0, Asked::Broken)
            }
            _ => return self.pause(),
        };
        let mut out = [&kind.to_le_bytes()[..], &[b; 4], &sector.to_le_bytes(), &body].concat();
        if op & 15 == 13 {
            out.truncate(usize::from(fill) % 16);
        }
        let parts = parts(&out, room + usize::from(status), shape);
        if parts.is_empty() {
            return;
        }
        if self.bench.queues[0].room() < PARTS {
            self.settle();
        }
        let queue = &mut self.bench.queues[0];
        let head = if shape & 0x10 == 0 { queue.add(&parts) } else { queue.add_indirect(&parts) };
        let at_once = shape & 0x20 == 0 || matches!(asked, Asked::Broken | Asked::Ranges(..));
        self.pending.push_back((head, asked));
        if at_once {
            self.settle();
        }
    }

    /// Has all requests answered, and looks at the answers.
    fn settle(&mut self) {
        self.bench.kick(0);
        while let Some(used) = self.bench.queues[0].used() {
            let (head, asked) = self.pending.pop_front().expect("no more answers than requests");
            assert_eq!(used.head, head, "one worker answers in order");
            self.check(asked, &used);
        }
        self.broken = self.bench.interrupt.faults() > 0;
        if self.broken {
            assert!(matches!(self.pending.front(), Some((_, Asked::Broken))), "a sound request broke it");
        } else {
            assert!(self.pending.is_empty(), "every request is answered");
        }
    }

    fn pause(&mut self) {
        self.settle();
        if self.broken {
            return;
        }
        let returned = self.bench.stop();
        self.device.reclaim(returned.state);
        self.bench.resume(&mut self.device, self.features, returned.queues);
    }

    fn check(&mut self, asked: Asked, used: &Used) {
        let (&status, data) = used.data.split_last().expect("a request has room for its status");
        let blank = data.iter().all(|&byte| byte == 0xa5);
        let wanted = match asked {
            Asked::Read(sector, len) => match extent(sector, len) {
                Some(range) => {
                    assert!(data == &self.model[range], "what is read is what was written");
                    spec::S_OK
                }
                None => {
                    assert!(blank, "a refused request leaves its buffer alone");
                    spec::S_IOERR
                }
            },
            Asked::Write(sector, bytes) => match extent(sector, bytes.len()) {
                Some(range) if !self.read_only => {
                    self.model[range].copy_from_slice(&bytes);
                    spec::S_OK
                }
                _ => spec::S_IOERR,
            },
            Asked::Flush => spec::S_OK,
            Asked::Name(len) => {
                let cut = len.min(spec::ID_BYTES);
                assert_eq!(&data[..cut], &NAME.as_bytes()[..cut]);
                spec::S_OK
            }
            Asked::Ranges(raw, zero) => self.ranges(&raw, zero, status),
            Asked::Unknown => spec::S_UNSUPP,
            Asked::Broken => panic!("a chain without room for its parts is answered"),
        };
        assert_eq!(status, wanted);
        assert_eq!(usize::try_from(used.len).ok(), Some(used.data.len()), "all of it was written or passed");
        self.good += usize::from(status == spec::S_OK);
    }

    /// What becomes of the disk by these ranges; the status that is right.
    fn ranges(&mut self, raw: &[u8], zero: bool, status: u8) -> u8 {
        if self.read_only {
            return spec::S_UNSUPP;
        }
        let most = if zero { spec::ZERO_RANGES_MAX } else { spec::DISCARD_RANGES_MAX };
        let most = usize::try_from(most).expect("a small number");
        if !raw.len().is_multiple_of(16) || raw.len() / 16 > most {
            return spec::S_IOERR;
        }
        let mut ranges = Vec::new();
        let mut wanted = spec::S_OK;
        for range in raw.chunks_exact(16) {
            let word = |at: usize| u32::from_le_bytes(range[at..at + 4].try_into().expect("4 bytes"));
            let sector = u64::from(word(0)) | u64::from(word(4)) << 32;
            let (count, flags) = (word(8), word(12));
            if count > spec::RANGE_SECTORS_MAX {
                wanted = spec::S_IOERR;
                break;
            }
            let len = usize::try_from(count).expect("a small number") * SECTOR;
            let Some(place) = extent(sector, len) else {
                wanted = spec::S_IOERR;
                break;
            };
            if flags & !u32::from(zero) != 0 {
                wanted = spec::S_UNSUPP;
            }
            ranges.push(place);
        }
        // Which of two complaints comes first is the device's.
        if wanted != spec::S_OK && status != spec::S_OK {
            return status;
        }
        for place in ranges {
            if zero {
                self.model[place].fill(0);
                continue;
            }
            // What is discarded may stay, or read as zeros.
            let mut now = vec![0; place.len()];
            self.file.read_exact_at(&mut now, place.start as u64).expect("a memory file");
            let old = &mut self.model[place];
            assert!(now.iter().zip(&*old).all(|(now, old)| *now == 0 || now == old));
            old.copy_from_slice(&now);
        }
        wanted
    }
}

/// The bytes of whole sectors inside the disk.
fn extent(sector: u64, len: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(sector).ok().filter(|&sector| sector <= SECTORS)? * SECTOR;
    (len.is_multiple_of(SECTOR) && start + len <= SECTORS * SECTOR).then_some(start..start + len)
}

/// Bytes for the device and room for its answer, cut into descriptors.
fn parts(out: &[u8], room: usize, shape: u8) -> Vec<Part> {
    let size = [512, 1300, 4096, 7000][usize::from(shape & 3)];
    let first = if shape & 4 == 0 { 16 } else { 1 + usize::from(shape >> 4) };
    let mut parts = Vec::new();
    let mut left = out;
    while !left.is_empty() && parts.len() < PARTS / 2 {
        let len = if parts.is_empty() { first } else { size };
        // The last one takes what is left.
        let len = if parts.len() + 1 == PARTS / 2 { left.len() } else { len.min(left.len()) };
        let (piece, rest) = left.split_at(len);
        parts.push(Part::Read(piece.to_vec()));
        left = rest;
    }
    // The status lies in a descriptor of its own, or with the data before it.
    let apart = usize::from(shape & 8 == 0 && room > 1);
    let mut left = room - apart;
    while left > 0 && parts.len() + 1 < PARTS {
        let len = if parts.len() + 2 == PARTS { left } else { size.min(left) };
        parts.push(Part::Write(u32::try_from(len).expect("a small buffer")));
        left -= len;
    }
    if apart > 0 {
        parts.push(Part::Write(1));
    }
    parts
}

/// Every kind of request; a read-only disk; a driver that asks for no flush; chains cut anyhow.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let all = |shape: u8| {
        [
            [0, 3, 0, 8, shape, 0, 0, 0],
            [4, 5, 0, 9, shape, 77, 0, 0],
            [0, 5, 0, 9, shape, 0, 0, 0],
            [7, 0, 0, 0, shape, 0, 0, 0],
            [8, 0, 0, 20, shape, 0, 0, 0],
            [9, 8, 0, 16, shape, 0, 2, 20],
            [10, 30, 0, 4, shape, 1, 1, 6],
            [0, 0, 0, 63, shape, 0, 0, 0],
            [15, 0, 0, 0, 0, 0, 0, 0],
            [1, 120, 0, 9, shape, 0, 0, 0],
            [5, 2, 0x90, 1, shape, 1, 0, 0],
            [12, 0, 0, 0, shape, 9, 3, 0],
        ]
        .concat()
    };
    let broken = [13, 0, 0, 1, 0, 5, 0, 0];
    vec![
        [&[0][..], &all(0), &all(0x3e), &broken].concat(),
        [&[1][..], &all(9)].concat(),
        [&[6][..], &all(0x11), &[14, 0, 0, 1, 0, 0, 0, 0]].concat(),
    ]
}
