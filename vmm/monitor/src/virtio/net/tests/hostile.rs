//! Guests and peers that break the rules.

use super::*;
use crate::virtio::spec::descriptor as flag;
use crate::virtio::testing::Part;

/// Headers and lengths that nobody may send.
fn lies() -> Vec<([u8; BYTES], usize)> {
    let plain = header_of(0, 0, 0, 0, 0);
    let mut lies: Vec<_> = (0..14).map(|len| (plain, len)).collect();
    lies.extend([
        (plain, 65_550),
        (plain, 70_000),
        // Checksums that begin in the Ethernet header, or end behind the frame.
        (header_of(1, 0, 0, 0, 0), 60),
        (header_of(1, 0, 0, 13, 0), 60),
        (header_of(1, 0, 0, 59, 0), 60),
        (header_of(1, 0, 0, 34, 25), 60),
        (header_of(1, 0, 0, 60, 16), 60),
        (header_of(1, 0, 0, u16::MAX, u16::MAX), 60),
        // Segments of nothing, without checksums, of kinds that there are not.
        (header_of(1, 1, 0, 34, 16), 3000),
        (header_of(0, 1, 1448, 34, 16), 3000),
        (header_of(2, 1, 1448, 34, 16), 3000),
        (header_of(1, 3, 1448, 34, 16), 3000),
        (header_of(1, 0x81, 1448, 34, 16), 3000),
        (header_of(1, 0xff, 1448, 34, 16), 3000),
    ]);
    lies
}

#[test]
fn frames_of_a_guest_that_lies_are_dropped_and_counted() {
    let mut net = Net::linked();
    net.hello();
    for (n, (header, len)) in (1..).zip(lies()) {
        net.guest_sends(&header, &frame(len));
        assert_eq!(net.bench.queues[1].used().unwrap().len, 0);
        assert_eq!((net.peer_reads(), net.view.sent().bad), (None, n), "{header:?} {len}");
    }
    // Headers that are cut short.
    let counted = net.view.sent().bad;
    for (n, len) in (1..).zip(1..BYTES) {
        net.bench.queues[1].add(&[Part::Read(vec![0; len])]);
        net.bench.kick(1);
        assert_eq!((net.peer_reads(), net.view.sent().bad), (None, counted + n));
    }
    // Nothing to read at all.
    net.bench.queues[1].add(&[Part::Write(100)]);
    net.bench.kick(1);
    assert_eq!(net.bench.interrupt.faults(), 0);
    net.guest_sends(&header_of(0, 0, 0, 0, 0), &frame(60));
    assert_eq!(net.peer_reads().unwrap().len(), 72);
    assert_eq!(net.view.sent().frames, 1);
}

#[test]
fn frames_of_a_peer_that_lies_are_dropped_and_counted() {
    let mut net = Net::linked();
    net.hello();
    net.give(&[35_000; 4]);
    for (n, (header, len)) in (1..).zip(lies()) {
        if len == 4 && header == [0; BYTES] {
            // That is as long as a hello, and none.
            assert!(net.peer_puts(&[0; 16]));
            net.bench.turn();
        } else {
            net.peer_sends(&header, &frame(len));
        }
        let counts = net.view.received();
        assert_eq!((net.received(), counts.bad + counts.lost), (None, n), "{header:?} {len}");
    }
    for len in 1..BYTES {
        let counted = net.view.received().bad;
        assert!(net.peer_puts(&vec![0; len]));
        net.bench.turn();
        assert_eq!((net.received(), net.view.received().bad), (None, counted + 1));
    }
    // A hello is no frame, whenever it comes; one of another version is neither.
    let counted = net.view.received().bad;
    assert!(net.peer_puts(b"NLNK\x01\0\0\0\0\0\0\0\0\0\0\0"));
    assert!(net.peer_puts(b"NLNK\x02\0\0\0\0\0\0\0\0\0\0\0"));
    net.bench.turn();
    assert_eq!((net.received(), net.view.received().bad), (None, counted + 1));
    assert!(net.view.is_up());
    net.peer_sends(&header_of(0, 0, 0, 0, 0), &frame(60));
    assert_eq!(net.received().unwrap().1, frame(60));
    assert_eq!(net.bench.interrupt.faults(), 0);
}

