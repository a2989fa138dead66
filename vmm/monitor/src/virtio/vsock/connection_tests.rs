use std::collections::VecDeque;
use std::convert::Infallible;

use proptest::prelude::*;

use super::super::backlog::Backlog;
use super::super::packet::HOST_CID;
use super::*;

const CID: u64 = 3;
const KEY: Key = Key { guest: 1000, host: 2000 };
const WINDOW: u32 = 1024;

fn packet(op: Op, flags: u32, len: u32) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: KEY.guest,
        dst_port: KEY.host,
        len,
        kind: TYPE_STREAM,
        op: op.raw(),
        flags,
        buf_alloc: 100,
        fwd_cnt: 0,
    }
}

fn dialling() -> Connection {
    let mut connection = Connection::dial(WINDOW);
    assert_eq!(connection.next(), Some((Op::Request, 0)));
    connection
}

fn open() -> Connection {
    let mut connection = Connection::accept(WINDOW, &packet(Op::Request, 0, 0));
    assert_eq!(connection.may_send(), 0, "nothing may overtake the RESPONSE");
    assert_eq!(connection.next(), Some((Op::Response, 0)));
    assert_eq!(connection.may_send(), 100);
    connection
}

/// The whole table: every operation in every phase.
#[test]
fn every_operation_in_every_phase() {
    let half = |flags: u32| {
        move || {
            let mut connection = open();
            assert_eq!(connection.receive(&packet(Op::Shutdown, flags, 0)), Received::HalfClosed);
            connection
        }
    };
    let out = Received::Fault(Fault::OutOfPhase);
    let after = Received::Fault(Fault::AfterShutdown);
    use Received::{Data, Finished, HalfClosed, Nothing, Opened, Reset};
    type Make = Box<dyn Fn() -> Connection>;
    // Columns: REQUEST, RESPONSE, RST, SHUTDOWN(RECEIVE), SHUTDOWN(SEND), SHUTDOWN(BOTH), RW,
    // CREDIT_UPDATE, CREDIT_REQUEST.
    let table: [(&str, Make, [Received; 9]); 4] = [
        ("dialling", Box::new(dialling), [out, Opened, Reset, out, out, out, out, out, out]),
        (
            "open",
            Box::new(open),
            [out, out, Reset, HalfClosed, HalfClosed, Finished, Data(5), Nothing, Nothing],
        ),
        (
            "guest receives no more",
            Box::new(half(SHUTDOWN_RECEIVE)),
            [out, out, Reset, HalfClosed, Finished, Finished, Data(5), Nothing, Nothing],
        ),
        (
            "guest sends no more",
            Box::new(half(SHUTDOWN_SEND)),
            [out, out, Reset, Finished, HalfClosed, Finished, after, Nothing, Nothing],
        ),
    ];
    let packets = [
        packet(Op::Request, 0, 0),
        packet(Op::Response, 0, 0),
        packet(Op::Rst, 0, 0),
        packet(Op::Shutdown, SHUTDOWN_RECEIVE, 0),
        packet(Op::Shutdown, SHUTDOWN_SEND, 0),
        packet(Op::Shutdown, SHUTDOWN_BOTH, 0),
        packet(Op::Rw, 0, 5),
        packet(Op::CreditUpdate, 0, 0),
        packet(Op::CreditRequest, 0, 0),
    ];
    for (name, make, row) in &table {
        for (sent, expected) in packets.iter().zip(row) {
            assert_eq!(make().receive(sent), *expected, "{name}: {:?}", Op::from_raw(sent.op));
        }
        let unknown = Header { op: 8, ..packet(Op::Rw, 0, 0) };
        assert_eq!(make().receive(&unknown), Received::Fault(Fault::UnknownOp), "{name}");
    }
}

#[test]
fn undefined_shutdown_flags_are_ignored() {
    let mut connection = open();
    assert_eq!(connection.receive(&packet(Op::Shutdown, 0xffff_fffc, 0)), Received::HalfClosed);
    assert!(!connection.guest_ended() && !connection.guest_refuses());
}

