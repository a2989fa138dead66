//! A process out of descriptors. The limit is the process's, so each test runs in a child of its
//! own.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::super::receive_accepted;
use super::*;

/// Tells a child that it is one.
const CHILD: &str = "NELLY_TEST_CHILD";

/// Runs the test `name` of this file again, alone in a child. Says whether this process is that
/// child.
fn in_child(name: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([&format!("virtio::vsock::tests::limits::{name}"), "--exact", "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

/// Leaves `spare` descriptors to this process.
fn leave(spare: u64) -> Rlimit {
    let before = getrlimit(Resource::Nofile);
    let used = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64 - 1;
    setrlimit(Resource::Nofile, Rlimit { current: Some(used + spare), ..before }).unwrap();
    before
}

#[test]
fn out_of_descriptors() {
    if !in_child("out_of_descriptors") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (device, path) = with_door(directory.path());
    let mut guest = Guest::new(device);
    guest.listening.insert(5);
    let (ours, theirs) = crate::sys::stream_pair().unwrap();
    guest.control.listen(6, theirs);
    guest.pump();
    let mut client = UnixStream::connect(&path).unwrap();
    let held: Vec<_> = (0..4).map(|_| joined(&mut guest, 5)).collect();
    let before = leave(0);

    client.write_all(b"CONNECT 5\n").unwrap();
    guest.pump();
    // It waits at the door without keeping the loop busy (the clock ticks once a second).
    assert!(!guest.bench.is_ready(Duration::from_millis(300)));
    let answer = connect(&guest.control, 5);
    guest.pump();
    assert!(answer.try_recv().unwrap().is_err());
    let key = guest.dial(6);
    assert!(guest.sockets[&key].reset);
    // Connections that are there go on.
    let (mut stream, key) = (&held[0].0, held[0].1);
    stream.write_all(b"still here").unwrap();
    guest.pump();
    assert_eq!(guest.sockets[&key].received, b"still here");

    setrlimit(Resource::Nofile, before).unwrap();
    for _ in 0..30 {
        guest.bench.wait(Duration::from_millis(100));
        guest.pump();
    }
    let mut line = [0; 3];
    client.set_nonblocking(true).unwrap();
    client.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"OK ");
    let key = guest.dial(6);
    assert!(guest.sockets[&key].accepted);
    assert!(receive_accepted(ours.as_fd()).unwrap().is_some());
    assert_ne!(client.read(&mut [0; 64]).map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
}

#[test]
fn silent_connections_of_the_guest_keep_nobody_out() {
    if !in_child("silent_connections_of_the_guest_keep_nobody_out") {
        return;
    }
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(400), ..before }).unwrap();
    let mut guest = Guest::new(without_door());
    setrlimit(Resource::Nofile, before).unwrap();
    let (ours, theirs) = crate::sys::stream_pair().unwrap();
    guest.control.listen(6, theirs);
    let take = || receive_accepted(ours.as_fd()).unwrap().unwrap().0;

    // Every second descriptor that the process may have is the guest's to use up.
    let talker = guest.dial(6);
    let mut heard = vec![take()];
    for _ in 1..200 {
        let key = guest.dial(6);
        assert!(guest.sockets[&key].accepted);
        heard.push(take());
    }
    let key = guest.dial(6);
    assert!(guest.sockets[&key].reset && !guest.sockets[&key].accepted);
    // What the host dials has a place all the same.
    let (mut stream, key) = joined(&mut guest, 5);
    stream.write_all(b"still here").unwrap();
    guest.pump();
    assert_eq!(guest.sockets[&key].received, b"still here");

    // Those on which nothing is said go, so that the next one is let in; the one that talks stays.
    let start = std::time::Instant::now();
    let late = loop {
        guest.write_all(talker, b".");
        guest.bench.wait(Duration::from_millis(100));
        guest.pump();
        let key = guest.dial(6);
        if guest.sockets[&key].accepted {
            break key;
        }
        assert!(start.elapsed() < Duration::from_secs(120), "silent connections stay");
    };
    let open = guest.open();
    assert!(open.contains(&talker) && open.contains(&late) && open.contains(&key));
    assert_eq!(guest.control.connections(), open.len());
    // With room for everybody the clock stands still, and silence is nobody's business.
    drop(heard);
    guest.pump();
    let quiet = guest.dial(6);
    while guest.bench.is_ready(Duration::from_millis(1500)) {
        guest.pump();
        assert!(start.elapsed() < Duration::from_secs(120), "the clock goes on");
    }
    assert!(guest.open().contains(&quiet));
}

#[test]
fn joined_streams_leave_places_for_others() {
    if !in_child("joined_streams_leave_places_for_others") {
        return;
    }
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(200), ..before }).unwrap();
    let mut guest = Guest::new(without_door());
    guest.listening.insert(5);
    let join = |guest: &mut Guest| {
        let (near, far) = UnixStream::pair().unwrap();
        let (sender, receiver) = mpsc::channel();
        guest.control.join(5, Vec::new(), far.into(), Box::new(move |result| drop(sender.send(result))));
        guest.pump();
        receiver.try_recv().unwrap().map(|()| near).map_err(|error| (error.kind(), error.to_string()))
    };
    let mut held: Vec<_> = (0..50).map(|_| join(&mut guest).unwrap()).collect();
    let (kind, text) = join(&mut guest).unwrap_err();
    assert_eq!(kind, ErrorKind::QuotaExceeded);
    assert_eq!(text, "the machine has 50 connections of relays, the most that it may have");
    let _another = joined(&mut guest, 5);
    drop(held.pop());
    while guest.control.connections() > 50 {
        guest.bench.is_ready(Duration::from_secs(10));
        guest.pump();
    }
    join(&mut guest).unwrap();
}
