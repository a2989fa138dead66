//! The block device under a fake driver.

mod host;
mod waits;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use nelly_disk::{RawDisk, ReadAt, ReadBuffer, Within, WriteBuffer};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::config::DiskLimits;
use crate::virtio::device::Returned;
use crate::virtio::spec::{descriptor as flag, feature};
use crate::virtio::testing::{Bench, Part, Used};

const SECTORS: u64 = 256;

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// A disk whose sector n is filled with n, and a second handle on it.
fn disk(read_only: bool) -> (Block, File) {
    let mut file = tempfile::tempfile().unwrap();
    for sector in 0..SECTORS {
        file.write_all(&[u8::try_from(sector % 251).unwrap(); 512]).unwrap();
    }
    let other = file.try_clone().unwrap();
    (Block::new(Box::new(RawDisk::new(file, read_only).unwrap()), "root"), other)
}

fn contents(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn request(bench: &mut Bench, parts: &[Part]) -> Used {
    bench.queues[0].add(parts);
    bench.kick(0);
    bench.queues[0].used().expect("an answer")
}

/// The status byte of a request, which is the last byte the device may write.
fn status(bench: &mut Bench, mut parts: Vec<Part>) -> u8 {
    parts.push(Part::Write(1));
    *request(bench, &parts).data.last().unwrap()
}

#[test]
fn says_what_it_is() {
    let (device, _file) = disk(false);
    let field = |offset, len| {
        let mut bytes = [0; 8];
        device.read_config(offset, &mut bytes[..len]);
        u64::from_le_bytes(bytes)
    };
    assert_eq!(device.id(), 2);
    assert_eq!((field(0, 8), field(12, 4), field(20, 4), field(34, 2)), (SECTORS, 254, 512, 0));
    assert_eq!(field(8, 4), 256 << 10);
    assert_eq!((field(36, 4), field(48, 4), field(56, 1)), (65536, 65536, 1));
    assert_eq!((field(58, 8), field(1 << 40, 8), field(u64::MAX, 8)), (0, 0, 0));
    assert_eq!(
        device.features(),
        spec::F_SIZE_MAX
            | spec::F_SEG_MAX
            | spec::F_BLK_SIZE
            | spec::F_FLUSH
            | spec::F_DISCARD
            | spec::F_WRITE_ZEROES
    );
    let (device, _file) = disk(true);
    assert_eq!(
        device.features(),
        spec::F_SIZE_MAX | spec::F_SEG_MAX | spec::F_BLK_SIZE | spec::F_FLUSH | spec::F_RO
    );
}

#[test]
fn reads_into_many_segments() {
    let (mut device, _file) = disk(true);
    let mut bench = Bench::new(&mut device, 64, None);
    // The status byte shares a segment with data.
    let used = request(
        &mut bench,
        &[Part::Read(header(spec::T_IN, 3)), Part::Write(100), Part::Write(900), Part::Write(25)],
    );
    assert_eq!((used.len, used.data.len()), (1025, 1025));
    assert!(used.data[..512].iter().all(|&byte| byte == 3));
    assert!(used.data[512..1024].iter().all(|&byte| byte == 4));
    assert_eq!(used.data[1024], spec::S_OK);
}

#[test]
fn writes_from_many_segments_and_a_split_header() {
    let (mut device, mut file) = disk(false);
    let mut bench = Bench::new(&mut device, 64, None);
    let head = header(spec::T_OUT, 10);
    let parts = [
        Part::Read(head[..5].to_vec()),
        Part::Read([&head[5..], &[0xee; 500][..]].concat()),
        Part::Read(vec![0xef; 524]),
        Part::Write(1),
    ];
    let used = request(&mut bench, &parts);
    assert_eq!((used.len, &used.data[..]), (1, &[spec::S_OK][..]));
    let bytes = contents(&mut file);
    assert_eq!(bytes[5119], 9);
    assert!(bytes[5120..5620].iter().all(|&byte| byte == 0xee));
    assert!(bytes[5620..6144].iter().all(|&byte| byte == 0xef));
    assert_eq!((bytes[6144], bytes.len()), (12, 512 * 256));
}

#[test]
fn what_it_did_is_counted() {
    let (device, _file) = disk(false);
    let control = device.control();
    let mut device = device.with_limits(DiskLimits::default());
    let mut bench = Bench::new(&mut device, 64, None);
    let of = |kind, sector, data: Vec<Part>| [vec![Part::Read(header(kind, sector))], data].concat();
    assert_eq!(status(&mut bench, of(spec::T_IN, 3, vec![Part::Write(1024)])), spec::S_OK);
    assert_eq!(status(&mut bench, of(spec::T_OUT, 9, vec![Part::Read(vec![7; 512])])), spec::S_OK);
    assert_eq!(status(&mut bench, of(spec::T_FLUSH, 0, vec![])), spec::S_OK);
    assert_eq!(status(&mut bench, of(spec::T_IN, SECTORS, vec![Part::Write(512)])), spec::S_IOERR);
    let counts = DiskCounts {
        reads: 1,
        read_bytes: 1024,
        writes: 1,
        written_bytes: 512,
        flushes: 1,
        failed: 1,
        ..DiskCounts::default()
    };
    assert_eq!(control.counts(), Some(counts));
    // One that is held back, too.
    let one = std::num::NonZeroU64::new(1);
    control.set_limits(DiskLimits { bytes_per_second: one, operations_per_second: None }).unwrap();
    let read = [Part::Read(header(spec::T_IN, 3)), Part::Write(512), Part::Write(1)];
    bench.queues[0].add(&read);
    bench.queues[0].add(&read);
    bench.kick(0);
    let held = |reads, throttled| {
        let counts = control.counts().unwrap();
        assert_eq!((counts.reads, counts.throttled), (reads, throttled));
    };
    held(2, 1);
    // However often it asks.
    for _ in 0..3 {
        bench.kick(0);
        held(2, 1);
    }
    // It is let through; of those that come then the second is another one.
    control.set_limits(DiskLimits::default()).unwrap();
    bench.kick(0);
    held(3, 1);
    control.set_limits(DiskLimits { bytes_per_second: one, operations_per_second: None }).unwrap();
    bench.queues[0].add(&read);
    bench.queues[0].add(&read);
    bench.kick(0);
    held(4, 2);
    drop(bench);
    drop(device);
    assert_eq!(control.counts(), None);
}

#[test]
fn tells_its_name() {
    let (mut device, _file) = disk(true);
    let mut bench = Bench::new(&mut device, 64, None);
    for room in [20u32, 30, 3] {
        let used =
            request(&mut bench, &[Part::Read(header(spec::T_GET_ID, 0)), Part::Write(room), Part::Write(1)]);
        let name = b"root\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let told = usize::try_from(room.min(20)).unwrap();
        assert_eq!(&used.data[..told], &name[..told]);
        assert_eq!(used.data.last(), Some(&spec::S_OK));
    }
}

#[test]
fn refuses_by_status() {
    let read = |sector, bytes| vec![Part::Read(header(spec::T_IN, sector)), Part::Write(bytes)];
    let write = |sector, bytes| vec![Part::Read(header(spec::T_OUT, sector)), Part::Read(vec![0; bytes])];
    let ranges = |kind, ranges: &[Vec<u8>]| vec![Part::Read(header(kind, 0)), Part::Read(ranges.concat())];
    let one = |kind, sector, count, flags| ranges(kind, &[range(sector, count, flags)]);
    let (discard, zero) = (spec::T_DISCARD, spec::T_WRITE_ZEROES);
    let (ok, ioerr, unsupp) = (spec::S_OK, spec::S_IOERR, spec::S_UNSUPP);
    let cases = [
        (read(255, 512), ok),
        (read(256, 512), ioerr),
        (read(255, 1024), ioerr),
        (read(u64::MAX, 512), ioerr),
        (read(u64::MAX / 512, 512), ioerr),
        (read(0, 511), ioerr),
        (read(0, 0), ok),
        (write(255, 512), ok),
        (write(256, 512), ioerr),
        (write(0, 100), ioerr),
        (write(1 << 60, 512), ioerr),
        (vec![Part::Read(header(spec::T_FLUSH, 0))], ok),
        (vec![Part::Read(header(2, 0))], unsupp),
        (vec![Part::Read(header(u32::MAX, 0))], unsupp),
        (one(discard, 0, 8, 0), ok),
        (one(discard, 0, 0, 0), ok),
        (one(discard, 0, 8, 1), unsupp),
        (one(discard, 0, 257, 0), ioerr),
        (one(discard, u64::MAX, 1, 0), ioerr),
        (one(discard, 0, u32::MAX, 0), ioerr),
        (one(zero, 8, 8, 0), ok),
        (one(zero, 8, 8, 1), ok),
        (one(zero, 8, 8, 2), unsupp),
        (one(zero, 250, 7, 0), ioerr),
        (ranges(zero, &[range(0, 1, 0), range(300, 1, 0)]), ioerr),
        (ranges(zero, &[]), ioerr),
        (ranges(zero, &[vec![0; 15]]), ioerr),
        (ranges(zero, &vec![range(0, 1, 0); 2]), ok),
        (ranges(zero, &vec![range(0, 1, 0); 3]), ioerr),
        (ranges(discard, &vec![range(0, 1, 0); 32]), ok),
        (ranges(discard, &vec![range(0, 1, 0); 33]), ioerr),
    ];
    let (mut device, _file) = disk(false);
    let mut bench = Bench::new(&mut device, 64, None);
    for (parts, wanted) in cases {
        assert_eq!(status(&mut bench, parts.clone()), wanted, "{parts:?}");
    }
    assert_eq!(bench.interrupt.faults(), 0, "none of these needs a reset");
}

/// Offers `count` requests of `kind` with `mebibytes` of data, all of which lies in the same MiB,
/// and returns the turns of the worker until it has served them, and the status of the last.
fn serve_large(bench: &mut Bench, kind: u32, count: u16, mebibytes: u16) -> (usize, u8) {
    const MIB: u32 = 1 << 20;
    let queue = &mut bench.queues[0];
    let (table, head) = (queue.allocate(4096), queue.allocate(16));
    let (data, status) = (queue.allocate(u64::from(MIB)), queue.allocate(1));
    bench.memory.write_slice(&header(kind, 0), GuestAddress(head)).unwrap();
    queue.write_descriptor(table, head, 16, flag::NEXT, 1);
    let flags = flag::NEXT | if kind == spec::T_IN { flag::WRITE } else { 0 };
    for i in 1..=mebibytes {
        queue.write_descriptor(table + 16 * u64::from(i), data, MIB, flags, i + 1);
    }
    queue.write_descriptor(table + 16 * u64::from(mebibytes + 1), status, 1, flag::WRITE, 0);
    let index = GuestAddress(queue.config().used + 2);
    let before: u16 = bench.memory.read_obj(index).unwrap();
    for i in 0..count {
        queue.descriptor(i, table, u32::from(mebibytes + 2) * flag::SIZE, flag::INDIRECT, 0);
        queue.offer(i);
    }
    let turns = bench.kick(0);
    let after: u16 = bench.memory.read_obj(index).unwrap();
    assert_eq!(after.wrapping_sub(before), count, "every request was answered");
    (turns, bench.memory.read_obj(GuestAddress(status)).unwrap())
}

#[test]
fn no_turn_and_no_request_moves_more_than_a_bound() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 30).unwrap();
    let mut device = Block::new(Box::new(RawDisk::new(file, false).unwrap()), "root");
    // The last turn of each finds nothing more.
    let all = None;
    // Each write is a flush then.
    let write_through = Some(feature::VERSION_1 | feature::INDIRECT_DESC);
    for (features, kind, count, mebibytes, turns, answer) in [
        (write_through, spec::T_OUT, 8, 1, 8 + 1, spec::S_OK),
        (write_through, spec::T_IN, 8, 1, 1, spec::S_OK),
        (all, spec::T_IN, 8, 1, 1, spec::S_OK),
        (all, spec::T_IN, 8, 16, 4 + 1, spec::S_OK),
        (all, spec::T_IN, 2, 64, 2 + 1, spec::S_OK),
        (all, spec::T_IN, 1, 65, 1 + 1, spec::S_IOERR),
        (all, spec::T_OUT, 4, 16, 2 + 1, spec::S_OK),
        (all, spec::T_OUT, 1, 65, 1 + 1, spec::S_IOERR),
        (all, spec::T_FLUSH, 3, 0, 3 + 1, spec::S_OK),
    ] {
        let mut bench = Bench::new(&mut device, 64, features);
        let served = serve_large(&mut bench, kind, count, mebibytes);
        assert_eq!(served, (turns, answer), "{count} requests {kind} of {mebibytes} MiB");
        assert_eq!(bench.interrupt.faults(), 0);
        let returned = bench.stop();
        device.reclaim(returned.state);
    }
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let (mut device, mut file) = disk(true);
    let before = contents(&mut file);
    let mut bench = Bench::new(&mut device, 64, None);
    let write = vec![Part::Read(header(spec::T_OUT, 0)), Part::Read(vec![1; 512])];
    assert_eq!(status(&mut bench, write), spec::S_IOERR);
    for kind in [spec::T_DISCARD, spec::T_WRITE_ZEROES] {
        let parts = vec![Part::Read(header(kind, 0)), Part::Read(range(0, 1, 0))];
        assert_eq!(status(&mut bench, parts), spec::S_UNSUPP);
    }
    assert_eq!(status(&mut bench, vec![Part::Read(header(spec::T_FLUSH, 0))]), spec::S_OK);
    assert_eq!(contents(&mut file), before);
}