#[test]
fn the_guest_may_fill_the_window_and_not_a_byte_more() {
    let mut connection = open();
    assert_eq!(connection.receive(&packet(Op::Rw, 0, WINDOW)), Received::Data(WINDOW));
    assert_eq!(connection.receive(&packet(Op::Rw, 0, 0)), Received::Data(0));
    assert_eq!(connection.clone().receive(&packet(Op::Rw, 0, 1)), Received::Fault(Fault::NoCredit));
    connection.forwarded(1);
    assert_eq!(connection.receive(&packet(Op::Rw, 0, 1)), Received::Data(1));
    assert_eq!(connection.receive(&packet(Op::Rw, 0, u32::MAX)), Received::Fault(Fault::NoCredit));
}

#[test]
fn credit_is_told_by_the_half_window_and_when_asked() {
    let mut connection = open();
    assert_eq!(connection.receive(&packet(Op::Rw, 0, WINDOW)), Received::Data(WINDOW));
    connection.forwarded(WINDOW / 2 - 1);
    assert_eq!(connection.next(), None);
    connection.forwarded(1);
    assert_eq!(connection.next(), Some((Op::CreditUpdate, 0)));
    let header = connection.header(CID, KEY, Op::CreditUpdate, 0, 0);
    assert_eq!((header.buf_alloc, header.fwd_cnt), (WINDOW, WINDOW / 2));
    connection.forwarded(1);
    assert_eq!(connection.next(), None);
    assert_eq!(connection.receive(&packet(Op::CreditRequest, 0, 0)), Received::Nothing);
    assert_eq!(connection.next(), Some((Op::CreditUpdate, 0)));
}

#[test]
fn counters_wrap() {
    let mut connection = open();
    connection.sent = u32::MAX - 9;
    connection.guest_forwarded = u32::MAX - 9;
    assert_eq!(connection.may_send(), 100);
    connection.sent(60);
    assert_eq!(connection.may_send(), 40);
    let update = Header { fwd_cnt: 50, ..packet(Op::CreditUpdate, 0, 0) };
    assert_eq!(connection.receive(&update), Received::Nothing);
    assert_eq!(connection.may_send(), 100);
    connection.received = u32::MAX;
    connection.forwarded = u32::MAX;
    connection.announced = u32::MAX;
    assert_eq!(connection.receive(&packet(Op::Rw, 0, WINDOW)), Received::Data(WINDOW));
    assert_eq!(connection.clone().receive(&packet(Op::Rw, 0, 1)), Received::Fault(Fault::NoCredit));
    connection.forwarded(WINDOW);
    assert_eq!(connection.next(), Some((Op::CreditUpdate, 0)));
}

#[test]
fn a_guest_that_lies_about_its_credit_gets_nothing() {
    let mut connection = open();
    let ahead = Header { fwd_cnt: 1, ..packet(Op::CreditUpdate, 0, 0) };
    assert_eq!(connection.receive(&ahead), Received::Nothing);
    assert_eq!(connection.may_send(), 0);
    let shrunk = Header { buf_alloc: 0, ..packet(Op::CreditUpdate, 0, 0) };
    assert_eq!(connection.receive(&shrunk), Received::Nothing);
    assert_eq!(connection.may_send(), 0);
}

#[test]
fn credit_is_asked_for_once() {
    let mut connection = open();
    connection.sent(100);
    assert_eq!(connection.next(), Some((Op::CreditRequest, 0)));
    assert_eq!(connection.receive(&packet(Op::CreditUpdate, 0, 0)), Received::Nothing);
    assert_eq!(connection.next(), None);
    let update = Header { fwd_cnt: 10, ..packet(Op::CreditUpdate, 0, 0) };
    assert_eq!(connection.receive(&update), Received::Nothing);
    connection.sent(10);
    assert_eq!(connection.next(), Some((Op::CreditRequest, 0)));
}

