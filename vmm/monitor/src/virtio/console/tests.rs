//! The console under a fake driver.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;

use super::*;
use crate::virtio::spec::feature;
use crate::virtio::testing::{Bench, Part};

const FEATURES: u64 = F_SIZE | feature::INDIRECT_DESC | feature::EVENT_IDX | feature::VERSION_1;

/// A console on one end of a stream, and the other end.
fn console() -> (Console, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    let input = Some(ours.try_clone().unwrap().into());
    (Console::new(Ends { input, output: Some(ours.into()) }), theirs)
}

fn received(bench: &mut Bench) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(used) = bench.queues[0].used() {
        bytes.extend_from_slice(&used.data[..usize::try_from(used.len).unwrap()]);
    }
    bytes
}

#[test]
fn speaks_both_ways() {
    let (mut console, mut peer) = console();
    let mut bench = Bench::new(&mut console, 64, None);
    bench.queues[1].add(&[Part::Read(b"login".to_vec()), Part::Read(b": ".to_vec())]);
    bench.kick(1);
    let mut bytes = [0; 7];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"login: ");
    assert_eq!(bench.queues[1].used().unwrap().len, 0);
    peer.write_all(b"root\n").unwrap();
    bench.turn();
    assert_eq!(received(&mut bench), b"", "without room nothing is taken, and nothing spins");
    bench.queues[0].add(&[Part::Write(3), Part::Write(1)]);
    bench.queues[0].add(&[Part::Write(100)]);
    bench.kick(0);
    assert_eq!(received(&mut bench), b"root\n");
    peer.write_all(b"x").unwrap();
    bench.turn();
    assert_eq!(received(&mut bench), b"", "both buffers were used");
    bench.queues[0].add(&[Part::Write(64)]);
    bench.kick(0);
    assert_eq!(received(&mut bench), b"x");
}

#[test]
fn a_full_stream_makes_the_guest_wait_and_loses_nothing() {
    let (mut console, mut peer) = console();
    let mut bench = Bench::new(&mut console, 64, None);
    let chunk: Vec<u8> = (0..60_000u32).map(|i| u8::try_from(i % 253).unwrap()).collect();
    let (mut given, mut back) = (0, 0);
    for _ in 0..40 {
        bench.queues[1].add(&[Part::Read(chunk.clone())]);
        given += 1;
        bench.kick(1);
    }
    while bench.queues[1].used().is_some() {
        back += 1;
    }
    assert!(back < given, "the stream took {back} chains of 60000 bytes without a reader");
    let mut seen = Vec::new();
    let mut buffer = vec![0; 50_000];
    while seen.len() < given * chunk.len() {
        if let Ok(bytes) = peer.read(&mut buffer) {
            seen.extend_from_slice(&buffer[..bytes]);
        }
        bench.turn();
    }
    assert!(seen.chunks(chunk.len()).all(|piece| piece == chunk));
    while bench.queues[1].used().is_some() {
        back += 1;
    }
    assert_eq!(back, given);
}

#[test]
fn a_pause_in_the_middle_of_a_chain_repeats_and_loses_nothing() {
    let (mut console, mut peer) = console();
    let mut bench = Bench::new(&mut console, 64, None);
    let chunk: Vec<u8> = (0..2_000_000u32).map(|i| u8::try_from(i % 241).unwrap()).collect();
    bench.queues[1].add(&[Part::Read(chunk.clone())]);
    bench.kick(1);
    let mut seen = Vec::new();
    let mut buffer = vec![0; 30_000];
    let mut sent = 0;
    while seen.len() < chunk.len() {
        let returned = bench.stop();
        console.reclaim(returned.state);
        let now = console.idle.as_ref().unwrap().progress.sent;
        assert!(now >= sent || now == 0);
        sent = now;
        bench.resume(&mut console, FEATURES, returned.queues);
        if let Ok(bytes) = peer.read(&mut buffer) {
            seen.extend_from_slice(&buffer[..bytes]);
        }
        bench.turn();
    }
    assert_eq!(seen, chunk);
    assert!(bench.queues[1].used().is_some());
}

#[test]
fn a_peer_that_goes_swallows_output_and_ends_input() {
    let (mut console, peer) = console();
    let mut bench = Bench::new(&mut console, 64, None);
    bench.queues[0].add(&[Part::Write(64)]);
    bench.kick(0);
    drop(peer);
    bench.turn();
    for _ in 0..100 {
        bench.queues[1].add(&[Part::Read(vec![b'x'; 10_000])]);
        bench.kick(1);
        assert!(bench.queues[1].used().is_some(), "the guest goes on");
    }
    assert_eq!(received(&mut bench), b"");
    assert_eq!(bench.interrupt.faults(), 0);
}

