//! Many at once: none of them is the others' concern.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use nelly_net::config::UsernetConfig;
use smoltcp::socket::tcp;

use crate::guest::Guest;
use crate::world::{World, is_root, raise_files, started};

/// What the program may have to itself without a flow, and for a thousand that are idle, in bytes.
const IDLE_BYTES: u64 = 400 << 10;
const FLOWS_BYTES: u64 = 1000 << 10;

/// Begins to connect, with little memory for it.
fn dial(guest: &mut Guest, to: std::net::SocketAddr, port: u16) {
    let buffer = || tcp::SocketBuffer::new(vec![0; 64]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.connect(guest.interface.context(), to, port).unwrap();
    guest.sockets.add(socket);
}

#[test]
fn a_thousand_calls_that_nobody_answers_delay_nobody() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let listener = world.there(|| TcpListener::bind("198.51.100.7:80").unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _gone = stream.unwrap().write_all(b"here");
        }
    });
    let (program, mut guest) = started(&UsernetConfig::default());
    let files = program.files();
    // Nobody has this address behind the router, which says nothing of it.
    for port in 1..=1000 {
        dial(&mut guest, format!("198.51.100.99:{port}").parse().unwrap(), 1024 + port);
        if port % 50 == 0 {
            guest.pass(Duration::from_millis(1));
        }
    }
    let end = Instant::now() + Duration::from_secs(60);
    while program.files() < files + 1000 {
        guest.pass(Duration::from_millis(10));
        assert!(Instant::now() < end, "they are called one after the other");
    }
    for _ in 0..20 {
        let handle = guest.dial("198.51.100.7:80");
        assert_eq!(guest.exchange(handle, b"", true), b"here");
        guest.finished(handle);
    }
    // What waits costs nothing.
    guest.sockets = smoltcp::iface::SocketSet::new(Vec::new());
    let ticks = program.ticks();
    std::thread::sleep(Duration::from_secs(1));
    assert!(program.ticks() - ticks <= 10, "calls that wait cost processor time");
}

#[test]
fn idle_flows_and_no_flows_have_little_memory() {
    const FLOWS: u16 = 1000;
    if !is_root() {
        return;
    }
    assert!(raise_files() >= 2 * u64::from(FLOWS), "too few open files are allowed here");
    let world = World::new();
    let listener = world.there(|| TcpListener::bind("198.51.100.7:80").unwrap());
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for accepted in listener.incoming().take(FLOWS.into()) {
            tell.send(accepted.unwrap()).unwrap();
        }
    });
    let (program, mut guest) = started(&UsernetConfig::default());
    let (idle, files) = (program.memory(), program.files());
    let end = Instant::now() + Duration::from_secs(60);
    let mut peers = Vec::new();
    for number in 0..FLOWS {
        dial(&mut guest, "198.51.100.7:80".parse().unwrap(), 2000 + number);
        // No more at once than the peer's queue has room for: what finds no place there is tried
        // again after seconds.
        while number % 50 == 49 && peers.len() <= usize::from(number) {
            guest.pass(Duration::from_millis(1));
            peers.extend(told.try_iter());
            assert!(Instant::now() < end, "they are not all connected");
        }
    }
    guest.pass(Duration::from_millis(100));
    assert_eq!(program.files(), files + usize::from(FLOWS));
    let flows = program.memory() - idle;
    println!("idle {} KiB, {FLOWS} idle flows {} KiB more", idle >> 10, flows >> 10);
    drop(peers);
    // The program as the tests have it is not that of a release: docs/network.md has its figures.
    assert!(idle <= IDLE_BYTES && flows <= FLOWS_BYTES, "{idle} and {flows} bytes");
}

#[test]
fn eight_streams_have_their_shares() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let listener = world.there(|| TcpListener::bind("198.51.100.7:80").unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0]);
                while stream.write_all(&[7; 64 << 10]).is_ok() {}
            });
        }
    });
    let (_program, mut guest) = started(&UsernetConfig::default());
    let handles: Vec<_> = (0..8).map(|_| guest.dial("198.51.100.7:80")).collect();
    for &handle in &handles {
        assert!(guest.answered(handle));
    }
    for &handle in &handles {
        guest.tcp(handle).send_slice(b"x").unwrap();
    }
    let mut got = [0_usize; 8];
    let all: usize = 24 << 20;
    guest.until("all bytes", |guest| {
        for (got, &handle) in got.iter_mut().zip(&handles) {
            let socket = guest.tcp(handle);
            while socket.can_recv() {
                *got += socket.recv(|data| (data.len(), data.len())).unwrap();
            }
        }
        (got.iter().sum::<usize>() >= all).then_some(())
    });
    let least = got.iter().min().unwrap();
    assert!(*least >= all / 8 / 3, "one has less than a third of its share: {got:?}");
}