#[test]
fn zeroes_exactly_the_ranges() {
    let (mut device, mut file) = disk(false);
    let before = contents(&mut file);
    let mut bench = Bench::new(&mut device, 64, None);
    let ranges = [range(1, 2, 0), range(100, 50, 1)].concat();
    assert_eq!(
        status(&mut bench, vec![Part::Read(header(spec::T_WRITE_ZEROES, 0)), Part::Read(ranges)]),
        spec::S_OK
    );
    for (at, (byte, was)) in contents(&mut file).iter().zip(before).enumerate() {
        let zero = (512..1536).contains(&at) || (51_200..76_800).contains(&at);
        assert_eq!(*byte, if zero { 0 } else { was }, "byte {at}");
    }
}

#[test]
fn a_range_with_unknown_flags_refuses_all_of_them() {
    let (mut device, mut file) = disk(false);
    let before = contents(&mut file);
    let mut bench = Bench::new(&mut device, 64, None);
    for (kind, ranges) in [
        // Only zeroes may be asked to give their space back.
        (spec::T_DISCARD, [range(1, 2, 0), range(9, 1, 1)]),
        (spec::T_WRITE_ZEROES, [range(1, 2, 0), range(9, 1, 2)]),
        (spec::T_WRITE_ZEROES, [range(1, 2, 1), range(9, 0, 3)]),
    ] {
        let parts = vec![Part::Read(header(kind, 0)), Part::Read(ranges.concat())];
        assert_eq!(status(&mut bench, parts), spec::S_UNSUPP);
        assert_eq!(contents(&mut file), before, "nothing was touched");
    }
}

