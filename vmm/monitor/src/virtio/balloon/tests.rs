//! Reports, sound and hostile, and what becomes of the memory that they name.

use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::{Backing, GuestRam};
use crate::sys::anonymous;
use crate::virtio::spec::feature;
use crate::virtio::testing::{Bench, DriverQueue};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
/// Linux's queue for reports.
const REPORTS: usize = 2;
/// Where memory begins that no ring has: each of five queues has 8 MiB.
const FREE: u64 = 40 * MIB;
const REPORTING: u64 = feature::VERSION_1 | spec::F_REPORTING;
const ALL: u64 = REPORTING | spec::F_PAGE_POISON | feature::INDIRECT_DESC | feature::EVENT_IDX;

/// A machine's memory in two slots that touch.
fn ram(backing: Backing) -> GuestRam {
    GuestRam::laid_out(&[(0, FREE + 2 * MIB), (FREE + 2 * MIB, 126 * MIB)], None, backing).unwrap()
}

fn start(ram: &GuestRam, features: u64) -> (Balloon, BalloonView, Bench) {
    let (mut device, view) = Balloon::new(ram.slots());
    let bench = Bench::over(ram.memory().clone(), &mut device, 32, Some(features));
    (device, view, bench)
}

fn fill(ram: &GuestRam, from: u64, to: u64) {
    let bytes = vec![7; usize::try_from(to - from).unwrap()];
    ram.memory().write_slice(&bytes, GuestAddress(from)).unwrap();
}

/// The runs of bytes that are not zero.
fn filled(ram: &GuestRam, from: u64, to: u64) -> Vec<(u64, u64)> {
    let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
    ram.memory().read_slice(&mut bytes, GuestAddress(from)).unwrap();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (at, _) in (from..).zip(bytes).filter(|(_, byte)| *byte != 0) {
        match runs.last_mut() {
            Some(last) if last.1 == at => last.1 += 1,
            _ => runs.push((at, at + 1)),
        }
    }
    runs
}

/// Offers one chain of these pieces (address, bytes, flags) without a place of its own.
fn offer(queue: &mut DriverQueue, pieces: &[(u64, u64, u16)]) {
    let count = u16::try_from(pieces.len()).unwrap();
    for (index, &(address, len, flags)) in (0..).zip(pieces) {
        let more = u16::from(index + 1 < count);
        queue.descriptor(index, address, u32::try_from(len).unwrap(), flags | more, index + 1);
    }
    queue.offer(0);
}

const WRITE: u16 = 2;

fn report(bench: &mut Bench, queue: usize, pieces: &[(u64, u64)]) {
    let pieces: Vec<_> = pieces.iter().map(|&(address, len)| (address, len, WRITE)).collect();
    offer(&mut bench.queues[queue], &pieces);
    bench.kick(queue);
}

fn counts(view: &BalloonView) -> (u64, u64) {
    let ReportCounts { reported, given_back } = view.counts();
    (reported, given_back)
}

#[test]
fn what_is_reported_comes_back_as_zeros_and_is_counted() {
    for backing in [Backing::Anonymous, Backing::SharedFile] {
        let ram = ram(backing);
        let (_device, view, mut bench) = start(&ram, REPORTING);
        fill(&ram, FREE, FREE + 8 * MIB);
        // Over the border of the slots, and one piece beside it.
        report(&mut bench, REPORTS, &[(FREE + MIB, 2 * MIB), (FREE + 6 * MIB, PAGE)]);
        let left =
            [(FREE, FREE + MIB), (FREE + 3 * MIB, FREE + 6 * MIB), (FREE + 6 * MIB + PAGE, FREE + 8 * MIB)];
        assert_eq!(filled(&ram, FREE, FREE + 8 * MIB), left, "{backing:?}");
        assert_eq!(counts(&view), (2 * MIB + PAGE, 2 * MIB + PAGE));
        // It is memory as before.
        fill(&ram, FREE + MIB, FREE + 2 * MIB);
        assert_eq!(filled(&ram, FREE, FREE + 3 * MIB), [(FREE, FREE + 2 * MIB)]);
        assert_eq!((bench.interrupt.faults(), bench.line.take()), (0, 1));
    }
}

