//! Frames and commands of a guest, and frames of its peer, to the network device, over real queues
//! and a real socket.

use std::os::fd::OwnedFd;

use nelly_vmm::config::{DatagramLink, FileSource, MacAddress, NetworkConfig, NetworkId, NetworkLink};
use nelly_vmm::virtio::device::Device;
use nelly_vmm::virtio::net::Network;
use nelly_vmm::virtio::spec::feature;
use nelly_vmm::virtio::testing::{Bench, Part};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

use super::Bytes;

/// Guest memory that the buffers of a queue take at most.
const BUFFERS_MOST: usize = 6 << 20;
/// Bytes of a header.
const HEADER: usize = 12;

/// The first byte chooses the link (bit 0: a stream, else messages with headers) and what the
/// driver negotiates (bit 1: nothing); steps follow.
///
/// # Panics
/// When the device breaks, never comes to rest, asks for a reset, or holds something back when it
/// stops.
pub fn run(data: &[u8]) {
    let _ = frames(data);
}

/// As [`run`]; the frames that passed.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn frames(data: &[u8]) -> u64 {
    let mut input = Bytes(data);
    let [choice] = input.take();
    let is_stream = choice & 1 != 0;
    let kind = if is_stream { SocketType::STREAM } else { SocketType::SEQPACKET };
    let (near, peer) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("a pair");
    let socket = FileSource::Fd(0);
    let link = if is_stream {
        NetworkLink::Stream(socket)
    } else {
        NetworkLink::Datagram(DatagramLink { socket, header: true })
    };
    let id = NetworkId::new("fuzz").expect("an id");
    let config = NetworkConfig::new(id, MacAddress::from_seed("fuzz"), link);
    let (mut device, view) = Network::new(&config, vec![near]).expect("a device");
    let features = if choice & 2 == 0 { device.features() | feature::EVENT_IDX } else { 0 };
    let features = features | feature::VERSION_1;
    let bench = Bench::new(&mut device, 64, Some(features));
    let mut side = Side { bench, peer: Some(peer), used: [0; 2] };
    while !input.is_empty() && side.step(&mut input) {
        if input.0.first() == Some(&0xfe) {
            side.pause(&mut device, features);
        }
    }
    assert_eq!(side.bench.interrupt.faults(), 0);
    side.pause(&mut device, features);
    view.sent().frames + view.received().frames
}

struct Side {
    bench: Bench,
    peer: Option<OwnedFd>,
    /// Bytes of buffers that were given to each queue of frames.
    used: [usize; 2],
}

impl Side {
    /// Takes one step; `false` when no room is left.
    fn step(&mut self, input: &mut Bytes<'_>) -> bool {
        let [op, a, b, c] = input.take();
        let len = usize::from(u16::from_le_bytes([a, b])) + usize::from(c & 1) * 4000;
        match op & 7 {
            // A frame of the guest in two pieces.
            0 | 1 => {
                let header: [u8; HEADER] = input.take();
                let message = [&header[..], &vec![c; len]].concat();
                self.used[1] += message.len() + 32;
                let cut = usize::from(c).clamp(1, message.len() - 1);
                if self.used[1] > BUFFERS_MOST || self.bench.queues[1].room() < 2 {
                    return false;
                }
                let parts = [Part::Read(message[..cut].to_vec()), Part::Read(message[cut..].to_vec())];
                self.bench.queues[1].add(&parts);
            }
            // A frame of the peer, or the beginning of one.
            2 | 3 => {
                let header: [u8; HEADER] = input.take();
                let head = if op & 8 == 0 { HEADER } else { 4 };
                self.say(&[&header[..head], &vec![c; len]].concat());
            }
            4 => {
                for _ in 0..=c & 7 {
                    let size = HEADER + len / 16;
                    self.used[0] += size + 16;
                    if self.used[0] > BUFFERS_MOST || self.bench.queues[0].room() == 0 {
                        return false;
                    }
                    let size = u32::try_from(size).expect("16 bits, about");
                    self.bench.queues[0].add(&[Part::Write(size)]);
                }
            }
            5 => {
                let body: [u8; 10] = input.take();
                let body = &body[..usize::from(a) % 11];
                let command: Vec<_> = [&[b, c], body].concat();
                if self.bench.queues[2].room() < 2 {
                    return false;
                }
                self.bench.queues[2].add(&[Part::Read(command), Part::Write(1)]);
            }
            6 => {
                // Neither an empty nor a closed socket matters here.
                let mut bytes = vec![0; 1 << 17];
                if let Some(peer) = &self.peer {
                    let _ = recv(peer, &mut *bytes, RecvFlags::DONTWAIT);
                }
            }
            _ if op == 0xff => self.peer = None,
            _ => self.say(&vec![c; len]),
        }
        for queue in 0..3 {
            self.bench.kick(queue);
            while self.bench.queues[queue].used().is_some() {}
        }
        true
    }

    fn say(&self, bytes: &[u8]) {
        if let Some(peer) = &self.peer {
            let _ = send(peer, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
    }

    fn pause(&mut self, device: &mut Network, features: u64) {
        let returned = self.bench.stop();
        device.reclaim(returned.state);
        let mut queues = returned.queues.iter().flatten();
        assert!(queues.all(|queue| queue.position().is_quiet()), "nothing is in flight");
        self.bench.resume(device, features, returned.queues);
    }
}

/// Frames of every kind both ways, commands, a pause, and a peer that goes.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let [plain, segment] = [[0; HEADER], [1, 1, 54, 0, 200, 5, 34, 0, 16, 0, 0, 0]];
    let step = |op: u8, len: u16, c: u8, rest: &[u8]| {
        let [a, b] = len.to_le_bytes();
        [&[op, a, b, c][..], rest].concat()
    };
    let buffers = step(4, 24_000, 7, &[]);
    let framed = |len: u8| [0, 0, 0, len, 0, 0, 0, 0, 0, 0, 0, 0];
    let takes = [&[2][..], &[0; 9]].concat();
    let offloads = step(5, 8 | 5 << 8, 0, &takes);
    vec![
        [
            vec![0],
            buffers.clone(),
            step(0, 60, 8, &plain),
            step(1, 30_000, 200, &segment),
            step(2, 1500, 2, &plain),
            step(3, 9000, 4, &segment),
            step(6, 0, 0, &[]),
            offloads,
            step(0xfe, 0, 0, &[]),
            step(2, 9000, 2, &segment),
            step(0xff, 0, 0, &[]),
            step(0, 60, 8, &plain),
        ]
        .concat(),
        [vec![2], buffers.clone(), step(2, 300, 2, &plain), step(0, 60, 8, &plain)].concat(),
        [
            vec![1],
            buffers,
            step(0, 1500, 8, &plain),
            step(10, 60, 2, &framed(60)),
            step(10, 20, 2, &framed(30)),
            step(15, 10, 2, &[]),
            step(0xff, 0, 0, &[]),
        ]
        .concat(),
    ]
}
