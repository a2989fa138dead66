//! The addresses in an answer, and the names on the way to them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{A, AAAA, CNAME, HEADER};
use crate::number::be16;

/// No more records are looked at.
const RECORDS: u16 = 512;
/// No more names are followed from one to the next.
const CHAIN: usize = 16;
/// The class of the Internet.
const INTERNET: u16 = 1;

/// What an answer says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The name that was asked for and those that it leads to, in small letters.
    pub chain: Vec<String>,
    /// The addresses of the last of them, and for how many seconds each is good.
    pub addresses: Vec<(IpAddr, u32)>,
}

enum Held {
    Name(String),
    Address(IpAddr),
}

impl Answer {
    /// Reads an answer to a question for `name`. Records of other names are none of it. `None`: it
    /// is malformed.
    #[must_use]
    pub fn parse(name: &str, message: &[u8]) -> Option<Self> {
        let (questions, count) = (be16(message, 4)?, be16(message, 6)?);
        // Cut to fit, it ends where it may.
        let cut = message.get(2)? & 2 != 0;
        if questions > 1 || count > RECORDS {
            return None;
        }
        let mut at = HEADER;
        if questions == 1 {
            at = super::question(message)?.2;
        }
        let mut records = Vec::new();
        for _ in 0..count {
            match record(message, &mut at) {
                Some(Some(record)) => records.push(record),
                Some(None) => {}
                None if cut => break,
                None => return None,
            }
        }
        let mut chain = vec![name.to_owned()];
        while chain.len() < CHAIN
            && let Some(next) = records.iter().find_map(|(owner, _, held)| match held {
                Held::Name(next) if Some(owner) == chain.last() && !chain.contains(next) => {
                    Some(next.clone())
                }
                _ => None,
            })
        {
            chain.push(next);
        }
        let addresses = records.into_iter().filter_map(|(owner, seconds, held)| match held {
            Held::Address(address) if chain.contains(&owner) => Some((address, seconds)),
            _ => None,
        });
        Some(Self { addresses: addresses.collect(), chain })
    }
}

/// The record at `at`, which moves behind it: its owner, for how long it is good, and what it
/// holds. `Some(None)`: nothing of interest.
fn record(message: &[u8], at: &mut usize) -> Option<Option<(String, u32, Held)>> {
    let owner = name(message, at)?;
    let head = message.get(*at..*at + 10)?;
    let (kind, class, len) = (be16(head, 0)?, be16(head, 2)?, usize::from(be16(head, 8)?));
    let seconds = u32::from_be_bytes(*head[4..].first_chunk()?);
    let start = *at + 10;
    let data = message.get(start..start + len)?;
    *at = start + len;
    if class != INTERNET {
        return Some(None);
    }
    let held = match kind {
        A => Held::Address(Ipv4Addr::from(*<&[u8; 4]>::try_from(data).ok()?).into()),
        AAAA => Held::Address(Ipv6Addr::from(*<&[u8; 16]>::try_from(data).ok()?).into()),
        CNAME => {
            let mut inside = start;
            let target = name(message, &mut inside)?;
            if inside != start + len {
                return None;
            }
            Held::Name(target)
        }
        _ => return Some(None),
    };
    Some(Some((owner, seconds, held)))
}

/// Moves behind the name at `at`.
pub(super) fn skip_name(message: &[u8], at: &mut usize) -> Option<()> {
    name(message, at).map(|_| ())
}