#[test]
fn a_chain_without_room_for_its_status_needs_a_reset() {
    let cases = [
        vec![Part::Read(header(spec::T_IN, 0))],
        vec![Part::Read(header(spec::T_IN, 0)[..15].to_vec()), Part::Write(513)],
        vec![Part::Write(513)],
    ];
    for parts in cases {
        let (mut device, _file) = disk(false);
        let mut bench = Bench::new(&mut device, 64, None);
        bench.queues[0].add(&parts);
        bench.kick(0);
        assert!(bench.interrupt.needs_reset());
        assert!(bench.queues[0].used().is_none());
        let returned = bench.stop();
        device.reclaim(returned.state);
        drop(bench);
        let mut bench = Bench::new(&mut device, 64, None);
        assert_eq!(status(&mut bench, vec![Part::Read(header(spec::T_IN, 0)), Part::Write(512)]), spec::S_OK);
    }
}

/// Not a test of behaviour: see the feature's line in `Cargo.toml`.
#[cfg(feature = "figures")]
#[test]
fn figures() {
    const BYTES: u64 = 64 << 20;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![1; usize::try_from(BYTES).unwrap()]).unwrap();
    let mut device = Block::new(Box::new(RawDisk::new(file, false).unwrap()), "gauge");
    let mut bench = Bench::new(&mut device, 256, None);
    for (kind, bytes, depth) in [
        (spec::T_IN, 4096u32, 1),
        (spec::T_IN, 4096, 32),
        (spec::T_IN, 131_072, 32),
        (spec::T_OUT, 131_072, 32),
    ] {
        let (mut done, mut busy, mut sector) = (0u64, std::time::Duration::ZERO, 0);
        while busy < std::time::Duration::from_millis(300) {
            for _ in 0..depth {
                let data = match kind {
                    spec::T_OUT => Part::Read(vec![2; usize::try_from(bytes).unwrap()]),
                    _ => Part::Write(bytes),
                };
                bench.queues[0].add_indirect(&[Part::Read(header(kind, sector)), data, Part::Write(1)]);
                sector = (sector + u64::from(bytes) / 512) % (BYTES / 512);
            }
            let start = std::time::Instant::now();
            bench.kick(0);
            busy += start.elapsed();
            while let Some(used) = bench.queues[0].used() {
                assert_eq!(used.data.last(), Some(&spec::S_OK));
                done += 1;
            }
        }
        let per_second = f64::from(u32::try_from(done).unwrap()) / busy.as_secs_f64();
        println!(
            "{} {bytes} bytes, depth {depth}: {per_second:.0} requests/s, {:.2} GB/s",
            if kind == spec::T_IN { "read" } else { "write" },
            per_second * f64::from(bytes) / 1e9
        );
    }
}

