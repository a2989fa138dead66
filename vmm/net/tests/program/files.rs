//! What is open: with room for many flows, with room for few, and with room for none.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use nelly_net::config::UsernetConfig;
use nelly_net::core::OWN_MAC;
use nelly_net::link::{Hello, NetHeader, Offloads};
use nelly_net::wire::ip::{Packet, protocol, put_header};
use nelly_net::wire::tcp::{Segment, flag};
use nelly_net::wire::{Frame, Mac, checksum, kind, put_ethernet};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use smoltcp::iface::SocketHandle;

use crate::datagrams::question;
use crate::guest::{Guest, MAC};
use crate::world::{Program, World, is_root, limited, raise_files};

/// Where somebody listens.
const THERE: &str = "198.51.100.7:80";

/// Sends back what it hears, on every connection. Those that were accepted come out.
fn echoes(world: &World) -> Receiver<TcpStream> {
    let listener = world.there(|| TcpListener::bind(THERE).unwrap());
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let held = stream.try_clone().unwrap();
            std::thread::spawn(move || {
                let mut bytes = [0; 64];
                while let Ok(len @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&bytes[..len]).is_err() {
                        return;
                    }
                }
            });
            if tell.send(held).is_err() {
                return;
            }
        }
    });
    told
}

/// Says a word and hears it again.
fn talks(guest: &mut Guest, handle: SocketHandle) {
    guest.tcp(handle).send_slice(b"word").unwrap();
    guest.until("the same word", |guest| {
        let socket = guest.tcp(handle);
        (socket.recv_queue() >= 4).then(|| {
            let word = socket.recv(|data| (4, data[..4].to_vec())).unwrap();
            assert_eq!(word, b"word");
        })
    });
}

/// How many files it has open once that is `wanted`.
fn settles(program: &Program, guest: &mut Guest, wanted: usize) {
    let end = Instant::now() + Duration::from_secs(20);
    while program.files() != wanted {
        guest.pass(Duration::from_millis(20));
        assert!(Instant::now() < end, "{} files are open, and not {wanted}", program.files());
    }
}

#[test]
fn few_files_are_few_flows_which_is_told_and_who_talks_goes_on() {
    const FILES: u64 = 64;
    // What is left beside the link and its like.
    const FLOWS: usize = 44;
    if !is_root() {
        return;
    }
    let world = World::new();
    let accepted = echoes(&world);
    let (program, link, log) = limited(&UsernetConfig::default(), [32, FILES]);
    let mut guest = Guest::new(link, 1500);
    guest.pass(Duration::from_millis(50));
    let files = program.files();
    let talker = guest.dial(THERE);
    assert!(guest.answered(talker));
    let mut dialled = Vec::new();
    for _ in 0..3 * FLOWS {
        let handle = guest.dial(THERE);
        assert!(guest.answered(handle), "there is room: the silent ones go");
        talks(&mut guest, talker);
        assert!(program.files() as u64 <= FILES);
        dialled.push(handle);
    }
    settles(&program, &mut guest, files + FLOWS);
    // Those that went were told, and the last ones are there.
    let (gone, there) = dialled.split_at(dialled.len() + 1 - FLOWS);
    assert!(gone.iter().all(|handle| !guest.tcp(*handle).is_open()));
    assert!(there.iter().all(|handle| guest.tcp(*handle).may_send()));
    talks(&mut guest, there[0]);
    // Who accepts them has a thread of its own.
    for number in 0..=dialled.len() {
        let came = accepted.recv_timeout(Duration::from_secs(20));
        assert!(came.is_ok(), "{number} flows came");
    }
    assert!(accepted.try_recv().is_err());
    for handle in dialled {
        guest.tcp(handle).abort();
    }
    settles(&program, &mut guest, files + 1);
    talks(&mut guest, talker);
    drop(guest);
    program.ends_well();
    let log = log.join().unwrap();
    assert!(log.contains("the limit of open files, 64, has room for 44 flows at once"), "{log}");
    assert!(log.contains("there are too many flows: the one that was silent for longest is ended"), "{log}");
}

