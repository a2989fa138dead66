//! A driver's requests, sound and hostile, and the blocks they leave.

use std::ops::Range;

use proptest::prelude::*;
use vm_memory::Bytes;

use super::blocks::{BLOCK, Blocks, MemoryRequest, Response};
use super::*;
use crate::memory::Backing;
use crate::virtio::interrupt::CONFIG_CHANGE;
use crate::virtio::testing::{Bench, Part};

const START: u64 = 1 << 27;
const COUNT: u64 = 64;
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const ALL: u16 = 2;
const STATE: u16 = 3;
const ACK: u16 = 0;
const NACK: u16 = 1;
const BUSY: u16 = 2;
const ERROR: u16 = 3;

fn at(kind: u16, block: u64, count: u16) -> MemoryRequest {
    MemoryRequest { kind, address: START + block * BLOCK, count }
}

/// Serves with everything requested and every discard done.
fn serve(blocks: &mut Blocks, request: MemoryRequest) -> (u16, u16) {
    let Response { kind, state } = blocks.serve(request, COUNT * BLOCK, &mut |_| true);
    (kind, state)
}

#[test]
fn every_transition_of_blocks() {
    let mut blocks = Blocks::new(START, COUNT * BLOCK);
    let odd = |address, count| MemoryRequest { kind: PLUG, address, count };
    let table = [
        (at(STATE, 0, 64), (ACK, 1)),
        (at(PLUG, 0, 1), (ACK, 0)),
        (at(PLUG, 0, 1), (ERROR, 0)),
        (at(PLUG, 10, 30), (ACK, 0)),
        (at(PLUG, 39, 2), (ERROR, 0)),
        (at(STATE, 0, 1), (ACK, 0)),
        (at(STATE, 0, 2), (ACK, 2)),
        (at(STATE, 1, 9), (ACK, 1)),
        (at(UNPLUG, 9, 2), (ERROR, 0)),
        (at(UNPLUG, 10, 5), (ACK, 0)),
        (at(UNPLUG, 10, 5), (ERROR, 0)),
        (at(PLUG, 63, 1), (ACK, 0)),
        // Beyond the region, before it, between blocks, none, all of the address space, no such
        // request.
        (at(PLUG, 63, 2), (ERROR, 0)),
        (at(STATE, 64, 1), (ERROR, 0)),
        (at(PLUG, 1, 0), (ERROR, 0)),
        (odd(START - BLOCK, 1), (ERROR, 0)),
        (odd(START + 4096, 1), (ERROR, 0)),
        (odd(0, 1), (ERROR, 0)),
        (odd(u64::MAX, u16::MAX), (ERROR, 0)),
        (odd(u64::MAX - BLOCK + 1, 1), (ERROR, 0)),
        (at(4, 0, 1), (ERROR, 0)),
        (at(u16::MAX, 0, 1), (ERROR, 0)),
    ];
    for (request, answer) in table {
        assert_eq!(serve(&mut blocks, request), answer, "{request:?}");
    }
    assert_eq!(blocks.plugged_bytes(), 27 * BLOCK);
    assert_eq!(blocks.runs(), [(0, 1), (15, 40), (63, 64)]);
    assert_eq!(serve(&mut blocks, at(ALL, 999, 0)), (ACK, 0), "an address says nothing there");
    assert_eq!((blocks.plugged_bytes(), blocks.runs()), (0, vec![]));
}

#[test]
fn no_more_than_is_requested_and_a_host_that_keeps_its_pages_changes_nothing() {
    let mut blocks = Blocks::new(START, COUNT * BLOCK);
    let three = 3 * BLOCK;
    assert_eq!(blocks.serve(at(PLUG, 0, 4), three, &mut |_| true).kind, NACK);
    assert_eq!(blocks.serve(at(PLUG, 0, 3), three, &mut |_| true).kind, ACK);
    assert_eq!(blocks.serve(at(PLUG, 3, 1), three, &mut |_| true).kind, NACK);
    let before = blocks.clone();
    assert_eq!(blocks.serve(at(UNPLUG, 0, 1), three, &mut |_| false).kind, BUSY);
    assert_eq!(blocks.serve(at(ALL, 0, 0), three, &mut |_| false).kind, BUSY);
    assert_eq!(blocks, before);
    let mut given: Vec<Range<u64>> = Vec::new();
    let mut discard = |range| {
        given.push(range);
        true
    };
    assert_eq!(blocks.serve(at(UNPLUG, 1, 2), 0, &mut discard).kind, ACK);
    assert_eq!(blocks.serve(at(ALL, 0, 0), 0, &mut discard).kind, ACK);
    assert_eq!(blocks.serve(at(ALL, 0, 0), 0, &mut discard).kind, ACK);
    assert_eq!(given, [BLOCK..three, 0..COUNT * BLOCK], "what is unplugged already costs nothing");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a driver asks, the bitmap is what a list of booleans says, and never more than is
    /// requested at that time.
    #[test]
    fn blocks_are_what_a_plain_list_says(
        requests in prop::collection::vec((0..5u16, 0..140u64, 0..140u16, 0..140u64, any::<bool>()), 1..100)
    ) {
        let count = 130;
        let mut blocks = Blocks::new(START, count * BLOCK);
        let mut model = [false; 130];
        for (kind, block, len, requested, obliging) in requests {
            let before = model.iter().filter(|&&plugged| plugged).count() as u64;
            let answer = blocks.serve(at(kind, block, len), requested * BLOCK, &mut |_| obliging);
            let range = usize::try_from(block).unwrap()..usize::try_from(block).unwrap() + usize::from(len);
            let piece = model.get_mut(range).filter(|piece| !piece.is_empty());
            let all = |piece: &[bool], state| piece.iter().all(|&plugged| plugged == state);
            let expected = match (kind, piece) {
                (ALL, _) if before > 0 && !obliging => BUSY,
                (ALL, _) => { model.fill(false); ACK }
                (PLUG, Some(piece)) if all(piece, false) => {
                    if before + u64::from(len) > requested { NACK } else { piece.fill(true); ACK }
                }
                (UNPLUG, Some(piece)) if all(piece, true) => {
                    if obliging { piece.fill(false); ACK } else { BUSY }
                }
                (STATE, Some(piece)) => {
                    let state = if all(piece, true) { 0 } else if all(piece, false) { 1 } else { 2 };
                    prop_assert_eq!(answer.state, state);
                    ACK
                }
                _ => ERROR,
            };
            prop_assert_eq!(answer.kind, expected);
            let plugged = model.iter().filter(|&&plugged| plugged).count() as u64;
            prop_assert_eq!(blocks.plugged_bytes(), plugged * BLOCK);
        }
    }
}