#[test]
fn a_disk_without_tokens_waits_and_goes_on_when_the_limit_is_lifted() {
    let (device, _file) = disk(false);
    let one = std::num::NonZeroU64::new(1);
    let limits = DiskLimits { bytes_per_second: one, operations_per_second: None };
    let mut device = device.with_limits(limits);
    let mut bench = Bench::new(&mut device, 64, None);
    let read = [Part::Read(header(spec::T_IN, 3)), Part::Write(512), Part::Write(1)];
    bench.queues[0].add(&read);
    bench.queues[0].add(&read);
    bench.kick(0);
    // The first one is let through, and costs nine minutes.
    assert!(bench.queues[0].used().is_some() && bench.queues[0].used().is_none());
    assert!(!bench.interrupt.tally().waits_for_room(), "the host has room");
    let Returned { state, queues } = bench.stop();
    assert!(queues[0].as_ref().unwrap().position().is_quiet());
    device.reclaim(state);
    let features = device.features() | feature::EVENT_IDX | feature::VERSION_1;
    bench.resume(&mut device, features, queues);
    assert!(bench.queues[0].used().is_none(), "the debt outlives a pause");
    device.control().set_limits(DiskLimits::default()).unwrap();
    bench.turn();
    assert_eq!(bench.queues[0].used().unwrap().data[0], 3);
}

