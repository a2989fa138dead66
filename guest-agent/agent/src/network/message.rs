//! Requests to the kernel's routing netlink, and its answers: pure, bytes in and out
//! (Documentation/userspace-api/netlink/intro.rst).

use std::net::IpAddr;

use super::{Prefix, Route};

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Every message and every attribute begins at a multiple of this.
const ALIGN: usize = 4;
/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_REPLACE`, `NLM_F_CREATE`, `NLM_F_DUMP`.
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const REPLACE: u16 = 0x100;
const CREATE: u16 = 0x400;
const DUMP: u16 = 0x300;
/// `RTEXT_FILTER_SKIP_STATS`: an interface's statistics are nine tenths of what is told of it.
const SKIP_STATISTICS: u32 = 8;
/// `RTNH_F_ONLINK`.
const ON_LINK: u32 = 4;

/// Several requests for one write. The kernel does them in their order, and tells of each that
/// fails; of those that succeed it tells of the last only.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// What each request does, by its sequence number less one.
    steps: Vec<String>,
    last: usize,
}

impl Batch {
    /// The question which interfaces there are.
    pub(super) fn interfaces() -> Self {
        let mut batch = Self::default();
        batch.begin(libc::RTM_GETLINK, DUMP, "list the interfaces".to_owned(), &[0; 16]);
        batch.attribute(libc::IFLA_EXT_MASK, &SKIP_STATISTICS.to_ne_bytes());
        batch
    }

    /// Sets an interface up, with this MTU unless that is 0.
    pub(super) fn up(&mut self, index: i32, mtu: u32) {
        let up = libc::IFF_UP.to_ne_bytes();
        let mut body = [0; 16];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        body[8..12].copy_from_slice(&up);
        body[12..16].copy_from_slice(&up);
        let step = match mtu {
            0 => "set the interface up".to_owned(),
            mtu => format!("set the interface up with an MTU of {mtu}"),
        };
        self.begin(libc::RTM_NEWLINK, 0, step, &body);
        if mtu != 0 {
            self.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes());
        }
    }

    /// Gives an address to an interface: usable at once, for ever, with a route to its prefix.
    pub(super) fn address(&mut self, index: i32, address: Prefix) {
        let mut body = [family(address.address), address.length, 0, 0, 0, 0, 0, 0];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        self.begin(libc::RTM_NEWADDR, CREATE | REPLACE, format!("set the address {address}"), &body);
        let octets = octets(address.address);
        self.attribute(libc::IFA_LOCAL, &octets);
        self.attribute(libc::IFA_ADDRESS, &octets);
        match address.address {
            IpAddr::V4(own) if address.length < 31 => {
                let broadcast = own.to_bits() | (u32::MAX >> address.length);
                self.attribute(libc::IFA_BROADCAST, &broadcast.to_be_bytes());
            }
            IpAddr::V4(_) => {}
            IpAddr::V6(_) => {
                let flags = libc::IFA_F_NODAD | libc::IFA_F_PERMANENT;
                self.attribute(libc::IFA_FLAGS, &flags.to_ne_bytes());
            }
        }
    }

    /// Adds a route by an interface. Its gateway is on the link, whatever the prefixes are.
    pub(super) fn route(&mut self, index: i32, route: Route) {
        let Route { destination, gateway } = route;
        let scope = if gateway.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK };
        let on_link = if gateway.is_some() { ON_LINK.to_ne_bytes() } else { [0; 4] };
        let mut body = [0; 12];
        body[0] = family(destination.address);
        body[1] = destination.length;
        body[4..8].copy_from_slice(&[libc::RT_TABLE_MAIN, libc::RTPROT_STATIC, scope, libc::RTN_UNICAST]);
        body[8..12].copy_from_slice(&on_link);
        let by = gateway.map(|gateway| format!(" by {gateway}")).unwrap_or_default();
        let step = format!("set the route to {destination}{by}");
        self.begin(libc::RTM_NEWROUTE, CREATE | REPLACE, step, &body);
        if destination.length > 0 {
            self.attribute(libc::RTA_DST, &octets(destination.address));
        }
        if let Some(gateway) = gateway {
            self.attribute(libc::RTA_GATEWAY, &octets(gateway));
        }
        self.attribute(libc::RTA_OIF, &index.to_ne_bytes());
    }

    fn begin(&mut self, kind: u16, flags: u16, step: String, body: &[u8]) {
        self.last = self.bytes.len();
        self.steps.push(step);
        let sequence = u32::try_from(self.steps.len()).expect("far fewer requests");
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | REQUEST).to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(body);
        self.close();
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).expect("attributes here have at most 16 bytes");
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.close();
    }

    /// Writes the length of the last request, all of whose parts are multiples of four bytes.
    fn close(&mut self) {
        let length = u32::try_from(self.bytes.len() - self.last).expect("far fewer bytes");
        self.bytes[self.last..self.last + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// The bytes to write, and what each request does. The last one asks for an answer.
    pub(super) fn finish(mut self) -> (Vec<u8>, Vec<String>) {
        let at = self.last + 6;
        if let Some(flags) = self.bytes.get(at..at + 2) {
            let flags = u16::from_ne_bytes([flags[0], flags[1]]) | ACK;
            self.bytes[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
        }
        (self.bytes, self.steps)
    }
}

/// An interface of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: i32,
    pub(super) name: String,
    /// Its hardware address; of another length for what is no Ethernet.
    pub(super) mac: Vec<u8>,
}

/// One answer of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// An interface.
    Link(Link),
    /// The request of this sequence number failed with this error; 0: it was done.
    Result(u32, i32),
    /// The end of a list.
    Done,
}

/// The answers in what was read. Those of other kinds are left out, and what is cut off ends them.
pub(super) fn answers(mut bytes: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    while let Some((kind, sequence, body, rest)) = split(bytes) {
        bytes = rest;
        let answer = match i32::from(kind) {
            libc::NLMSG_DONE => Some(Answer::Done),
            libc::NLMSG_ERROR => {
                number(body, 0).map(|error| Answer::Result(sequence, error.saturating_neg()))
            }
            _ if kind == libc::RTM_NEWLINK => link(body).map(Answer::Link),
            _ => None,
        };
        answers.extend(answer);
    }
    answers
}

/// The first message: its kind, its sequence number, what follows its header, and the rest.
fn split(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let length = usize::try_from(number(bytes, 0)?).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let sequence = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
    let body = bytes.get(HEADER..length)?;
    let rest = bytes.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
    Some((kind, sequence, body, rest))
}

/// An interface by the `struct ifinfomsg` and the attributes of its message.
fn link(body: &[u8]) -> Option<Link> {
    let index = number(body, 4)?;
    let (mut name, mut mac) = (String::new(), Vec::new());
    let mut rest = body.get(16..)?;
    while let Some(head) = rest.get(..4) {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let Some(value) = rest.get(4..length) else { break };
        match u16::from_ne_bytes([head[2], head[3]]) {
            libc::IFLA_IFNAME => {
                name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
            }
            libc::IFLA_ADDRESS => mac = value.to_vec(),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
    }
    Some(Link { index, name, mac })
}

fn number(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).expect("2 and 10")
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_the_kernels() {
        let mut batch = Batch::default();
        batch.up(7, 1400);
        batch.address(7, "10.0.2.15/24".parse().expect("a prefix"));
        batch.route(
            7,
            Route { destination: "0.0.0.0/0".parse().expect("a prefix"), gateway: "10.0.2.2".parse().ok() },
        );
        let (bytes, steps) = batch.finish();
        assert_eq!(
            steps,
            [
                "set the interface up with an MTU of 1400",
                "set the address 10.0.2.15/24",
                "set the route to 0.0.0.0/0 by 10.0.2.2"
            ]
        );
        let (kind, sequence, body, rest) = split(&bytes).expect("a message");
        assert_eq!((kind, sequence, body.len()), (libc::RTM_NEWLINK, 1, 24));
        assert_eq!(number(body, 4), Some(7));
        assert_eq!(body[16..], [[8, 0, 4, 0], 1400_u32.to_ne_bytes()].concat());
        let (kind, sequence, body, rest) = split(rest).expect("a message");
        assert_eq!((kind, sequence), (libc::RTM_NEWADDR, 2));
        assert_eq!(body[..4], [2, 24, 0, 0]);
        assert_eq!(
            body[8..],
            [8, 0, 2, 0, 10, 0, 2, 15, 8, 0, 1, 0, 10, 0, 2, 15, 8, 0, 4, 0, 10, 0, 2, 255]
        );
        let (kind, sequence, body, rest) = split(rest).expect("a message");
        assert_eq!((kind, sequence, rest.len()), (libc::RTM_NEWROUTE, 3, 0));
        assert_eq!(body[..12], [2, 0, 0, 0, 254, 4, 0, 1, 4, 0, 0, 0]);
        // Only the last asks for an answer.
        let flags = |at: usize| u16::from_ne_bytes([bytes[at + 6], bytes[at + 7]]);
        assert_eq!(
            (flags(0), flags(40), flags(40 + 48)),
            (REQUEST, REQUEST | CREATE | REPLACE, REQUEST | CREATE | REPLACE | ACK)
        );
    }

    #[test]
    fn answers_are_read_and_bad_ones_end_them() {
        let mut batch = Batch::default();
        batch.begin(libc::RTM_NEWLINK, 0, String::new(), &{
            let mut body = [0; 16];
            body[4] = 3;
            body
        });
        batch.attribute(libc::IFLA_IFNAME, b"eth0\0\0\0\0");
        batch.attribute(libc::IFLA_ADDRESS, &[2, 0, 0, 0, 0, 9, 0, 0]);
        let (mut bytes, _) = batch.finish();
        let length = bytes.len();
        bytes.extend(
            [20_u32.to_ne_bytes(), [2, 0, 0, 0], 5_u32.to_ne_bytes(), [0; 4], (-17_i32).to_ne_bytes()]
                .concat(),
        );
        let link = Link { index: 3, name: "eth0".to_owned(), mac: vec![2, 0, 0, 0, 0, 9, 0, 0] };
        assert_eq!(answers(&bytes), [Answer::Link(link.clone()), Answer::Result(5, 17)]);
        assert_eq!(answers(&bytes[..length + 19]), [Answer::Link(link)]);
        for lie in [0_u32, 15, u32::MAX] {
            bytes[..4].copy_from_slice(&lie.to_ne_bytes());
            assert_eq!(answers(&bytes), [], "{lie}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = answers(&bytes);
        }
    }
}