#[test]
fn half_closes_are_said_once_and_add_up() {
    let mut connection = open();
    connection.host_ended();
    assert_eq!(connection.may_send(), 0);
    assert_eq!(connection.next(), Some((Op::Shutdown, SHUTDOWN_SEND)));
    connection.host_ended();
    assert_eq!(connection.next(), None);
    assert_eq!(connection.receive(&packet(Op::Rw, 0, 7)), Received::Data(7));
    connection.host_refuses();
    assert_eq!(connection.next(), Some((Op::Shutdown, SHUTDOWN_BOTH)));
    assert_eq!(connection.receive(&packet(Op::Rw, 0, 7)), Received::Discard);
    let header = connection.header(CID, KEY, Op::CreditUpdate, 0, 0);
    assert_eq!(header.fwd_cnt, 14);
}

/// The guest's end, written from the specification alone: it checks what the device may not do.
struct Guest {
    alloc: u32,
    inbox: VecDeque<u8>,
    got: Vec<u8>,
    received: u32,
    forwarded: u32,
    announced: u32,
    sent: u32,
    host_alloc: u32,
    host_forwarded: u32,
    output: VecDeque<u8>,
    ended: bool,
    host_ended: bool,
    owes_update: bool,
}

impl Guest {
    fn new(alloc: u32, output: &[u8]) -> Self {
        Self {
            alloc,
            inbox: VecDeque::new(),
            got: Vec::new(),
            received: 0,
            forwarded: 0,
            announced: 0,
            sent: 0,
            host_alloc: 0,
            host_forwarded: 0,
            output: output.iter().copied().collect(),
            ended: false,
            host_ended: false,
            owes_update: false,
        }
    }

    fn packet(&mut self, op: Op, flags: u32, len: u32) -> Header {
        self.announced = self.forwarded;
        self.owes_update = false;
        Header { buf_alloc: self.alloc, fwd_cnt: self.forwarded, ..packet(op, flags, len) }
    }

    fn receive(&mut self, header: &Header, payload: &[u8]) {
        assert_eq!((header.src_port, header.dst_port), (KEY.host, KEY.guest));
        self.host_alloc = header.buf_alloc;
        self.host_forwarded = header.fwd_cnt;
        assert!(
            self.sent.wrapping_sub(self.host_forwarded) <= self.host_alloc,
            "forwarded what never was sent"
        );
        match Op::from_raw(header.op).unwrap() {
            Op::Rw => {
                assert!(!self.host_ended, "data behind SHUTDOWN");
                self.received += header.len;
                assert!(self.received - self.announced <= self.alloc, "credit overrun");
                self.inbox.extend(payload);
            }
            Op::Shutdown => self.host_ended |= header.flags & SHUTDOWN_SEND != 0,
            Op::CreditRequest => self.owes_update = true,
            Op::Response | Op::CreditUpdate => {}
            other => panic!("unexpected {other:?}"),
        }
    }

    fn read(&mut self, most: usize) -> usize {
        let count = most.min(self.inbox.len());
        self.got.extend(self.inbox.drain(..count));
        self.forwarded += u32::try_from(count).unwrap();
        // Like Linux: it tells of room once little is left.
        if self.announced + self.alloc - self.received <= self.alloc / 2 && self.forwarded != self.announced {
            self.owes_update = true;
        }
        count
    }

    fn write(&mut self, most: usize) -> Option<(Header, Vec<u8>)> {
        let room = self.host_alloc - self.sent.wrapping_sub(self.host_forwarded);
        let count = most.min(self.output.len()).min(usize::try_from(room).unwrap());
        if self.output.is_empty() && !self.ended {
            self.ended = true;
            return Some((self.packet(Op::Shutdown, SHUTDOWN_SEND, 0), Vec::new()));
        }
        if self.owes_update {
            return Some((self.packet(Op::CreditUpdate, 0, 0), Vec::new()));
        }
        if count == 0 {
            return None;
        }
        let bytes: Vec<u8> = self.output.drain(..count).collect();
        let len = u32::try_from(count).unwrap();
        self.sent += len;
        Some((self.packet(Op::Rw, 0, len), bytes))
    }
}

/// Both ends and the two wires between them.
struct World {
    guest: Guest,
    connection: Connection,
    backlog: Backlog,
    input: VecDeque<u8>,
    delivered: Vec<u8>,
    to_guest: VecDeque<(Header, Vec<u8>)>,
    to_host: VecDeque<(Header, Vec<u8>)>,
}

