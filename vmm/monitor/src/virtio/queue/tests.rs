//! The device's end of the rings against sound, broken and random drivers.

use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::sys::Notifier;
use crate::virtio::spec::descriptor::{INDIRECT, NEXT, WRITE};
use crate::virtio::testing::{CountingLine, DriverQueue, MIB, Part, memory};

const RAM: u64 = MIB as u64;

fn pair(size: u16, features: u64) -> (Memory, DriverQueue, Queue) {
    let memory = memory(MIB);
    let driver = DriverQueue::new(&memory, 0, RAM / 2, size);
    let queue = driver.device_end(features);
    (memory, driver, queue)
}

#[test]
fn a_chain_is_read_written_and_given_back() {
    let (memory, mut driver, mut queue) = pair(8, feature::INDIRECT_DESC);
    for indirect in [false, true] {
        let parts =
            [Part::Read(b"hello ".to_vec()), Part::Read(b"world".to_vec()), Part::Write(3), Part::Write(5)];
        let head = if indirect { driver.add_indirect(&parts) } else { driver.add(&parts) };
        let chain = queue.pop(&memory).unwrap().unwrap();
        assert_eq!((chain.head(), chain.readable_len(), chain.writable_len()), (head, 11, 8));
        assert_eq!((chain.readable().len(), chain.writable().len()), (2, 2));
        let mut bytes = [0; 11];
        let mut reader = chain.reader(&memory);
        reader.read_exact(&mut bytes[..7]).unwrap();
        reader.read_exact(&mut bytes[7..]).unwrap();
        assert_eq!(&bytes, b"hello world");
        assert_eq!(reader.read_exact(&mut [0]), Err(QueueFault::Short { wanted: 1 }));
        let mut writer = chain.writer(&memory);
        writer.write_all(b"answe").unwrap();
        assert_eq!((writer.written(), writer.left()), (5, 3));
        assert_eq!(writer.write(b"r to much").unwrap(), 3);
        queue.push_used(&memory, &chain, 8).unwrap();
        queue.publish(&memory).unwrap();
        let used = driver.used().unwrap();
        assert_eq!((used.head, used.len, &used.data[..]), (head, 8, &b"answer t"[..]));
        assert!(queue.pop(&memory).unwrap().is_none());
    }
}

#[test]
fn a_chain_that_was_put_back_comes_again() {
    let (memory, mut driver, mut queue) = pair(4, 0);
    driver.add(&[Part::Write(1)]);
    let first = queue.pop(&memory).unwrap().unwrap();
    queue.unpop(first.clone());
    assert_eq!(queue.pop(&memory).unwrap().unwrap(), first);
    assert!(queue.pop(&memory).unwrap().is_none());
}

#[test]
fn indices_wrap() {
    let (memory, mut driver, mut queue) = pair(2, feature::EVENT_IDX);
    for round in 0..70_000u32 {
        driver.add(&[Part::Read(round.to_le_bytes().to_vec())]);
        let chain = queue.pop(&memory).unwrap().unwrap();
        assert_eq!(u32::from_le(chain.reader(&memory).read_obj().unwrap()), round);
        queue.push_used(&memory, &chain, 0).unwrap();
        queue.publish(&memory).unwrap();
        driver.used().unwrap();
    }
}

/// Index, address, length, flags, next.
type Raw = (u16, u64, u32, u16, u16);

