//! Ports that come and go while the program runs, confined as it always is.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use nelly_net::config::{Publish, UsernetConfig};
use nelly_net::holder::{Holder, HolderError};
use nelly_net::shell::{Bound, bind};
use rustix::fd::OwnedFd;
use smoltcp::iface::SocketHandle;

use crate::guest::Guest;
use crate::world::{World, held, is_root};

/// Adds a port, and says where it listens.
fn added(holder: &Holder, text: &str) -> Publish {
    let bound = bind(text.parse().unwrap()).unwrap();
    let publish = bound.publish;
    holder.add(bound).unwrap();
    publish
}

/// Has the guest take a caller, and hear and answer a word.
fn talks(guest: &mut Guest, handle: SocketHandle, stream: &mut TcpStream) {
    stream.write_all(b"ask").unwrap();
    guest.until("a word", |guest| {
        let socket = guest.tcp(handle);
        let heard = socket.recv(|data| (data.len(), data == b"ask")).ok()?;
        heard.then(|| socket.send_slice(b"yes").unwrap())
    });
    guest.until("the answer is sent", |guest| (guest.tcp(handle).send_queue() == 0).then_some(()));
    let mut word = [0; 3];
    stream.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"yes");
}

fn refuses(address: SocketAddr) -> bool {
    matches!(TcpStream::connect(address), Err(error) if error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn a_port_comes_and_goes_and_its_connections_stay() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let publish = vec!["0:79".parse().unwrap()];
    let (program, mut guest, holder) = held(&UsernetConfig { publish, ..UsernetConfig::default() });
    let (first, _) = holder.list().unwrap();
    assert_eq!((first.len(), first[0].publish.guest), (1, 79));
    // Callers wait until the guest has said something.
    assert!(crate::reach::pings(&mut guest, "10.0.2.2", Duration::from_secs(20)));
    let files = program.files();

    // A port that only root may listen at: the holder does.
    let web = added(&holder, "83:80");
    assert_eq!(web.bind.port(), 83);
    let handle = guest.listen(80);
    let mut stream = TcpStream::connect(web.bind).unwrap();
    guest.until("a caller", |guest| guest.tcp(handle).may_recv().then_some(()));
    talks(&mut guest, handle, &mut stream);

    // The same one is refused, and so is one that leads elsewhere.
    assert!(matches!(holder.remove("83:81".parse().unwrap()), Err(HolderError::Refused(_))));
    assert!(bind(web).unwrap_err().to_string().contains("port 83 of 127.0.0.1 is taken"));
    let (ports, _) = holder.list().unwrap();
    assert_eq!(ports.iter().map(|port| port.publish).collect::<Vec<_>>(), [first[0].publish, web]);
    assert_eq!((ports[1].connections, ports[1].refused), (1, 0));

    holder.remove(web).unwrap();
    assert!(refuses(web.bind));
    assert!(matches!(holder.remove(web), Err(HolderError::Refused(_))));
    talks(&mut guest, handle, &mut stream);
    // It is free for others at once, and the same program.
    added(&holder, "83:80");
    holder.remove(web).unwrap();

    // Datagrams: what is removed hears nobody, and its peers are forgotten.
    let names = added(&holder, "[::1]:0:53/udp");
    let socket = guest.udp(53);
    let peer = UdpSocket::bind("[::1]:0").unwrap();
    peer.send_to(b"ask", names.bind).unwrap();
    let (bytes, from) = guest.hear(socket);
    assert_eq!(bytes, b"ask");
    holder.remove(names).unwrap();
    guest.say(socket, b"late", &from);
    let again = added(&holder, &format!("[::1]:{}:53/udp", names.bind.port()));
    peer.send_to(b"more", again.bind).unwrap();
    let (bytes, from) = guest.hear(socket);
    assert_eq!(bytes, b"more");
    guest.say(socket, b"heard", &from);
    peer.set_nonblocking(true).unwrap();
    let mut word = [0; 16];
    let (len, _) = guest.until("an answer", |_| peer.recv_from(&mut word).ok());
    assert_eq!(&word[..len], b"heard");
    holder.remove(again).unwrap();

    // Ports of the configuration can be removed, too.
    holder.remove(first[0].publish).unwrap();
    assert!(refuses(first[0].publish.bind));
    assert!(holder.list().unwrap().0.is_empty());
    drop(stream);
    guest.tcp(handle).abort();
    guest.until("its sockets are closed", |_| (program.files() <= files).then_some(()));
    drop(guest);
    program.ends_well();
}

#[test]
fn what_cannot_be_is_refused_and_nothing_is_left() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let (mut program, mut guest, holder) = held(&UsernetConfig::default());
    holder.list().unwrap();
    let files = program.files();
    // A socket that is bound elsewhere.
    let Bound { file, mut publish } = bind("0:80".parse().unwrap()).unwrap();
    publish.bind.set_port(publish.bind.port() ^ 1);
    let refused = holder.add(Bound { file, publish }).unwrap_err().to_string();
    assert!(refused.contains("bound elsewhere"), "{refused}");
    // What is no socket.
    let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    assert!(matches!(holder.add(Bound { file, publish }), Err(HolderError::Refused(_))));
    // As many as there may be, and one more.
    let address: std::net::IpAddr = "127.0.0.1".parse().unwrap();
    for guest_port in 1..=1024_u16 {
        let bind_to = Publish { bind: (address, 0).into(), guest: guest_port, protocol: publish.protocol };
        holder.add(bind(bind_to).unwrap()).unwrap();
    }
    let refused = holder.add(bind("0:80".parse().unwrap()).unwrap()).unwrap_err().to_string();
    assert!(refused.contains("1024 ports are published already"), "{refused}");
    let (ports, _) = holder.list().unwrap();
    assert_eq!(ports.len(), 1024);
    assert!(ports.iter().map(|port| port.publish.guest).eq(1..=1024));
    for port in ports {
        holder.remove(port.publish).unwrap();
    }
    assert_eq!(program.files(), files);
    // It serves its guest all the while.
    assert!(crate::reach::pings(&mut guest, "10.0.2.2", Duration::from_secs(20)));

    // One that is dead is told at once.
    program.child.kill().unwrap();
    program.child.wait().unwrap();
    assert!(matches!(holder.list(), Err(HolderError::Gone)));
}

#[test]
fn what_is_let_out_and_what_is_not_is_counted() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let listener = world.there(|| std::net::TcpListener::bind("198.51.100.7:80").unwrap());
    let rules = UsernetConfig {
        deny: vec!["192.0.2.0/24".parse().unwrap(), "bad.example".parse().unwrap()],
        dns_servers: vec!["198.51.100.7:53".parse().unwrap()],
        ..UsernetConfig::default()
    };
    let (_program, mut guest, holder) = held(&rules);
    assert_eq!(holder.list().unwrap().1, nelly_net::control::Traffic::default());
    let out = guest.dial("198.51.100.7:80");
    assert!(guest.answered(out));
    let denied = guest.dial("192.0.2.1:80");
    assert!(!guest.answered(denied));
    let socket = guest.udp(5000);
    guest.say(socket, &crate::datagrams::question(1, "bad.example"), "10.0.2.3:53");
    guest.hear(socket);
    let (_, traffic) = holder.list().unwrap();
    assert_eq!((traffic.allowed, traffic.denied, traffic.names_allowed, traffic.names_denied), (1, 1, 0, 1));
    drop(listener);
}
