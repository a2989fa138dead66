//! Bytes between a guest's console and what it speaks to: none is lost, none comes twice.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use nelly_vmm::virtio::console::{Console, Ends};
use nelly_vmm::virtio::device::Device;
use nelly_vmm::virtio::spec::feature;
use nelly_vmm::virtio::testing::{Bench, Part};

use super::Bytes;

/// Most bytes that the guest's buffers of one queue take.
const BUFFERS_MOST: usize = 6 << 20;

/// The first byte chooses what the driver negotiates; steps of four bytes follow.
///
/// # Panics
/// When bytes are lost, come twice or out of order, or the device breaks.
pub fn run(data: &[u8]) {
    let _ = passed(data);
}

/// As [`run`]; how many bytes went to the peer, and how many to the guest.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn passed(data: &[u8]) -> (usize, usize) {
    let mut input = Bytes(data);
    let [choice] = input.take();
    let (ours, peer) = UnixStream::pair().expect("a pair of sockets");
    for end in [&ours, &peer] {
        end.set_nonblocking(true).expect("a socket");
    }
    let read = Some(ours.try_clone().expect("a descriptor").into());
    let mut device = Console::new(Ends { input: read, output: Some(ours.into()) });
    let mut features = feature::VERSION_1 | u64::from(choice & 1);
    if choice & 2 == 0 {
        features |= feature::EVENT_IDX | feature::INDIRECT_DESC;
    }
    let bench = Bench::new(&mut device, 64, Some(features));
    let tables = choice & 2 == 0;
    let mut side =
        Side { bench, tables, peer: Some(peer), written: 0, taken: [0; 2], buffers: [0; 2], next: [0; 2] };
    while !input.is_empty() && side.step(&mut device, features, input.take()) {}
    side.finish();
    assert_eq!(side.bench.interrupt.faults(), 0);
    (side.taken[1], side.taken[0])
}

struct Side {
    bench: Bench,
    /// Indirect tables were negotiated.
    tables: bool,
    peer: Option<UnixStream>,
    /// Bytes that the peer wrote.
    written: usize,
    /// Bytes that the guest, and the peer, read.
    taken: [usize; 2],
    /// Bytes of buffers given to each queue.
    buffers: [usize; 2],
    /// The next byte that the peer, and the guest, say: each counts.
    next: [usize; 2],
}

/// The byte at this place of what either side says: 251 is no length of a buffer.
fn byte(at: usize) -> u8 {
    u8::try_from(at % 251).expect("it is below 256")
}

impl Side {
    /// One step; `false` when there is no more room.
    fn step(&mut self, device: &mut Console, features: u64, [op, low, high, c]: [u8; 4]) -> bool {
        let len = usize::from(u16::from_le_bytes([low, high & 0x3f]));
        match op & 7 {
            0 | 1 => {
                let pieces = 1 + usize::from(c & 3);
                let all = len * pieces + 16 * pieces + 16;
                if self.bench.queues[1].room() < pieces + 1 || self.buffers[1] + all > BUFFERS_MOST {
                    return false;
                }
                self.buffers[1] += all;
                let mut parts = Vec::new();
                for _ in 0..pieces {
                    parts.push(Part::Read((self.next[1]..self.next[1] + len).map(byte).collect()));
                    self.next[1] += len;
                }
                // Room for an answer, of which there is none.
                if c & 4 != 0 {
                    parts.push(Part::Write(8));
                }
                self.add(1, &parts, c & 8 != 0);
            }
            2 | 3 => {
                let len = if op & 8 == 0 { len % 64 } else { len };
                let pieces = 1 + usize::from(c & 3);
                let all = len * pieces + 16 * pieces + 16;
                if self.bench.queues[0].room() < pieces + 1 || self.buffers[0] + all > BUFFERS_MOST {
                    return false;
                }
                self.buffers[0] += all;
                let mut parts = vec![Part::Write(u32::try_from(len).expect("a small buffer")); pieces];
                if c & 4 != 0 {
                    parts.insert(0, Part::Read(vec![c; 8]));
                }
                self.add(0, &parts, c & 8 != 0);
            }
            4 => {
                let said: Vec<u8> = (self.next[0]..self.next[0] + len).map(byte).collect();
                if let Some(Ok(some)) = self.peer.as_mut().map(|peer| peer.write(&said)) {
                    self.next[0] += some;
                    self.written += some;
                }
            }
            5 => self.peer_takes(len),
            6 => {
                let returned = self.bench.stop();
                device.reclaim(returned.state);
                self.bench.resume(device, features, returned.queues);
            }
            _ if op == 0xff => self.peer = None,
            _ => device.size().set(u16::from(low), u16::from(high)).expect("a line that counts"),
        }
        if op & 0x10 == 0 {
            self.turn();
        }
        true
    }

    fn add(&mut self, queue: usize, parts: &[Part], indirect: bool) {
        let queue = &mut self.bench.queues[queue];
        if indirect && self.tables {
            queue.add_indirect(parts)
        } else {
            queue.add(parts)
        };
    }

    fn turn(&mut self) {
        for queue in 0..2 {
            self.bench.kick(queue);
        }
        while self.bench.queues[1].used().is_some() {}
        while let Some(used) = self.bench.queues[0].used() {
            let len = usize::try_from(used.len).expect("a small buffer");
            for &found in &used.data[..len] {
                assert_eq!(found, byte(self.taken[0]), "the guest reads what the peer wrote");
                self.taken[0] += 1;
            }
            assert!(used.data[len..].iter().all(|&byte| byte == 0xa5), "nothing is written behind");
        }
        assert!(self.taken[0] <= self.written);
    }

    fn peer_takes(&mut self, len: usize) {
        let Some(peer) = &mut self.peer else { return };
        let mut bytes = vec![0; len.max(1)];
        match peer.read(&mut bytes) {
            Ok(some) => {
                for found in &bytes[..some] {
                    assert_eq!(*found, byte(self.taken[1]), "the peer reads what the guest wrote");
                    self.taken[1] += 1;
                }
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "the device closes nothing"),
        }
    }

    /// A peer that takes everything gets all that the guest said.
    fn finish(&mut self) {
        self.turn();
        while self.peer.is_some() && self.taken[1] < self.next[1] {
            let before = self.taken[1];
            self.peer_takes(1 << 16);
            self.turn();
            assert!(self.taken[1] > before, "bytes of the guest are lost");
        }
    }
}

/// Both ways, in pieces, with a pause; a peer that takes nothing, and one that goes.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let step = |op: u8, len: u16, c: u8| {
        let [low, high] = len.to_le_bytes();
        [op, low, high, c]
    };
    let (say, listen, write, take, pause) =
        (step(0, 300, 2), step(2, 40, 1), step(4, 200, 0), step(5, 4000, 0), step(6, 0, 0));
    let (much, size, gone) = (step(1, 0x3fff, 3), step(7, 80, 0), step(0xff, 0, 0));
    vec![
        [&[1][..], &say, &listen, &write, &take, &listen, &pause, &size, &listen, &take].concat(),
        [&[0][..], &much, &much, &much, &much, &pause, &take, &write, &step(11, 900, 4)].concat(),
        [&[2][..], &much, &much, &much, &much, &gone, &say, &listen].concat(),
    ]
}