#[test]
fn broken_chains_are_named() {
    let table = RAM / 2;
    let outside = |address, len| QueueFault::Outside { address, len };
    let cases: &[(&str, &[Raw], QueueFault)] = &[
        ("itself", &[(0, 0, 1, NEXT, 0)], QueueFault::Loop { head: 0 }),
        ("a ring of two", &[(0, 0, 1, NEXT, 1), (1, 0, 1, NEXT, 0)], QueueFault::Loop { head: 0 }),
        ("next beyond", &[(0, 0, 1, NEXT, 4)], QueueFault::Index { index: 4, entries: 4 }),
        ("next far beyond", &[(0, 0, 1, NEXT, 0xffff)], QueueFault::Index { index: 0xffff, entries: 4 }),
        ("beyond memory", &[(0, RAM, 1, 0, 0)], outside(RAM, 1)),
        ("over the end", &[(0, RAM - 4, 5, WRITE, 0)], outside(RAM - 4, 5)),
        ("wraps", &[(0, u64::MAX, 2, 0, 0)], outside(u64::MAX, 2)),
        ("wraps to zero", &[(0, u64::MAX, 1, 0, 0)], outside(u64::MAX, 1)),
        ("all ones", &[(0, u64::MAX, u32::MAX, WRITE, 0)], outside(u64::MAX, u64::from(u32::MAX))),
        (
            "read after write",
            &[(0, 0, 1, NEXT | WRITE, 1), (1, 0, 1, 0, 0)],
            QueueFault::ReadAfterWrite { head: 0 },
        ),
        ("empty indirect", &[(0, table, 0, INDIRECT, 0)], QueueFault::Indirect { head: 0 }),
        ("odd indirect", &[(0, table, 17, INDIRECT, 0)], QueueFault::Indirect { head: 0 }),
        ("huge indirect", &[(0, table, 16 * 1025, INDIRECT, 0)], QueueFault::Indirect { head: 0 }),
        ("indirect and next", &[(0, table, 16, INDIRECT | NEXT, 1)], QueueFault::Indirect { head: 0 }),
        ("indirect outside", &[(0, RAM, 16, INDIRECT, 0)], outside(RAM, 16)),
        ("indirect wraps", &[(0, u64::MAX - 7, 32, INDIRECT, 0)], outside(u64::MAX - 7, 32)),
    ];
    for (name, descriptors, fault) in cases {
        let (memory, mut driver, mut queue) = pair(4, feature::INDIRECT_DESC);
        for &(index, address, len, flags, next) in *descriptors {
            driver.descriptor(index, address, len, flags, next);
        }
        driver.offer(0);
        assert_eq!(queue.pop(&memory), Err(*fault), "{name}");
    }
}

#[test]
fn broken_indirect_tables_are_named() {
    let table = RAM / 2;
    // address, length, flags, next
    type Descriptor = (u64, u32, u16, u16);
    let cases: &[(&str, Descriptor, QueueFault)] = &[
        ("nested", (table, 16, INDIRECT, 0), QueueFault::Indirect { head: 0 }),
        ("loop", (0, 1, NEXT, 0), QueueFault::Loop { head: 0 }),
        ("next beyond", (0, 1, NEXT, 2), QueueFault::Index { index: 2, entries: 2 }),
    ];
    for &(name, (address, len, flags, next), fault) in cases {
        let (memory, mut driver, mut queue) = pair(4, feature::INDIRECT_DESC);
        driver.descriptor(0, table, 32, INDIRECT, 0);
        driver.write_descriptor(table, address, len, flags, next);
        driver.offer(0);
        assert_eq!(queue.pop(&memory), Err(fault), "{name}");
    }
    let (memory, mut driver, mut queue) = pair(4, 0);
    driver.descriptor(0, table, 16, INDIRECT, 0);
    driver.offer(0);
    assert_eq!(queue.pop(&memory), Err(QueueFault::Indirect { head: 0 }), "not negotiated");
}

#[test]
fn odd_but_allowed_chains_are_taken() {
    let table = RAM / 2;
    let (memory, mut driver, mut queue) = pair(4, feature::INDIRECT_DESC);
    // Direct descriptors may lead to an indirect table, whose WRITE flag means nothing; empty
    // segments are passed over.
    driver.descriptor(0, 0, 3, NEXT, 1);
    driver.descriptor(1, u64::MAX, 0, NEXT, 2);
    driver.descriptor(2, table, 32, INDIRECT | WRITE, 0);
    driver.write_descriptor(table, 16, 5, NEXT, 1);
    driver.write_descriptor(table + 16, 32, 7, WRITE, 0);
    driver.offer(0);
    let chain = queue.pop(&memory).unwrap().unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (8, 7));
    assert_eq!(chain.readable(), [Segment { address: 0, len: 3 }, Segment { address: 16, len: 5 }]);
}

