//! A guest for the tests: a driver that keeps the receive queue full and a socket layer written
//! from the specification.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};

use super::super::connection::Key;
use super::super::packet::{
    HEADER_LEN, HOST_CID, Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};
use super::super::{Vsock, VsockControl};
use crate::virtio::spec::descriptor as flag;
use crate::virtio::testing::{Bench, Part};

pub(super) const CID: u64 = 3;
const RX: usize = 0;
const TX: usize = 1;
/// A receive buffer as Linux makes them.
const BUFFER: u32 = 4096 + 44;

/// One socket of the guest.
pub(super) struct Socket {
    pub(super) accepted: bool,
    pub(super) reset: bool,
    pub(super) received: Vec<u8>,
    /// Bytes counted as read by the application; by default all, at once.
    pub(super) lazy: bool,
    pub(super) host_over: u32,
    alloc: u32,
    rx: u32,
    forwarded: u32,
    announced: u32,
    host_alloc: u32,
    host_forwarded: u32,
    tx: u32,
}

impl Socket {
    fn new(alloc: u32, header: Option<&Header>) -> Self {
        Self {
            accepted: header.is_some(),
            reset: false,
            received: Vec::new(),
            lazy: false,
            host_over: 0,
            alloc,
            rx: 0,
            forwarded: 0,
            announced: 0,
            host_alloc: header.map_or(0, |header| header.buf_alloc),
            host_forwarded: header.map_or(0, |header| header.fwd_cnt),
            tx: 0,
        }
    }

    pub(super) fn credit(&self) -> u32 {
        self.host_alloc - self.tx.wrapping_sub(self.host_forwarded)
    }
}

pub(super) struct Guest {
    pub(super) bench: Bench,
    pub(super) device: Vsock,
    pub(super) control: VsockControl,
    pub(super) sockets: HashMap<Key, Socket>,
    /// Ports that accept.
    pub(super) listening: HashSet<u32>,
    /// Everything that came, for tests that look closely.
    pub(super) log: Option<Vec<(Header, usize)>>,
    /// Receive buffers are given back.
    pub(super) refill: bool,
    /// Receive buffers the device does not have now.
    kept: Vec<u16>,
    seen: u16,
    buffers: Vec<u64>,
    replies: VecDeque<Header>,
    next_port: u32,
    pub(super) alloc: u32,
}

impl Guest {
    pub(super) fn new((mut device, control): (Vsock, VsockControl)) -> Self {
        let mut bench = Bench::new(&mut device, 256, None);
        let size = bench.queues[RX].config().size;
        let buffers: Vec<u64> = (0..size).map(|_| bench.queues[RX].allocate(u64::from(BUFFER))).collect();
        for index in 0..size {
            bench.queues[RX].descriptor(index, buffers[usize::from(index)], BUFFER, flag::WRITE, 0);
        }
        let mut guest = Self {
            bench,
            device,
            control,
            sockets: HashMap::new(),
            listening: HashSet::new(),
            log: None,
            refill: true,
            kept: (0..size).collect(),
            seen: 0,
            buffers,
            replies: VecDeque::new(),
            next_port: 5000,
            alloc: 64 << 10,
        };
        guest.pump();
        guest
    }

    /// Gives `count` receive buffers to the device without telling it.
    pub(super) fn offer(&mut self, count: usize) {
        for _ in 0..count {
            let Some(head) = self.kept.pop() else { return };
            self.bench.queues[RX].offer(head);
        }
    }

    pub(super) fn kick_rx(&mut self) {
        self.bench.kick(RX);
    }

