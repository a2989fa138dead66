//! One connection as the protocol sees it: phase, half closes and credit both ways. No descriptor,
//! no buffer, no clock.
//!
//! What arrives goes through [`Connection::receive`]; what should be said comes out of
//! [`Connection::next`] and [`Connection::may_send`]. Credit is virtio 1.2, section 5.10.6.3:
//! counters run modulo 2^32.

use super::packet::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};

/// Who is who: the two ports of a connection. Both context ids are the device's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The port in the guest.
    pub(super) guest: u32,
    /// The port on the host.
    pub(super) host: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The host asked, the guest has not answered.
    Dialling,
    /// Both ends agreed.
    Open,
}

/// What a packet from the guest means for the owner of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// Nothing to be done beyond asking [`Connection::next`] and [`Connection::may_send`] again.
    Nothing,
    /// The guest accepted the host's request.
    Opened,
    /// This many payload bytes belong to the host side. Each must come back by
    /// [`Connection::forwarded`].
    Data(u32),
    /// The payload is for nobody: the host side reads no more. It was counted as forwarded.
    Discard,
    /// The guest closed one direction or both halves one after the other.
    HalfClosed,
    /// The guest closed both directions: answer RST, deliver what is left, forget the connection.
    Finished,
    /// The guest reset the connection: deliver what is left, forget it, answer nothing.
    Reset,
    /// The guest broke the protocol: answer RST, forget the connection.
    Fault(Fault),
}

/// How a guest broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// An operation that does not fit the phase.
    OutOfPhase,
    /// More payload than we gave credit for.
    NoCredit,
    /// Payload behind its own SHUTDOWN.
    AfterShutdown,
    /// An operation number that does not exist.
    UnknownOp,
}

/// Packets that wait to be said, beside data.
mod todo {
    pub(super) const REQUEST: u8 = 1;
    pub(super) const RESPONSE: u8 = 2;
    pub(super) const SHUTDOWN: u8 = 4;
    pub(super) const CREDIT_UPDATE: u8 = 8;
    pub(super) const CREDIT_REQUEST: u8 = 16;
}

/// One connection's protocol state.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    phase: Phase,
    todo: u8,
    /// CREDIT_REQUEST was said and no credit has come since.
    asked: bool,
    /// SHUTDOWN flags the guest has said.
    guest_over: u32,
    /// SHUTDOWN flags we have said, or have to say.
    host_over: u32,
    /// The guest's receive buffer and what it has taken out of it.
    guest_alloc: u32,
    guest_forwarded: u32,
    /// Payload bytes sent to the guest.
    sent: u32,
    /// Our receive buffer, payload received into it and taken out of it, and what the guest knows
    /// of the latter.
    window: u32,
    received: u32,
    forwarded: u32,
    announced: u32,
}

impl Connection {
    fn new(phase: Phase, window: u32, todo: u8) -> Self {
        Self {
            phase,
            todo,
            asked: false,
            guest_over: 0,
            host_over: 0,
            guest_alloc: 0,
            guest_forwarded: 0,
            sent: 0,
            window,
            received: 0,
            forwarded: 0,
            announced: 0,
        }
    }

    /// The host dials: REQUEST is to be said. The guest may send `window` bytes before the host has
    /// taken any.
    #[must_use]
    pub(super) fn dial(window: u32) -> Self {
        Self::new(Phase::Dialling, window, todo::REQUEST)
    }

    /// The host accepts the guest's REQUEST `header`: RESPONSE is to be said.
    #[must_use]
    pub(super) fn accept(window: u32, header: &Header) -> Self {
        let mut connection = Self::new(Phase::Open, window, todo::RESPONSE);
        connection.take_credit(header);
        connection
    }

    /// Takes in one packet of the guest. RST is to be answered where the result says so, by the
    /// owner.
    pub(super) fn receive(&mut self, header: &Header) -> Received {
        let Some(op) = Op::from_raw(header.op) else { return Received::Fault(Fault::UnknownOp) };
        if op == Op::Rst {
            return Received::Reset;
        }
        self.take_credit(header);
        match (self.phase, op) {
            (Phase::Dialling, Op::Response) => {
                self.phase = Phase::Open;
                Received::Opened
            }
            (Phase::Open, Op::Rw) => self.receive_data(header.len),
            (Phase::Open, Op::Shutdown) => {
                self.guest_over |= header.flags & SHUTDOWN_BOTH;
                if self.guest_over == SHUTDOWN_BOTH { Received::Finished } else { Received::HalfClosed }
            }
            (Phase::Open, Op::CreditUpdate) => Received::Nothing,
            (Phase::Open, Op::CreditRequest) => {
                self.todo |= todo::CREDIT_UPDATE;
                Received::Nothing
            }
            (Phase::Dialling, _) | (Phase::Open, Op::Request | Op::Response | Op::Rst) => {
                Received::Fault(Fault::OutOfPhase)
            }
        }
    }

    fn receive_data(&mut self, len: u32) -> Received {
        if self.guest_over & SHUTDOWN_SEND != 0 {
            return Received::Fault(Fault::AfterShutdown);
        }
        if len > self.window - self.received.wrapping_sub(self.forwarded) {
            return Received::Fault(Fault::NoCredit);
        }
        self.received = self.received.wrapping_add(len);
        if self.host_over & SHUTDOWN_RECEIVE != 0 {
            self.forwarded(len);
            return Received::Discard;
        }
        Received::Data(len)
    }