#[test]
fn a_chain_of_four_gigabytes_is_too_long() {
    let (memory, mut driver, mut queue) = pair(4, feature::INDIRECT_DESC);
    // 1024 times (almost) all of memory would be possible with a larger memory; many small lies add
    // up the same way.
    let table = RAM / 2;
    for i in 0..1024u16 {
        let next = if i == 1023 { 0 } else { NEXT };
        driver.write_descriptor(
            table + 16 * u64::from(i),
            0,
            u32::try_from(RAM).unwrap(),
            WRITE | next,
            i + 1,
        );
    }
    driver.descriptor(0, table, 16 * 1024, INDIRECT, 0);
    driver.offer(0);
    assert!(queue.pop(&memory).unwrap().is_some(), "1 GiB is allowed");
    let large = crate::memory::Memory::from_ranges(&[(GuestAddress(0), 8 * MIB)]).unwrap();
    let mut driver = DriverQueue::new(&large, 0, RAM, 4);
    let mut queue = driver.device_end(feature::INDIRECT_DESC);
    for i in 0..1024u16 {
        let next = if i == 1023 { 0 } else { NEXT };
        driver.write_descriptor(
            RAM + 16 * u64::from(i),
            0,
            u32::try_from(8 * MIB).unwrap(),
            WRITE | next,
            i + 1,
        );
    }
    driver.descriptor(0, RAM, 16 * 1024, INDIRECT, 0);
    driver.offer(0);
    assert_eq!(queue.pop(&large), Err(QueueFault::TooLong { head: 0 }));
}

#[test]
fn the_available_index_may_not_jump() {
    for (index, allowed) in [(0, true), (1, true), (4, true), (5, false), (0x8000, false), (0xffff, false)] {
        let (memory, mut driver, queue) = pair(4, 0);
        driver.set_available(index);
        assert_eq!(queue.pending(&memory).is_ok(), allowed, "{index}");
    }
}

#[test]
fn queues_are_checked_once_and_wholly() {
    let memory = memory(MIB);
    let good =
        QueueConfig { max_size: 256, size: 256, ready: true, descriptors: 0, available: 4096, used: 8192 };
    good.validate(&memory).unwrap();
    let size = |size| QueueConfig { size, ..good };
    let ring = |which, address| match which {
        0 => QueueConfig { descriptors: address, ..good },
        1 => QueueConfig { available: address, ..good },
        _ => QueueConfig { used: address, ..good },
    };
    for bad in [0, 3, 255, 257, 512, 32768, 65535] {
        assert_eq!(
            size(bad).validate(&memory),
            Err(QueueConfigError::Size { size: bad, max_size: 256 }),
            "{bad}"
        );
    }
    for (which, extent, align) in [(0, 4096, 16), (1, 518, 2), (2, 2054, 4)] {
        let last = (RAM - extent) / align * align;
        ring(which, last).validate(&memory).unwrap();
        assert!(matches!(ring(which, last + align).validate(&memory), Err(QueueConfigError::Outside { .. })));
        assert!(matches!(ring(which, align / 2).validate(&memory), Err(QueueConfigError::Alignment { .. })));
        for far in [RAM, 1 << 40, u64::MAX - 15] {
            assert!(
                matches!(ring(which, far).validate(&memory), Err(QueueConfigError::Outside { .. })),
                "{far:#x}"
            );
        }
    }
}

#[test]
fn a_ring_may_not_reach_over_a_hole() {
    let memory = Memory::from_ranges(&[(GuestAddress(0), 0x2000), (GuestAddress(0x3000), 0x2000)]).unwrap();
    let config = QueueConfig {
        max_size: 256,
        size: 256,
        ready: true,
        descriptors: 0x1800,
        available: 0,
        used: 0x3000,
    };
    assert!(matches!(
        config.validate(&memory),
        Err(QueueConfigError::Outside { ring: "descriptor table", .. })
    ));
    QueueConfig { descriptors: 0x1000, ..config }.validate(&memory).unwrap();
}

