//! Thousands of connections.

use std::io::{Read, Write};
use std::os::fd::AsFd;

use super::super::receive_accepted;
use super::*;

const MANY: usize = 2000;

#[test]
fn two_thousand_connections_each_way_at_once() {
    let mut guest = Guest::new(without_door());
    guest.listening.insert(5);
    let answers: Vec<_> = (0..MANY).map(|_| connect(&guest.control, 5)).collect();
    guest.pump();
    let mut hosts: Vec<UnixStream> =
        answers.iter().map(|answer| answer.try_recv().unwrap().unwrap()).collect();
    assert_eq!(guest.open().len(), MANY);
    let (ours, theirs) = crate::sys::stream_pair().unwrap();
    guest.control.listen(6, theirs);
    let mut dialled = Vec::new();
    for _ in 0..MANY {
        let key = guest.dial(6);
        let (stream, port, _) = receive_accepted(ours.as_fd()).unwrap().unwrap();
        assert_eq!(port, key.guest);
        dialled.push((stream, key));
    }
    assert_eq!(guest.control.connections(), 2 * MANY);

    // Everybody says its number, both ways; nobody hears another's.
    for (index, host) in hosts.iter_mut().enumerate() {
        host.write_all(&index.to_le_bytes()).unwrap();
    }
    for (stream, key) in &mut dialled {
        stream.write_all(&key.guest.to_le_bytes()).unwrap();
    }
    guest.pump();
    for (stream, key) in &mut dialled {
        assert_eq!(guest.sockets[key].received, key.guest.to_le_bytes());
        guest.write_all(*key, &key.guest.to_le_bytes());
        let mut word = [0; 4];
        stream.read_exact(&mut word).unwrap();
        assert_eq!(word, key.guest.to_le_bytes());
    }
    let from_host: Vec<Key> = guest.open().into_iter().filter(|key| key.guest == 5).collect();
    assert_eq!(from_host.len(), MANY);
    for key in from_host {
        let heard = guest.sockets[&key].received.clone();
        guest.write_all(key, &heard);
    }
    for (index, host) in hosts.iter_mut().enumerate() {
        let mut word = [0; 8];
        host.read_exact(&mut word).unwrap();
        assert_eq!(word, index.to_le_bytes());
    }
    drop((hosts, dialled));
    guest.pump();
    assert_eq!(guest.control.connections(), 0);
    assert!(guest.open().is_empty());
    assert_eq!(guest.control.faults(), 0);
}

#[test]
fn host_ports_differ() {
    let mut guest = Guest::new(without_door());
    let streams: Vec<_> = (0..100).map(|_| joined_port(&mut guest)).collect();
    let ports: std::collections::HashSet<u32> = streams.iter().map(|(_, port)| *port).collect();
    assert_eq!(ports.len(), 100);
}

fn joined_port(guest: &mut Guest) -> (UnixStream, u32) {
    let (stream, key) = joined(guest, 5);
    drop(stream);
    guest.pump();
    (UnixStream::pair().unwrap().0, key.host)
}

/// Not a test of behaviour: see the feature's line in `Cargo.toml`.
#[cfg(feature = "figures")]
#[test]
fn figures() {
    let resident = || {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let mut guest = Guest::new(without_door());
    let (mut stream, key) = joined(&mut guest, 5);
    let volume = 256 << 20;
    let block = Pattern::bytes(1, 64 << 10);
    let reader = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        let mut total = 0;
        while total < volume {
            total += stream.read(&mut buffer).unwrap();
        }
        stream
    });
    let start = std::time::Instant::now();
    let mut done = 0;
    while done < volume {
        let count = guest.write(key, &block);
        done += count;
        if guest.sockets[&key].credit() == 0 {
            guest.bench.wait(std::time::Duration::from_secs(1));
            guest.pump();
        }
    }
    let mut stream = reader.join().unwrap();
    println!("guest to host: {} MiB/s", 256.0 / start.elapsed().as_secs_f64());
    let start = std::time::Instant::now();
    let writer = std::thread::spawn(move || {
        for _ in 0..volume / block.len() {
            stream.write_all(&block).unwrap();
        }
        stream
    });
    let mut total = 0;
    while total < volume {
        guest.bench.wait(std::time::Duration::from_secs(1));
        guest.pump();
        total += std::mem::take(&mut guest.sockets.get_mut(&key).unwrap().received).len();
    }
    println!("host to guest: {} MiB/s", 256.0 / start.elapsed().as_secs_f64());
    let _stream = writer.join().unwrap();
    guest.listening.insert(9);
    let answers: Vec<_> = (0..4000).map(|_| connect(&guest.control, 9)).collect();
    let before = resident();
    guest.pump();
    let grown = resident() - before;
    drop(answers);
    println!("4000 connections, guest model included: {} bytes each", grown / 4000);
    println!("a connection in the table: {} bytes", super::super::muxer::SLOT_BYTES);
}
