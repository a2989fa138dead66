//! Streams of the holder's own that become the host's end of a connection.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use super::super::PREFIX_MOST;
use super::super::packet::SHUTDOWN_SEND;
use super::*;

type Answer = mpsc::Receiver<io::Result<()>>;

fn join(control: &VsockControl, prefix: &[u8], stream: impl Into<OwnedFd>) -> Answer {
    let (sender, receiver) = mpsc::channel();
    control.join(7, prefix.to_vec(), stream.into(), Box::new(move |result| drop(sender.send(result))));
    receiver
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

/// What a client says before the guest has accepted, too, comes behind the prefix; the end of each
/// direction is that of the stream.
fn both_ways(mut client: impl Read + Write, stream: impl Into<OwnedFd>, end: impl Fn()) {
    let mut guest = Guest::new(without_door());
    guest.listening.insert(7);
    client.write_all(b" early").unwrap();
    let answer = join(&guest.control, b"token", stream);
    guest.bench.turn();
    assert!(answer.try_recv().is_err(), "the guest has not accepted yet");
    guest.pump();
    answer.try_recv().unwrap().unwrap();
    let key = guest.open()[0];
    let long = Pattern::bytes(7, 300_000);
    for piece in long.chunks(50_000) {
        client.write_all(piece).unwrap();
        guest.pump();
    }
    while guest.sockets[&key].received.len() < 11 + long.len() {
        guest.bench.is_ready(std::time::Duration::from_secs(10));
        guest.pump();
    }
    assert!(guest.sockets[&key].received.starts_with(b"token early"));
    assert!(guest.sockets[&key].received[11..] == long);
    end();
    while !guest.at_end(key) {
        guest.bench.is_ready(std::time::Duration::from_secs(10));
        guest.pump();
    }
    guest.write_all(key, b"behind the half close");
    guest.shutdown(key, SHUTDOWN_SEND);
    let mut rest = String::new();
    client.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "behind the half close");
    guest.pump();
    assert_eq!(guest.control.connections(), 0);
}

#[test]
fn a_unix_stream_goes_both_ways_behind_its_prefix() {
    let (client, stream) = UnixStream::pair().unwrap();
    let ends = client.try_clone().unwrap();
    both_ways(client, stream, || ends.shutdown(Shutdown::Write).unwrap());
}

#[test]
fn a_tcp_stream_goes_both_ways_behind_its_prefix() {
    let (client, stream) = tcp_pair();
    let ends = client.try_clone().unwrap();
    both_ways(client, stream, || ends.shutdown(Shutdown::Write).unwrap());
}

#[test]
fn a_stream_that_the_guest_does_not_accept_is_closed() {
    let mut guest = Guest::new(without_door());
    let (mut client, stream) = UnixStream::pair().unwrap();
    let answer = join(&guest.control, b"token", stream);
    guest.pump();
    assert_eq!(answer.try_recv().unwrap().unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);

    let (mut client, stream) = UnixStream::pair().unwrap();
    let answer = join(&guest.control, &[0; PREFIX_MOST + 1], stream);
    guest.pump();
    assert_eq!(answer.try_recv().unwrap().unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);

    let (mut client, stream) = UnixStream::pair().unwrap();
    let answer = join(&guest.control, b"", stream);
    drop(guest);
    assert_eq!(answer.recv().unwrap().unwrap_err().kind(), ErrorKind::ConnectionAborted);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_guest_without_room_gets_the_prefix_when_it_has_some() {
    let mut guest = Guest::new(without_door());
    guest.listening.insert(7);
    guest.alloc = 3;
    let (mut client, stream) = UnixStream::pair().unwrap();
    client.write_all(b"bytes").unwrap();
    let answer = join(&guest.control, b"token ", stream);
    guest.pump();
    answer.try_recv().unwrap().unwrap();
    let key = guest.open()[0];
    assert_eq!(guest.sockets[&key].received, b"token bytes");
}

#[test]
fn a_client_that_is_gone_at_once_is_heard_all_the_same() {
    let mut guest = Guest::new(without_door());
    guest.listening.insert(7);
    let (mut client, stream) = UnixStream::pair().unwrap();
    client.write_all(b"last words").unwrap();
    drop(client);
    let answer = join(&guest.control, b"token ", stream);
    guest.pump();
    answer.try_recv().unwrap().unwrap();
    let socket = guest.sockets.values().next().unwrap();
    assert_eq!(socket.received, b"token last words");
    assert!(socket.reset);
    assert_eq!(guest.control.connections(), 0);
}