#[test]
fn a_flow_that_finds_no_file_is_refused_and_told_and_the_others_go_on() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let _accepted = echoes(&world);
    let servers = vec!["198.51.100.7:53".parse().unwrap()];
    let config = UsernetConfig { dns_servers: servers, ..UsernetConfig::default() };
    let (program, link, log) = limited(&config, [256, 256]);
    let mut guest = Guest::new(link, 1500);
    guest.pass(Duration::from_millis(50));
    let talker = guest.dial(THERE);
    assert!(guest.answered(talker));
    let files = program.files();
    let process = Pid::from_child(&program.child);
    // Up to the first number that is free. (With less, there would be no waiting for anything.)
    let open = |number: &u64| std::fs::exists(format!("/proc/{}/fd/{number}", program.child.id())).unwrap();
    let none = Rlimit { current: (0..).find(|number| !open(number)), maximum: Some(256) };
    let before = prlimit(Some(process), Resource::Nofile, none).unwrap();
    for _ in 0..3 {
        // A connection is reset, a datagram is answered, and so is a question.
        let handle = guest.dial(THERE);
        assert!(!guest.answered(handle));
        talks(&mut guest, talker);
    }
    let (told, handle) = (guest.unreachables(5000), guest.udp(5000));
    guest.say(handle, b"hello", "198.51.100.7:9");
    assert_eq!(guest.unreachable(told), 1);
    let handle = guest.udp(5001);
    guest.say(handle, &question(1, "www.example"), "10.0.2.3:53");
    let (answer, _) = guest.hear(handle);
    assert_eq!(answer[3] & 15, 2, "the question failed");
    talks(&mut guest, talker);
    assert_eq!(program.files(), files);
    prlimit(Some(process), Resource::Nofile, before).unwrap();
    let handle = guest.dial(THERE);
    assert!(guest.answered(handle));
    talks(&mut guest, handle);
    assert_eq!(program.files(), files + 1);
    drop(guest);
    program.ends_well();
    let log = log.join().unwrap();
    assert!(log.contains("the host has no more sockets for it: Too many open files"), "{log}");
}

/// A guest that has nothing but segments.
struct Many {
    link: OwnedFd,
    to: SocketAddr,
    /// The ports whose connection is there.
    open: HashSet<u16>,
    /// Those whose connection is no more.
    reset: HashSet<u16>,
}

impl Many {
    fn new(link: OwnedFd, to: SocketAddr) -> Self {
        let hello = Hello { offloads: Offloads::default(), mtu: 1500 };
        send(&link, &hello.to_bytes(), SendFlags::empty()).unwrap();
        Self { link, to, open: HashSet::new(), reset: HashSet::new() }
    }

    fn send(&mut self, port: u16, segment: Segment) {
        let from: SocketAddr = format!("10.0.2.15:{port}").parse().unwrap();
        let segment = Segment { src: port, dst: self.to.port(), window: 1000, ..segment };
        let mut bytes = Vec::new();
        segment.put(&mut bytes, 0);
        let mut sum = checksum::Sum::default();
        sum.add_pseudo(from.ip(), self.to.ip(), protocol::TCP, bytes.len());
        sum.add(&bytes);
        let sum = sum.finish();
        bytes.clear();
        segment.put(&mut bytes, sum);
        let mut message = NetHeader::default().to_bytes().to_vec();
        put_ethernet(&mut message, OWN_MAC, Mac(MAC), kind::IPV4);
        put_header(&mut message, from.ip(), self.to.ip(), protocol::TCP, bytes.len());
        message.extend(bytes);
        send(&self.link, &message, SendFlags::empty()).unwrap();
    }

