//! For how long an answer may be kept (RFC 2181, RFC 2308).

use super::{Code, HEADER, answer};
use crate::number::be16;

/// The record of a zone's beginning, which says for how long it is known that there is no such
/// name.
const SOA: u16 = 6;
/// What stands among the records and is none (EDNS).
const OPT: u16 = 41;
/// No record is kept for longer, in seconds.
const MOST: u32 = 3600;
/// No longer it is kept that there is none.
const MOST_NONE: u32 = 300;

/// An answer that may be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// For so many seconds, at least one.
    pub seconds: u32,
    /// Where the times stand in the message that count down.
    pub times: Vec<usize>,
}

impl Lifetime {
    /// That of a whole answer. `None`: it is not to be kept.
    #[must_use]
    pub fn of(message: &[u8]) -> Option<Self> {
        let [flags, code] = *message.get(2..4)?.first_chunk()?;
        let code = code & 15;
        let none = code == super::NO_SUCH_NAME;
        // Cut, or not sure.
        if flags & 2 != 0 || !(code == Code::Fine as u8 || none) || be16(message, 4)? != 1 {
            return None;
        }
        let (answers, zone, more) = (be16(message, 6)?, be16(message, 8)?, be16(message, 10)?);
        let mut at = HEADER;
        at = super::question(message).map(|(_, _, end)| end.max(at))?;
        let (mut times, mut least, mut least_none) = (Vec::new(), MOST, None);
        for number in 0..u32::from(answers) + u32::from(zone) + u32::from(more) {
            answer::skip_name(message, &mut at)?;
            let head = message.get(at..at + 10)?;
            let (kind, len) = (be16(head, 0)?, usize::from(be16(head, 8)?));
            let data = message.get(at + 10..at + 10 + len)?;
            let seconds = u32::from_be_bytes(*head[4..].first_chunk()?);
            if kind != OPT {
                times.push(at + 4);
                if number < u32::from(answers) {
                    least = least.min(seconds);
                }
            }
            if kind == SOA && number >= u32::from(answers) {
                let minimum = u32::from_be_bytes(*data.last_chunk()?);
                least_none = Some(seconds.min(minimum).min(MOST_NONE));
            }
            at += 10 + len;
        }
        let seconds = if answers == 0 || none { least_none?.min(least) } else { least };
        (seconds > 0).then_some(Self { seconds, times })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer: code, records of the answer and of the zone, each of a kind, a time and data.
    fn message(code: u8, answers: &[(u8, u32, &[u8])], zone: &[(u8, u32, &[u8])]) -> Vec<u8> {
        let count = |list: &[(u8, u32, &[u8])]| list.len().to_le_bytes()[0];
        let mut out = vec![0, 1, 0x81, 0x80 | code, 0, 1, 0, count(answers), 0, count(zone), 0, 0];
        out.extend(b"\x01a\x00\x00\x01\x00\x01");
        for (kind, seconds, data) in answers.iter().chain(zone) {
            out.extend([0xc0, 12, 0, *kind, 0, 1]);
            out.extend(seconds.to_be_bytes());
            out.extend([0, data.len().to_le_bytes()[0]]);
            out.extend(*data);
        }
        out
    }

    #[test]
    fn an_answer_is_kept_for_its_shortest_time() {
        let (a, soa) = (&[1, 2, 3, 4][..], &[&[0; 20][..], &120_u32.to_be_bytes()].concat()[..]);
        for (message, seconds) in [
            (message(0, &[(1, 60, a), (1, 30, a)], &[]), Some(30)),
            (message(0, &[(1, 60, a)], &[(2, 5, a)]), Some(60)),
            (message(0, &[(1, u32::MAX, a)], &[]), Some(MOST)),
            (message(0, &[(1, 0, a)], &[]), None),
            // That there is none is kept for as long as the zone says.
            (message(0, &[], &[(6, 600, soa)]), Some(120)),
            (message(3, &[], &[(6, 60, soa)]), Some(60)),
            (message(3, &[(5, 10, &[0xc0, 12])], &[(6, 60, soa)]), Some(10)),
            (message(3, &[], &[(6, 0, soa)]), None),
            (message(3, &[], &[]), None),
            (message(0, &[], &[]), None),
            (message(2, &[(1, 60, a)], &[]), None),
        ] {
            assert_eq!(Lifetime::of(&message).map(|life| life.seconds), seconds, "{message:?}");
        }
        let sound = message(0, &[(1, 60, a), (41, 9, a)], &[]);
        assert_eq!(Lifetime::of(&sound).unwrap().times, [12 + 7 + 6]);
        let mut cut = sound.clone();
        cut[2] |= 2;
        assert_eq!(Lifetime::of(&cut), None);
        for len in 0..sound.len() {
            assert_eq!(Lifetime::of(&sound[..len]), None, "{len}");
        }
    }
}