    /// Next packet of the device, if there is one.
    fn take(&mut self) -> Option<(Header, Vec<u8>)> {
        let config = self.bench.queues[RX].config();
        let memory = &self.bench.memory;
        let index: u16 = memory.load(GuestAddress(config.used + 2), Ordering::Acquire).unwrap();
        if u16::from_le(index) == self.seen {
            return None;
        }
        let element = config.used + 4 + 8 * u64::from(self.seen % config.size);
        let head: u32 = memory.read_obj(GuestAddress(element)).unwrap();
        let len: u32 = memory.read_obj(GuestAddress(element + 4)).unwrap();
        let head = u16::try_from(head).unwrap();
        assert!(!self.kept.contains(&head), "a buffer comes back once");
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        memory.read_slice(&mut bytes, GuestAddress(self.buffers[usize::from(head)])).unwrap();
        self.seen = self.seen.wrapping_add(1);
        self.kept.push(head);
        let header = Header::decode(bytes.first_chunk::<HEADER_LEN>().expect("a header"));
        let payload = bytes.split_off(HEADER_LEN);
        let expected = if header.op == Op::Rw.raw() { header.len } else { 0 };
        assert_eq!(u32::try_from(payload.len()).unwrap(), expected);
        assert_eq!(header.dst_cid, CID);
        Some((header, payload))
    }

    /// Takes what the device sent and answers it, without giving buffers back or waking it.
    pub(super) fn collect(&mut self) -> usize {
        let mut count = 0;
        while let Some((header, payload)) = self.take() {
            count += 1;
            if let Some(log) = &mut self.log {
                log.push((header, payload.len()));
            }
            self.hear(&header, payload);
        }
        count
    }

    /// Lets everything happen that can happen without another step of the test.
    pub(super) fn pump(&mut self) {
        loop {
            self.bench.turn();
            let mut moved = self.collect() > 0;
            if self.refill && !self.kept.is_empty() {
                self.offer(usize::MAX);
                self.bench.kick(RX);
                moved = true;
            }
            while let Some(header) = self.replies.pop_front() {
                self.send(header, &[]);
                moved = true;
            }
            if !moved {
                return;
            }
        }
    }

    fn hear(&mut self, header: &Header, payload: Vec<u8>) {
        if header.src_cid != HOST_CID {
            // A reset of what was sent to somebody else.
            assert_eq!(header.op, Op::Rst.raw());
            return;
        }
        let key = Key { guest: header.dst_port, host: header.src_port };
        let op = Op::from_raw(header.op).unwrap();
        if op == Op::Request {
            if self.listening.contains(&key.guest) {
                self.sockets.insert(key, Socket::new(self.alloc, Some(header)));
                self.reply(key, Op::Response, 0);
            } else {
                self.replies.push_back(Self::header(key, Op::Rst, 0, 0));
            }
            return;
        }
        let Some(socket) = self.sockets.get_mut(&key) else {
            if op != Op::Rst {
                self.replies.push_back(Self::header(key, Op::Rst, 0, 0));
            }
            return;
        };
        if op == Op::Rst {
            socket.reset = true;
            return;
        }
        socket.host_alloc = header.buf_alloc;
        socket.host_forwarded = header.fwd_cnt;
        assert!(
            socket.tx.wrapping_sub(socket.host_forwarded) <= socket.host_alloc,
            "more forwarded than sent"
        );
        match op {
            Op::Response => {
                assert!(!socket.accepted, "one RESPONSE");
                socket.accepted = true;
            }
            Op::Rw => {
                assert!(socket.accepted && socket.host_over & SHUTDOWN_SEND == 0);
                socket.rx = socket.rx.wrapping_add(header.len);
                assert!(socket.rx.wrapping_sub(socket.announced) <= socket.alloc, "credit overrun");
                socket.received.extend(payload);
                if !socket.lazy {
                    self.read(key, u32::MAX);
                }
            }
            Op::Shutdown => {
                socket.host_over |= header.flags;
                if socket.host_over == SHUTDOWN_BOTH && !socket.lazy {
                    socket.reset = true;
                    self.replies.push_back(Self::header(key, Op::Rst, 0, 0));
                }
            }
            Op::CreditUpdate => {}
            Op::CreditRequest => self.reply(key, Op::CreditUpdate, 0),
            Op::Request | Op::Rst => unreachable!("handled above"),
        }
    }

