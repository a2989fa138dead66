//! Connections to hosts of secrets: whoever has these is given the socket, and stands between.

use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nelly_net::config::{Handover, UsernetConfig};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::datagrams::question;
use crate::guest::Guest;
use crate::world::{World, is_root, swapping};

/// The record of a hello to this server (RFC 8446).
fn hello(name: &str) -> Vec<u8> {
    let len = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    let host = [vec![0], len(name.as_bytes()), name.as_bytes().to_vec()].concat();
    let list = [len(&host), host].concat();
    let extensions = [vec![0, 0], len(&list), list].concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend([len(&extensions), extensions].concat());
    let message = [vec![1, 0], len(&body), body].concat();
    [vec![22, 3, 1], len(&message), message].concat()
}

/// The next connection that is handed over, if one is at once.
fn handed(secrets: &OwnedFd) -> Option<(Handover, UnixStream, TcpStream)> {
    let mut text = [0; 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut came = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [std::io::IoSliceMut::new(&mut text)];
    let len = recvmsg(secrets, &mut parts, &mut came, RecvFlags::DONTWAIT).ok()?.bytes;
    let mut files = Vec::new();
    for message in came.drain() {
        if let RecvAncillaryMessage::ScmRights(all) = message {
            files.extend(all);
        }
    }
    let [guest, host] = <[OwnedFd; 2]>::try_from(files).unwrap();
    let about = serde_json::from_slice(&text[..len]).unwrap();
    let (guest, host) = (UnixStream::from(guest), TcpStream::from(host));
    guest.set_nonblocking(false).unwrap();
    host.set_nonblocking(false).unwrap();
    Some((about, guest, host))
}

/// The next connection that is handed over; it may take a moment.
fn handed_soon(secrets: &OwnedFd) -> (Handover, UnixStream, TcpStream) {
    let mut waits = [PollFd::new(secrets, PollFlags::IN)];
    poll(&mut waits, Some(&Timespec { tv_sec: 60, tv_nsec: 0 })).unwrap();
    handed(secrets).expect("it is handed over")
}

/// A resolver at which every name is 198.51.100.7.
fn resolver() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.53:53").unwrap();
    let serves = socket.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((len, from)) = serves.recv_from(&mut buffer) {
            let mut answer = buffer[..len].to_vec();
            answer[2] |= 0x80;
            answer[7] = 1;
            answer.extend(b"\xc0\x0c\0\x01\0\x01\0\0\x01\x2c\0\x04\xc6\x33\x64\x07");
            serves.send_to(&answer, from).unwrap();
        }
    });
    socket
}

fn said(guest: &mut Guest, to: &str, bytes: &[u8]) -> smoltcp::iface::SocketHandle {
    let handle = guest.dial(to);
    assert!(guest.answered(handle), "{to}");
    guest.tcp(handle).send_slice(bytes).unwrap();
    guest.pass(Duration::from_millis(100));
    handle
}

fn heard(guest: &mut Guest, handle: smoltcp::iface::SocketHandle) -> Vec<u8> {
    guest.until("an answer", |guest| {
        let socket = guest.tcp(handle);
        socket.can_recv().then(|| socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap())
    })
}

#[test]
fn the_socket_of_a_host_of_secrets_is_handed_over_and_its_death_breaks_that_alone() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let _resolver = resolver();
    let listener = world.there(|| TcpListener::bind("198.51.100.7:443").unwrap());
    let config = UsernetConfig {
        secrets: vec!["api.example".parse().unwrap()],
        dns_servers: vec!["127.0.0.53:53".parse().unwrap()],
        ..UsernetConfig::default()
    };
    let (program, mut guest, secrets) = swapping(&config);
    assert!(program.ready.contains("seccomp"), "{}", program.ready);
    let (api, other) = (hello("api.example"), hello("other.example"));

    // Dialled by its address: the host itself hears what the guest says.
    said(&mut guest, "198.51.100.7:443", &api);
    let mut direct = listener.accept().unwrap().0;
    let mut heard_there = vec![0; api.len()];
    direct.read_exact(&mut heard_there).unwrap();
    assert!(heard_there == api && handed(&secrets).is_none());

    // By its name.
    let handle = guest.udp(5000);
    guest.say(handle, &question(1, "api.example"), "10.0.2.3:53");
    guest.hear(handle);
    let at = said(&mut guest, "198.51.100.7:443", &api);
    let mut there = listener.accept().unwrap().0;
    let (about, mut stream, mut host) = handed_soon(&secrets);
    assert_eq!(
        (about.name.as_str(), about.port, about.to.as_str()),
        ("api.example", 443, "198.51.100.7:443")
    );
    assert!(about.from.starts_with("10.0.2.15:"));
    let mut first = vec![0; api.len()];
    stream.read_exact(&mut first).unwrap();
    assert!(first == api, "what it is told is not what the guest said");
    host.write_all(b"of whoever has the secret").unwrap();
    let mut heard_there = [0; 25];
    there.read_exact(&mut heard_there).unwrap();
    assert_eq!(&heard_there, b"of whoever has the secret");
    stream.write_all(b"for the guest").unwrap();
    assert_eq!(heard(&mut guest, at), b"for the guest");
    // What the host says now is for whoever has its socket.
    there.write_all(b"answer").unwrap();
    host.read_exact(&mut [0; 6]).unwrap();
    // The guest's end arrives.
    guest.tcp(at).close();
    guest.pass(Duration::from_millis(100));
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    drop((stream, host));

    // Another name at the same address.
    said(&mut guest, "198.51.100.7:443", &other);
    let mut there = listener.accept().unwrap().0;
    let mut heard_there = vec![0; other.len()];
    there.read_exact(&mut heard_there).unwrap();
    assert!(heard_there == other && handed(&secrets).is_none());

    // Nobody is there any more: such a connection ends, and its host hears nothing.
    drop(secrets);
    let at = said(&mut guest, "198.51.100.7:443", &api);
    guest.until("a reset", |guest| (!guest.tcp(at).is_open()).then_some(()));
    let mut there_all = Vec::new();
    let _reset = listener.accept().unwrap().0.read_to_end(&mut there_all);
    assert_eq!(there_all, b"");
    let at = said(&mut guest, "198.51.100.7:443", &other);
    let mut there = listener.accept().unwrap().0;
    there.read_exact(&mut vec![0; other.len()]).unwrap();
    there.write_all(b"still here").unwrap();
    assert_eq!(heard(&mut guest, at), b"still here");
}
