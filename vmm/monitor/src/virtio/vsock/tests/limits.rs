//! A process out of descriptors. The limit is the process's, so each test runs in a child of its own.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::super::receive_accepted;
use super::*;

/// Tells a child that it is one.
const CHILD: &str = "NELLY_TEST_CHILD";

/// Runs the test `name` of this file again, alone in a child. Says whether this process is that child.
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
