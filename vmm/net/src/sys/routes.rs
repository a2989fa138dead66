//! What the host's routes say of an address (rtnetlink(7)).

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Asks for one route.
const GET: u16 = 26;
/// Says one.
const NEW: u16 = 24;
/// A message is a question.
const REQUEST: u16 = 1;
/// The attribute that is the destination.
const DESTINATION: u16 = 1;
/// The length of the head of each message, in bytes.
const HEAD: usize = 16;
/// And of what follows in messages about routes.
const ROUTE: usize = 12;
const _: () = assert!(HEAD + ROUTE == 28);
/// Both, as a message says lengths.
const HEAD_AND_ROUTE: u32 = 28;
/// Where in that the kind of route stands.
const KIND: usize = 7;

/// Kinds of routes that lead to the host itself: its addresses, and those that it has together with
/// other routers.
const OWN: [u8; 2] = [2, 4];

/// The host's routes.
#[derive(Debug)]
pub struct Routes {
    file: Option<OwnedFd>,
    number: u32,
}

impl Routes {
    /// Asks nothing yet.
    #[must_use]
    pub fn open() -> Self {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Self { file: net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None).ok(), number: 0 }
    }

    /// Whether the host would deliver to itself what is sent there. `false`: it would not, or does
    /// not say.
    pub fn is_own(&mut self, address: IpAddr) -> bool {
        self.kind(address).is_some_and(|kind| OWN.contains(&kind))
    }

    fn kind(&mut self, address: IpAddr) -> Option<u8> {
        let file = self.file.as_ref()?;
        self.number = self.number.wrapping_add(1);
        net::send(file, &question(self.number, address), SendFlags::DONTWAIT).ok()?;
        // The answer is there when the question is sent. Those of questions before may be, too.
        for _ in 0..8 {
            let mut answer = [0; 4096];
            let (len, _) = net::recv(file, &mut answer, RecvFlags::DONTWAIT).ok()?;
            if let Some((number, kind)) = read(&answer[..len])
                && number == self.number
            {
                return kind;
            }
        }
        None
    }
}

/// The message that asks for the route to an address.
fn question(number: u32, address: IpAddr) -> Vec<u8> {
    let (family, len, bytes) = match address {
        IpAddr::V4(address) => (AddressFamily::INET, 4_u16, address.octets().to_vec()),
        IpAddr::V6(address) => (AddressFamily::INET6, 16, address.octets().to_vec()),
    };
    let whole = u32::from(len) + 4 + HEAD_AND_ROUTE;
    let mut out = whole.to_ne_bytes().to_vec();
    out.extend([GET.to_ne_bytes(), REQUEST.to_ne_bytes()].concat());
    out.extend(number.to_ne_bytes());
    out.extend([0; 4]);
    out.extend([family.as_raw().to_le_bytes()[0], (len * 8).to_le_bytes()[0], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    out.extend([(len + 4).to_ne_bytes(), DESTINATION.to_ne_bytes()].concat());
    out.extend(bytes);
    out
}

/// The number of the question that a message answers, and the kind of route if it says one.
fn read(message: &[u8]) -> Option<(u32, Option<u8>)> {
    let number = u32::from_ne_bytes(*message.get(8..)?.first_chunk()?);
    let what = u16::from_ne_bytes(*message.get(4..)?.first_chunk()?);
    Some((number, (what == NEW).then(|| message.get(HEAD + KIND).copied()).flatten()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_knows_itself() {
        let mut routes = Routes::open();
        for own in ["127.0.0.1", "127.9.9.9", "::1"] {
            assert!(routes.is_own(own.parse().unwrap()), "{own}");
        }
        for other in ["192.0.2.1", "2001:db8::1"] {
            assert!(!routes.is_own(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn what_is_no_answer_is_none() {
        let answer = |kind: u8, what: u16| {
            let mut message = vec![28, 0, 0, 0];
            message.extend([what.to_ne_bytes(), [0, 0]].concat());
            message.extend(7_u32.to_ne_bytes());
            message.extend([0; 11]);
            message.push(kind);
            message
        };
        assert_eq!(read(&answer(2, NEW)), Some((7, Some(2))));
        assert_eq!(read(&answer(2, 2)), Some((7, None)));
        for cut in 0..23 {
            assert_eq!(read(&answer(2, NEW)[..cut]).and_then(|(_, kind)| kind), None);
        }
    }
}
