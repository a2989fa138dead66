//! One TCP connection of the guest: the end of it that this network plays. It keeps the numbers,
//! and no bytes: what the host's socket sent lies in the shell's buffer until the guest has it.
//!
//! The link loses nothing, so there is no congestion to control, and what is sent again is sent
//! because the guest itself dropped it.

mod input;
mod output;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::time::Duration;

use super::table::Time;
use crate::wire::tcp::Segment;

/// How many bytes of a stream the guest may send before the host's socket took them.
pub(crate) const WINDOW: u32 = 1 << 20;
/// By how much the windows are shifted that are told to the guest.
pub(crate) const SHIFT: u8 = 7;
/// The first time after which something is sent again.
const RETRY: Duration = Duration::from_millis(300);
/// No time between two attempts is longer.
const RETRY_MOST: Duration = Duration::from_secs(120);
/// The time between two looks at a closed window is at most this long.
const PROBE_MOST: Duration = Duration::from_secs(60);
/// How often a segment is sent again before the connection ends.
const TRIES: u8 = 15;
/// How often a segment is sent again that begins a connection.
const SYN_TRIES: u8 = 6;
/// The time between two questions whether a silent guest still has the connection.
const ALIVE_EVERY: Duration = Duration::from_secs(75);
/// How many of them.
const ALIVE_TRIES: u8 = 9;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The guest called; the host's socket is being connected. The guest has no answer yet.
    Dialing,
    /// The host's socket is connected; the guest is answered, and has not said so.
    Answering,
    /// A published port was called; the guest is called, and has not answered.
    Calling,
    /// Both ends know of each other.
    Open,
}

/// Limits of idleness.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Of a connection that is open both ways.
    pub(crate) idle: Duration,
    /// Of one that a side has closed.
    pub(crate) half_closed: Duration,
}

/// One end of a connection. Sequence numbers wrap.
#[derive(Debug)]
pub(crate) struct Tcp {
    /// How far it is.
    pub(crate) state: State,
    /// The first number that the guest has not acknowledged.
    una: u32,
    /// The next number to send.
    nxt: u32,
    /// One behind the last number that was ever sent.
    max: u32,
    /// The bytes of the stream that the shell has and the guest has not acknowledged.
    buffered: u32,
    /// How many numbers from `una` on the guest takes.
    window: u32,
    /// By how much it shifts its windows; `None`: neither side does.
    shift: Option<u8>,
    /// The most payload that a segment to the guest may have, in bytes.
    pub(crate) mss: u16,
    /// The host's stream has ended behind what is buffered.
    eof: bool,
    /// The guest knows of that.
    fin_acked: bool,
    /// The next number that the guest will send.
    rcv: u32,
    /// One behind the last number that the guest was told it may send.
    edge: u32,
    /// The bytes from the guest that the host's socket did not take yet.
    pub(crate) unwritten: u32,
    /// The guest's stream has ended.
    guest_fin: bool,
    /// The guest is to be told `rcv` and the window.
    ack_due: bool,
    /// One byte is to be sent though the window is closed.
    probe: bool,
    /// Nothing but the first segment is sent until it is acknowledged.
    one: bool,
    /// The segment that asks whether the guest is there is to be sent.
    ask: bool,
    /// How long to wait for an acknowledgement.
    wait: Duration,
    /// When what is under way is sent again, or a closed window looked at.
    retry: Option<Time>,
    /// How often it was.
    tries: u8,
    /// Acknowledgements of the same number in a row.
    same: u8,
    /// When something last came from the guest.
    heard: Time,
    /// When something last went either way.
    active: Time,
    /// How often a silent guest was asked.
    asked: u8,
}

/// What a segment of the guest means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// The part of the payload that is new and follows what came before.
    pub(crate) take: Option<Range<usize>>,
    /// The guest's stream ends with it.
    pub(crate) fin: bool,
    /// How many bytes of the host's stream the guest has now.
    pub(crate) freed: u32,
    /// The connection is no more.
    pub(crate) reset: bool,
    /// It became open with this segment.
    pub(crate) opened: bool,
}

/// What to send next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Out {
    /// The segment; its ports are the flow's to fill in.
    pub(crate) segment: Segment,
    /// Where its data begins in what is buffered.
    pub(crate) offset: u32,
    /// How much data it has, in bytes.
    pub(crate) len: u32,
}

/// What a timer came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing, or there may be something to send now.
    Go,
    /// The guest does not answer, or was silent for too long.
    GiveUp,
}

/// Whether number `a` stands before `b`.
fn before(a: u32, b: u32) -> bool {
    b.wrapping_sub(a).wrapping_sub(1) < 1 << 31
}

impl Tcp {
    /// The guest called with this segment.
    #[must_use]
    pub(crate) fn dialing(now: Time, iss: u32, syn: &Segment, mss: u16) -> Self {
        let mut tcp = Self::new(now, State::Dialing, iss, mss);
        tcp.learn(syn);
        tcp.rcv = syn.seq.wrapping_add(1);
        tcp.edge = tcp.rcv;
        tcp
    }

    /// A published port was called.
    #[must_use]
    pub(crate) fn calling(now: Time, iss: u32, mss: u16) -> Self {
        Self::new(now, State::Calling, iss, mss)
    }

