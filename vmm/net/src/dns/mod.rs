//! What the guest's resolver answers itself, and what an answer from elsewhere must be like.

mod answer;
mod life;

use std::net::IpAddr;

use crate::number::{be16, len16};

pub use answer::Answer;
pub use life::Lifetime;

/// The name of the host, at the gateway's address.
pub const HOST: &str = "host.internal";
/// The port of resolvers.
pub const PORT: u16 = 53;
/// The record of an IPv4 address.
pub const A: u16 = 1;
/// The record of an IPv6 address.
pub const AAAA: u16 = 28;
/// The record of another name.
pub const CNAME: u16 = 5;
/// Records of services, which may hold addresses and keys that hide names (RFC 9460).
pub const SERVICES: [u16; 2] = [64, 65];
/// The record of a name that an address has.
pub const PTR: u16 = 12;

const HEADER: usize = 12;
/// How an answer went that is one.
const FINE: u8 = Code::Fine as u8;
/// How an answer went that says that there is no such name.
const NO_SUCH_NAME: u8 = 3;

/// How an answer went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// It is there, or there is none of its kind.
    Fine = 0,
    /// What was asked could not be read.
    Malformed = 1,
    /// Nobody could be asked.
    Failed = 2,
    /// This kind of question is not answered.
    Unknown = 4,
    /// A rule is against it, or there is no way out.
    Refused = 5,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Its number.
    pub id: u16,
    /// The name in small letters, without a dot at the end.
    pub name: String,
    /// The kind of record: [`A`], [`AAAA`].
    pub kind: u16,
    /// Where the question ends, in bytes.
    end: usize,
}

impl Query {
    /// Reads a message of a guest.
    ///
    /// # Errors
    /// With what it is answered; with nothing if it is no question at all.
    pub fn parse(message: &[u8]) -> Result<Self, Option<Code>> {
        let (Some(id), Some(flags), Some(count)) = (be16(message, 0), be16(message, 2), be16(message, 4))
        else {
            return Err(None);
        };
        if message.len() < HEADER || flags & 0x8000 != 0 {
            return Err(None);
        }
        if flags & 0x7800 != 0 {
            return Err(Some(Code::Unknown));
        }
        if count != 1 {
            return Err(Some(Code::Malformed));
        }
        question(message).map(|(name, kind, end)| Self { id, name, kind, end }).ok_or(Some(Code::Malformed))
    }

    /// The answer with these addresses, of those that were asked for.
    #[must_use]
    pub fn answer(&self, message: &[u8], addresses: &[IpAddr]) -> Vec<u8> {
        /// How long an answer of our own may be kept, in seconds.
        const SECONDS: u32 = 60;
        self.answer_for(message, addresses, SECONDS)
    }

    /// As [`Self::answer`], to be kept for `seconds`.
    #[must_use]
    pub fn answer_for(&self, message: &[u8], addresses: &[IpAddr], seconds: u32) -> Vec<u8> {
        let mut out = self.begin(message);
        let mut count = 0;
        for address in addresses {
            let (kind, bytes) = match address {
                IpAddr::V4(address) => (A, address.octets().to_vec()),
                IpAddr::V6(address) => (AAAA, address.octets().to_vec()),
            };
            if kind == self.kind {
                record(&mut out, kind, seconds, &bytes);
                count += 1;
            }
        }
        out[6..8].copy_from_slice(&len16(count).to_be_bytes());
        out
    }

    /// The question as it is compared with others: without its number and capitals.
    #[must_use]
    pub fn same(&self, message: &[u8]) -> Vec<u8> {
        // Its type and class are two bytes each, and have no capitals.
        let name_end = self.end - 4;
        let (head, name) = (&message[2..HEADER], &message[HEADER..name_end]);
        [head, &name.to_ascii_lowercase(), &message[name_end..]].concat()
    }

    /// The part of this question's message that an answer has, too: its header, its name and what
    /// is asked of it.
    #[must_use]
    pub fn without_rest<'a>(&self, message: &'a [u8]) -> &'a [u8] {
        &message[..self.end]
    }

    /// Puts number and name of this question, as it was asked, into an answer to the same one.
    pub fn sign(&self, message: &[u8], answer: &mut [u8]) {
        answer[..2].copy_from_slice(&message[..2]);
        if question(answer).is_some_and(|(name, _, end)| name == self.name && end == self.end) {
            answer[HEADER..self.end].copy_from_slice(&message[HEADER..self.end]);
        }
    }

    /// The answer that an address has this name, which is one that is known here.
    #[must_use]
    pub fn answer_name(&self, message: &[u8], name: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        for label in name.split('.') {
            let label = &label.as_bytes()[..label.len().min(63)];
            bytes.extend(&len16(label.len()).to_be_bytes()[1..]);
            bytes.extend(label);
        }
        bytes.push(0);
        let mut out = self.begin(message);
        record(&mut out, PTR, 0, &bytes);
        out[6..8].copy_from_slice(&1_u16.to_be_bytes());
        out
    }

    /// An answer without a record.
    fn begin(&self, message: &[u8]) -> Vec<u8> {
        let mut out = error(message, Code::Fine);
        out.truncate(HEADER);
        out.extend(&message[HEADER..self.end]);
        out[4..6].copy_from_slice(&1_u16.to_be_bytes());
        out
    }

    /// Whether `response` answers this question, asked under the number `id`.
    #[must_use]
    pub fn is_answered_by(&self, id: u16, response: &[u8]) -> bool {
        let fits =
            be16(response, 0) == Some(id) && be16(response, 2).is_some_and(|flags| flags & 0x8000 != 0);
        fits && match be16(response, 4) {
            // Servers that failed or refuse may leave the question out. Who has an answer, or knows
            // that there is none, has no reason to.
            Some(0) => response.len() >= HEADER && !matches!(response[3] & 15, FINE | NO_SUCH_NAME),
            Some(1) => {
                question(response).is_some_and(|(name, kind, _)| name == self.name && kind == self.kind)
            }
            _ => false,
        }
    }
}

