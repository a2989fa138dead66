//! Peers that are slow, and peers that go.

use std::time::Duration;

use super::*;
use crate::virtio::interrupt::CONFIG_CHANGE;
use crate::virtio::testing::Part;

fn numbered(n: u32) -> Vec<u8> {
    [&header_of(0, 0, 0, 0, 0)[..], &n.to_le_bytes(), &frame(6_000)].concat()
}

#[test]
fn a_slow_peer_holds_up_its_link_alone_and_loses_nothing() {
    let mut net = Net::linked();
    let features = net.device.features() | ring::VERSION_1 | ring::EVENT_IDX | ring::INDIRECT_DESC;
    net.hello();
    net.give(&[2000; 8]);
    let (mut sent, mut read) = (0, 0);
    for round in 0..50 {
        while net.bench.queues[1].room() > 200 {
            net.bench.queues[1].add(&[Part::Read(numbered(sent))]);
            sent += 1;
        }
        net.bench.kick(1);
        // It waits for room, and does not turn meanwhile.
        assert!(net.bench.kick(1) <= 3);
        assert!(!net.bench.is_ready(Duration::ZERO));
        assert!(net.bench.queues[1].used_index() < 0xffff && net.view.sent().frames < sent.into());
        // The other way is open.
        net.peer_sends(&header_of(0, 0, 0, 0, 0), &frame(100));
        assert!(net.received().is_some());
        net.give(&[2000]);
        if round % 4 == 0 {
            net.pause(features);
        }
        for _ in 0..10 {
            let Some(message) = net.peer_reads() else { break };
            if message.len() == 16 {
                continue;
            }
            assert!(message == numbered(read), "frame {read}");
            read += 1;
        }
        net.bench.turn();
        while net.bench.queues[1].used().is_some() {}
    }
    while read < sent {
        while let Some(message) = net.peer_reads() {
            if message.len() != 16 {
                assert!(message == numbered(read), "frame {read}");
                read += 1;
            }
        }
        net.bench.turn();
        while net.bench.queues[1].used().is_some() {}
    }
    assert_eq!((net.view.sent().frames, net.view.sent().lost), (sent.into(), 0));
    assert_eq!(net.bench.interrupt.faults(), 0);
}

#[test]
fn a_hello_waits_for_room() {
    let (near, far) = played::pair(rustix::net::SocketType::SEQPACKET);
    // What was sent by an earlier device of this link.
    while crate::sys::unix::try_send(std::os::fd::AsFd::as_fd(&near), &[0; 60_000]).is_ok() {}
    let (mut device, view) = Network::new(&played::config(played::datagram(true)), vec![near]).unwrap();
    let bench = crate::virtio::testing::Bench::new(&mut device, 64, None);
    let mut net = Net { device, view, bench, peer: Some(far) };
    net.guest_sends(&header_of(0, 0, 0, 0, 0), &frame(60));
    assert!(!net.bench.is_ready(Duration::ZERO));
    let mut messages = Vec::new();
    for _ in 0..20 {
        messages.extend(net.peer_reads().map(|message| message.len()));
        net.bench.turn();
    }
    let (old, new) = messages.split_at(messages.len() - 2);
    assert!(!old.is_empty() && old.iter().all(|len| *len == 60_000));
    assert_eq!(new, [16, 72]);
}

#[test]
fn a_peer_that_goes_takes_the_link_down_and_not_the_device() {
    for sends_first in [false, true] {
        for features in [None, Some(ring::VERSION_1)] {
            let mut net = Net::with(features);
            net.hello();
            net.give(&[2000; 4]);
            net.bench.interrupt.acknowledge(!0);
            let generation = net.bench.interrupt.generation();
            net.peer = None;
            if sends_first {
                net.guest_sends(&header_of(0, 0, 0, 0, 0), &frame(60));
            }
            net.bench.turn();
            assert!(!net.view.is_up());
            let mut status = [0xff; 2];
            net.device.read_config(6, &mut status);
            assert_eq!(status, [0, 0]);
            // A driver that knows of the state of links is told, once.
            let told = features.is_none();
            assert_eq!(net.bench.interrupt.status() & CONFIG_CHANGE != 0, told);
            assert_eq!(net.bench.interrupt.generation() - generation, u32::from(told));
            let faults = net.bench.interrupt.tally().faults();
            assert_eq!((faults.len(), faults[0].kind, faults[0].count), (1, "host", 1));
            assert!(!net.bench.interrupt.needs_reset());
            // Frames come back, and are lost.
            let lost = net.view.sent().lost;
            for _ in 0..3 {
                net.guest_sends(&header_of(0, 0, 0, 0, 0), &frame(60));
            }
            assert_eq!(net.view.sent().lost, lost + 3);
            assert_eq!(
                std::iter::from_fn(|| net.bench.queues[1].used()).count(),
                3 + usize::from(sends_first)
            );
            // The link stays down; nothing turns.
            assert!(net.bench.kick(0) <= 3);
            let returned = net.bench.stop();
            net.device.reclaim(returned.state);
            net.device.reset();
            let features = net.device.features() | ring::VERSION_1;
            net.bench.resume(&mut net.device, features, returned.queues);
            assert!(!net.view.is_up());
        }
    }
}

#[test]
fn what_a_peer_sent_before_it_went_arrives() {
    let mut net = Net::linked();
    net.hello();
    for _ in 0..3 {
        assert!(net.peer_puts(&[&header_of(0, 0, 0, 0, 0)[..], &frame(500)].concat()));
    }
    net.peer = None;
    // Given without a turn in between.
    for _ in 0..8 {
        net.bench.queues[0].add(&[Part::Write(2000)]);
    }
    net.bench.kick(0);
    assert_eq!(std::iter::from_fn(|| net.received()).count(), 3);
    assert!(!net.view.is_up());
}

#[test]
fn a_peer_that_goes_is_missed_by_a_driver_without_buffers_too() {
    let mut net = Net::linked();
    net.hello();
    assert!(net.peer_puts(&[&header_of(0, 0, 0, 0, 0)[..], &frame(500)].concat()));
    assert!(!net.bench.is_ready(Duration::ZERO));
    net.peer = None;
    assert!(net.bench.turn() <= 3);
    assert!(!net.view.is_up());
    assert!(!net.bench.is_ready(Duration::ZERO));
}

#[test]
fn a_frame_that_the_socket_never_takes_is_lost_alone() {
    let (near, far) = played::pair(rustix::net::SocketType::SEQPACKET);
    rustix::net::sockopt::set_socket_send_buffer_size(&near, 4096).unwrap();
    let (mut device, view) = Network::new(&played::config(played::datagram(true)), vec![near]).unwrap();
    let bench = crate::virtio::testing::Bench::new(&mut device, 64, None);
    let mut net = Net { device, view, bench, peer: Some(far) };
    net.hello();
    net.guest_sends(&header_of(1, 1, 1000, 34, 16), &frame(65_549));
    net.guest_sends(&header_of(0, 0, 0, 0, 0), &frame(60));
    assert_eq!(net.peer_reads().unwrap().len(), 72);
    assert_eq!((net.view.sent().lost, net.view.sent().frames), (1, 1));
}