#[test]
fn interrupts_follow_the_drivers_wish() {
    let (memory, mut driver, mut queue) = pair(8, 0);
    let mut complete = |driver: &mut DriverQueue| {
        driver.add(&[Part::Write(1)]);
        let chain = queue.pop(&memory).unwrap().unwrap();
        queue.push_used(&memory, &chain, 0).unwrap();
        let wanted = queue.publish(&memory).unwrap();
        assert!(!queue.publish(&memory).unwrap(), "asked twice, told once");
        driver.used().unwrap();
        wanted
    };
    assert!(complete(&mut driver));
    driver.set_flags(AVAIL_NO_INTERRUPT);
    assert!(!complete(&mut driver));
    driver.set_flags(0);
    assert!(complete(&mut driver));

    let (memory, mut driver, mut queue) = pair(8, feature::EVENT_IDX);
    // Flags mean nothing here. The event index says: when the third completion is there.
    driver.set_flags(AVAIL_NO_INTERRUPT);
    driver.set_used_event(2);
    let told: Vec<bool> = (0..5)
        .map(|_| {
            driver.add(&[Part::Write(1)]);
            let chain = queue.pop(&memory).unwrap().unwrap();
            queue.push_used(&memory, &chain, 0).unwrap();
            let wanted = queue.publish(&memory).unwrap();
            driver.used().unwrap();
            wanted
        })
        .collect();
    assert_eq!(told, [false, false, true, false, false]);
}

#[test]
fn a_batch_is_seen_all_at_once() {
    for features in [0, feature::EVENT_IDX] {
        let (memory, mut driver, mut queue) = pair(8, features);
        for batch in [1, 3, 8, 5] {
            let heads: Vec<u16> = (0..batch).map(|_| driver.add(&[Part::Write(4)])).collect();
            let event = driver.used_index();
            driver.set_used_event(event);
            for head in &heads {
                let chain = queue.pop(&memory).unwrap().unwrap();
                assert_eq!(chain.head(), *head);
                queue.push_used(&memory, &chain, 4).unwrap();
                assert!(driver.used().is_none(), "the index was not written yet");
            }
            assert!(queue.publish(&memory).unwrap(), "one interrupt for all of them");
            assert!(!queue.publish(&memory).unwrap());
            let seen: Vec<u16> = std::iter::from_fn(|| driver.used()).map(|used| used.head).collect();
            assert_eq!(seen, heads);
        }
    }
}

/// What was served before a chain that breaks the device reaches the driver.
#[test]
fn chains_before_a_fault_are_published() {
    let (memory, mut driver, mut queue) = pair(8, 0);
    let line = Arc::new(CountingLine::default());
    let interrupt = Interrupt::new(line.clone());
    for _ in 0..3 {
        driver.add(&[Part::Write(4)]);
    }
    driver.offer(8);
    queue.serve(&memory, &interrupt, |_| Ok(Served::from(4))).unwrap_err();
    assert_eq!(std::iter::from_fn(|| driver.used()).count(), 3);
    assert_eq!(line.take(), 1);
}

#[test]
fn notifications_are_asked_for_without_losing_one() {
    let (memory, mut driver, mut queue) = pair(8, 0);
    queue.disable_notifications(&memory).unwrap();
    assert_eq!(driver.device_wish().0, USED_NO_NOTIFY);
    assert!(!queue.enable_notifications(&memory).unwrap());
    assert_eq!(driver.device_wish().0, 0);
    driver.add(&[Part::Write(1)]);
    assert!(queue.enable_notifications(&memory).unwrap(), "came in the meantime");

    let (memory, mut driver, mut queue) = pair(8, feature::EVENT_IDX);
    driver.add(&[Part::Write(1)]);
    queue.pop(&memory).unwrap().unwrap();
    assert!(!queue.enable_notifications(&memory).unwrap());
    assert_eq!(driver.device_wish().1, 1);
}