    /// Hears what there is, and completes the connections that are answered.
    fn hear(&mut self) {
        let mut message = vec![0; 70_000];
        while let Ok((len, _)) = recv(&self.link, &mut *message, RecvFlags::DONTWAIT) {
            let (_, frame) = NetHeader::parse(&message[..len]).unwrap();
            let frame = Frame::parse(frame).unwrap();
            if frame.kind != kind::IPV4 {
                continue;
            }
            let Some(packet) = Packet::parse_v4(frame.payload) else { continue };
            let Some((segment, _)) = Segment::parse(packet.payload) else { continue };
            if segment.has(flag::RST) {
                self.reset.insert(segment.dst);
            } else if segment.has(flag::SYN) {
                self.open.insert(segment.dst);
                let (seq, ack) = (segment.ack, segment.seq.wrapping_add(1));
                self.send(segment.dst, Segment { seq, ack, flags: flag::ACK, ..Segment::default() });
            }
        }
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            self.hear();
            if done(self) {
                return;
            }
            assert!(Instant::now() < end, "in vain: {what}: {} of them", self.open.len());
            let mut files = [PollFd::new(&self.link, PollFlags::IN)];
            let _ = poll(&mut files, Some(&Timespec { tv_sec: 0, tv_nsec: 5_000_000 }));
        }
    }
}

#[test]
fn ten_thousand_flows_have_their_files_and_leave_none() {
    const FLOWS: u16 = 10_000;
    const FIRST: u16 = 2000;
    if !is_root() {
        return;
    }
    let may = raise_files();
    // The peers of the flows are files of this process.
    let flows = u16::try_from(may / 2).unwrap_or(u16::MAX).min(FLOWS);
    println!("{flows} flows: {may} open files are allowed here");
    let world = World::new();
    let listener = world.there(|| TcpListener::bind(THERE).unwrap());
    let (tell, accepted) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            if tell.send(stream.unwrap()).is_err() {
                return;
            }
        }
    });
    let config = UsernetConfig { max_flows: flows.into(), ..UsernetConfig::default() };
    let (program, link, log) = limited(&config, [1024, may]);
    let mut guest = Many::new(link, THERE.parse().unwrap());
    // When it answers, it has closed what it says by that it is ready.
    guest.send(FIRST, Segment { flags: flag::ACK, ..Segment::default() });
    guest.until("an answer", |guest| !guest.reset.is_empty());
    guest.reset.clear();
    let files = program.files();
    let mut peers = Vec::new();
    let syn = Segment { seq: 7, flags: flag::SYN, ..Segment::default() };
    for number in 0..flows {
        guest.send(FIRST + number, syn);
        // No more at once than the peer's queue has room for.
        if number % 64 == 63 {
            guest.until("answers", |guest| guest.open.len() > usize::from(number));
            peers.extend(accepted.try_iter());
        }
    }
    guest.until("answers", |guest| guest.open.len() == usize::from(flows));
    while peers.len() < usize::from(flows) {
        peers.push(accepted.recv_timeout(Duration::from_secs(20)).unwrap());
    }
    assert_eq!((program.files(), guest.reset.len()), (files + usize::from(flows), 0));
    // One more has the oldest one's place, and hears of it; the others stay.
    guest.send(FIRST + flows, syn);
    guest.until("an answer", |guest| guest.open.contains(&(FIRST + flows)));
    assert_eq!(guest.reset, HashSet::from([FIRST]));
    assert_eq!(program.files(), files + usize::from(flows));
    // The guest ends them all.
    for number in 1..=flows {
        guest.send(FIRST + number, Segment { seq: 8, flags: flag::RST, ..Segment::default() });
    }
    let end = Instant::now() + Duration::from_secs(60);
    while program.files() != files {
        guest.hear();
        std::thread::sleep(Duration::from_millis(20));
        assert!(Instant::now() < end, "{} files are left, of {files}", program.files());
    }
    drop(guest);
    program.ends_well();
    let log = log.join().unwrap();
    assert!(!log.contains("open files") && log.contains("there are too many flows"), "{log}");
}

#[test]
fn the_soft_limit_is_no_limit() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let (program, _link, _log) = limited(&UsernetConfig::default(), [128, 16_000]);
    let text = std::fs::read_to_string(format!("/proc/{}/limits", program.child.id())).unwrap();
    let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    // As many as its flows need, and what else there may be.
    assert_eq!(words[3..5], ["5196", "16000"]);
}
