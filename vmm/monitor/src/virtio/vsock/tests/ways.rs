//! Every way in and out.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::super::packet::{Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::super::{PowerWord, receive_accepted};
use super::*;
use crate::virtio::device::Device;

fn nonblocking(stream: &UnixStream) -> &UnixStream {
    stream.set_nonblocking(true).unwrap();
    stream
}

#[test]
fn the_configuration_space_holds_the_context_id() {
    use crate::virtio::device::Device;
    let config =
        VsockConfig { cid: crate::config::ContextId::new(0x0102_0304).unwrap(), ..Default::default() };
    let (device, _control) = Vsock::new(&config, None).unwrap();
    let read = |offset, len| {
        let mut data = vec![0; len];
        device.read_config(offset, &mut data);
        data
    };
    assert_eq!(read(0, 8), [4, 3, 2, 1, 0, 0, 0, 0]);
    assert_eq!(read(1, 4), [3, 2, 1, 0]);
    assert_eq!(read(6, 8), [0; 8]);
    assert_eq!(read(u64::MAX, 4), [0; 4]);
}

#[test]
fn connect_is_answered_only_after_the_guests_response() {
    let directory = tempfile::tempdir().unwrap();
    let (device, path) = with_door(directory.path());
    let mut guest = Guest::new(device);
    guest.listening.insert(52);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"CONNECT 5").unwrap();
    guest.pump();
    assert!(guest.open().is_empty());
    // The rest of the line and bytes behind it that are the guest's.
    client.write_all(b"2\nCONNECT 53\n").unwrap();
    // The request leaves; the guest has not answered yet.
    guest.bench.turn();
    let mut byte = [0; 1];
    assert_eq!(nonblocking(&client).read(&mut byte).unwrap_err().kind(), ErrorKind::WouldBlock);
    guest.pump();
    let key = guest.open()[0];
    let mut line = vec![0; format!("OK {}\n", key.host).len()];
    (&client).read_exact(&mut line).unwrap();
    assert_eq!(String::from_utf8(line).unwrap(), format!("OK {}\n", key.host));
    assert_eq!(guest.sockets[&key].received, b"CONNECT 53\n");
    guest.write_all(key, b"answer");
    let mut answer = [0; 6];
    (&client).read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    drop(client);
    guest.pump();
    assert!(guest.sockets[&key].reset);
    assert_eq!(guest.control.connections(), 0);
}

#[test]
fn a_refused_client_is_closed_and_so_is_one_that_says_nonsense() {
    let directory = tempfile::tempdir().unwrap();
    let (device, path) = with_door(directory.path());
    let mut guest = Guest::new(device);
    for line in [&b"CONNECT 52\n"[..], b"HELLO\n", b"CONNECT 99999999999999999999999999999999999"] {
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(line).unwrap();
        guest.pump();
        let mut rest = Vec::new();
        // Closed with bytes unread is a reset, which is as good.
        let _ = client.read_to_end(&mut rest);
        assert!(rest.is_empty());
    }
    assert!(guest.sockets.is_empty());
}

#[test]
fn a_client_that_writes_and_closes_at_once_is_heard() {
    let directory = tempfile::tempdir().unwrap();
    let (device, path) = with_door(directory.path());
    let mut guest = Guest::new(device);
    guest.listening.insert(52);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"CONNECT 52\nfire and forget").unwrap();
    drop(client);
    guest.pump();
    let socket = guest.sockets.values().next().unwrap();
    assert_eq!(socket.received, b"fire and forget");
    assert!(socket.reset);
}

#[test]
fn silent_clients_are_bounded_in_number_and_time() {
    let directory = tempfile::tempdir().unwrap();
    let (device, path) = with_door(directory.path());
    let mut guest = Guest::new(device);
    let silent: Vec<_> = (0..300)
        .map(|_| {
            let client = UnixStream::connect(&path).unwrap();
            guest.pump();
            client
        })
        .collect();
    let closed = |stream: &UnixStream| !matches!(nonblocking(stream).peek_byte(), Err(ErrorKind::WouldBlock));
    assert!(!silent.iter().any(closed));
    guest.listening.insert(52);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"CONNECT 52\n").unwrap();
    // The client gets its turn when enough of them went; each of the others goes when its own time
    // is over.
    let start = Instant::now();
    while guest.open().is_empty() || !silent.iter().take(256).all(closed) {
        let late = start.elapsed() > Duration::from_secs(30);
        assert!(!late, "served: {}, silent clients stay", !guest.open().is_empty());
        guest.bench.wait(Duration::from_millis(200));
        guest.pump();
    }
}

