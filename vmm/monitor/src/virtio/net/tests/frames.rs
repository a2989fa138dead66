//! Sound frames, both ways.

use super::*;
use crate::virtio::testing::Part;

/// Features of a driver that knows all that the device has.
fn all(net: &Net) -> u64 {
    net.device.features() | ring::VERSION_1 | ring::EVENT_IDX | ring::INDIRECT_DESC
}

#[test]
fn frames_pass_both_ways_as_they_are() {
    let mut net = Net::linked();
    assert_eq!(net.hello(), Some(0x37));
    let segment = header_of(1, 1, 1448, 34, 16);
    let frames = [(header_of(0, 0, 0, 0, 0), 14), (header_of(0, 0, 0, 0, 0), 1514), (segment, 65_549)];
    for (header, len) in frames {
        net.guest_sends(&header, &frame(len));
        assert_eq!(net.peer_reads().unwrap(), [&header[..], &frame(len)].concat());
        assert_eq!(net.bench.queues[1].used().unwrap().len, 0);
    }
    net.give(&[66_000; 3]);
    for (header, len) in frames {
        net.peer_sends(&header, &frame(len));
        let (got, bytes) = net.received().unwrap();
        assert_eq!((&got[..10], &got[10..], bytes == frame(len)), (&header[..10], &[1, 0][..], true));
    }
    let counts = FrameCounts { frames: 3, bytes: 14 + 1514 + 65_549, bad: 0, lost: 0 };
    assert_eq!((net.view.sent(), net.view.received(), net.view.pairs()), (counts, counts, 1));
    assert!(net.bench.line.take() > 0);
    assert_eq!(net.bench.interrupt.faults(), 0);
}

#[test]
fn headers_and_frames_may_lie_in_any_pieces() {
    let mut net = Net::linked();
    net.hello();
    let message = [&header_of(1, 5, 100, 42, 6)[..], &frame(300)].concat();
    for cut in [1, 5, 11, 12, 13, 100] {
        for indirect in [false, true] {
            let parts =
                [Part::Read(message[..cut].to_vec()), Part::Read(message[cut..].to_vec()), Part::Write(8)];
            let queue = &mut net.bench.queues[1];
            if indirect {
                queue.add_indirect(&parts)
            } else {
                queue.add(&parts)
            };
            net.bench.kick(1);
            assert_eq!(net.peer_reads().unwrap(), message);
            // Room for an answer that nobody gives.
            assert_eq!(net.bench.queues[1].used().unwrap().len, 0);
        }
    }
    // Buffers of many pieces, the first shorter than a header.
    for _ in 0..2 {
        net.bench.queues[0].add(&[Part::Write(3), Part::Write(9), Part::Write(1), Part::Write(100)]);
    }
    net.bench.kick(0);
    net.peer_sends(&message[..12], &message[12..152]);
    let (header, bytes) = net.received().unwrap();
    assert_eq!((&header[..10], &header[10..], &bytes[..]), (&message[..10], &[2, 0][..], &message[12..152]));
}

#[test]
fn a_frame_fills_as_many_buffers_as_it_needs() {
    let mut net = Net::linked();
    net.hello();
    let features = all(&net);
    let mut expected = Vec::new();
    for round in 0..40 {
        while net.bench.queues[0].room() > 0 {
            net.bench.queues[0].add(&[Part::Write(1526)]);
        }
        net.bench.kick(0);
        let lengths = [65_549, 60, 1514, 1515, 9000, 30_000, 14, 65_549];
        for len in lengths {
            let header = if len > 1514 { header_of(1, 4, 1440, 54, 16) } else { header_of(0, 0, 0, 0, 0) };
            assert!(net.peer_puts(&[&header[..], &frame(len)].concat()));
            expected.push((header, len));
            // What was read ahead of frames goes back and comes again.
            if round % 3 == 0 && len == 9000 {
                net.pause(features);
            }
            net.bench.turn();
        }
        for (header, len) in expected.drain(..) {
            let (got, bytes) = net.received().unwrap_or_else(|| panic!("frame of {len} in round {round}"));
            let buffers = u16::from_le_bytes([got[10], got[11]]);
            assert_eq!(usize::from(buffers), (len + BYTES).div_ceil(1526));
            assert!(got[..10] == header[..10] && bytes == frame(len));
        }
        assert!(net.received().is_none());
    }
    assert_eq!(net.view.received().frames, 320);
    assert_eq!((net.view.received().lost, net.view.received().bad), (0, 0));
}

#[test]
fn interrupts_come_for_batches() {
    let mut net = Net::linked();
    net.hello();
    net.give(&[2000; 100]);
    net.bench.line.take();
    for _ in 0..60 {
        assert!(net.peer_puts(&[&header_of(0, 0, 0, 0, 0)[..], &frame(100)].concat()));
    }
    net.bench.turn();
    assert!(net.bench.line.take() <= 2);
    assert_eq!(std::iter::from_fn(|| net.received()).count(), 60);
    for _ in 0..60 {
        net.bench.queues[1].add(&[Part::Read([&header_of(0, 0, 0, 0, 0)[..], &frame(100)].concat())]);
    }
    net.bench.kick(1);
    assert!(net.bench.line.take() <= 2);
    assert_eq!(std::iter::from_fn(|| net.peer_reads()).count(), 60);
}

#[test]
fn without_buffers_nothing_is_read_and_nothing_turns() {
    let mut net = Net::linked();
    net.hello();
    let message = [&header_of(0, 0, 0, 0, 0)[..], &frame(1000)].concat();
    while net.peer_puts(&message) {}
    // A peer that waits for the driver costs nothing.
    assert!(net.bench.turn() <= 3);
    assert!(!net.bench.is_ready(std::time::Duration::from_millis(20)));
    assert_eq!(net.view.received(), FrameCounts::default());
    let mut frames = 0;
    while frames < 10 {
        net.give(&[1012, 1012]);
        for _ in 0..2 {
            assert!(net.received().unwrap().1 == frame(1000));
            frames += 1;
        }
        assert!(net.received().is_none());
    }
    assert_eq!(net.view.received().lost, 0);
}

#[test]
fn a_frame_that_fits_nowhere_is_lost_alone() {
    for features in [None, Some(ring::VERSION_1)] {
        let mut net = Net::with(features);
        net.hello();
        net.give(&[1000]);
        net.peer_sends(&header_of(0, 0, 0, 0, 0), &frame(989));
        assert!(net.received().is_none());
        net.peer_sends(&header_of(0, 0, 0, 0, 0), &frame(988));
        assert!(net.received().unwrap().1 == frame(988));
        assert_eq!((net.view.received().lost, net.view.received().frames), (1, 1));
    }
}

#[test]
fn messages_without_headers_pass_without_offloads() {
    for kind in [rustix::net::SocketType::DGRAM, rustix::net::SocketType::SEQPACKET] {
        let mut net = Net::over(played::datagram(false), kind, None);
        assert_eq!(net.device.features() & (Offloads::ALL.host_features() | 2), 0);
        assert_eq!(net.peer_reads(), None);
        for len in [14, 1514, 65_549] {
            net.guest_sends(&header_of(0, 0, 0, 0, 0), &frame(len));
            assert!(net.peer_reads().unwrap() == frame(len));
            net.give(&[40_000; 2]);
            net.peer_sends(&[], &frame(len));
            assert!(net.received().unwrap().1 == frame(len));
        }
        net.peer_sends(&[], &frame(13));
        net.guest_sends(&header_of(1, 0, 0, 20, 2), &frame(100));
        assert_eq!((net.view.received().bad, net.view.sent().bad), (1, 1));
    }
}
