//! One end of a connection, between segments that are made by hand and a clock that is set.

use std::time::Duration;

use super::{SHIFT, Tcp, WINDOW};
use crate::core::table::Time;
use crate::number::len32;
use crate::wire::tcp::{Segment, flag};

const BEGIN: Time = Time::from_secs(100);

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
