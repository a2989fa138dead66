//! Connections: everything arrives, once, in order, and ends as its ends say.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use nelly_net::config::UsernetConfig;
use rustix::net::SendFlags;
use smoltcp::socket::tcp;

use crate::world::{World, is_root, started};

fn bytes(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    (0..len).map(|_| next()).collect()
}

/// Serves one caller after the other with `serve`, in a thread.
fn serve(world: &World, at: &'static str, serve: impl Fn(TcpStream) + Send + 'static) {
    let listener = world.there(move || TcpListener::bind(at).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            serve(stream.unwrap());
        }
    });
}

fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all
}

#[test]
fn whichever_side_closes_first_the_other_is_heard_to_its_end() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let (up, down) = (bytes(3 << 20, 1), bytes(4 << 20, 2));
    let (expected, answer) = (up.clone(), down.clone());
    // Answers when the guest has ended.
    let guest_first = move |mut stream: TcpStream| {
        assert_eq!(read_all(&mut stream), expected);
        stream.write_all(&answer).unwrap();
    };
    let (expected, answer) = (up.clone(), down.clone());
    // Ends before the guest has said anything.
    let host_first = move |mut stream: TcpStream| {
        stream.write_all(&answer).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&mut stream), expected);
    };
    for at in ["198.51.100.7", "[2001:db8:2::7]"] {
        let leak = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
        serve(&world, leak(format!("{at}:1001")), guest_first.clone());
        serve(&world, leak(format!("{at}:1002")), host_first.clone());
    }
    let (program, mut guest) = started(&UsernetConfig::default());
    let files = program.files();
    for to in ["198.51.100.7", "[2001:db8:2::7]"] {
        let handle = guest.dial(&format!("{to}:1001"));
        assert!(guest.exchange(handle, &up, true) == down, "{to} guest first");
        guest.finished(handle);
        let handle = guest.dial(&format!("{to}:1002"));
        // The peer's end comes first; what is sent behind it arrives too.
        let got = guest.until("the peer's end", {
            let mut got = Vec::new();
            move |guest| {
                let socket = guest.tcp(handle);
                while socket.can_recv() {
                    socket.recv(|data| (data.len(), got.extend_from_slice(data))).unwrap();
                }
                (socket.state() == tcp::State::CloseWait).then(|| std::mem::take(&mut got))
            }
        });
        assert!(got == down, "{to} host first");
        assert!(guest.exchange(handle, &up, true).is_empty());
        guest.finished(handle);
    }
    guest.pass(Duration::from_millis(200));
    assert_eq!(program.files(), files, "sockets are left");
    drop(guest);
    program.ends_well();
}

#[test]
fn a_call_is_answered_only_when_the_peer_has_answered() {
    if !is_root() {
        return;
    }
    let world = World::new();
    serve(&world, "198.51.100.7:1001", drop);
    let (program, mut guest) = started(&UsernetConfig::default());
    // Nobody listens.
    for to in ["198.51.100.7:9", "[2001:db8:2::7]:9"] {
        let handle = guest.dial(to);
        assert!(!guest.answered(handle), "{to}");
    }
    // Nobody is there: black holes on the way do not hold up others.
    let before = program.files();
    let silent: Vec<_> = (0..200).map(|i| guest.dial(&format!("192.0.2.{}:80", 10 + i))).collect();
    let limit = std::time::Instant::now() + Duration::from_secs(20);
    while program.files() < before + 200 {
        assert!(std::time::Instant::now() < limit, "{} calls are under way", program.files() - before);
        guest.pass(Duration::from_millis(20));
    }
    let begun = std::time::Instant::now();
    let handle = guest.dial("198.51.100.7:1001");
    assert!(guest.answered(handle));
    // Whoever waits for a black hole waits for its connect, for more than a minute.
    assert!(begun.elapsed() < Duration::from_secs(20));
    for handle in silent {
        assert_eq!(guest.tcp(handle).state(), tcp::State::SynSent, "answered for nobody");
    }
}