    fn new(now: Time, state: State, iss: u32, mss: u16) -> Self {
        Self {
            state,
            una: iss,
            nxt: iss,
            max: iss,
            buffered: 0,
            window: 0,
            shift: None,
            mss,
            eof: false,
            fin_acked: false,
            rcv: 0,
            edge: 0,
            unwritten: 0,
            guest_fin: false,
            ack_due: false,
            probe: false,
            one: false,
            ask: false,
            wait: RETRY,
            retry: None,
            tries: 0,
            same: 0,
            heard: now,
            active: now,
            asked: 0,
        }
    }

    /// What a SYN says of its sender.
    fn learn(&mut self, syn: &Segment) {
        // RFC 9293 has 536 where nothing is said; segments of a few bytes would only cost time.
        self.mss = self.mss.min(syn.mss.unwrap_or(536)).max(64);
        self.shift = syn.shift;
        self.window = syn.window.into();
    }

    /// Whether `syn` is the one that this connection began with.
    #[must_use]
    pub(crate) fn began_with(&self, syn: &Segment) -> bool {
        self.state != State::Calling && syn.seq.wrapping_add(1) == self.rcv
    }

    /// The host's socket is connected.
    pub(crate) fn connected(&mut self, now: Time) {
        debug_assert_eq!(self.state, State::Dialing);
        self.state = State::Answering;
        self.active = now;
    }

    /// The shell has `len` bytes more of the host's stream.
    pub(crate) fn received(&mut self, now: Time, len: u32) {
        self.buffered += len;
        self.active = now;
    }

    /// The host's stream has ended.
    pub(crate) fn ended(&mut self, now: Time) {
        self.eof = true;
        self.active = now;
    }

    /// The host's socket took bytes; `unwritten` are left.
    pub(crate) fn drained(&mut self, now: Time, unwritten: u32) {
        self.unwritten = unwritten;
        self.active = now;
        // The guest hears of room when it is worth a packet. Who does not scale windows is never
        // told of more than 64 KiB.
        let worth = if self.shift.is_some() { WINDOW / 4 } else { 16 << 10 };
        let gained = self.rcv.wrapping_add(self.room()).wrapping_sub(self.edge);
        if self.state == State::Open && !self.guest_fin && (worth..1 << 31).contains(&gained) {
            self.ack_due = true;
        }
    }

    /// How many bytes the guest may send now.
    fn room(&self) -> u32 {
        let room = WINDOW.saturating_sub(self.unwritten);
        if self.shift.is_some() { room >> SHIFT << SHIFT } else { room.min(65_535) }
    }

    /// Both streams have ended, and everybody has everything.
    #[must_use]
    pub(crate) fn is_done(&self) -> bool {
        self.fin_acked && self.guest_fin && self.unwritten == 0
    }

    /// Whether either stream has ended.
    #[must_use]
    pub(crate) fn is_half_closed(&self) -> bool {
        self.eof || self.guest_fin
    }

    /// A number at which a reset is believed.
    #[must_use]
    pub(crate) fn next(&self) -> (u32, u32) {
        (self.max, self.rcv)
    }

    /// When [`Self::due`] is to be asked.
    #[must_use]
    pub(crate) fn deadline(&self, limits: Limits) -> Option<Time> {
        let silent = match self.state {
            // The host's system has limits of its own.
            State::Dialing => return None,
            // What the guest was told is taken waits for a peer that takes its time.
            State::Open if self.is_half_closed() && self.unwritten > 0 => {
                self.active.max(self.heard) + limits.half_closed.max(limits.idle)
            }
            State::Open if self.is_half_closed() => self.active.max(self.heard) + limits.half_closed,
            State::Open if self.asked > 0 => self.heard + limits.idle + ALIVE_EVERY * u32::from(self.asked),
            // Whoever answered a question is not asked again at once.
            State::Open => self.active.max(self.heard) + limits.idle,
            State::Answering | State::Calling => self.active + limits.idle,
        };
        Some(self.retry.map_or(silent, |retry| retry.min(silent)))
    }

    /// Time has passed.
    pub(crate) fn due(&mut self, now: Time, limits: Limits) -> Due {
        if let Some(retry) = self.retry.filter(|retry| *retry <= now) {
            return self.again(retry.max(now));
        }
        if self.deadline(limits).is_some_and(|deadline| deadline <= now) {
            if self.state != State::Open || self.is_half_closed() || self.asked >= ALIVE_TRIES {
                return Due::GiveUp;
            }
            // Silence is counted from now on, so that the next questions come in their time.
            if self.asked == 0 {
                self.heard = now.saturating_sub(limits.idle);
            }
            self.asked += 1;
            self.ask = true;
        }
        Due::Go
    }

    /// What is under way is sent again, or a closed window looked at.
    fn again(&mut self, now: Time) -> Due {
        self.tries += 1;
        let opening = matches!(self.state, State::Answering | State::Calling);
        if self.tries > if opening { SYN_TRIES } else { TRIES } {
            return Due::GiveUp;
        }
        let probes = self.nxt == self.una && !opening;
        if probes && self.buffered == 0 {
            (self.retry, self.tries) = (None, 0);
            return Due::Go;
        }
        if probes {
            self.probe = true;
        } else {
            self.nxt = self.una;
            self.one = true;
        }
        self.wait = (self.wait * 2).min(if probes { PROBE_MOST } else { RETRY_MOST });
        self.retry = Some(now + self.wait);
        Due::Go
    }
}
