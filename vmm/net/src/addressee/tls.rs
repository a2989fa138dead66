//! The hello of a TLS client (RFC 8446, section 4.1.2; RFC 6066, section 3).

use super::Claim;
use crate::number::be16;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
/// Encrypted hello: the name outside need not be the one that is meant (RFC 9849).
const ENCRYPTED: u16 = 0xfe0d;
/// The longest record, in bytes.
const RECORD: usize = 16 << 10;

const NO_HELLO: Claim = Claim::None("it does not begin with a TLS hello");
const WRONG: Claim = Claim::None("its TLS hello is malformed");

/// Whom the hello is for.
pub(super) fn claim(bytes: &[u8]) -> Claim {
    let (mut hello, mut rest) = (Vec::new(), bytes);
    // A hello may lie in several records.
    let len = loop {
        let Some((&kind, _)) = rest.split_first() else { return Claim::More };
        if kind != HANDSHAKE || rest.get(1).is_some_and(|&major| major != 3) {
            return NO_HELLO;
        }
        let (Some(len), Some(body)) = (be16(rest, 3), rest.get(5..)) else { return Claim::More };
        let len = usize::from(len);
        if len == 0 || len > RECORD {
            return WRONG;
        }
        hello.extend(&body[..len.min(body.len())]);
        if hello.first().is_some_and(|&kind| kind != CLIENT_HELLO) {
            return NO_HELLO;
        }
        if let (Some(high), Some(low)) = (hello.get(1), be16(&hello, 2)) {
            let whole = 4 + (usize::from(*high) << 16) + usize::from(low);
            if whole > super::MOST {
                return Claim::None("its TLS hello is too long");
            }
            if hello.len() >= whole {
                break whole;
            }
        }
        match body.get(len..) {
            Some(behind) => rest = behind,
            None => return Claim::More,
        }
    };
    named(&hello[4..len]).unwrap_or(WRONG)
}

/// Parts of bytes, in their order.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        be16(self.take(2)?, 0)
    }

    /// What a length of one byte stands before.
    fn short(&mut self) -> Option<&'a [u8]> {
        let len = self.take(1)?[0];
        self.take(len.into())
    }

    /// What a length of two bytes stands before.
    fn long(&mut self) -> Option<&'a [u8]> {
        let len = self.number()?;
        self.take(len.into())
    }
}

/// `None`: a length lies.
fn named(hello: &[u8]) -> Option<Claim> {
    let mut hello = Reader(hello);
    // Version and random, session, cipher suites, compression.
    hello.take(2 + 32)?;
    hello.short()?;
    hello.long()?;
    hello.short()?;
    let mut name = None;
    let mut extensions = Reader(if hello.0.is_empty() { &[] } else { hello.long()? });
    while !extensions.0.is_empty() {
        let (kind, body) = (extensions.number()?, extensions.long()?);
        if kind == ENCRYPTED {
            return Some(Claim::None("its TLS hello is encrypted (ECH)"));
        }
        if kind == SERVER_NAME {
            let mut list = Reader(Reader(body).long()?);
            let (one, host) = (list.take(1)?[0], list.long()?);
            if one != 0 || !list.0.is_empty() || name.is_some() {
                return Some(Claim::None("its TLS hello names more than one host"));
            }
            name = Some(super::name(host)?);
        }
    }
    Some(name.map_or(Claim::None("its TLS hello names no host (no SNI)"), Claim::Name))
}