    /// The application reads at most `most` bytes; credit is told as Linux does.
    pub(super) fn read(&mut self, key: Key, most: u32) {
        let socket = self.sockets.get_mut(&key).unwrap();
        let count = socket.rx.wrapping_sub(socket.forwarded).min(most);
        socket.forwarded = socket.forwarded.wrapping_add(count);
        let free = socket.alloc - socket.rx.wrapping_sub(socket.announced);
        if socket.forwarded != socket.announced && free < socket.alloc / 2 {
            self.reply(key, Op::CreditUpdate, 0);
        }
    }

    /// A header of this key with whatever credit `alloc` and `forwarded` say.
    pub(super) fn header(key: Key, op: Op, flags: u32, len: u32) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: key.guest,
            dst_port: key.host,
            len,
            kind: TYPE_STREAM,
            op: op.raw(),
            flags,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }

    fn credited(&mut self, key: Key, op: Op, flags: u32, len: u32) -> Header {
        let socket = self.sockets.get_mut(&key).unwrap();
        socket.announced = socket.forwarded;
        let header = Self::header(key, op, flags, len);
        Header { buf_alloc: socket.alloc, fwd_cnt: socket.forwarded, ..header }
    }

    fn reply(&mut self, key: Key, op: Op, flags: u32) {
        let header = self.credited(key, op, flags, 0);
        self.replies.push_back(header);
    }

    /// Puts one packet on the transmit queue, in the shape Linux gives it.
    pub(super) fn send(&mut self, header: Header, payload: &[u8]) {
        let mut parts = vec![Part::Read(header.encode().to_vec())];
        if !payload.is_empty() {
            parts.push(Part::Read(payload.to_vec()));
        }
        self.send_parts(&parts);
    }

    pub(super) fn send_parts(&mut self, parts: &[Part]) {
        self.bench.queues[TX].add(parts);
        self.bench.kick(TX);
        while let Some(used) = self.bench.queues[TX].used() {
            assert_eq!(used.len, 0);
        }
    }

    /// Dials `host`; the answer shows in the socket.
    pub(super) fn dial(&mut self, host: u32) -> Key {
        self.next_port += 1;
        let key = Key { guest: self.next_port, host };
        self.sockets.insert(key, Socket::new(self.alloc, None));
        let header = self.credited(key, Op::Request, 0, 0);
        self.send(header, &[]);
        self.pump();
        key
    }

    /// Sends as much as there is credit for; returns how much that was.
    pub(super) fn write(&mut self, key: Key, bytes: &[u8]) -> usize {
        let credit = usize::try_from(self.sockets[&key].credit()).unwrap();
        let count = bytes.len().min(credit).min(64 << 10);
        if count > 0 {
            let len = u32::try_from(count).unwrap();
            let header = self.credited(key, Op::Rw, 0, len);
            let socket = self.sockets.get_mut(&key).unwrap();
            socket.tx = socket.tx.wrapping_add(len);
            self.send(header, &bytes[..count]);
        }
        self.pump();
        count
    }

    pub(super) fn write_all(&mut self, key: Key, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let count = self.write(key, &bytes[done..]);
            assert!(count > 0, "no credit at byte {done}");
            done += count;
        }
    }

    pub(super) fn shutdown(&mut self, key: Key, flags: u32) {
        assert_eq!(flags & !SHUTDOWN_BOTH, 0);
        let header = self.credited(key, Op::Shutdown, flags, 0);
        self.send(header, &[]);
        self.pump();
    }

    /// The sockets that live.
    pub(super) fn open(&self) -> Vec<Key> {
        self.sockets
            .iter()
            .filter(|(_, socket)| socket.accepted && !socket.reset)
            .map(|(key, _)| *key)
            .collect()
    }

    /// The host has said that it sends no more.
    pub(super) fn at_end(&self, key: Key) -> bool {
        self.sockets[&key].host_over & SHUTDOWN_SEND != 0
    }

    pub(super) fn refused(&self, key: Key) -> bool {
        self.sockets[&key].host_over & SHUTDOWN_RECEIVE != 0
    }
}