trait PeekByte {
    fn peek_byte(&self) -> Result<usize, ErrorKind>;
}

impl PeekByte for UnixStream {
    fn peek_byte(&self) -> Result<usize, ErrorKind> {
        let (stream, mut byte) = (self, [0; 1]);
        {
            let mut stream = stream;
            stream.read(&mut byte)
        }
        .map_err(|error| error.kind())
    }
}

#[test]
fn what_the_guest_dials_is_found_beside_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let (device, path) = with_door(directory.path());
    let listener = UnixListener::bind(format!("{}_1024", path.display())).unwrap();
    let mut guest = Guest::new(device);
    let key = guest.dial(1024);
    assert!(guest.sockets[&key].accepted);
    guest.write_all(key, b"from the guest");
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(b"from the host").unwrap();
    guest.pump();
    assert_eq!(guest.sockets[&key].received, b"from the host");
    guest.shutdown(key, SHUTDOWN_BOTH);
    assert!(guest.sockets[&key].reset, "a full SHUTDOWN is answered by RST");
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "from the guest");
    let nobody = guest.dial(1025);
    assert!(guest.sockets[&nobody].reset && !guest.sockets[&nobody].accepted);
    drop(listener);
    let gone = guest.dial(1024);
    assert!(guest.sockets[&gone].reset);
}

#[test]
fn what_the_guest_dials_is_handed_over_a_channel() {
    let mut guest = Guest::new(without_door());
    let (ours, theirs) = crate::sys::stream_pair().unwrap();
    guest.control.listen(7, theirs);
    // No pump in between: the request is still in the inbox when the guest's packet comes.
    let keys = [guest.dial(7), guest.dial(7)];
    for (index, key) in keys.iter().enumerate() {
        let (mut stream, port, host) = receive_accepted(ours.as_fd()).unwrap().unwrap();
        assert_eq!((port, host), (key.guest, 7));
        guest.write_all(*key, &[b'0' + u8::try_from(index).unwrap()]);
        let mut byte = [0; 1];
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(usize::from(byte[0] - b'0'), index);
        drop(stream);
        guest.pump();
        assert!(guest.sockets[key].reset);
    }
    guest.control.unlisten(7);
    let key = guest.dial(7);
    assert!(guest.sockets[&key].reset);
    assert!(receive_accepted(ours.as_fd()).unwrap().is_none(), "the channel was closed");
    // A channel whose other end is gone refuses, and is forgotten.
    let (ours, theirs) = crate::sys::stream_pair().unwrap();
    guest.control.listen(8, theirs);
    drop(ours);
    let key = guest.dial(8);
    assert!(guest.sockets[&key].reset && guest.control.connections() == 0);
}

#[test]
fn a_listener_that_is_dropped_leaves_nothing() {
    let mut guest = Guest::new(without_door());
    let ends = |port: u32, control: &VsockControl| {
        let (ours, theirs) = crate::sys::stream_pair().unwrap();
        // What tells whether the device still holds its end, while it is the only one to.
        control.listen(port, theirs);
        ours
    };
    let held = |end: &std::os::fd::OwnedFd| {
        crate::sys::set_nonblocking(end).unwrap();
        !matches!(receive_accepted(end.as_fd()), Ok(None))
    };
    let kept: Vec<_> = (0..3).map(|port| ends(port, &guest.control)).collect();
    let second = kept[2].try_clone().unwrap();
    guest.pump();
    let mut kept = kept.into_iter();
    let (first, written, _third) = (kept.next().unwrap(), kept.next().unwrap(), kept.next().unwrap());
    // Half a close is what the device sees of a whole one; here it can be seen what it does.
    rustix::net::shutdown(&first, rustix::net::Shutdown::Write).unwrap();
    std::fs::File::from(written.try_clone().unwrap()).write_all(b"nonsense").unwrap();
    guest.pump();
    assert!(!held(&first), "the channel was closed");
    assert!(held(&written) && held(&second));
    let [gone, there] = [guest.dial(0), guest.dial(1)];
    assert!(guest.sockets[&gone].reset && guest.sockets[&there].accepted);
    // A port that is listened on again has the new channel, before and after a pause.
    let again = ends(1, &guest.control);
    guest.pump();
    let key = guest.dial(1);
    assert!(guest.sockets[&key].accepted);
    assert_eq!(receive_accepted(again.as_fd()).unwrap().unwrap().1, key.guest);
}