/// Writes a record about the name of the question behind `out`.
fn record(out: &mut Vec<u8>, kind: u16, seconds: u32, bytes: &[u8]) {
    out.extend([0xc0, 12]);
    out.extend(kind.to_be_bytes());
    out.extend([0, 1]);
    out.extend(seconds.to_be_bytes());
    out.extend(len16(bytes.len()).to_be_bytes());
    out.extend(bytes);
}

/// The first question: name, kind and where it ends.
fn question(message: &[u8]) -> Option<(String, u16, usize)> {
    let (mut name, mut at) = (String::new(), HEADER);
    loop {
        let len = usize::from(*message.get(at)?);
        at += 1;
        if len == 0 {
            break;
        }
        // A pointer has nothing to point to in a first question.
        if len > 63 || name.len() + len > 254 {
            return None;
        }
        let label = message.get(at..at + len)?;
        // Written down, such a label would be two.
        if label.contains(&b'.') {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|&c| char::from(c.to_ascii_lowercase())));
        at += len;
    }
    let kind = be16(message, at)?;
    be16(message, at + 2)?;
    Some((name, kind, at + 4))
}

/// The answer to `message` that says only how it went.
#[must_use]
pub fn error(message: &[u8], code: Code) -> Vec<u8> {
    let mut out = message[..message.len().min(2)].to_vec();
    // An answer; recursion as it was asked for, and there is some.
    out.extend([0x80 | message.get(2).map_or(0, |flags| flags & 0x79), 0x80 | code as u8]);
    out.resize(HEADER, 0);
    if let Some((_, _, end)) = question(message) {
        out[5] = 1;
        out.extend(&message[HEADER..end]);
    }
    out
}

/// Whether `name` is one of letters, digits, `-` and `_` in labels of 1 to 63, at most 253 long,
/// without a dot at its end.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    name.len() <= 253
        && name.split('.').all(|label| (1..=63).contains(&label.len()) && label.bytes().all(plain))
}

/// The resolvers that a `resolv.conf` names, at most three as the C library has it.
#[must_use]
pub fn nameservers(text: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() == Some("nameserver")
            && let Some(address) = words.next().and_then(|word| word.split('%').next()?.parse().ok())
            && found.len() < 3
        {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &[u8] =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04HoSt\x08internal\x00\x00\x01\x00\x01";

    #[test]
    fn a_question_is_read_and_answered() {
        let query = Query::parse(QUERY).unwrap();
        assert_eq!((query.id, query.name.as_str(), query.kind), (0x1234, HOST, A));
        let addresses = ["10.0.2.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let answer = query.answer(QUERY, &addresses);
        assert!(query.is_answered_by(0x1234, &answer));
        assert!(!query.is_answered_by(0x1235, &answer));
        assert!(!query.is_answered_by(0x1234, QUERY));
        assert_eq!(&answer[4..8], [0, 1, 0, 1]);
        assert_eq!(&answer[answer.len() - 4..], [10, 0, 2, 2]);
        let other = Query { kind: AAAA, ..query.clone() };
        assert!(!other.is_answered_by(0x1234, &answer));
        let six = other.answer(QUERY, &addresses);
        assert_eq!((&six[6..8], &six[six.len() - 2..]), (&[0, 1][..], &[0, 2][..]));
        let failed = error(QUERY, Code::Failed);
        assert!(query.is_answered_by(0x1234, &failed));
        assert_eq!(failed[3] & 15, 2);
        // Without the question, only that there is no answer is believed.
        for (code, believed) in [(0, false), (1, true), (2, true), (3, false), (4, true), (5, true)] {
            let mut bare = failed[..HEADER].to_vec();
            bare[3] = 0x80 | code;
            bare[5] = 0;
            assert_eq!(query.is_answered_by(0x1234, &bare), believed, "{code}");
            assert!(!query.is_answered_by(0x1235, &bare));
        }
        assert!(!query.is_answered_by(0x1234, &failed[..4]));
    }

    #[test]
    fn every_cut_and_every_lie_is_no_panic() {
        for cut in 0..QUERY.len() {
            assert!(Query::parse(&QUERY[..cut]).is_err());
            let _ = error(&QUERY[..cut], Code::Malformed);
        }
        for at in 0..QUERY.len() {
            for value in [0, 1, 63, 64, 0xc0, 255] {
                let mut message = QUERY.to_vec();
                message[at] = value;
                if let Ok(query) = Query::parse(&message) {
                    let _ = query.answer(&message, &[]);
                }
                let _ = error(&message, Code::Failed);
            }
        }
    }

    #[test]
    fn a_resolv_conf_is_read() {
        let text = "# x\nnameserver 127.0.0.53\n nameserver\t::1 trail\nnameserver fe80::1%eth0\nnameserver 1.1.1.1\n\
                    nameserverx 2.2.2.2\nnameserver nonsense\n";
        let found: Vec<String> = nameservers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.53", "::1", "fe80::1"]);
        assert!(nameservers("").is_empty());
    }
}