#[test]
fn the_host_has_back_what_a_shared_file_had() {
    let ram = ram(Backing::SharedFile);
    let (_device, _view, mut bench) = start(&ram, REPORTING);
    fill(&ram, FREE + 2 * MIB, FREE + 100 * MIB);
    let blocks = || ram.slots()[1].file().unwrap().metadata().unwrap().blocks() * 512;
    let before = blocks();
    assert!(before >= 98 * MIB);
    report(&mut bench, REPORTS, &[(FREE + 4 * MIB, 90 * MIB)]);
    assert_eq!(before - blocks(), 90 * MIB);
}

#[test]
fn what_is_no_whole_page_is_kept() {
    let ram = ram(Backing::Anonymous);
    let (_device, view, mut bench) = start(&ram, REPORTING);
    fill(&ram, FREE, FREE + MIB);
    let pieces = [(FREE + 1, PAGE - 1), (FREE + PAGE + 1, 2 * PAGE), (FREE + 8 * PAGE, 1)];
    report(&mut bench, REPORTS, &pieces);
    let kept = [(FREE, FREE + 2 * PAGE), (FREE + 3 * PAGE, FREE + MIB)];
    assert_eq!(filled(&ram, FREE, FREE + MIB), kept);
    assert_eq!(counts(&view), (3 * PAGE, PAGE));
}

#[test]
fn every_queue_behind_the_first_two_takes_reports() {
    let ram = ram(Backing::Anonymous);
    let (_device, view, mut bench) = start(&ram, ALL);
    for (queue, takes) in [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3)] {
        report(&mut bench, queue, &[(FREE, PAGE)]);
        assert_eq!(counts(&view), (takes * PAGE, takes * PAGE), "{queue}");
        // What does nothing is given back, too.
        assert_eq!(bench.queues[queue].device_wish().1, 1, "{queue}");
    }
    // Nothing to write into says nothing of what is free.
    fill(&ram, FREE, FREE + PAGE);
    offer(&mut bench.queues[REPORTS], &[(FREE, PAGE, 0)]);
    bench.kick(REPORTS);
    assert_eq!((counts(&view).0, filled(&ram, FREE, FREE + 2 * PAGE).len()), (3 * PAGE, 1));
}

#[test]
fn nothing_is_taken_from_a_driver_that_fills_its_free_pages_or_promised_no_reports() {
    let poison = |device: &mut Balloon, value: u32| device.write_config(12, &value.to_le_bytes());
    for (features, value, taken) in [
        (ALL, 0, PAGE),
        (ALL, 0xaaaa_aaaa, 0),
        (REPORTING, 0xaaaa_aaaa, PAGE),
        (feature::VERSION_1 | spec::F_PAGE_POISON, 0, 0),
    ] {
        let ram = ram(Backing::Anonymous);
        let (mut device, view, mut bench) = start(&ram, features);
        poison(&mut device, value);
        report(&mut bench, REPORTS, &[(FREE, PAGE)]);
        assert_eq!(counts(&view), (taken, taken), "{features:#x} {value:#x}");
    }
    let ram = ram(Backing::Anonymous);
    let (mut device, _) = Balloon::new(ram.slots());
    let read = |device: &Balloon| {
        let mut bytes = [0xff; 16];
        device.read_config(0, &mut bytes);
        u128::from_le_bytes(bytes)
    };
    poison(&mut device, 0x0102_0304);
    device.write_config(4, &[9, 0, 0, 0]);
    // Not the driver's, or not whole.
    for (offset, len) in [(0, 4), (8, 4), (12, 1), (12, 2), (4, 8), (13, 4), (u64::MAX, 4)] {
        device.write_config(offset, &[0x55; 8][..len]);
    }
    assert_eq!(read(&device), (0x0102_0304 << 96) | (9 << 32));
    device.reset();
    assert_eq!(read(&device), 0);
}