#[test]
fn a_channel_that_nobody_empties_refuses_instead_of_waiting() {
    let mut guest = Guest::new(without_door());
    let (_ours, theirs) = crate::sys::stream_pair().unwrap();
    guest.control.listen(7, theirs);
    let refused = (0..2000).find(|_| {
        let key = guest.dial(7);
        guest.sockets[&key].reset
    });
    assert!(refused.is_some_and(|count| count > 0));
}

#[test]
fn the_handle_connects_before_the_driver_is_up() {
    let (device, control) = without_door();
    let answer = connect(&control, 52);
    let refused = connect(&control, 53);
    assert!(answer.try_recv().is_err());
    let mut guest = Guest::new((device, control));
    // Both requests wait in the receive queue by now, or were refused: nobody listened yet.
    assert_eq!(answer.try_recv().unwrap().unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(refused.try_recv().unwrap().unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let (mut stream, key) = joined(&mut guest, 52);
    stream.write_all(b"hello").unwrap();
    guest.pump();
    guest.write_all(key, b"world");
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!((&bytes, guest.sockets[&key].received.as_slice()), (b"world", &b"hello"[..]));
}

#[test]
fn a_guest_that_never_answers_is_given_up() {
    let mut guest = Guest::new(without_door());
    guest.refill = false;
    guest.pump();
    let (sender, receiver) = mpsc::channel();
    guest.control.connect_within(
        52,
        Duration::from_millis(1),
        Box::new(move |result| sender.send(result).unwrap()),
    );
    let start = Instant::now();
    let error = loop {
        guest.bench.wait(Duration::from_secs(2));
        if let Ok(result) = receiver.try_recv() {
            break result.unwrap_err();
        }
        assert!(start.elapsed() < Duration::from_secs(60));
    };
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert_eq!(guest.control.connections(), 0);
    // The answer comes after all, to a connection that is no more.
    guest.log = Some(Vec::new());
    guest.listening.insert(52);
    guest.refill = true;
    guest.pump();
    let log = guest.log.take().unwrap();
    assert_eq!(log[0].0.op, Op::Request.raw());
    assert!(log[1..].iter().any(|(header, _)| header.op == Op::Rst.raw()));
    assert!(guest.open().is_empty());
    // And the clock stands still again.
    assert!(!guest.bench.is_ready(Duration::from_millis(1500)));
}

#[test]
fn a_machine_that_ends_answers_everybody() {
    let (device, control) = without_door();
    let early = connect(&control, 1);
    drop(device);
    assert_eq!(early.try_recv().unwrap().unwrap_err().kind(), ErrorKind::ConnectionAborted);
    let late = connect(&control, 1);
    assert_eq!(late.try_recv().unwrap().unwrap_err().kind(), ErrorKind::ConnectionAborted);
    let mut guest = Guest::new(without_door());
    guest.refill = false;
    let (stream, _) = {
        guest.refill = true;
        joined(&mut guest, 5)
    };
    let ringing = connect(&guest.control, 6);
    guest.bench.turn();
    drop(guest);
    assert_eq!(ringing.try_recv().unwrap().unwrap_err().kind(), ErrorKind::ConnectionAborted);
    assert_eq!((&stream).read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn the_power_port_is_the_monitors() {
    for (byte, expected) in [
        (b'o', Some(PowerWord::Off)),
        (b'r', Some(PowerWord::Reboot)),
        (b'p', Some(PowerWord::Panic)),
        (b'x', None),
    ] {
        let (sender, words) = mpsc::channel();
        let config = VsockConfig { power_port: Some(500_002), ..VsockConfig::default() };
        let sink = Box::new(move |word| sender.send(word).unwrap());
        let mut guest = Guest::new(Vsock::new(&config, Some(sink)).unwrap());
        let key = guest.dial(500_002);
        assert!(guest.sockets[&key].accepted);
        guest.write_all(key, &[byte]);
        assert_eq!(words.try_recv().ok(), expected);
        assert_eq!(guest.sockets[&key].reset, expected.is_none());
    }
}

#[test]
fn the_power_port_takes_one_connection_each_time_the_driver_starts() {
    let (sender, words) = mpsc::channel();
    let config = VsockConfig { power_port: Some(500_002), ..VsockConfig::default() };
    let sink = Box::new(move |word| sender.send(word).unwrap());
    let mut guest = Guest::new(Vsock::new(&config, Some(sink)).unwrap());
    let agents = guest.dial(500_002);
    // Any process of the guest can dial, say a word as soon as it may, and go away again.
    for _ in 0..1000 {
        let key = guest.dial(500_002);
        assert!(guest.sockets[&key].reset && !guest.sockets[&key].accepted);
        let word = Guest::header(key, Op::Rw, 0, 1);
        guest.send(word, b"o");
        guest.pump();
    }
    assert!(words.try_recv().is_err());
    assert_eq!(guest.control.connections(), 1);
    guest.write_all(agents, b"r");
    assert_eq!(words.try_recv(), Ok(PowerWord::Reboot));
    // Not even the end of the first lets another one in.
    guest.shutdown(agents, SHUTDOWN_BOTH);
    let key = guest.dial(500_002);
    assert!(guest.sockets[&key].reset && !guest.sockets[&key].accepted);
    // A guest that starts again has an agent that dials again.
    let returned = guest.bench.stop();
    guest.device.reclaim(returned.state);
    guest.device.reset();
    let Guest { device, control, .. } = guest;
    let mut guest = Guest::new((device, control));
    let [agents, other] = [guest.dial(500_002), guest.dial(500_002)];
    assert!(guest.sockets[&agents].accepted && !guest.sockets[&other].accepted);
}

#[test]
fn half_closes_pass_both_ways() {
    let mut guest = Guest::new(without_door());
    // The host ends first; the guest still answers.
    let (mut stream, key) = joined(&mut guest, 5);
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    guest.pump();
    assert_eq!(guest.sockets[&key].received, b"question");
    assert!(guest.at_end(key) && !guest.refused(key));
    guest.write_all(key, b"answer");
    guest.shutdown(key, SHUTDOWN_SEND);
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "answer");
    drop(stream);
    guest.pump();
    assert!(guest.sockets[&key].reset && guest.control.connections() == 0);

    // The guest ends first; the host still answers.
    let (mut stream, key) = joined(&mut guest, 5);
    guest.write_all(key, b"question");
    guest.shutdown(key, SHUTDOWN_SEND);
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "question");
    stream.write_all(b"answer").unwrap();
    guest.pump();
    assert_eq!(guest.sockets[&key].received, b"answer");
    drop(stream);
    guest.pump();
    assert!(guest.sockets[&key].reset && guest.control.connections() == 0);

    // The guest reads no more: the host's writes fail, the guest's bytes still come.
    let (mut stream, key) = joined(&mut guest, 5);
    guest.shutdown(key, SHUTDOWN_RECEIVE);
    assert_eq!(stream.write_all(b"to nobody").unwrap_err().kind(), ErrorKind::BrokenPipe);
    guest.write_all(key, b"still here");
    guest.shutdown(key, SHUTDOWN_SEND);
    assert!(guest.sockets[&key].reset);
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "still here");

    // The host reads no more: the guest is told, and its bytes go nowhere without harm.
    let (mut stream, key) = joined(&mut guest, 5);
    stream.shutdown(Shutdown::Read).unwrap();
    guest.write_all(key, b"to nobody");
    assert!(guest.refused(key) && !guest.sockets[&key].reset);
    guest.write_all(key, &vec![1; 300 << 10]);
    stream.write_all(b"still here").unwrap();
    guest.pump();
    assert_eq!(guest.sockets[&key].received, b"still here");
    drop(stream);
    guest.pump();
    assert!(guest.sockets[&key].reset && guest.control.connections() == 0);
    assert_eq!(guest.control.faults(), 0);
}

#[test]
fn a_reset_of_the_guest_closes_the_host() {
    let mut guest = Guest::new(without_door());
    let (stream, key) = joined(&mut guest, 5);
    guest.write_all(key, b"last words");
    let header = Guest::header(key, Op::Rst, 0, 0);
    guest.send(header, &[]);
    guest.pump();
    let mut text = String::new();
    (&stream).read_to_string(&mut text).unwrap();
    assert_eq!(text, "last words");
    assert_eq!(guest.control.connections(), 0);
}
