//! Runs in a guest: many vsock connections at once, in either direction. All are open before the first byte flows.
//!
//!     guest-vsock dial PORT COUNT     dials the host, sends a number on each, expects it back increased by one
//!     guest-vsock listen PORT COUNT   accepts from the host, answers each number increased by one
//!     guest-vsock attack PORT COUNT   dials the host and the guest itself as often as that, says a word wherever it is let in
//!     guest-vsock hold PORT COUNT     dials the host as often as that, and holds what it is let in to without a word

use std::error::Error;
use std::io::{Read, Write};

use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VMADDR_CID_LOCAL, VsockListener, VsockStream};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().collect();
    let [_, mode, port, count] = &words[..] else {
        return Err("usage: guest-vsock dial|listen|attack|hold PORT COUNT".into());
    };
    let (port, count): (u32, u64) = (port.parse()?, count.parse()?);
    match mode.as_str() {
        "dial" => dial(port, count)?,
        "listen" => listen(port, count)?,
        "attack" => attack(port, count),
        "hold" => hold(port, count),
        other => return Err(format!("unknown mode {other}").into()),
    }
    println!("ok {count}");
    Ok(())
}

fn dial(port: u32, count: u64) -> Result<(), Box<dyn Error>> {
    let streams: Result<Vec<_>, _> =
        (0..count).map(|_| VsockStream::connect_with_cid_port(VMADDR_CID_HOST, port)).collect();
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

fn attack(port: u32, count: u64) {
    let mut heard = 0;
    for _ in 0..count {
        for cid in [VMADDR_CID_HOST, VMADDR_CID_LOCAL, OWN] {
            let Ok(mut stream) = VsockStream::connect_with_cid_port(cid, port) else { continue };
            // Sixteen bytes would be a token, the first of them ends the machine on the port for that.
            let said = stream.write_all(b"oooooooooooooooo").and_then(|()| stream.read(&mut [0]));
            heard += u64::from(matches!(said, Ok(1)));
        }
    }
    println!("port {port}: heard {heard} times");
}

fn hold(port: u32, count: u64) -> ! {
    let dial = |_| VsockStream::connect_with_cid_port(VMADDR_CID_HOST, port).ok();
    let held: Vec<_> = (0..count).filter_map(dial).collect();
    println!("held {}", held.len());
    loop {
        std::thread::park();
    }
}