#[test]
fn a_slow_reader_loses_nothing_and_holds_up_nobody_and_costs_nothing() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let down = bytes(8 << 20, 3);
    let answer = down.clone();
    serve(&world, "198.51.100.7:1001", move |mut stream| {
        let answer = answer.clone();
        std::thread::spawn(move || stream.write_all(&answer).unwrap());
    });
    let up = bytes(24 << 20, 4);
    let (tell, told) = std::sync::mpsc::channel();
    serve(&world, "198.51.100.7:1002", move |stream| tell.send(stream).unwrap());
    let (program, mut guest) = started(&UsernetConfig::default());
    // Two stall: one whose guest does not read, one whose peer does not.
    let unread = guest.dial("198.51.100.7:1001");
    let unheard = guest.dial("198.51.100.7:1002");
    assert!(guest.answered(unread) && guest.answered(unheard));
    let mut sent = 0;
    let mut still = std::time::Instant::now();
    while still.elapsed() < Duration::from_millis(400) {
        guest.pass(Duration::from_millis(5));
        let socket = guest.tcp(unheard);
        let more = if socket.can_send() { socket.send_slice(&up[sent..]).unwrap() } else { 0 };
        if more > 0 {
            (sent, still) = (sent + more, std::time::Instant::now());
        }
    }
    assert!(sent < up.len(), "nothing held the guest up");
    let ticks = program.ticks();
    guest.pass(Duration::from_secs(1));
    assert!(program.ticks() - ticks <= 2, "a stalled flow costs processor time");
    // A third goes on meanwhile.
    let third = guest.dial("198.51.100.7:1001");
    assert!(guest.exchange(third, &[], false) == down);
    // And both end as they should.
    assert!(guest.exchange(unread, &[], false) == down);
    let mut peer = told.recv().unwrap();
    let reader = std::thread::spawn(move || read_all(&mut peer));
    assert!(guest.exchange(unheard, &up[sent..], true).is_empty());
    assert!(reader.join().unwrap() == up);
}

#[test]
fn a_reset_of_either_side_reaches_the_other() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let (tell, told) = std::sync::mpsc::channel();
    serve(&world, "198.51.100.7:1001", move |stream| tell.send(stream).unwrap());
    let (program, mut guest) = started(&UsernetConfig::default());
    let files = program.files();
    let handle = guest.dial("198.51.100.7:1001");
    assert!(guest.answered(handle));
    let mut peer = told.recv().unwrap();
    guest.tcp(handle).abort();
    guest.pass(Duration::from_millis(50));
    let error = peer.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let handle = guest.dial("198.51.100.7:1001");
    assert!(guest.answered(handle));
    let peer = told.recv().unwrap();
    rustix::net::sockopt::set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
    drop(peer);
    guest.until("a reset", |guest| (guest.tcp(handle).state() == tcp::State::Closed).then_some(()));
    guest.pass(Duration::from_millis(50));
    assert_eq!(program.files(), files, "sockets are left");
}

#[test]
fn urgent_data_is_in_its_place_in_the_stream() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let send = |stream: &TcpStream, bytes: &[u8], flags| {
        assert_eq!(rustix::net::send(stream, bytes, flags).unwrap(), bytes.len());
    };
    let (tell, told) = std::sync::mpsc::channel();
    serve(&world, "198.51.100.7:1001", move |stream| tell.send(stream).unwrap());
    let (_program, mut guest) = started(&UsernetConfig::default());
    let handle = guest.dial("198.51.100.7:1001");
    assert!(guest.answered(handle));
    let stream = told.recv().unwrap();
    let mut got = Vec::new();
    for round in 0..20 {
        send(&stream, b"before", SendFlags::empty());
        if round % 2 == 0 {
            guest.pass(Duration::from_millis(2));
        }
        send(&stream, b"!", SendFlags::OOB);
        send(&stream, b"behind", SendFlags::empty());
        // Nothing else comes before all of it is there.
        guest.until("what is behind urgent data", |guest| {
            let socket = guest.tcp(handle);
            while socket.can_recv() {
                socket.recv(|data| (data.len(), got.extend_from_slice(data))).unwrap();
            }
            (got.len() == 13 * (round + 1)).then_some(())
        });
    }
    assert!(got == b"before!behind".repeat(20));
}