/// A device of 32 MiB, with its slot to look into.
fn device() -> (MemoryDevice, MemoryControl, Slot) {
    let slot = Slot::new(7, START, 16 * BLOCK, Backing::Anonymous, false).unwrap();
    let (device, control) = MemoryDevice::new(slot.clone());
    (device, control, slot)
}

fn bytes(request: MemoryRequest) -> Vec<u8> {
    let mut bytes = request.kind.to_le_bytes().to_vec();
    bytes.extend([0; 6]);
    bytes.extend(request.address.to_le_bytes());
    bytes.extend(request.count.to_le_bytes());
    bytes.extend([0; 6]);
    bytes
}

fn ask(bench: &mut Bench, request: MemoryRequest) -> (u16, u16) {
    bench.queues[0].add(&[Part::Read(bytes(request)), Part::Write(10)]);
    bench.kick(0);
    let used = bench.queues[0].used().unwrap();
    assert_eq!(used.len, 10);
    let word = |at: usize| u16::from_le_bytes([used.data[at], used.data[at + 1]]);
    (word(0), word(8))
}

fn config(device: &MemoryDevice) -> Vec<u64> {
    let mut bytes = [0xff; 64];
    device.read_config(0, &mut bytes);
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

#[test]
fn the_configuration_follows_host_and_driver() {
    let (mut device, control, slot) = device();
    let region = 16 * BLOCK;
    assert_eq!(config(&device), [BLOCK, 0, START, region, region, 0, 0, u64::MAX]);
    control.request(3 * BLOCK).unwrap();
    assert_eq!(control.request(3 * BLOCK + 1).unwrap_err().bytes, 3 * BLOCK + 1);
    assert!(control.request(17 * BLOCK).unwrap_err().to_string().contains("33554432"));
    let mut bench = Bench::new(&mut device, 8, None);
    assert_eq!(bench.interrupt.status(), CONFIG_CHANGE, "a driver that comes late is told");
    assert_eq!(ask(&mut bench, at(PLUG, 0, 3)), (ACK, 0));
    assert_eq!(config(&device)[5..7], [3 * BLOCK, 3 * BLOCK]);
    assert_eq!(control.sizes(), (3 * BLOCK, 3 * BLOCK));
    assert_eq!(ask(&mut bench, at(PLUG, 3, 1)), (NACK, 0));
    let generation = bench.interrupt.generation();
    control.request(3 * BLOCK).unwrap();
    assert_eq!(bench.interrupt.generation(), generation, "nothing new is no news");
    control.request(0).unwrap();
    assert_eq!(bench.interrupt.generation(), generation + 1);

    // What is unplugged is given back: it is zero when it comes again.
    let view = crate::memory::view(&[slot]).unwrap();
    view.write_obj(0x55_u8, vm_memory::GuestAddress(START + BLOCK)).unwrap();
    assert_eq!(ask(&mut bench, at(UNPLUG, 1, 1)), (ACK, 0));
    assert_eq!(view.read_obj::<u8>(vm_memory::GuestAddress(START + BLOCK)).unwrap(), 0);
    assert_eq!(ask(&mut bench, at(STATE, 0, 3)), (ACK, 2));
    assert_eq!(ask(&mut bench, at(ALL, 0, 0)), (ACK, 0));
    assert_eq!(config(&device)[5], 0);
}

#[test]
fn a_pause_and_a_reset_leave_blocks_as_they_are_and_news_waits() {
    let (mut device, control, _slot) = device();
    control.request(8 * BLOCK).unwrap();
    let mut bench = Bench::new(&mut device, 8, None);
    assert_eq!(ask(&mut bench, at(PLUG, 4, 2)), (ACK, 0));
    let Returned { state, queues } = bench.stop();
    device.reclaim(state);
    assert_eq!(device.blocks.as_ref().unwrap().runs(), [(4, 6)]);
    let generation = bench.interrupt.generation();
    control.request(9 * BLOCK).unwrap();
    assert_eq!(bench.interrupt.generation(), generation, "a paused driver is left alone");
    bench.resume(&mut device, 0, queues);
    assert_eq!(bench.interrupt.generation(), generation + 1);
    assert_eq!(ask(&mut bench, at(STATE, 4, 2)), (ACK, 0));
    device.reclaim(bench.stop().state);
    device.reset();
    let mut bench = Bench::new(&mut device, 8, None);
    assert_eq!(ask(&mut bench, at(STATE, 4, 2)), (ACK, 0));
    assert_eq!(ask(&mut bench, at(ALL, 0, 0)), (ACK, 0));
}

#[test]
fn a_request_without_its_bytes_or_room_parks_the_device_and_changes_nothing() {
    for parts in [
        vec![Part::Read(vec![0; 23]), Part::Write(10)],
        vec![Part::Read(bytes(at(PLUG, 0, 1))), Part::Write(9)],
        vec![Part::Read(bytes(at(PLUG, 0, 1)))],
        vec![Part::Write(10)],
    ] {
        let (mut device, control, _slot) = device();
        control.request(BLOCK).unwrap();
        let mut bench = Bench::new(&mut device, 8, None);
        bench.queues[0].add(&parts);
        bench.kick(0);
        assert!(bench.interrupt.needs_reset(), "{parts:?}");
        assert_eq!(control.sizes(), (BLOCK, 0));
    }
}

#[test]
fn longer_buffers_and_pieces_are_served_alike() {
    let (mut device, control, _slot) = device();
    control.request(BLOCK).unwrap();
    let mut bench = Bench::new(&mut device, 8, None);
    let request = bytes(at(PLUG, 0, 1));
    bench.queues[0].add(&[
        Part::Read(request[..5].to_vec()),
        Part::Read([&request[5..], &[9; 8]].concat()),
        Part::Write(3),
        Part::Write(20),
    ]);
    bench.kick(0);
    let used = bench.queues[0].used().unwrap();
    assert_eq!((used.len, used.data[0], used.data[10]), (10, 0, 0xa5));
    assert_eq!(control.sizes(), (BLOCK, BLOCK));
}

#[test]
fn a_request_that_the_driver_was_not_told_of_is_told_by_the_restored_device() {
    use crate::state::testing::carry;
    for told in [false, true] {
        let (mut saved, control, _slot) = device();
        control.request(8 * BLOCK).unwrap();
        let mut bench = Bench::new(&mut saved, 8, None);
        assert_eq!(ask(&mut bench, at(PLUG, 4, 2)), (ACK, 0));
        saved.reclaim(bench.stop().state);
        if !told {
            control.request(BLOCK).unwrap();
        }
        let (mut restored, control_restored, _slot) = device();
        carry(&saved, &mut restored).unwrap();
        assert_eq!(control_restored.sizes(), control.sizes());
        assert_eq!(config(&restored), config(&saved));
        let mut bench = Bench::new(&mut restored, 8, None);
        assert_eq!(bench.interrupt.status(), if told { 0 } else { CONFIG_CHANGE });
        assert_eq!(ask(&mut bench, at(STATE, 4, 2)), (ACK, 0));
        assert_eq!(ask(&mut bench, at(STATE, 3, 4)), (ACK, 2));
    }
}

#[test]
fn the_state_of_another_region_or_of_none_is_refused() {
    use crate::state::testing::{refuses_damage, restore, written};
    let (mut saved, control, _slot) = device();
    control.request(8 * BLOCK).unwrap();
    let mut bench = Bench::new(&mut saved, 8, None);
    assert_eq!(ask(&mut bench, at(PLUG, 4, 2)), (ACK, 0));
    saved.reclaim(bench.stop().state);
    refuses_damage(
        &saved,
        || device().0,
        |device| {
            let (requested, plugged) = (config(device)[6], config(device)[5]);
            assert!(requested <= 16 * BLOCK && requested.is_multiple_of(BLOCK), "{requested}");
            assert!(plugged <= 16 * BLOCK, "{plugged}");
        },
    );
    for (start, len, why) in [
        (START * 2, 16 * BLOCK, "its first address is 134217728, and here it is 268435456"),
        (START, 15 * BLOCK, "its length is 33554432, and here it is 31457280"),
    ] {
        let slot = Slot::new(7, start, len, Backing::Anonymous, false).unwrap();
        let error = restore(&mut MemoryDevice::new(slot).0, written(&saved)).unwrap_err().to_string();
        assert!(error.ends_with(why), "{error}");
    }
}