#[test]
fn pages_of_a_mapped_file_stay_what_they_are() {
    let ram = ram(Backing::Anonymous);
    let file = anonymous::memory_file("kernel").unwrap();
    file.write_all_at(&vec![3; 3 * 4096 + 1], 0).unwrap();
    ram.map_file(FREE + 4 * PAGE, file.as_fd(), 0, 3 * PAGE + 1).unwrap();
    ram.map_file(FREE + 10 * PAGE, file.as_fd(), 0, PAGE).unwrap();
    fill(&ram, FREE, FREE + 16 * PAGE);
    let (_device, view, mut bench) = start(&ram, REPORTING);
    report(&mut bench, REPORTS, &[(FREE, 16 * PAGE)]);
    let kept = [(FREE + 4 * PAGE, FREE + 8 * PAGE), (FREE + 10 * PAGE, FREE + 11 * PAGE)];
    assert_eq!(filled(&ram, FREE, FREE + 16 * PAGE), kept);
    let mut bytes = [0; 5 * 4096];
    ram.memory().read_slice(&mut bytes, GuestAddress(FREE + 4 * PAGE)).unwrap();
    assert!(bytes[..4 * 4096].iter().all(|&byte| byte == 7), "what the guest wrote over the file");
    assert_eq!(counts(&view), (16 * PAGE, 11 * PAGE));
}

#[test]
fn a_driver_may_report_all_that_it_has_and_hurts_itself_alone() {
    let ram = ram(Backing::Anonymous);
    let (mut device, view, mut bench) = start(&ram, ALL);
    // Outside memory, and over its end.
    let end = FREE + 128 * MIB;
    for (address, len) in [(end, PAGE), (end - PAGE, 2 * PAGE), (u64::MAX - 1, 4), (1 << 52, MIB)] {
        report(&mut bench, REPORTS, &[(address, len)]);
        assert!(bench.interrupt.needs_reset());
        assert_eq!(bench.interrupt.tally().faults()[0].kind, "outside_memory");
        assert_eq!(counts(&view), (0, 0));
        drop(bench);
        device.reset();
        bench = Bench::over(ram.memory().clone(), &mut device, 32, Some(ALL));
    }
    // The rings as well: they are zeros then, which no driver may write there.
    report(&mut bench, REPORTS, &[(0, end)]);
    assert_eq!(counts(&view), (end, end));
    bench.queues[REPORTS].offer(0);
    drop(bench);
    device.reset();
    let mut bench = Bench::over(ram.memory().clone(), &mut device, 32, Some(ALL));
    report(&mut bench, REPORTS, &[(FREE, PAGE)]);
    assert_eq!((counts(&view).0, bench.interrupt.faults()), (end + PAGE, 0));
}

#[test]
fn large_reports_leave_the_loop_to_others_in_between() {
    let ram = ram(Backing::Anonymous);
    let (_device, view, mut bench) = start(&ram, ALL);
    let queue = &mut bench.queues[REPORTS];
    for index in 0..8 {
        queue.descriptor(index, FREE, u32::try_from(100 * MIB).unwrap(), WRITE, 0);
        queue.offer(index);
    }
    assert!(bench.kick(REPORTS) >= 8, "a turn for each");
    assert_eq!(counts(&view), (800 * MIB, 800 * MIB));
}

#[test]
fn a_report_of_more_than_all_memory_holds_the_loop_no_longer_than_one_of_all() {
    let ram = ram(Backing::Anonymous);
    let (_device, view, mut bench) = start(&ram, ALL);
    offer(&mut bench.queues[REPORTS], &[(FREE, 100 * MIB, WRITE); 30]);
    bench.kick(REPORTS);
    // Memory has 168 MiB.
    assert_eq!(counts(&view), (200 * MIB, 200 * MIB));
}

#[test]
fn goes_on_where_it_was_after_a_pause() {
    let ram = ram(Backing::Anonymous);
    let (mut device, view, mut bench) = start(&ram, ALL);
    for turn in 1..5 {
        offer(&mut bench.queues[REPORTS], &[(FREE, PAGE, WRITE)]);
        let returned = bench.stop();
        device.reclaim(returned.state);
        bench.resume(&mut device, ALL, returned.queues);
        assert_eq!(counts(&view).0, turn * PAGE, "what came during the pause is served");
    }
}
