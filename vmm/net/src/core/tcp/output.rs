//! What the guest is sent.

use super::{Out, SHIFT, State, Tcp, WINDOW, before};
use crate::core::table::Time;
use crate::number::{at_most16, fits};
use crate::wire::tcp::{Segment, flag};

impl Tcp {
    /// The next segment. `own_mss`: the most payload that the guest may put into one.
    pub(crate) fn next_out(&mut self, now: Time, most: u32, own_mss: u16) -> Option<Out> {
        match self.state {
            State::Dialing => None,
            State::Answering | State::Calling if self.nxt != self.una => None,
            State::Answering | State::Calling => Some(self.first(now, own_mss)),
            State::Open => self.open_out(now, most),
        }
    }

    /// The segment that begins the connection.
    fn first(&mut self, now: Time, own_mss: u16) -> Out {
        let answers = self.state == State::Answering;
        self.nxt = self.una.wrapping_add(1);
        self.max = self.nxt;
        self.retry.get_or_insert(now + self.wait);
        let window = at_most16(WINDOW);
        if answers {
            self.edge = self.rcv.wrapping_add(window.into());
        }
        let segment = Segment {
            seq: self.una,
            ack: self.rcv,
            flags: if answers { flag::SYN | flag::ACK } else { flag::SYN },
            window,
            mss: Some(own_mss),
            // What is not offered is not answered with.
            shift: (!answers || self.shift.is_some()).then_some(SHIFT),
            ..Segment::default()
        };
        Out { segment, offset: 0, len: 0 }
    }

    /// How many numbers are under way.
    fn flight(&self) -> u32 {
        self.nxt.wrapping_sub(self.una)
    }

    /// The end of the stream is what comes next.
    fn fin_is_next(&self) -> bool {
        self.eof && !self.fin_acked && self.flight() == self.buffered && !(self.one && self.flight() > 0)
    }

    /// How much data the next segment has, if it has any.
    fn sendable(&self, most: u32) -> u32 {
        let flight = self.flight();
        let Some(waiting @ 1..) = self.buffered.checked_sub(flight) else { return 0 };
        let room = self.window.saturating_sub(flight);
        let mss = u32::from(self.mss);
        let len = waiting.min(room).min(if self.one { mss } else { most });
        let small = len < mss && len < waiting;
        if flight > 0 && (self.one || small) { 0 } else { len }
    }

    fn open_out(&mut self, now: Time, most: u32) -> Option<Out> {
        let mut len = self.sendable(most);
        let offset = self.flight();
        let mut flags = flag::ACK;
        let mut seq = self.nxt;
        if len > 0 {
            self.nxt = self.nxt.wrapping_add(len);
            if offset + len == self.buffered {
                flags |= flag::PSH;
                if self.eof {
                    flags |= flag::FIN;
                    self.nxt = self.nxt.wrapping_add(1);
                }
            }
            self.sent(now);
        } else if self.fin_is_next() {
            flags |= flag::FIN;
            self.nxt = self.nxt.wrapping_add(1);
            self.sent(now);
        } else if std::mem::take(&mut self.probe) && self.buffered > 0 && self.nxt == self.una {
            len = 1;
            // It is not counted as under way: the window is closed, and the guest may not take it.
            let behind = self.una.wrapping_add(1);
            self.max = if before(self.max, behind) { behind } else { self.max };
        } else if std::mem::take(&mut self.ask) {
            seq = self.una.wrapping_sub(1);
        } else if !self.ack_due {
            self.watch_window(now);
            return None;
        }
        self.probe = false;
        self.ack_due = false;
        self.watch_window(now);
        let segment = Segment { seq, ack: self.rcv, flags, window: self.tell_window(), ..Segment::default() };
        Some(Out { segment, offset, len })
    }

    fn sent(&mut self, now: Time) {
        if before(self.max, self.nxt) {
            self.max = self.nxt;
        }
        self.active = now;
        self.retry.get_or_insert(now + self.wait);
    }

    /// Where a closed window holds up data and nothing is under way, time is what opens it.
    fn watch_window(&mut self, now: Time) {
        if self.buffered > 0 && self.window == 0 && self.nxt == self.una {
            self.retry.get_or_insert(now + self.wait);
        }
    }

    /// The window for the guest. It never takes back what the guest was told.
    fn tell_window(&mut self) -> u16 {
        let room = self.room();
        let edge = self.rcv.wrapping_add(room);
        if before(self.edge, edge) {
            self.edge = edge;
        }
        let left = self.edge.wrapping_sub(self.rcv);
        // Rounded down to what can be told; up to the edge itself is taken.
        if self.shift.is_some() { fits(left >> SHIFT, "a window is at most 1 MiB") } else { at_most16(left) }
    }
}
