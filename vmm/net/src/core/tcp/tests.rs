//! One end of a connection, between segments that are made by hand and a clock that is set.

use std::time::Duration;

use super::{Due, Limits, SHIFT, Tcp, WINDOW};
use crate::core::table::Time;
use crate::number::len32;
use crate::wire::tcp::{Segment, flag};

const BEGIN: Time = Time::from_secs(100);

const LIMITS: Limits = Limits { idle: Duration::from_secs(7200), half_closed: Duration::from_secs(900) };

/// The guest's end, which counts its numbers.
struct Guest {
    seq: u32,
    ack: u32,
    window: u16,
}

impl Guest {
    /// Says something of `len` bytes. Gives how many of them were taken.
    fn says(&mut self, now: Time, tcp: &mut Tcp, flags: u8, len: usize) -> usize {
        let segment = Segment {
            seq: self.seq,
            ack: self.ack,
            flags: flag::ACK | flags,
            window: self.window,
            ..Segment::default()
        };
        let heard = tcp.segment(now, &segment, len);
        assert!(!heard.reset);
        let taken = heard.take.map_or(0, |range| range.len());
        tcp.unwritten += len32(taken);
        self.seq = self.seq.wrapping_add(len32(taken)).wrapping_add(heard.fin.into());
        taken
    }
}

/// A connection that the guest began, who shifts windows by `shift`.
fn open(shift: Option<u8>) -> (Tcp, Guest) {
    let syn =
        Segment { seq: 0, flags: flag::SYN, window: 64_000, mss: Some(1460), shift, ..Segment::default() };
    let mut tcp = Tcp::dialing(BEGIN, 5000, &syn, 1460);
    tcp.connected(BEGIN);
    let answer = tcp.next_out(BEGIN, 1460, 1460).unwrap().segment;
    assert_eq!((answer.ack, answer.shift), (1, shift.map(|_| SHIFT)));
    let mut guest = Guest { seq: 1, ack: 5001, window: 64_000 };
    guest.says(BEGIN, &mut tcp, 0, 0);
    assert_eq!(tcp.next_out(BEGIN, 1460, 1460), None);
    (tcp, guest)
}

/// The next segment for the guest.
fn out(now: Time, tcp: &mut Tcp) -> Option<Segment> {
    tcp.next_out(now, 1460, 1460).map(|out| out.segment)
}

#[test]
fn a_guest_that_waits_for_room_hears_of_it_whether_it_scales_windows_or_not() {
    for (shift, little, much, window) in [
        (None, 16_000, 17_000, 17_000_u32),
        (Some(0), 200_000, 270_000, 270_000 >> SHIFT),
        (Some(7), 200_000, 270_000, 270_000 >> SHIFT),
    ] {
        let (mut tcp, mut guest) = open(shift);
        // Nothing of it is written, until the guest may send no more.
        while guest.says(BEGIN, &mut tcp, 0, 1460) > 0 {
            assert!(out(BEGIN, &mut tcp).is_some());
        }
        assert_eq!(out(BEGIN, &mut tcp).unwrap().window, 0);
        assert!(tcp.unwritten > WINDOW - (1 << SHIFT), "{shift:?}");
        let full = tcp.unwritten;
        tcp.drained(BEGIN, full - little);
        assert_eq!(out(BEGIN, &mut tcp), None, "{shift:?}");
        tcp.drained(BEGIN, full - much);
        let told = u32::from(out(BEGIN, &mut tcp).unwrap().window);
        assert!(told.abs_diff(window) <= 1, "{shift:?}: {told}");
        tcp.drained(BEGIN + Duration::from_secs(1), 0);
        let all = if shift.is_some() { WINDOW >> SHIFT } else { 65_535 };
        assert_eq!(u32::from(out(BEGIN, &mut tcp).unwrap().window), all);
    }
}

/// Lets time go on to the next deadline, and gives what it came to.
fn due(now: &mut Time, tcp: &mut Tcp) -> Due {
    let deadline = tcp.deadline(LIMITS).unwrap();
    assert!(deadline > *now, "due at once: processor time for nothing");
    *now = deadline;
    tcp.due(*now, LIMITS)
}

#[test]
fn a_guest_that_answers_is_asked_again_only_after_the_same_silence() {
    let (mut tcp, mut guest) = open(Some(7));
    let mut now = BEGIN;
    for asked in 1..10 {
        assert_eq!(due(&mut now, &mut tcp), Due::Go);
        assert_eq!(now, BEGIN + LIMITS.idle * asked);
        assert_eq!(out(now, &mut tcp).unwrap().seq, guest.ack - 1);
        guest.says(now, &mut tcp, 0, 0);
        assert_eq!(out(now, &mut tcp), None);
    }
}

#[test]
fn a_guest_that_reads_late_gets_what_a_peer_sent_that_has_closed() {
    let (mut tcp, mut guest) = open(Some(7));
    let mut now = BEGIN;
    guest.window = 0;
    guest.says(now, &mut tcp, 0, 0);
    tcp.received(now, 1000);
    tcp.ended(now);
    assert_eq!(out(now, &mut tcp), None);
    // It says at every look at its window that there is no room.
    while now < BEGIN + LIMITS.half_closed * 4 {
        assert_eq!(due(&mut now, &mut tcp), Due::Go);
        if out(now, &mut tcp).is_some() {
            guest.says(now, &mut tcp, 0, 0);
        }
    }
    guest.window = 64_000;
    guest.says(now, &mut tcp, 0, 0);
    let last = tcp.next_out(now, 1460, 1460).unwrap();
    assert_eq!((last.len, last.segment.flags & flag::FIN), (1000, flag::FIN));
    guest.ack = guest.ack.wrapping_add(1001);
    guest.says(now, &mut tcp, 0, 0);
    // And then silence is silence.
    let begun = now;
    while due(&mut now, &mut tcp) == Due::Go {}
    assert_eq!(now, begun + LIMITS.half_closed);
}

#[test]
fn what_a_slow_peer_has_yet_to_take_is_kept_longer_than_a_silent_half() {
    let (mut tcp, mut guest) = open(Some(7));
    let mut now = BEGIN;
    assert_eq!(guest.says(now, &mut tcp, flag::FIN, 1000), 1000);
    assert!(out(now, &mut tcp).is_some());
    assert_eq!(tcp.deadline(LIMITS), Some(BEGIN + LIMITS.idle));
    // The peer takes some of it just before the end.
    now += LIMITS.idle - Duration::from_secs(1);
    assert_eq!(tcp.due(now, LIMITS), Due::Go);
    tcp.drained(now, 500);
    assert_eq!(tcp.deadline(LIMITS), Some(now + LIMITS.idle));
    tcp.drained(now, 0);
    let begun = now;
    assert_eq!(due(&mut now, &mut tcp), Due::GiveUp);
    assert_eq!(now, begun + LIMITS.half_closed);
}