#[test]
fn a_disk_grows_and_its_driver_hears_of_it_after_a_pause_too() {
    let (mut device, _file) = disk(false);
    let capacity = |device: &Block| {
        let mut bytes = [0; 8];
        device.read_config(0, &mut bytes);
        u64::from_le_bytes(bytes)
    };
    let control = device.control();
    let mut bench = Bench::new(&mut device, 64, None);
    let read = |bench: &mut Bench| status(bench, vec![Part::Read(header(spec::T_IN, 256)), Part::Write(512)]);
    assert_eq!(read(&mut bench), spec::S_IOERR);
    let generation = bench.interrupt.generation();
    control.grow(257 * 512).unwrap();
    assert_ne!(bench.interrupt.generation(), generation);
    assert_eq!((capacity(&device), read(&mut bench)), (257, spec::S_OK));
    let told = bench.interrupt.generation();
    let Returned { state, queues } = bench.stop();
    device.reclaim(state);
    control.grow(300 * 512).unwrap();
    assert_eq!(bench.interrupt.generation(), told, "nobody is there");
    let features = device.features() | feature::EVENT_IDX | feature::VERSION_1;
    bench.resume(&mut device, features, queues);
    assert_ne!(bench.interrupt.generation(), told);
    assert!(matches!(control.grow(512), Err(GrowError::Smaller { has: 153_600 })));
    assert!(matches!(control.grow(153_601), Err(GrowError::Sectors { .. })));
    drop(bench);
    drop(device);
    assert!(matches!(control.grow(1 << 30), Err(GrowError::Gone)));
    let (device, _file) = disk(true);
    assert!(matches!(device.control().grow(1 << 30), Err(GrowError::ReadOnly)));
}

#[test]
fn sectors_of_four_kibibytes_are_whole_ones() {
    let (device, _file) = disk(false);
    let sector = crate::config::SectorSize::new(4096).unwrap();
    let device = device.with_sectors(sector).unwrap();
    let mut bytes = [0; 4];
    device.read_config(20, &mut bytes);
    assert_eq!(u32::from_le_bytes(bytes), 4096);
    device.read_config(44, &mut bytes);
    assert_eq!(u32::from_le_bytes(bytes), 8);
    let file = tempfile::tempfile().unwrap();
    file.set_len(512 * 9).unwrap();
    let odd = Block::new(Box::new(RawDisk::new(file, false).unwrap()), "odd");
    assert_eq!(odd.with_sectors(sector).err().unwrap().kind(), io::ErrorKind::InvalidInput);
}
