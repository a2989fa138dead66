//! A real tap, in a network namespace of its own, with the host's own network at its other end.

use std::net::{TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;
use crate::config::{NetworkLink, QueuePairs, TapLink, TapName};
use crate::sys::tap::open;
use crate::virtio::testing::{Bench, Part};

const NAME: &str = "virtio::net::tests::tap::the_host_and_a_guest_talk_over_a_tap";
const INSIDE: &str = "NELLY_TEST_INSIDE_NAMESPACE";
const HOST: [u8; 4] = [10, 9, 0, 1];
const GUEST: [u8; 4] = [10, 9, 0, 2];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Runs itself again in a namespace where it may make taps, whoever runs the tests.
#[test]
fn the_host_and_a_guest_talk_over_a_tap() {
    if std::env::var_os(INSIDE).is_some() {
        one_queue(false);
        two_queues(false);
        // The host's kernel does the same, where it has vhost-net.
        if crate::sys::vhost::open().is_ok() {
            one_queue(true);
            two_queues(true);
            rings_that_the_kernel_finds_broken();
        } else {
            eprintln!("left out: there is no /dev/vhost-net here");
        }
        return;
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--net"]).stdin(Stdio::null());
        command
    };
    let may = unshare().args(["test", "-w", "/dev/net/tun"]).status();
    if !may.is_ok_and(|status| status.success()) {
        eprintln!("left out: this user may not make network namespaces with taps here");
        return;
    }
    let again = std::env::current_exe().unwrap();
    let status = unshare().arg(again).args([NAME, "--exact", "--nocapture"]).env(INSIDE, "1").status();
    assert!(status.unwrap().success());
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

fn tap(name: &str, queues: u8, kernel: bool) -> Net {
    let mut files: Vec<OwnedFd> = (0..queues).map(|_| open(name, queues > 1).unwrap()).collect();
    if kernel {
        files.extend((0..queues).map(|_| crate::sys::vhost::open().unwrap()));
    }
    let link = NetworkLink::Tap(TapLink { name: Some(TapName::new(name).unwrap()), ..TapLink::default() });
    let mut config = played::config(link);
    config.queues = QueuePairs::new(queues.into()).unwrap();
    let guest = config.mac;
    ip(&format!("link set {name} address 02:00:00:00:00:01 up"));
    ip(&format!("address add 10.9.0.1/24 dev {name}"));
    ip(&format!("neighbour add 10.9.0.2 lladdr {guest} dev {name}"));
    let (mut device, view) = Network::new(&config, files).unwrap();
    let bench = Bench::new(&mut device, 256, None);
    assert_eq!(view.kernel_pairs(), u16::from(kernel));
    Net { device, view, bench, peer: None }
}

fn checksum(bytes: &[u8], mut sum: u32) -> u16 {
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// A packet of the guest, whose checksum its receiver completes at `at`.
fn packet(mac: [u8; 6], protocol: u8, mut payload: Vec<u8>, at: usize) -> Vec<u8> {
    let total = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut header = [0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, protocol, 0, 0].to_vec();
    header.extend(GUEST);
    header.extend(HOST);
    let sum = !checksum(&header, 0);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let pseudo = u32::from(protocol) + u32::try_from(payload.len()).unwrap();
    let partial = checksum(&[GUEST, HOST].concat(), pseudo);
    payload[at..at + 2].copy_from_slice(&partial.to_be_bytes());
    [&HOST_MAC[..], &mac, &[8, 0], &header, &payload].concat()
}

fn datagram(mac: [u8; 6], data: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + data.len()).unwrap().to_be_bytes();
    let udp = [&6000u16.to_be_bytes()[..], &5000u16.to_be_bytes(), &len, &[0, 0], data].concat();
    packet(mac, 17, udp, 6)
}

/// The next packet of IPv4 that comes for the guest: its header, and what follows that of IP.
fn next(net: &mut Net, protocol: u8) -> ([u8; BYTES], Vec<u8>) {
    for _ in 0..200 {
        while let Some((header, frame)) = net.received() {
            net.give(&[2000; 4]);
            if frame[12..14] == [8, 0] && frame[23] == protocol {
                return (header.try_into().unwrap(), frame[34..].to_vec());
            }
        }
        net.bench.wait(Duration::from_millis(50));
    }
    panic!("nothing came: {:?}", net.view);
}

fn one_queue(kernel: bool) {
    let mut net = tap("nelly0", 1, kernel);
    let mac = net.device.mac;
    net.give(&[2000; 60]);
    let socket = UdpSocket::bind("10.9.0.1:5000").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut bytes = [0; 2000];

    // The host completes the checksum, and makes datagrams of a segment.
    net.guest_sends(&header_of(1, 0, 0, 34, 6), &datagram(mac, b"from the guest"));
    assert_eq!((socket.recv(&mut bytes).unwrap(), &bytes[..14]), (14, &b"from the guest"[..]));
    if net.device.features() & feature::HOST_USO != 0 {
        net.guest_sends(&header_of(1, 5, 100, 34, 6), &datagram(mac, &frame(950)));
        for n in 0..10 {
            let len = socket.recv(&mut bytes).unwrap();
            assert_eq!(bytes[..len], frame(950)[n * 100..(n * 100 + 100).min(950)]);
        }
    }
    // The host leaves the checksum to the guest.
    socket.send_to(b"from the host", "10.9.0.2:6000").unwrap();
    let (header, udp) = next(&mut net, 17);
    assert_eq!((header[0], header[6], header[8], &udp[8..]), (1, 34, 6, &b"from the host"[..]));
    tcp(&mut net);
    // A pause takes the queues back, and gives them away once more, where they stand.
    let features = net.device.features() | ring::VERSION_1 | ring::EVENT_IDX | ring::INDIRECT_DESC;
    net.pause(features);
    assert_eq!(net.view.kernel_pairs(), u16::from(kernel));
    net.guest_sends(&header_of(1, 0, 0, 34, 6), &datagram(mac, b"after a pause"));
    assert_eq!((socket.recv(&mut bytes).unwrap(), &bytes[..13]), (13, &b"after a pause"[..]));
    socket.send_to(b"to both", "10.9.0.2:6000").unwrap();
    assert_eq!(next(&mut net, 17).1[8..], *b"to both");

    // An interface that is down loses frames; one that is deleted is gone.
    ip("link set nelly0 down");
    let lost = net.view.sent().lost;
    net.guest_sends(&header_of(1, 0, 0, 34, 6), &datagram(mac, b"nobody"));
    // What the kernel moves and loses is not counted here.
    assert_eq!((net.view.sent().lost, net.view.is_up()), (lost + u64::from(!kernel), true));
    assert_eq!(net.view.sent().frames == 0 && net.view.received().frames == 0, kernel);
    ip("link delete nelly0");
    net.bench.turn();
    if kernel {
        // It does not say so: that is found out when the device starts the next time.
        net.pause(features);
        assert!(!net.view.is_up());
    }
    net.guest_sends(&header_of(1, 0, 0, 34, 6), &datagram(mac, b"nobody"));
    assert!(!net.view.is_up() && net.view.kernel_pairs() == 0);
    assert_eq!(net.bench.interrupt.tally().faults()[0].kind, "host");
    assert_eq!(net.bench.interrupt.faults(), 0);
}

/// A connection of the host, whose bytes come in segments.
fn tcp(net: &mut Net) {
    let writer = std::thread::spawn(|| {
        use std::io::Write;
        let mut stream = TcpStream::connect("10.9.0.2:80").unwrap();
        stream.write_all(&frame(10_000)).unwrap();
    });
    let (_, syn) = next(net, 6);
    let sequence = u32::from_be_bytes(syn[4..8].try_into().unwrap());
    let answer = [
        &80u16.to_be_bytes()[..],
        &syn[..2],
        &[0, 0, 0, 9],
        &(sequence + 1).to_be_bytes(),
        // Six words, SYN and ACK, the window, no checksum, the longest segment.
        &[0x60, 0x12, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 0xb4],
    ];
    let mac = net.device.mac;
    net.guest_sends(&header_of(1, 0, 0, 34, 16), &packet(mac, 6, answer.concat(), 16));
    let (mut data, mut longest) = (Vec::<u8>::new(), 0);
    while data.len() < 10_000 {
        let (header, segment) = next(net, 6);
        let bytes = &segment[usize::from(segment[12] >> 4) * 4..];
        if bytes.len() > longest {
            longest = bytes.len();
            let is_segment = longest > 1460;
            assert_eq!(
                (header[1], u16::from_le_bytes([header[4], header[5]])),
                if is_segment { (1, 1460) } else { (0, 0) }
            );
        }
        data.extend(bytes);
    }
    assert!(data == frame(10_000) && longest > 1460, "{longest}");
    writer.join().unwrap();
}

fn two_queues(kernel: bool) {
    let mut net = tap("nelly1", 2, kernel);
    let mac = net.device.mac;
    let socket = UdpSocket::bind("10.9.0.1:5000").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for (round, pairs) in [1u8, 2, 1, 2, 2].into_iter().enumerate() {
        net.bench.queues[4].add(&[Part::Read(vec![4, 0, pairs, 0]), Part::Write(1)]);
        net.bench.kick(4);
        assert_eq!(net.bench.queues[4].used().unwrap().data, [0], "{round}");
        assert_eq!(net.view.pairs(), u16::from(pairs));
        assert_eq!(net.view.kernel_pairs(), if kernel { u16::from(pairs) } else { 0 });
        for pair in 0..usize::from(pairs) {
            let message = [&header_of(1, 0, 0, 34, 6)[..], &datagram(mac, &[pairs; 9])].concat();
            net.bench.queues[2 * pair + 1].add(&[Part::Read(message)]);
            net.bench.kick(2 * pair + 1);
            let mut bytes = [0; 20];
            assert_eq!((socket.recv(&mut bytes).unwrap(), bytes[0]), (9, pairs));
        }
        // What comes for a flow comes in a queue that is in use.
        for queue in 0..2 {
            // The host's own words, as of IPv6, come too.
            for _ in 0..20 {
                net.bench.queues[2 * queue].add(&[Part::Write(2000)]);
            }
            net.bench.kick(2 * queue);
        }
        socket.send_to(&[7], "10.9.0.2:6000").unwrap();
        let came = (0..200).any(|_| {
            net.bench.wait(Duration::from_millis(50));
            (0..usize::from(pairs)).any(|pair| {
                std::iter::from_fn(|| net.bench.queues[2 * pair].used()).any(|used| used.data[35] == 17)
            })
        });
        assert!(came, "{round}");
    }
    assert_eq!(net.bench.interrupt.faults(), 0);
    ip("link delete nelly1");
}

/// A driver that says it has made more buffers available than there are.
fn rings_that_the_kernel_finds_broken() {
    let mut net = tap("nelly2", 1, true);
    net.bench.queues[1].set_available(300);
    net.bench.kick(1);
    let failed = (0..200).any(|_| {
        net.bench.wait(Duration::from_millis(50));
        net.bench.interrupt.needs_reset()
    });
    assert!(failed && net.view.kernel_pairs() == 0);
    assert_eq!(net.bench.interrupt.tally().faults()[0].kind, "protocol");
    // It can be taken away, and started anew.
    let returned = net.bench.stop();
    net.device.reclaim(returned.state);
}