#[test]
fn serving_is_bounded_by_one_round() {
    let (memory, mut driver, mut queue) = pair(4, 0);
    let line = Arc::new(CountingLine::default());
    let interrupt = Interrupt::new(line.clone());
    driver.add(&[Part::Write(1)]);
    let mut served = 0;
    // A driver that makes the same chain available again as soon as it is served.
    queue
        .serve(&memory, &interrupt, |chain| {
            served += 1;
            driver.offer(chain.head());
            Ok(0.into())
        })
        .unwrap();
    assert_eq!(served, 4);
    assert!(queue.doorbell().consume().unwrap(), "the rest comes by the doorbell");
    assert_eq!(line.take(), 1);
}

#[test]
fn serving_is_bounded_by_the_bytes_that_are_moved() {
    let (memory, mut driver, mut queue) = pair(8, 0);
    let line = Arc::new(CountingLine::default());
    let interrupt = Interrupt::new(line.clone());
    for _ in 0..5 {
        driver.add(&[Part::Write(1)]);
    }
    for (moved, served) in [(TURN_BYTES / 2, 2), (TURN_BYTES, 1), (u64::from(u32::MAX), 1), (0, 1)] {
        let mut count = 0;
        let serve = |_: &Chain| {
            count += 1;
            Ok(Served { written: 0, moved })
        };
        queue.serve(&memory, &interrupt, serve).unwrap();
        assert_eq!((count, line.take()), (served, 1), "{moved} bytes each");
        // What is left comes by the doorbell; a turn that left nothing asks for none.
        assert_eq!(rung(&queue), moved > 0, "{moved} bytes each");
    }
}

/// Whether the doorbell has rung. It rings on.
fn rung(queue: &Queue) -> bool {
    let rung = queue.doorbell().consume().unwrap();
    if rung {
        queue.doorbell().notify().unwrap();
    }
    rung
}

