//! Runs in a guest: many vsock connections at once, in either direction. All are open before the
//! first byte flows.
//!
//! - `guest-vsock dial PORT COUNT` dials the host, sends a number on each connection, and expects
//!   it back increased by one.
//! - `guest-vsock listen PORT COUNT` accepts from the host, and answers each number increased by
//!   one.
//! - `guest-vsock attack PORT COUNT STOP` dials the host and the guest itself as often as that, and
//!   on until there is a file STOP; says a word wherever it is let in.
//! - `guest-vsock hold PORT COUNT` dials the host as often as that, and holds what it is let in to
//!   without a word.
//!
//! `uring-dial` and `uring-attack` do the same by io_uring.

mod uring;

use std::error::Error;
use std::io::{self, Read, Write};
use std::path::Path;

use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VMADDR_CID_LOCAL, VsockListener, VsockStream};

/// How a connection is made: to a number and a port.
type Connect<'a> = &'a dyn Fn(u32, u32) -> io::Result<VsockStream>;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [mode, port, count, rest @ ..] = &words[..] else {
        return Err("usage: guest-vsock [uring-]dial|listen|[uring-]attack|hold PORT COUNT [STOP]".into());
    };
    let (port, count): (u32, u64) = (port.parse()?, count.parse()?);
    let ring = if mode.starts_with("uring-") { Some(uring::Ring::new()?) } else { None };
    let connect: Connect<'_> = &|cid, port| match &ring {
        Some(ring) => ring.connect(cid, port),
        None => VsockStream::connect_with_cid_port(cid, port),
    };
    match (mode.trim_start_matches("uring-"), rest) {
        ("dial", []) => dial(connect, port, count)?,
        ("listen", []) => listen(port, count)?,
        ("attack", [stop]) => attack(connect, port, count, Path::new(stop)),
        ("hold", []) if ring.is_none() => hold(port, count),
        _ => return Err(format!("unknown mode {mode}, or not its words").into()),
    }
    println!("ok {count}");
    Ok(())
}

fn dial(connect: Connect<'_>, port: u32, count: u64) -> Result<(), Box<dyn Error>> {
    let streams: Result<Vec<_>, _> = (0..count).map(|_| connect(VMADDR_CID_HOST, port)).collect();
    let mut streams = streams?;
    for (stream, number) in streams.iter_mut().zip(0u64..) {
        stream.write_all(&number.to_le_bytes())?;
    }
    for (stream, number) in streams.iter_mut().zip(0u64..) {
        let mut answer = [0; 8];
        stream.read_exact(&mut answer)?;
        if u64::from_le_bytes(answer) != number + 1 {
            return Err(format!("connection {number} was answered {answer:?}").into());
        }
    }
    Ok(())
}

fn listen(port: u32, count: u64) -> Result<(), Box<dyn Error>> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port)?;
    println!("listening");
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.push(listener.accept()?.0);
    }
    for stream in &mut streams {
        let mut number = [0; 8];
        stream.read_exact(&mut number)?;
        stream.write_all(&(u64::from_le_bytes(number) + 1).to_le_bytes())?;
    }
    // The host closes first: that it does proves that the answers arrived.
    for stream in &mut streams {
        stream.read_to_end(&mut Vec::new())?;
    }
    Ok(())
}

/// The guest's own number, as its host configured it.
const OWN: u32 = 3;

fn attack(connect: Connect<'_>, port: u32, count: u64, stop: &Path) {
    println!("port {port}: begun");
    let (mut heard, mut rounds) = (0, 0);
    while rounds < count || !stop.exists() {
        rounds += 1;
        for cid in [VMADDR_CID_HOST, VMADDR_CID_LOCAL, OWN] {
            let Ok(mut stream) = connect(cid, port) else { continue };
            // Sixteen bytes would be a token, the first of them ends the machine on the port for
            // that.
            let said = stream.write_all(b"oooooooooooooooo").and_then(|()| stream.read(&mut [0]));
            heard += u64::from(matches!(said, Ok(1)));
        }
    }
    println!("port {port}: heard {heard} times");
}

/// Threads that dial: a dial waits for an answer of the host, and many wait together.
const TOGETHER: u64 = 50;

fn hold(port: u32, count: u64) -> ! {
    let dial = move || VsockStream::connect_with_cid_port(VMADDR_CID_HOST, port).ok();
    let some = move || (0..count / TOGETHER).filter_map(|_| dial()).collect::<Vec<_>>();
    let threads: Vec<_> = (0..TOGETHER).map(|_| std::thread::spawn(some)).collect();
    let held: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().expect("it only dials")).collect();
    println!("held {}", held.len());
    loop {
        std::thread::park();
    }
}