impl World {
    fn speak(&mut self, most: usize) -> bool {
        let room = usize::try_from(self.connection.may_send()).unwrap();
        let count = room.min(most).min(self.input.len());
        if count > 0 {
            let bytes: Vec<u8> = self.input.drain(..count).collect();
            let len = u32::try_from(count).unwrap();
            self.connection.sent(len);
            let header = self.connection.header(CID, KEY, Op::Rw, 0, len);
            self.to_guest.push_back((header, bytes));
            return true;
        }
        if self.input.is_empty() && self.connection.wants_data() {
            self.connection.host_ended();
        }
        let Some((op, flags)) = self.connection.next() else { return false };
        let header = self.connection.header(CID, KEY, op, flags, 0);
        self.to_guest.push_back((header, Vec::new()));
        true
    }

    fn receive(&mut self) -> bool {
        let Some((header, payload)) = self.to_host.pop_front() else { return false };
        match self.connection.receive(&header) {
            Received::Data(len) => {
                let mut rest = payload.as_slice();
                assert_eq!(usize::try_from(len).unwrap(), rest.len());
                self.backlog
                    .append(rest.len(), |piece| {
                        let (now, later) = rest.split_at(piece.len());
                        piece.copy_from_slice(now);
                        rest = later;
                        Ok::<(), Infallible>(())
                    })
                    .unwrap();
                assert!(self.backlog.len() <= usize::try_from(self.connection.window).unwrap());
            }
            Received::Nothing | Received::HalfClosed => {}
            other => panic!("unexpected {other:?}"),
        }
        true
    }

    fn drain(&mut self, most: usize) -> bool {
        let front: Vec<u8> = self.backlog.front().iter().flat_map(|piece| piece.to_vec()).collect();
        let count = most.min(front.len());
        self.delivered.extend_from_slice(&front[..count]);
        self.backlog.consume(count);
        self.connection.forwarded(u32::try_from(count).unwrap());
        count > 0
    }

    fn step(&mut self, who: u8, most: usize) -> bool {
        match who {
            0 => self.speak(most),
            1 => self.receive(),
            2 => self.drain(most),
            3 => match self.to_guest.pop_front() {
                Some((header, payload)) => {
                    self.guest.receive(&header, &payload);
                    true
                }
                None => false,
            },
            4 => self.guest.read(most) > 0,
            _ => match self.guest.write(most) {
                Some(said) => {
                    self.to_host.push_back(said);
                    true
                }
                None => false,
            },
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Whatever the interleaving, both streams arrive whole and in order, no end overruns the
    /// other, and when every end keeps working nothing is left waiting for credit that never comes.
    #[test]
    fn both_streams_arrive_whatever_the_interleaving(
        window in 1u32..3000,
        alloc in 1u32..3000,
        down in proptest::collection::vec(any::<u8>(), 0..20_000),
        up in proptest::collection::vec(any::<u8>(), 0..20_000),
        steps in proptest::collection::vec((0u8..6, 1usize..2000), 0..400),
    ) {
        let mut guest = Guest::new(alloc, &up);
        let request = guest.packet(Op::Request, 0, 0);
        let mut world = World {
            guest,
            connection: Connection::accept(window, &request),
            backlog: Backlog::default(),
            input: down.iter().copied().collect(),
            delivered: Vec::new(),
            to_guest: VecDeque::new(),
            to_host: VecDeque::new(),
        };
        world.step(0, 0);
        for (who, most) in steps {
            // The guest's socket writes only once the RESPONSE has arrived.
            if who == 5 && world.guest.host_alloc == 0 { continue; }
            world.step(who, most);
        }
        world.step(3, 0);
        loop {
            let mut moved = false;
            for who in 0..6 {
                moved |= world.step(who, 1500);
            }
            if !moved { break; }
        }
        prop_assert!(world.guest.got == down, "{} of {} arrived in the guest", world.guest.got.len(), down.len());
        prop_assert!(world.delivered == up, "{} of {} arrived on the host", world.delivered.len(), up.len());
        prop_assert!(world.guest.host_ended && world.connection.guest_ended());
        prop_assert!(world.backlog.is_empty());
    }
}
