//! A monitor without a machine: it takes the place of `nelly-monitor` under a client that is
//! tested, and plays the guest's agent, so that what needs no Linux needs no guest either.
//!
//! The agent is honest, unless a file `lie` lies beside this program (or the link by which it was
//! started): see [`lie::Lie::parse`]. A process says `hello` and ends with 0; one that has the word
//! `stay` among its arguments says it too, and stays until a signal comes.

mod agent;
mod lie;
mod message;

use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use self::agent::Guest;
use self::lie::Lie;

/// Ports of the guest and of the host, as `nelly-protocol` has them.
const AGENT_PORT: u32 = 500_000;
const READY_PORT: u32 = 500_001;
const STREAM_PORT: u32 = 500_003;
const READY_BYTE: u8 = b'!';

/// Times that a guest dials that does not stop.
const DIALS: usize = 2000;

/// What comes on the control connection: a request, and its descriptors. `None` at its end.
fn receive(control: &UnixStream) -> io::Result<Option<(String, Vec<OwnedFd>)>> {
    let mut head = [0; 4];
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut room);
    let came =
        recvmsg(control, &mut [IoSliceMut::new(&mut head[..1])], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if came.bytes == 0 {
        return Ok(None);
    }
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let mut control = control;
    control.read_exact(&mut head[1..])?;
    let mut text = vec![0; usize::try_from(u32::from_le_bytes(head)).map_err(io::Error::other)?];
    control.read_exact(&mut text)?;
    Ok(Some((String::from_utf8(text).map_err(io::Error::other)?, descriptors)))
}

/// Sends bytes with a descriptor, or with none.
fn send(socket: impl AsFd, bytes: &[u8], descriptor: Option<OwnedFd>) -> io::Result<()> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut room);
    let rights: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
    if !rights.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&rights));
    }
    sendmsg(socket, &[io::IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// A frame of the control protocol.
fn frame(json: &str) -> Vec<u8> {
    let length = u32::try_from(json.len()).expect("a short answer");
    [&length.to_le_bytes()[..], json.as_bytes()].concat()
}

/// Answers a request. Whoever asked may be gone.
fn answer(reply: &OwnedFd, json: &str, stream: Option<OwnedFd>) {
    let _gone = send(reply, &frame(json), stream);
}

/// The word behind `"op":` and the number behind `"port":`, with which every request for a port
/// begins.
fn asked(request: &str) -> (&str, u32) {
    let after = |word: &str| request.split_once(word).map_or("", |(_, rest)| rest);
    let op = after("\"op\":\"").split('"').next().unwrap_or_default();
    let digits = after("\"port\":").split(|byte: char| !byte.is_ascii_digit()).next().unwrap_or_default();
    (op, digits.parse().unwrap_or(0))
}

/// The guest dials a port of the host.
fn dial(channel: &OwnedFd, port: u32) -> io::Result<UnixStream> {
    let (near, far) = UnixStream::pair()?;
    let ports = [1024_u32.to_le_bytes(), port.to_le_bytes()].concat();
    send(channel, &ports, Some(far.into()))?;
    Ok(near)
}

/// The agent says that it is ready, or lies about that.
fn ready(channel: &OwnedFd, lie: Option<Lie>) -> io::Result<()> {
    match lie {
        None => dial(channel, READY_PORT)?.write_all(&[READY_BYTE]),
        Some(Lie::Cut(_)) => dial(channel, READY_PORT).map(drop),
        Some(Lie::Flood) => {
            for _ in 0..DIALS {
                dial(channel, READY_PORT)?.write_all(&[READY_BYTE])?;
            }
            Ok(())
        }
        // It never comes.
        Some(_) => Ok(()),
    }
}

/// Serves the holder to its end.
fn serve(control: &UnixStream, lie: Option<(String, Lie)>) -> io::Result<()> {
    let of_ready = lie.as_ref().filter(|(at, _)| at == "Ready").map(|(_, lie)| *lie);
    let refuses = lie.as_ref().is_some_and(|(at, _)| at == "Connect");
    let mut guest: Option<Arc<Guest>> = None;
    let mut kept = Vec::new();
    let mut lie = Some(lie);
    while let Some((request, descriptors)) = receive(control)? {
        let mut descriptors = descriptors.into_iter();
        let Some(reply) = descriptors.next() else { continue };
        let (op, port) = asked(&request);
        match (op, port) {
            ("start", _) => {
                let done = descriptors.next().map(UnixStream::from);
                guest = lie.take().zip(done).map(|(lie, done)| Arc::new(Guest::new(lie, done)));
                answer(&reply, "\"done\"", None);
            }
            ("vsock_listen", _) => {
                answer(&reply, "\"done\"", None);
                let Some(channel) = descriptors.next() else { continue };
                if port != READY_PORT {
                    kept.push(channel);
                    continue;
                }
                // Who listens no more has heard enough. The channel's end is the machine's.
                std::thread::spawn(move || {
                    let _heard = ready(&channel, of_ready);
                    loop {
                        std::thread::park();
                    }
                });
            }
            ("vsock_connect", AGENT_PORT | STREAM_PORT) if !refuses => {
                let (near, far) = UnixStream::pair()?;
                if let Some(guest) = guest.clone() {
                    std::thread::spawn(move || match port {
                        AGENT_PORT => guest.agent(near),
                        _ => guest.stream(near),
                    });
                }
                answer(&reply, "\"done\"", Some(far.into()));
            }
            ("stream", _) => {
                let (near, far) = UnixStream::pair()?;
                kept.push(near.into());
                answer(&reply, "\"done\"", Some(far.into()));
            }
            ("events", _) => {
                kept.extend(descriptors);
                answer(&reply, "\"done\"", None);
            }
            ("pause" | "resume", _) => answer(&reply, "\"done\"", None),
            ("guest_counter", _) => answer(&reply, "{\"guest_counter\":null}", None),
            ("stop", _) => {
                answer(&reply, "\"done\"", None);
                if let Some(guest) = &guest {
                    guest.end("stopped");
                }
            }
            _ => answer(&reply, &format!("{{\"failed\":[\"the played guest has no {op}\"]}}"), None),
        }
    }
    Ok(())
}

fn main() -> io::Result<()> {
    let name = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let lie = match std::fs::read_to_string(name.with_file_name("lie")) {
        Ok(text) => Some(Lie::parse(&text).unwrap_or_else(|| panic!("{text:?} is no lie"))),
        Err(_) => None,
    };
    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    serve(&control, lie)
}