#[test]
fn without_ends_it_is_silent_and_bottomless() {
    let mut console = Console::new(Ends { input: None, output: None });
    let mut bench = Bench::new(&mut console, 8, None);
    bench.queues[0].add(&[Part::Write(64)]);
    bench.kick(0);
    bench.queues[1].add(&[Part::Read(vec![0; 64])]);
    bench.kick(1);
    assert!(bench.queues[0].used().is_none());
    assert!(bench.queues[1].used().is_some());
}

#[test]
fn a_regular_file_takes_output_and_gives_input() {
    let mut log = tempfile::tempfile().unwrap();
    let mut script = tempfile::tempfile().unwrap();
    script.write_all(b"typed").unwrap();
    script.seek(SeekFrom::Start(0)).unwrap();
    let ends = Ends { input: Some(script.into()), output: Some(log.try_clone().unwrap().into()) };
    let mut console = Console::new(ends);
    let mut bench = Bench::new(&mut console, 8, None);
    bench.queues[1].add(&[Part::Read(b"written".to_vec())]);
    bench.kick(1);
    bench.queues[0].add(&[Part::Write(2)]);
    bench.queues[0].add(&[Part::Write(20)]);
    bench.queues[0].add(&[Part::Write(20)]);
    bench.kick(0);
    assert_eq!(received(&mut bench), b"typed");
    assert_eq!(contents(&mut log), "written");
}

fn contents(file: &mut File) -> String {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_new_size_is_told_once() {
    let (mut console, _peer) = console();
    let size = console.size();
    size.set(80, 24).unwrap();
    let mut bench = Bench::new(&mut console, 8, None);
    let read = |console: &Console| {
        let mut bytes = [0; 4];
        console.read_config(0, &mut bytes);
        bytes
    };
    assert_eq!(read(&console), [80, 0, 24, 0]);
    assert_eq!((bench.line.take(), bench.interrupt.generation()), (0, 0));
    size.set(132, 50).unwrap();
    size.set(132, 50).unwrap();
    assert_eq!(read(&console), [132, 0, 50, 0]);
    assert_eq!((bench.line.take(), bench.interrupt.generation(), bench.interrupt.status()), (1, 1, 2));
    console.reclaim(bench.stop().state);
    size.set(1, 1).unwrap();
    assert_eq!(bench.line.take(), 0, "no driver, no interrupt");
}

#[test]
fn a_driver_without_the_size_is_not_told() {
    let (mut console, _peer) = console();
    let size = console.size();
    let bench = Bench::new(&mut console, 8, Some(feature::VERSION_1));
    size.set(132, 50).unwrap();
    assert_eq!(bench.line.take(), 0);
}

#[test]
fn broken_chains_in_either_direction_need_a_reset() {
    for queue in [0, 1] {
        let (mut console, mut peer) = console();
        let mut bench = Bench::new(&mut console, 8, None);
        bench.queues[queue].descriptor(0, u64::MAX - 3, 64, u16::try_from(2 * (1 - queue)).unwrap(), 0);
        bench.queues[queue].offer(0);
        peer.write_all(b"x").unwrap();
        bench.kick(queue);
        assert!(bench.interrupt.needs_reset());
        bench.turn();
        console.reclaim(bench.stop().state);
        console.reset();
        drop(bench);
        let mut bench = Bench::new(&mut console, 8, None);
        bench.queues[0].add(&[Part::Write(8)]);
        bench.kick(0);
        assert_eq!(received(&mut bench), b"x");
    }
}

#[test]
fn the_size_of_the_terminal_is_restored_as_the_guest_knows_it() {
    use crate::state::testing::{carry, refuses_damage};
    let (saved, _peer) = console();
    saved.size().set(80, 25).unwrap();
    let (mut restored, _peer) = console();
    carry(&saved, &mut restored).unwrap();
    let mut size = [0; 4];
    restored.read_config(0, &mut size);
    assert_eq!(size, [80, 0, 25, 0]);
    refuses_damage(&saved, || console().0, |console| console.reset());
}

#[test]
fn output_waits_for_memory_of_the_host_and_nothing_spins() {
    let (mut console, mut peer) = console();
    let mut bench = Bench::new(&mut console, 8, None);
    bench.queues[1].add(&[Part::Read(b"written".to_vec())]);
    // A worker that never comes to rest fails the test.
    if crate::sys::cannot_send(|| bench.kick(1)).is_none() {
        return;
    }
    assert!(bench.queues[1].used().is_none());
    let mut bytes = [0; 7];
    assert_eq!(peer.read(&mut bytes).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    bench.wait(std::time::Duration::from_secs(60));
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"written");
    assert!(bench.queues[1].used().is_some());
    assert_eq!(bench.interrupt.faults(), 0);
    assert!(!bench.is_ready(std::time::Duration::from_millis(50)), "nothing ticks any more");
}