fn raw() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address =
        prop_oneof![0..RAM, Just(RAM - 1), any::<u64>(), (RAM / 2..RAM / 2 + 512).prop_map(|a| a & !15)];
    let len = prop_oneof![0..2048u32, Just(16), Just(32), Just(128), any::<u32>()];
    let flags = prop_oneof![0..8u16, Just(NEXT), Just(NEXT | WRITE), Just(INDIRECT)];
    (address, len, flags, 0..10u16)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Random tables never panic; a chain that is accepted is the one that another implementation
    /// of the ring sees, and lies in RAM.
    #[test]
    fn random_chains_agree_with_another_implementation(
        descriptors in prop::collection::vec(raw(), 8),
        indirect in prop::collection::vec(raw(), 8),
        heads in prop::collection::vec(0..10u16, 1..8),
    ) {
        use virtio_queue::QueueT;
        let (memory, mut driver, mut queue) = pair(8, feature::INDIRECT_DESC);
        for (i, &(address, len, flags, next)) in (0u16..).zip(&descriptors) {
            driver.descriptor(i, address, len, flags, next);
        }
        for (i, &(address, len, flags, next)) in (0u64..).zip(&indirect) {
            driver.write_descriptor(RAM / 2 + 16 * i, address, len, flags, next);
        }
        for &head in &heads {
            driver.offer(head);
        }
        let config = driver.config();
        let mut other = virtio_queue::Queue::new(8).unwrap();
        other.set_size(8);
        other.try_set_desc_table_address(GuestAddress(config.descriptors)).unwrap();
        other.try_set_avail_ring_address(GuestAddress(config.available)).unwrap();
        other.try_set_used_ring_address(GuestAddress(config.used)).unwrap();
        other.set_ready(true);
        for _ in &heads {
            let theirs = other.pop_descriptor_chain(&memory);
            let Ok(chain) = queue.pop(&memory) else { break };
            let chain = chain.unwrap();
            let theirs: Vec<_> = theirs
                .unwrap()
                .filter(|descriptor| descriptor.len() > 0)
                .map(|descriptor| (descriptor.addr().0, descriptor.len(), descriptor.is_write_only()))
                .collect();
            let ours: Vec<_> = chain.readable().iter().map(|s| (s.address, s.len, false))
                .chain(chain.writable().iter().map(|s| (s.address, s.len, true)))
                .collect();
            prop_assert_eq!(&ours, &theirs);
            for (address, len, _) in ours {
                prop_assert!(address + u64::from(len) <= RAM);
            }
            queue.push_used(&memory, &chain, 0).unwrap();
        }
    }

    /// A batch is interrupted for if and only if one of its chains alone would have been.
    #[test]
    fn a_batch_interrupts_as_its_chains_would(
        batches in prop::collection::vec((1..=8_u16, any::<u16>(), 0..16_u16), 1..40),
        start in any::<u16>(),
    ) {
        let (memory, mut driver, mut queue) = pair(8, feature::EVENT_IDX);
        // The index may wrap anywhere.
        for _ in 0..start % 512 {
            driver.add(&[Part::Write(1)]);
            let chain = queue.pop(&memory).unwrap().unwrap();
            queue.push_used(&memory, &chain, 0).unwrap();
            queue.publish(&memory).unwrap();
            driver.used().unwrap();
        }
        for (len, far, near) in batches {
            let before = driver.used_index();
            let event = if far % 2 == 0 { far } else { before.wrapping_add(near).wrapping_sub(4) };
            driver.set_used_event(event);
            for _ in 0..len {
                driver.add(&[Part::Write(1)]);
                let chain = queue.pop(&memory).unwrap().unwrap();
                queue.push_used(&memory, &chain, 0).unwrap();
            }
            let alone = (0..len).any(|n| before.wrapping_add(n) == event);
            prop_assert_eq!(queue.publish(&memory).unwrap(), alone);
            prop_assert_eq!(std::iter::from_fn(|| driver.used()).count(), usize::from(len));
        }
    }

    /// However reads are cut, the bytes are those of the segments in order.
    #[test]
    fn cursors_cut_anywhere(
        parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 1..6),
        cuts in prop::collection::vec(0..40usize, 0..20),
    ) {
        let (memory, mut driver, mut queue) = pair(16, 0);
        let all: Vec<u8> = parts.concat();
        let mut request: Vec<Part> = parts.iter().cloned().map(Part::Read).collect();
        request.extend(parts.iter().map(|part| Part::Write(u32::try_from(part.len()).unwrap())));
        driver.add(&request);
        let chain = queue.pop(&memory).unwrap().unwrap();
        let (mut reader, mut writer) = (chain.reader(&memory), chain.writer(&memory));
        let mut seen = Vec::new();
        for cut in cuts.into_iter().chain([usize::MAX]) {
            let mut piece = vec![0; cut.min(1000)];
            let read = reader.read(&mut piece).unwrap();
            prop_assert_eq!(writer.write(&piece[..read]).unwrap(), read);
            seen.extend_from_slice(&piece[..read]);
        }
        prop_assert_eq!(&seen, &all);
        queue.push_used(&memory, &chain, writer.written()).unwrap();
        queue.publish(&memory).unwrap();
        prop_assert_eq!(driver.used().unwrap().data, all);
    }

    /// Random addresses and sizes of rings never panic, and what is accepted lies in RAM.
    #[test]
    fn random_rings(
        size in prop_oneof![any::<u16>(), Just(1), Just(256), Just(32768)],
        rings in prop::array::uniform3(prop_oneof![any::<u64>(), (0..RAM).prop_map(|a| a & !0xff)]),
    ) {
        let memory = memory(MIB);
        let [descriptors, available, used] = rings;
        let config = QueueConfig { max_size: 32768, size, ready: true, descriptors, available, used };
        if let Ok(rings) = config.validate(&memory) {
            prop_assert!(used + 6 + 8 * u64::from(size) <= RAM);
            let mut queue = Queue::new(rings, feature::EVENT_IDX, Arc::new(Notifier::new().unwrap()));
            memory.write_obj(0u16, GuestAddress(available + 2)).unwrap();
            prop_assert_eq!(queue.pop(&memory), Ok(None));
            queue.enable_notifications(&memory).unwrap();
        }
    }
}
