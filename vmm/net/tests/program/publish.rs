//! Ports of the host that lead to the guest.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use nelly_net::config::UsernetConfig;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use smoltcp::socket::tcp;

use crate::reach::pings;
use crate::world::{World, is_root, started};

/// The addresses of the ready line.
fn published(ready: &str) -> Vec<SocketAddr> {
    let value: serde_json::Value = serde_json::from_str(ready).unwrap();
    let all = value["published"].as_array().unwrap().iter();
    all.map(|text| text.as_str().unwrap().rsplit_once(':').unwrap().0.parse().unwrap()).collect()
}

#[test]
fn published_ports_lead_to_the_guest() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let publish = ["0:80", "[::1]:0:80", "192.0.2.2:0:81/tcp", "0:82", "0:53/udp"];
    let publish = publish.map(|text| text.parse().unwrap()).to_vec();
    let (program, mut guest) = started(&UsernetConfig { publish, ..UsernetConfig::default() });
    let ports = published(&program.ready);
    assert!(ports.iter().all(|port| port.port() != 0));
    assert!(ports[0].ip().is_loopback() && ports[1].ip().is_loopback());
    let files = program.files();
    // Who calls before the guest has said anything waits for it.
    let handle = guest.listen(80);
    let _early = TcpStream::connect(ports[0]).unwrap();
    guest.pass(Duration::from_millis(50));
    assert!(guest.tcp(handle).is_listening());
    assert!(pings(&mut guest, "10.0.2.2", Duration::from_secs(5)));
    guest.until("a caller", |guest| guest.tcp(handle).may_recv().then_some(()));
    guest.tcp(handle).abort();
    guest.pass(Duration::from_millis(50));
    for (at, guest_port) in [(0, 80), (1, 80)] {
        // Two at the same instant.
        let handles = [guest.listen(guest_port), guest.listen(guest_port)];
        let to = ports[at];
        let clients = [1, 2].map(|number: u8| {
            std::thread::spawn(move || {
                let mut stream = TcpStream::connect(to).unwrap();
                stream.write_all(&vec![number; 100_000]).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let mut all = Vec::new();
                stream.read_to_end(&mut all).unwrap();
                assert!(all == vec![number; 100_000]);
            })
        });
        for handle in handles {
            guest.until("a caller", |guest| guest.tcp(handle).may_recv().then_some(()));
            let got = guest.until("all", {
                let mut got = Vec::new();
                move |guest| {
                    let socket = guest.tcp(handle);
                    while socket.can_recv() {
                        socket.recv(|data| (data.len(), got.extend_from_slice(data))).unwrap();
                    }
                    (socket.state() == tcp::State::CloseWait).then(|| std::mem::take(&mut got))
                }
            });
            let peer = guest.tcp(handle).remote_endpoint().unwrap().to_string();
            assert!(peer.starts_with("10.0.2.2:") || peer.starts_with("fd4e:656c:6c79::2:"), "{peer}");
            assert!(guest.exchange(handle, &got, true).is_empty());
        }
        for client in clients {
            client.join().unwrap();
        }
        for handle in handles {
            guest.finished(handle);
        }
    }
    // From elsewhere, where the port is bound to an address that is reached from there.
    let handle = guest.listen(81);
    let to = ports[2];
    let _stream = world.there(move || TcpStream::connect(to).unwrap());
    guest.until("a caller", |guest| guest.tcp(handle).may_recv().then_some(()));
    guest.tcp(handle).abort();
    // Nobody listens in the guest: the caller sees a reset.
    let mut stream = TcpStream::connect(ports[3]).unwrap();
    guest.pass(Duration::from_millis(100));
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    // Datagrams, of two peers.
    let handle = guest.udp(53);
    let peers = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    for (number, peer) in [1, 2].into_iter().zip(&peers) {
        peer.send_to(&[number; 9], ports[4]).unwrap();
        let (bytes, from) = guest.hear(handle);
        assert_eq!(bytes, [number; 9]);
        guest.say(handle, &[number; 2000][..1400], &from);
        guest.pass(Duration::from_millis(20));
        let mut buffer = [0; 2000];
        assert_eq!(peer.recv_from(&mut buffer).unwrap(), (1400, ports[4]));
        assert_eq!(buffer[0], number);
    }
    guest.pass(Duration::from_millis(50));
    assert_eq!(program.files(), files, "sockets are left");
    drop(guest);
    program.ends_well();
}

#[test]
fn a_caller_waits_while_there_are_too_many_open_files_and_costs_nothing() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let publish = vec!["0:80".parse().unwrap()];
    let (program, mut guest) = started(&UsernetConfig { publish, ..UsernetConfig::default() });
    let handle = guest.listen(80);
    assert!(pings(&mut guest, "10.0.2.2", Duration::from_secs(5)));
    let process = Pid::from_child(&program.child);
    let none = Rlimit { current: Some(0), ..getrlimit(Resource::Nofile) };
    let before = prlimit(Some(process), Resource::Nofile, none).unwrap();
    let mut stream = TcpStream::connect(published(&program.ready)[0]).unwrap();
    guest.pass(Duration::from_millis(100));
    let ticks = program.ticks();
    guest.pass(Duration::from_secs(1));
    assert!(program.ticks() - ticks <= 2, "a caller that waits costs processor time");
    assert!(guest.tcp(handle).is_listening());
    prlimit(Some(process), Resource::Nofile, before).unwrap();
    // Nobody else calls.
    guest.until("the caller", |guest| guest.tcp(handle).may_recv().then_some(()));
    stream.write_all(b"here").unwrap();
    guest.until("a word", |guest| guest.tcp(handle).can_recv().then_some(()));
}
