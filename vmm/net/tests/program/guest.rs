//! A guest whose network stack is smoltcp's: a judge of ours.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nelly_net::link::{HEADER_LEN, Hello, NetHeader, Offloads};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{icmp, tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, IpListenEndpoint};

pub(crate) const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

pub(crate) struct Link {
    pub(crate) file: OwnedFd,
    mtu: usize,
}

pub(crate) struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

pub(crate) struct Sending<'a>(&'a Link);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut message = vec![0; HEADER_LEN + len];
        let result = f(&mut message[HEADER_LEN..]);
        send(&self.0.file, &message, SendFlags::empty()).unwrap();
        result
    }
}

impl Device for Link {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let mut message = vec![0; 70_000];
        let (len, _) = recv(&self.file, &mut *message, RecvFlags::DONTWAIT).ok()?;
        message.truncate(len);
        let (header, frame) = NetHeader::parse(&message)?;
        assert_eq!(header, NetHeader::default(), "this guest takes no offloads");
        assert!(frame.len() <= 14 + self.mtu, "{} bytes are more than the MTU", frame.len());
        Some((Received(frame.to_vec()), Sending(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities
    }
}

pub(crate) struct Guest {
    pub(crate) link: Link,
    pub(crate) interface: Interface,
    pub(crate) sockets: SocketSet<'static>,
    next_port: u16,
}

impl Guest {
    pub(crate) fn new(file: OwnedFd, mtu: usize) -> Self {
        let hello = Hello { offloads: Offloads::default(), mtu: u32::try_from(mtu).unwrap() };
        send(&file, &hello.to_bytes(), SendFlags::empty()).unwrap();
        let mut link = Link { file, mtu };
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC)));
        let mut interface = Interface::new(config, &mut link, Instant::now());
        interface.update_ip_addrs(|all| {
            for address in ["10.0.2.15/24", "fd4e:656c:6c79::15/64"] {
                let (address, len) = address.split_once('/').unwrap();
                let address: std::net::IpAddr = address.parse().unwrap();
                all.push(IpCidr::new(address.into(), len.parse().unwrap())).unwrap();
            }
        });
        let routes = interface.routes_mut();
        routes.add_default_ipv4_route("10.0.2.2".parse().unwrap()).unwrap();
        routes.add_default_ipv6_route("fd4e:656c:6c79::2".parse().unwrap()).unwrap();
        Self { link, interface, sockets: SocketSet::new(Vec::new()), next_port: 40_000 }
    }

    /// Lets things go on until `done` gives something.
    pub(crate) fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let end = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            self.interface.poll(Instant::now(), &mut self.link, &mut self.sockets);
            if let Some(found) = done(self) {
                self.interface.poll(Instant::now(), &mut self.link, &mut self.sockets);
                return found;
            }
            assert!(std::time::Instant::now() < end, "in vain: {what}");
            self.wait(Duration::from_millis(5));
        }
    }

    /// Lets things go on for a time.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = std::time::Instant::now() + time;
        while std::time::Instant::now() < end {
            self.interface.poll(Instant::now(), &mut self.link, &mut self.sockets);
            self.wait(Duration::from_millis(5));
        }
    }

    fn wait(&self, time: Duration) {
        let mut files = [PollFd::new(&self.link.file, PollFlags::IN)];
        let _ = poll(&mut files, Some(&Timespec::try_from(time).unwrap()));
    }

    fn stream(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 256 << 10]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    pub(crate) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Begins to connect.
    pub(crate) fn dial(&mut self, to: &str) -> SocketHandle {
        let handle = self.stream();
        let to: SocketAddr = to.parse().unwrap();
        self.next_port += 1;
        let port = self.next_port;
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        socket.connect(self.interface.context(), to, port).unwrap();
        handle
    }

    /// Listens at a port.
    pub(crate) fn listen(&mut self, port: u16) -> SocketHandle {
        let handle = self.stream();
        self.tcp(handle).listen(IpListenEndpoint::from(port)).unwrap();
        handle
    }

    /// Whether the connection came about; `false`: it was refused.
    pub(crate) fn answered(&mut self, handle: SocketHandle) -> bool {
        self.until("an answer to a SYN", |guest| match guest.tcp(handle).state() {
            tcp::State::SynSent | tcp::State::SynReceived => None,
            tcp::State::Closed => Some(false),
            _ => Some(true),
        })
    }

    /// Sends `bytes`, and gives what came until the peer's end. `close`: with an end of its own
    /// behind them, before or after that of the peer.
    pub(crate) fn exchange(&mut self, handle: SocketHandle, bytes: &[u8], close_first: bool) -> Vec<u8> {
        assert!(self.answered(handle), "refused");
        let (mut sent, mut got, mut closed) = (0, Vec::new(), false);
        self.until("the end of a stream", |guest| {
            let socket = guest.tcp(handle);
            if sent < bytes.len() && socket.can_send() {
                sent += socket.send_slice(&bytes[sent..]).unwrap();
            }
            if sent == bytes.len() && close_first && !closed {
                socket.close();
                closed = true;
            }
            while socket.can_recv() {
                socket.recv(|data| (data.len(), got.extend_from_slice(data))).unwrap();
            }
            (!socket.may_recv() && (sent == bytes.len() || !socket.may_send())).then_some(())
        });
        if !closed {
            self.tcp(handle).close();
        }
        assert_eq!(sent, bytes.len(), "not everything was sent");
        got
    }

    /// Takes a socket away, once its connection has come to its end.
    pub(crate) fn finished(&mut self, handle: SocketHandle) {
        self.until("the end of a connection", |guest| {
            matches!(guest.tcp(handle).state(), tcp::State::Closed | tcp::State::TimeWait).then_some(())
        });
        self.sockets.remove(handle);
    }

    /// A UDP socket at a port.
    pub(crate) fn udp(&mut self, port: u16) -> SocketHandle {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 128 << 10]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }

    /// Sends a datagram.
    pub(crate) fn say(&mut self, handle: SocketHandle, bytes: &[u8], to: &str) {
        let to: SocketAddr = to.parse().unwrap();
        self.sockets.get_mut::<udp::Socket>(handle).send_slice(bytes, to).unwrap();
    }

    /// Waits for a datagram: what it holds and from where it is.
    pub(crate) fn hear(&mut self, handle: SocketHandle) -> (Vec<u8>, String) {
        self.until("a datagram", |guest| {
            let (bytes, from) = guest.sockets.get_mut::<udp::Socket>(handle).recv().ok()?;
            Some((bytes.to_vec(), SocketAddr::new(from.endpoint.addr.into(), from.endpoint.port).to_string()))
        })
    }

    /// What is said of datagrams from a port that do not arrive.
    pub(crate) fn unreachables(&mut self, port: u16) -> SocketHandle {
        let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 8], vec![0; 8192]);
        let mut socket = icmp::Socket::new(buffer(), buffer());
        socket.bind(icmp::Endpoint::Udp(IpListenEndpoint::from(port))).unwrap();
        self.sockets.add(socket)
    }

    /// Waits for the next of them: its code.
    pub(crate) fn unreachable(&mut self, handle: SocketHandle) -> u8 {
        self.until("an ICMP message", |guest| {
            let (bytes, _) = guest.sockets.get_mut::<icmp::Socket>(handle).recv().ok()?;
            assert_eq!(bytes[0], 3);
            Some(bytes[1])
        })
    }
}
