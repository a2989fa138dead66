//! What the guest sends.

use super::{Heard, RETRY, State, Tcp, before};
use crate::core::table::Time;
use crate::wire::tcp::{Segment, flag};

impl Tcp {
    /// A segment of the guest with `len` bytes of payload.
    pub(crate) fn segment(&mut self, now: Time, segment: &Segment, len: usize) -> Heard {
        let mut heard = Heard::default();
        match self.state {
            // Whoever calls again is answered when there is an answer.
            State::Dialing => {
                heard.reset = segment.has(flag::RST) && segment.seq == self.rcv;
                return heard;
            }
            State::Calling => return self.answer(now, segment),
            State::Answering | State::Open => {}
        }
        self.heard = now;
        self.asked = 0;
        if segment.has(flag::RST) {
            let ahead = segment.seq.wrapping_sub(self.rcv);
            heard.reset = ahead == 0;
            // A reset that only guessed is asked about.
            self.ack_due |= ahead != 0 && ahead < self.edge.wrapping_sub(self.rcv);
            return heard;
        }
        if segment.has(flag::SYN) {
            if self.state == State::Answering && self.began_with(segment) {
                self.nxt = self.una;
            } else {
                self.ack_due = true;
            }
            return heard;
        }
        if !segment.has(flag::ACK) {
            return heard;
        }
        if self.state == State::Answering {
            if segment.ack != self.max {
                // Of another connection between the same ends, or made up.
                heard.reset = true;
                return heard;
            }
            self.state = State::Open;
            self.una = segment.ack;
            self.nxt = segment.ack;
            self.settle();
            heard.opened = true;
        }
        if before(self.max, segment.ack) {
            self.ack_due = true;
            return heard;
        }
        self.acknowledged(now, segment, len, &mut heard);
        self.data(now, segment, len, &mut heard);
        heard
    }

    /// What the guest says to a call of ours.
    fn answer(&mut self, now: Time, segment: &Segment) -> Heard {
        let mut heard = Heard::default();
        let ours = segment.has(flag::ACK) && segment.ack == self.max && self.max != self.una;
        if segment.has(flag::RST) {
            heard.reset = ours;
        } else if segment.has(flag::SYN) && ours {
            self.heard = now;
            self.active = now;
            self.learn(segment);
            self.rcv = segment.seq.wrapping_add(1);
            self.edge = self.rcv;
            self.una = segment.ack;
            self.nxt = segment.ack;
            self.state = State::Open;
            self.settle();
            self.ack_due = true;
            heard.opened = true;
        }
        heard
    }

    /// Nothing is under way any more.
    fn settle(&mut self) {
        self.retry = None;
        self.tries = 0;
        self.same = 0;
        self.one = false;
        self.wait = RETRY;
    }

    fn acknowledged(&mut self, now: Time, segment: &Segment, len: usize, heard: &mut Heard) {
        let window = u32::from(segment.window) << self.shift.unwrap_or(0);
        if before(segment.ack, self.una) {
            return;
        }
        if before(self.una, segment.ack) {
            let mut gone = segment.ack.wrapping_sub(self.una);
            if gone > self.buffered {
                // The end of the stream has a number too, and it was sent.
                gone = self.buffered;
                self.fin_acked = true;
            }
            self.buffered -= gone;
            heard.freed = gone;
            self.una = segment.ack;
            if before(self.nxt, self.una) {
                self.nxt = self.una;
            }
            self.settle();
            self.active = now;
            if self.nxt != self.una {
                self.retry = Some(now + self.wait);
            }
        } else if self.nxt != self.una && len == 0 && window == self.window && !segment.has(flag::FIN) {
            self.same = self.same.saturating_add(1);
            if self.same == 3 {
                self.nxt = self.una;
                self.one = true;
            }
        }
        if window > self.window && self.nxt == self.una {
            // Room again: what waited for a look at the window goes now.
            self.settle();
        }
        self.window = window;
        if window == 0 {
            // It answers, so it is there, however long it takes.
            self.tries = 0;
        }
    }

    fn data(&mut self, now: Time, segment: &Segment, len: usize, heard: &mut Heard) {
        let fin = segment.has(flag::FIN);
        if len == 0 && !fin {
            // A question whether we are there stands one before what is expected.
            self.ack_due |= segment.seq != self.rcv;
            return;
        }
        self.ack_due = true;
        if self.guest_fin || before(self.rcv, segment.seq) {
            return;
        }
        let Ok(skip) = usize::try_from(self.rcv.wrapping_sub(segment.seq)) else { return };
        let Some(new) = len.checked_sub(skip) else { return };
        let room = self.edge.wrapping_sub(self.rcv);
        let taken = new.min(crate::number::index(if room < 1 << 31 { room } else { 0 }));
        if taken > 0 {
            heard.take = Some(skip..skip + taken);
            self.rcv = self.rcv.wrapping_add(crate::number::len32(taken));
            self.active = now;
        }
        if fin && taken == new {
            self.rcv = self.rcv.wrapping_add(1);
            self.edge = if before(self.edge, self.rcv) { self.rcv } else { self.edge };
            self.guest_fin = true;
            self.active = now;
            heard.fin = true;
        }
    }

    /// What was taken could not be kept after all: the guest sends it again.
    pub(crate) fn untake(&mut self, heard: &mut Heard) {
        let taken = heard.take.take().map_or(0, |range| range.len());
        let fin = u32::from(std::mem::take(&mut heard.fin));
        self.guest_fin &= fin == 0;
        self.rcv = self.rcv.wrapping_sub(crate::number::len32(taken)).wrapping_sub(fin);
    }
}