#[test]
fn a_peer_leaves_to_the_driver_only_what_it_took() {
    let kinds = [
        (feature::GUEST_TSO4, 1u8),
        (feature::GUEST_TSO6, 4),
        (feature::GUEST_USO4 | feature::GUEST_USO6, 5),
    ];
    for (bits, kind) in kinds {
        let base = ring::VERSION_1 | feature::MRG_RXBUF | feature::GUEST_CSUM;
        for (features, passes) in [(base | bits, true), (base, false), (base & !2 | bits, false)] {
            let mut net = Net::with(Some(features));
            net.hello();
            net.give(&[4000; 2]);
            net.peer_sends(&header_of(1, kind, 1000, 34, 6), &frame(3000));
            assert_eq!(net.received().is_some(), passes, "{kind} {features:#x}");
        }
    }
}

#[test]
fn broken_rings_are_faults_and_what_came_before_came() {
    type Break = fn(&mut Net);
    let breaks: [(usize, Break, &str); 9] = [
        (1, |net| net.bench.queues[1].set_available(300), "available_index"),
        (1, |net| net.bench.queues[1].offer(256), "descriptor_index"),
        (
            1,
            |net| {
                net.bench.queues[1].descriptor(9, 0, 100, flag::NEXT, 9);
                net.bench.queues[1].offer(9);
            },
            "descriptor_loop",
        ),
        (
            1,
            |net| {
                net.bench.queues[1].descriptor(9, u64::MAX - 4, 100, 0, 0);
                net.bench.queues[1].offer(9);
            },
            "outside_memory",
        ),
        (0, |net| net.bench.queues[0].set_available(300), "available_index"),
        (
            0,
            |net| {
                net.bench.queues[0].descriptor(9, 1 << 40, 100, flag::WRITE, 0);
                net.bench.queues[0].offer(9);
            },
            "outside_memory",
        ),
        // Buffers without room for a header.
        (0, |net| _ = net.bench.queues[0].add(&[Part::Write(11)]), "chain_too_short"),
        (0, |net| _ = net.bench.queues[0].add(&[Part::Read(vec![0; 100])]), "chain_too_short"),
        (2, |net| net.bench.queues[2].offer(999), "descriptor_index"),
    ];
    for (queue, broken, kind) in breaks {
        let mut net = Net::linked();
        net.hello();
        net.give(&[2000]);
        net.peer_sends(&header_of(0, 0, 0, 0, 0), &frame(500));
        net.bench.queues[1].add(&[Part::Read([&header_of(0, 0, 0, 0, 0)[..], &frame(60)].concat())]);
        broken(&mut net);
        net.bench.kick(queue);
        assert_eq!(net.received().unwrap().1, frame(500));
        assert_eq!(net.peer_reads().is_some(), queue == 1 && kind != "available_index", "{kind}");
        assert!(net.bench.interrupt.needs_reset(), "{kind}");
        assert_eq!(net.bench.interrupt.tally().faults()[0].kind, kind);
        // A broken device does nothing more until it is reset.
        net.bench.kick(1);
        net.bench.kick(0);
        let returned = net.bench.stop();
        assert_eq!(returned.queues.iter().flatten().count(), 3);
    }
}

#[test]
fn a_buffer_of_too_many_pieces_is_a_fault() {
    let mut net = Net::linked();
    net.hello();
    net.bench.queues[0].add_indirect(&vec![Part::Write(1); 900]);
    net.bench.queues[0].add_indirect(&vec![Part::Write(1); 900]);
    net.bench.kick(0);
    // One is as much as a call takes; the other comes behind it.
    net.peer_sends(&header_of(0, 0, 0, 0, 0), &frame(800));
    net.peer_sends(&header_of(0, 0, 0, 0, 0), &frame(888));
    assert_eq!(net.received().unwrap().1, frame(800));
    assert_eq!(net.received().unwrap().1, frame(888));
    net.bench.queues[0].add_indirect(&vec![Part::Write(1); 1001]);
    net.bench.kick(0);
    assert_eq!(net.bench.interrupt.tally().faults()[0].kind, "chain_too_long");
    // A frame of as many pieces is not sent in parts.
    let mut net = Net::linked();
    net.hello();
    net.bench.queues[1].add_indirect(&vec![Part::Read(vec![0]); 1024]);
    net.bench.queues[1].add_indirect(&vec![Part::Read(vec![0]); 1000]);
    net.bench.kick(1);
    assert_eq!((net.view.sent().lost, net.view.sent().frames), (0, 2));
    assert_eq!((net.peer_reads().unwrap().len(), net.peer_reads().unwrap().len()), (1024, 1000));
}