/// The name at `at`, which moves behind it. A part of it may lie before it in the message.
fn name(message: &[u8], at: &mut usize) -> Option<String> {
    let (mut name, mut place, mut end) = (String::new(), *at, None);
    loop {
        let len = usize::from(*message.get(place)?);
        match len {
            0 => {
                *at = end.unwrap_or(place + 1);
                return Some(name);
            }
            1..64 => {
                let label = message.get(place + 1..place + 1 + len)?;
                if name.len() + len > 254 || label.contains(&b'.') {
                    return None;
                }
                if !name.is_empty() {
                    name.push('.');
                }
                name.extend(label.iter().map(|&c| char::from(c.to_ascii_lowercase())));
                place += 1 + len;
            }
            192.. => {
                let to = usize::from(be16(message, place)? & 0x3fff);
                end.get_or_insert(place + 2);
                // Each leads further back, so that none leads round.
                if to >= place {
                    return None;
                }
                place = to;
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wire(name: &str) -> Vec<u8> {
        let labels = name.split('.').filter(|label| !label.is_empty());
        let mut out: Vec<u8> =
            labels.flat_map(|label| [&[label.len().to_le_bytes()[0]], label.as_bytes()].concat()).collect();
        out.push(0);
        out
    }

    fn record(owner: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
        let mut out = owner.to_vec();
        out.extend(kind.to_be_bytes());
        out.extend([0, 1, 0, 0, 1, 44]);
        out.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        out.extend(data);
        out
    }

    fn message(name: &str, records: &[Vec<u8>]) -> Vec<u8> {
        let mut out = vec![0, 1, 0x81, 0x80, 0, 1, 0, records.len().to_le_bytes()[0], 0, 0, 0, 0];
        out.extend(wire(name));
        out.extend([0, 1, 0, 1]);
        out.extend(records.concat());
        out
    }

    fn chained() -> Vec<u8> {
        message(
            "www.example.org",
            &[
                record(&[0xc0, 12], CNAME, &wire("EDGE.cdn.example")),
                record(&wire("edge.cdn.example"), CNAME, &[&[1, b'a'][..], &[0xc0, 16]].concat()),
                record(&wire("a.example.org"), A, &[192, 0, 2, 7]),
                record(&wire("other.example"), A, &[192, 0, 2, 9]),
                record(&wire("a.example.org"), AAAA, &"2001:db8::7".parse::<Ipv6Addr>().unwrap().octets()),
                record(&wire("a.example.org"), 16, b"\x01x"),
            ],
        )
    }

    #[test]
    fn addresses_are_those_of_the_name_through_all_its_others() {
        let answer = Answer::parse("www.example.org", &chained()).unwrap();
        assert_eq!(answer.chain, ["www.example.org", "edge.cdn.example", "a.example.org"]);
        let addresses: Vec<String> = answer.addresses.iter().map(|(ip, ttl)| format!("{ip} {ttl}")).collect();
        assert_eq!(addresses, ["192.0.2.7 300", "2001:db8::7 300"]);
        let other = Answer::parse("example.net", &chained()).unwrap();
        assert_eq!((other.chain.len(), other.addresses.len()), (1, 0));
    }

    #[test]
    fn names_that_lead_round_come_to_an_end() {
        let a = record(&wire("a"), CNAME, &wire("b"));
        let b = record(&wire("b"), CNAME, &wire("a"));
        assert_eq!(Answer::parse("a", &message("a", &[a, b])).unwrap().chain, ["a", "b"]);
        // A name in itself.
        let itself = message("a", &[record(&[0xc0, 19], A, &[1, 2, 3, 4])]);
        assert_eq!(Answer::parse("a", &itself), None);
        let many: Vec<Vec<u8>> =
            (0..200).map(|i| record(&wire(&format!("n{i}")), CNAME, &wire(&format!("n{}", i + 1)))).collect();
        assert_eq!(Answer::parse("n0", &message("n0", &many)).unwrap().chain.len(), CHAIN);
    }

    #[test]
    fn a_cut_answer_is_read_as_far_as_it_goes_only_if_it_says_so() {
        let mut cut = chained();
        cut.truncate(cut.len() - 20);
        assert_eq!(Answer::parse("www.example.org", &cut), None);
        cut[2] |= 2;
        assert_eq!(Answer::parse("www.example.org", &cut).unwrap().addresses.len(), 2);
        for len in [3, 5] {
            let wrong = message("a", &[record(&[0xc0, 12], A, &vec![1; len])]);
            assert_eq!(Answer::parse("a", &wrong), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_panic(at in 0_usize..200, value in any::<u8>(), cut in 0_usize..300) {
            let mut message = chained();
            let at = at % message.len();
            message[at] = value;
            message.truncate(cut);
            let _ = Answer::parse("www.example.org", &message);
        }
    }
}
