//! Much data, slow readers, little room.

use std::io::{Read, Write};
use std::time::Duration;

use super::super::packet::{Op, SHUTDOWN_BOTH, SHUTDOWN_SEND};
use super::*;
use crate::virtio::device::Device;
use crate::virtio::spec::feature;

const VOLUME: usize = 64 << 20;

/// Bytes per word and a hash of them all, cheap enough for debug builds.
fn same(piece: &[u8], pattern: &mut Pattern, buffer: &mut Vec<u8>) -> bool {
    buffer.resize(piece.len(), 0);
    pattern.fill(buffer);
    piece == buffer
}

#[test]
fn volume_to_a_slow_host() {
    let mut guest = Guest::new(without_door());
    let (mut stream, key) = joined(&mut guest, 5);
    let reader = std::thread::spawn(move || {
        let (mut pattern, mut buffer, mut expected) = (Pattern(1), vec![0; 128 << 10], Vec::new());
        let mut total = 0;
        loop {
            // Whole words, so that the pattern goes on where it stopped.
            let mut filled = 0;
            while filled < buffer.len() {
                match stream.read(&mut buffer[filled..]).unwrap() {
                    0 => break,
                    count => filled += count,
                }
            }
            if filled == 0 {
                return total;
            }
            assert!(same(&buffer[..filled], &mut pattern, &mut expected), "wrong bytes after {total}");
            total += filled;
            if (total >> 20) % 16 == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    let mut pattern = Pattern(1);
    let mut piece = vec![0; 64 << 10];
    for _ in 0..VOLUME / piece.len() {
        pattern.fill(&mut piece);
        let mut done = 0;
        while done < piece.len() {
            let count = guest.write(key, &piece[done..]);
            done += count;
            if guest.sockets[&key].credit() == 0 {
                // It must come by itself.
                assert!(guest.bench.is_ready(Duration::from_secs(10)), "no credit for ever");
                guest.pump();
            }
        }
    }
    // Closing with bytes still under way loses none of them.
    guest.shutdown(key, SHUTDOWN_BOTH);
    assert!(guest.sockets[&key].reset);
    while guest.control.connections() > 0 {
        guest.bench.wait(Duration::from_secs(10));
        guest.pump();
    }
    assert_eq!(reader.join().unwrap(), VOLUME);
}

#[test]
fn volume_to_a_slow_guest() {
    let mut guest = Guest::new(without_door());
    guest.alloc = 32 << 10;
    let (mut stream, key) = joined(&mut guest, 5);
    guest.sockets.get_mut(&key).unwrap().lazy = true;
    let writer = std::thread::spawn(move || {
        let (mut pattern, mut piece) = (Pattern(2), vec![0; 64 << 10]);
        for _ in 0..VOLUME / piece.len() {
            pattern.fill(&mut piece);
            stream.write_all(&piece).unwrap();
        }
    });
    let (mut pattern, mut expected, mut total) = (Pattern(2), Vec::new(), 0);
    let mut step = 0u32;
    while !(guest.at_end(key) && total == VOLUME) {
        guest.bench.wait(Duration::from_millis(1));
        guest.pump();
        step += 1;
        // Reads little at a time, now and then nothing at all.
        if !step.is_multiple_of(3) {
            guest.read(key, 24_000);
            guest.pump();
        }
        let received = &mut guest.sockets.get_mut(&key).unwrap().received;
        let whole = received.len() & !7;
        assert!(same(&received[..whole], &mut pattern, &mut expected), "wrong bytes after {total}");
        received.drain(..whole);
        total += whole;
        assert!(total <= VOLUME);
    }
    writer.join().unwrap();
}

#[test]
fn connections_take_turns_when_room_is_short() {
    let mut guest = Guest::new(without_door());
    let mut pairs: Vec<_> = (0..10).map(|port| joined(&mut guest, port)).collect();
    guest.refill = false;
    // Use up what room there is.
    let (mut filler, _) = pairs.remove(0);
    filler.set_nonblocking(true).unwrap();
    while guest.bench.queues[0].config().size > 0 && filler.write(&[0; 64]).is_ok_and(|count| count > 0) {
        guest.bench.turn();
        if guest.collect() == 0 {
            break;
        }
    }
    for (stream, _) in &mut pairs {
        stream.write_all(&vec![7; 60_000]).unwrap();
    }
    guest.bench.turn();
    assert!(!guest.bench.is_ready(Duration::from_millis(50)), "waiting for room must not spin");
    guest.log = Some(Vec::new());
    guest.offer(40);
    guest.kick_rx();
    guest.collect();
    let log = guest.log.take().unwrap();
    let mut counts: std::collections::HashMap<u32, usize> = std::collections::HashMap::new();
    for (header, _) in log.iter().filter(|(header, _)| header.op == Op::Rw.raw()) {
        *counts.entry(header.dst_port).or_default() += 1;
    }
    let per: Vec<usize> = pairs.iter().map(|(_, key)| counts.get(&key.guest).copied().unwrap_or(0)).collect();
    assert!(per.iter().all(|count| (3..=5).contains(count)), "{per:?}");
    guest.refill = true;
    guest.pump();
    assert!(pairs.iter().all(|(_, key)| guest.sockets[key].received.len() == 60_000));
}

#[test]
fn a_stalled_guest_costs_nothing_but_its_window() {
    let mut guest = Guest::new(without_door());
    let (mut stream, key) = joined(&mut guest, 5);
    let socket = guest.sockets.get_mut(&key).unwrap();
    socket.lazy = true;
    stream.set_nonblocking(true).unwrap();
    while stream.write(&[1; 4096]).is_ok() {
        guest.pump();
    }
    assert_eq!(guest.sockets[&key].received.len(), 64 << 10);
    assert!(!guest.bench.is_ready(Duration::from_millis(50)));
    // The host goes away; what it wrote is still delivered, then the end.
    drop(stream);
    guest.pump();
    assert!(!guest.at_end(key));
    while !guest.at_end(key) {
        let before = guest.sockets[&key].received.len();
        guest.read(key, u32::MAX);
        guest.pump();
        assert!(guest.at_end(key) || guest.sockets[&key].received.len() > before);
    }
    assert!(guest.sockets[&key].received.len() > 64 << 10);
}

#[test]
fn a_pause_keeps_connections_and_a_reset_closes_them() {
    let directory = tempfile::tempdir().unwrap();
    let (device, path) = with_door(directory.path());
    let mut guest = Guest::new(device);
    let (mut stream, key) = joined(&mut guest, 5);
    // Bytes under way in both directions: the host's stream is full, the guest's window as well.
    stream.set_nonblocking(true).unwrap();
    let up = Pattern::bytes(3, 400 << 10);
    let mut sent = 0;
    while let count @ 1.. = guest.write(key, &up[sent..]) {
        sent += count;
    }
    let mut waiting = UnixStream::connect(&path).unwrap();
    waiting.write_all(b"CONNECT").unwrap();
    guest.pump();
    let returned = guest.bench.stop();
    stream.write_all(b"written in the pause").unwrap();
    let asked = connect(&guest.control, 5);
    guest.device.reclaim(returned.state);
    let features = guest.device.features() | feature::INDIRECT_DESC | feature::EVENT_IDX | feature::VERSION_1;
    guest.bench.resume(&mut guest.device, features, returned.queues);
    guest.pump();
    assert!(asked.try_recv().unwrap().is_ok());
    assert_eq!(guest.sockets[&key].received, b"written in the pause");
    waiting.write_all(b" 5\n").unwrap();
    guest.pump();
    let mut answer = [0; 3];
    waiting.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"OK ");
    let mut down = Vec::new();
    while down.len() < up.len() {
        let mut buffer = [0; 16 << 10];
        if let Ok(count) = stream.read(&mut buffer) {
            down.extend_from_slice(&buffer[..count]);
        }
        guest.pump();
        sent += guest.write(key, &up[sent..]);
    }
    assert!(down == up);

    let returned = guest.bench.stop();
    guest.device.reclaim(returned.state);
    guest.device.reset();
    stream.set_nonblocking(false).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    let Guest { device, control, .. } = guest;
    let mut guest = Guest::new((device, control));
    assert_eq!(guest.control.connections(), 0);
    let (mut stream, key) = joined(&mut guest, 5);
    stream.write_all(b"again").unwrap();
    guest.pump();
    assert_eq!(guest.sockets[&key].received, b"again");
    guest.shutdown(key, SHUTDOWN_SEND);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}