    fn take_credit(&mut self, header: &Header) {
        self.guest_alloc = header.buf_alloc;
        self.guest_forwarded = header.fwd_cnt;
        if self.credit() > 0 {
            self.asked = false;
            self.todo &= !todo::CREDIT_REQUEST;
        }
    }

    /// What the guest has room for. A guest that claims to have taken more than was sent has room
    /// for nothing.
    fn credit(&self) -> u32 {
        self.guest_alloc.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    /// Payload bytes that may be sent now: 0 before the connection is open, without credit, and
    /// once either end closed this direction.
    #[must_use]
    pub(super) fn may_send(&self) -> u32 {
        if self.wants_data() { self.credit() } else { 0 }
    }

    /// Data of the host would still be sent, were there credit.
    #[must_use]
    pub(super) fn wants_data(&self) -> bool {
        self.phase == Phase::Open
            && self.todo & todo::RESPONSE == 0
            && self.guest_over & SHUTDOWN_RECEIVE == 0
            && self.host_over & SHUTDOWN_SEND == 0
    }

    /// `count` payload bytes went out, at most [`Self::may_send`].
    pub(super) fn sent(&mut self, count: u32) {
        debug_assert!(count <= self.may_send());
        self.sent = self.sent.wrapping_add(count);
        self.todo &= !todo::CREDIT_UPDATE;
        // The guest tells of room it makes by itself; asking covers the one whose word depends on
        // being asked.
        if self.credit() == 0 && !self.asked {
            self.asked = true;
            self.todo |= todo::CREDIT_REQUEST;
        }
    }

    /// The host side took `count` bytes of what [`Received::Data`] gave.
    pub(super) fn forwarded(&mut self, count: u32) {
        self.forwarded = self.forwarded.wrapping_add(count);
        // Half the window keeps the guest sending and costs one packet per half window. A guest
        // that waits for room finds at least half the window once all is forwarded, so it never
        // waits for ever.
        let untold = self.forwarded.wrapping_sub(self.announced);
        if untold >= self.window / 2 && self.guest_over & SHUTDOWN_SEND == 0 {
            self.todo |= todo::CREDIT_UPDATE;
        }
    }

    /// The host side has no more to send: everything it wrote has been sent.
    pub(super) fn host_ended(&mut self) {
        self.close(SHUTDOWN_SEND);
    }

    /// The host side will take no more bytes; what still comes is discarded.
    pub(super) fn host_refuses(&mut self) {
        self.close(SHUTDOWN_RECEIVE);
        // What was received and not taken is for nobody now.
        self.forwarded = self.received;
    }

    fn close(&mut self, flags: u32) {
        if self.host_over | flags != self.host_over {
            self.host_over |= flags;
            self.todo |= todo::SHUTDOWN;
        }
    }

    /// The host accepted no more bytes by [`Self::host_refuses`].
    #[must_use]
    pub(super) fn refuses(&self) -> bool {
        self.host_over & SHUTDOWN_RECEIVE != 0
    }

    /// The host side came to its end by [`Self::host_ended`].
    #[must_use]
    pub(super) fn ended(&self) -> bool {
        self.host_over & SHUTDOWN_SEND != 0
    }

    /// The guest has said that it sends no more.
    #[must_use]
    pub(super) fn guest_ended(&self) -> bool {
        self.guest_over & SHUTDOWN_SEND != 0
    }

    /// The guest has said that it receives no more.
    #[must_use]
    pub(super) fn guest_refuses(&self) -> bool {
        self.guest_over & SHUTDOWN_RECEIVE != 0
    }

    /// Our REQUEST has left and is not answered yet.
    #[must_use]
    pub(super) fn is_ringing(&self) -> bool {
        self.phase == Phase::Dialling && self.todo & todo::REQUEST == 0
    }

    /// Something other than data waits to be said.
    #[must_use]
    pub(super) fn has_word(&self) -> bool {
        self.todo != 0
    }

    /// A word waits that data must not delay: an opening or a close.
    #[must_use]
    pub(super) fn is_urgent(&self) -> bool {
        self.todo & (todo::REQUEST | todo::RESPONSE | todo::SHUTDOWN) != 0
    }

    /// The next packet beside data, with its flags, taken off the list. A data packet carries
    /// credit, so an owner with data sends that first unless [`Self::is_urgent`].
    pub(super) fn next(&mut self) -> Option<(Op, u32)> {
        let word = self.todo & self.todo.wrapping_neg();
        self.todo &= !word;
        Some(match word {
            todo::REQUEST => (Op::Request, 0),
            todo::RESPONSE => (Op::Response, 0),
            todo::SHUTDOWN => (Op::Shutdown, self.host_over),
            todo::CREDIT_UPDATE => (Op::CreditUpdate, 0),
            todo::CREDIT_REQUEST => (Op::CreditRequest, 0),
            _ => return None,
        })
    }

    /// The header of a packet to the guest on `guest_cid`; it carries our credit, which from here
    /// on the guest knows.
    pub(super) fn header(&mut self, guest_cid: u64, key: Key, op: Op, flags: u32, len: u32) -> Header {
        self.announced = self.forwarded;
        Header {
            src_cid: super::packet::HOST_CID,
            dst_cid: guest_cid,
            src_port: key.host,
            dst_port: key.guest,
            len,
            kind: TYPE_STREAM,
            op: op.raw(),
            flags,
            buf_alloc: self.window,
            fwd_cnt: self.forwarded,
        }
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
