//! A stream socket in QEMU's framing.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::*;
use crate::virtio::testing::{Bench, Part};

struct Streamed {
    net: Net,
    peer: UnixStream,
}

fn streamed() -> Streamed {
    let (near, peer) = UnixStream::pair().unwrap();
    peer.set_nonblocking(true).unwrap();
    let link = NetworkLink::Stream(crate::config::FileSource::Fd(0));
    let (mut device, view) = Network::new(&played::config(link), vec![near.into()]).unwrap();
    let bench = Bench::new(&mut device, 256, None);
    Streamed { net: Net { device, view, bench, peer: None }, peer }
}

fn framed(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// Frames that a peer has read so far.
fn split(bytes: &[u8]) -> (Vec<Vec<u8>>, usize) {
    let (mut frames, mut at) = (Vec::new(), 0);
    while let Some(head) = bytes[at..].first_chunk::<4>() {
        let len = usize::try_from(u32::from_be_bytes(*head)).unwrap();
        let Some(frame) = bytes.get(at + 4..at + 4 + len) else { break };
        frames.push(frame.to_vec());
        at += 4 + len;
    }
    (frames, at)
}

#[test]
fn frames_have_their_length_before_them() {
    let mut side = streamed();
    assert_eq!(side.net.device.features() & (Offloads::ALL.host_features() | 2), 0);
    for len in [14, 60, 1514, 65_549] {
        side.net.guest_sends(&header_of(0, 0, 0, 0, 0), &frame(len));
        let mut bytes = vec![0; len + 4];
        side.peer.read_exact(&mut bytes).unwrap();
        assert!(bytes == framed(&frame(len)));
        side.net.give(&[2000; 40]);
        side.peer.write_all(&framed(&frame(len))).unwrap();
        side.net.bench.turn();
        let (header, bytes) = side.net.received().unwrap();
        assert!(header[..10] == [0; 10] && bytes == frame(len));
    }
    // Offloads were not offered.
    side.net.guest_sends(&header_of(1, 0, 0, 34, 6), &frame(60));
    assert_eq!(side.net.view.sent().bad, 1);
    assert!(side.peer.read(&mut [0]).is_err());
}

#[test]
fn frames_that_come_in_drops_are_whole() {
    let mut side = streamed();
    side.net.give(&[2000; 100]);
    let lengths = [14, 1514, 60, 15, 300];
    let bytes: Vec<u8> = lengths.iter().flat_map(|len| framed(&frame(*len))).collect();
    for (step, expected) in [(1, lengths), (7, lengths), (1000, lengths)] {
        for drop in bytes.chunks(step) {
            side.peer.write_all(drop).unwrap();
            side.net.bench.turn();
        }
        for len in expected {
            assert!(side.net.received().unwrap().1 == frame(len));
        }
        assert!(side.net.received().is_none());
    }
    // Many at once, more than a turn takes, and more than the driver has room for.
    let mut peer = side.peer.try_clone().unwrap();
    peer.set_nonblocking(false).unwrap();
    let writer = std::thread::spawn(move || {
        for n in 0..3000 {
            peer.write_all(&framed(&frame(100 + n % 900))).unwrap();
        }
    });
    let mut read = 0;
    while read < 3000 {
        side.net.bench.wait(Duration::from_millis(10));
        while let Some((_, bytes)) = side.net.received() {
            assert!(bytes == frame(100 + read % 900), "frame {read}");
            read += 1;
        }
        let room = side.net.bench.queues[0].room().min(100);
        side.net.give(&vec![2000; room]);
    }
    writer.join().unwrap();
    assert_eq!((side.net.view.received().lost, side.net.view.received().bad), (0, 0));
}

#[test]
fn a_peer_that_reads_in_sips_gets_every_frame_whole() {
    let mut side = streamed();
    let features = side.net.device.features() | ring::VERSION_1 | ring::EVENT_IDX | ring::INDIRECT_DESC;
    rustix::net::sockopt::set_socket_send_buffer_size(&side.peer, 4096).unwrap();
    let (mut sent, mut read, mut bytes) = (0usize, 0usize, Vec::new());
    for round in 0..400 {
        while sent < 200 && side.net.bench.queues[1].room() > 200 {
            let message = [&header_of(0, 0, 0, 0, 0)[..], &frame(14 + sent * 331 % 65_000)].concat();
            side.net.bench.queues[1].add(&[Part::Read(message)]);
            sent += 1;
        }
        assert!(side.net.bench.kick(1) < 10);
        // A frame that is under way survives a pause.
        if round % 3 == 0 {
            side.net.pause(features);
        }
        let mut sip = vec![0; 1 + round * 7919 % 50_000];
        if let Ok(len) = side.peer.read(&mut sip) {
            bytes.extend(&sip[..len]);
        }
        side.net.bench.turn();
        let (frames, done) = split(&bytes);
        bytes.drain(..done);
        for whole in frames {
            assert!(whole == frame(14 + read * 331 % 65_000), "frame {read}");
            read += 1;
        }
        while side.net.bench.queues[1].used().is_some() {}
    }
    assert_eq!((read, bytes.len()), (200, 0));
    assert_eq!(side.net.view.sent().frames, 200);
}

#[test]
fn a_peer_whose_lengths_are_mad_loses_its_link() {
    for length in [65_550u32, 1 << 24, u32::MAX] {
        let mut side = streamed();
        side.net.give(&[2000; 4]);
        side.peer.write_all(&[&framed(&frame(60))[..], &length.to_be_bytes(), &[0; 100]].concat()).unwrap();
        side.net.bench.turn();
        assert_eq!(side.net.received().unwrap().1, frame(60));
        assert!(side.net.received().is_none() && !side.net.view.is_up());
        let faults = side.net.bench.interrupt.tally().faults();
        assert!(faults[0].first.contains(&length.to_string()), "{faults:?}");
    }
    // Short ones are no frames, and no reason to stop.
    let mut side = streamed();
    side.net.give(&[2000; 4]);
    for len in 0..14 {
        side.peer.write_all(&framed(&frame(len))).unwrap();
    }
    side.peer.write_all(&framed(&frame(14))).unwrap();
    side.net.bench.turn();
    assert_eq!(side.net.received().unwrap().1, frame(14));
    assert_eq!(side.net.view.received().bad, 14);
}

#[test]
fn a_device_that_starts_again_goes_on_with_whole_frames_or_not_at_all() {
    for (rest, is_up) in [(0, true), (30, false)] {
        let (near, mut peer) = UnixStream::pair().unwrap();
        let again = near.try_clone().unwrap();
        let config = played::config(NetworkLink::Stream(crate::config::FileSource::Fd(0)));
        let begin = |socket: UnixStream| {
            let (mut device, view) = Network::new(&config, vec![socket.into()]).unwrap();
            let bench = Bench::new(&mut device, 256, None);
            let mut net = Net { device, view, bench, peer: None };
            net.give(&[2000; 4]);
            net
        };
        let mut net = begin(near);
        peer.write_all(&framed(&frame(60))).unwrap();
        peer.write_all(&framed(&frame(60))[..rest]).unwrap();
        net.bench.turn();
        assert_eq!(net.received().unwrap().1, frame(60));
        drop(net.bench.stop());
        drop(net);
        let mut net = begin(again);
        assert_eq!(net.view.is_up(), is_up);
        if is_up {
            peer.write_all(&framed(&frame(99))).unwrap();
            net.bench.turn();
            assert_eq!(net.received().unwrap().1, frame(99));
        }
    }
}

#[test]
fn an_end_within_a_frame_is_an_end() {
    let mut side = streamed();
    side.net.give(&[2000; 4]);
    side.peer.write_all(&framed(&frame(60))).unwrap();
    side.peer.write_all(&framed(&frame(60))[..30]).unwrap();
    drop(side.peer);
    side.net.bench.turn();
    assert_eq!(side.net.received().unwrap().1, frame(60));
    assert!(side.net.received().is_none() && !side.net.view.is_up());
}
