//! The names of a network, as the switch tells them and a resolver answers them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::is_name;

/// Names that a network has at most, those that several machines share counted for each.
pub const MAX_ENTRIES: usize = 1024;
/// The longest message with names, in bytes. A larger network has no room for one more machine.
pub const MAX_NAMES_MESSAGE: usize = 60_000;

/// How a message with names begins: no frame does, whose first byte is a flag.
const MAGIC: [u8; 6] = *b"NLNM\x01\x00";

/// Who is called what. A name of several machines leads to all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    network: String,
    entries: Vec<(String, Ipv4Addr, Ipv6Addr)>,
    forward: HashMap<String, Vec<IpAddr>>,
    /// By the name that stands for an address, in small letters.
    reverse: HashMap<String, String>,
}

impl Names {
    /// The names of `network`. What is more than [`MAX_ENTRIES`] is left out. Of several names of
    /// one address the first is the one that stands for it.
    #[must_use]
    pub fn new(network: String, entries: impl IntoIterator<Item = (String, Ipv4Addr, Ipv6Addr)>) -> Self {
        let entries: Vec<_> = entries.into_iter().take(MAX_ENTRIES).collect();
        let mut names = Self { network, entries, ..Self::default() };
        for (name, four, six) in &names.entries {
            let addresses = names.forward.entry(name.clone()).or_default();
            addresses.extend([IpAddr::V4(*four), IpAddr::V6(*six)]);
            for address in [IpAddr::V4(*four), IpAddr::V6(*six)] {
                names.reverse.entry(pointer(address)).or_insert_with(|| name.clone());
            }
        }
        names
    }

    /// The addresses of a name in small letters: NAME or NAME.NETWORK. `None`: it is not known
    /// here.
    #[must_use]
    pub fn addresses(&self, name: &str) -> Option<&[IpAddr]> {
        let short = || name.strip_suffix(self.network.as_str())?.strip_suffix('.');
        let found = self.forward.get(name).or_else(|| self.forward.get(short()?));
        found.map(Vec::as_slice)
    }

    /// The name of an address, given the name that stands for the address, such as
    /// `3.0.89.10.in-addr.arpa`.
    #[must_use]
    pub fn pointed(&self, name: &str) -> Option<String> {
        self.reverse.get(name).map(|found| format!("{found}.{}", self.network))
    }

    /// The message.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let text = |bytes: &mut Vec<u8>, text: &str| {
            let text = &text.as_bytes()[..text.len().min(255)];
            bytes.extend(&crate::number::len16(text.len()).to_be_bytes()[1..]);
            bytes.extend(text);
        };
        text(&mut bytes, &self.network);
        for (name, four, six) in &self.entries {
            text(&mut bytes, name);
            bytes.extend(four.octets());
            bytes.extend(six.octets());
        }
        bytes
    }

    /// Whether a message is one with names, right or wrong.
    #[must_use]
    pub fn is_meant(message: &[u8]) -> bool {
        message.starts_with(&MAGIC)
    }

    /// Reads a message. `None`: it is another one, or lies about itself.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<Self> {
        let mut rest = message.strip_prefix(&MAGIC)?;
        let network = text(&mut rest)?;
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let name = text(&mut rest)?;
            let (four, behind) = rest.split_first_chunk::<4>()?;
            let (six, behind) = behind.split_first_chunk::<16>()?;
            rest = behind;
            entries.push((name, Ipv4Addr::from(*four), Ipv6Addr::from(*six)));
            if entries.len() > MAX_ENTRIES {
                return None;
            }
        }
        Some(Self::new(network, entries))
    }
}

/// The name at the beginning of `rest`, which begins behind it from then on.
fn text(rest: &mut &[u8]) -> Option<String> {
    let (&len, behind) = rest.split_first()?;
    let (name, behind) = behind.split_at_checked(len.into())?;
    *rest = behind;
    let name = std::str::from_utf8(name).ok()?;
    is_name(name).then(|| name.to_owned())
}

/// The name that stands for an address (RFC 1035, RFC 3596).
fn pointer(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let digits = address.octets().into_iter().rev();
            let mut name: String = digits.map(|byte| format!("{:x}.{:x}.", byte & 15, byte >> 4)).collect();
            name.push_str("ip6.arpa");
            name
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let entry = |name: &str, last: u8| {
            let six = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into());
            (name.to_owned(), Ipv4Addr::new(10, 89, 0, last), six)
        };
        Names::new("dev".into(), [entry("web", 3), entry("front", 3), entry("front", 4)])
    }

    #[test]
    fn names_are_known_alone_and_with_their_network() {
        let names = names();
        assert_eq!(names.addresses("web").unwrap(), names.addresses("web.dev").unwrap());
        assert_eq!(names.addresses("front").unwrap().len(), 4);
        for unknown in ["", "dev", ".dev", "web.", "web.de", "db", "x.web.dev", "webdev"] {
            assert_eq!(names.addresses(unknown), None, "{unknown}");
        }
        assert_eq!(names.pointed("3.0.89.10.in-addr.arpa").as_deref(), Some("web.dev"));
        let six = format!("4.{}d.f.ip6.arpa", "0.".repeat(29));
        assert_eq!(names.pointed(&six).as_deref(), Some("front.dev"));
        assert_eq!(names.pointed("9.0.89.10.in-addr.arpa"), None);
    }

    #[test]
    fn a_message_is_read_and_every_cut_and_lie_is_no_panic() {
        let names = names();
        let message = names.to_bytes();
        assert_eq!(Names::parse(&message), Some(names));
        for cut in 0..message.len() {
            let _ = Names::parse(&message[..cut]);
            for value in [0, 1, 64, 255] {
                let mut lie = message.clone();
                lie[cut] = value;
                let _ = Names::parse(&lie);
            }
        }
        let many = vec![("a".to_owned(), Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST); MAX_ENTRIES + 1];
        assert_eq!(Names::new("n".into(), many).entries.len(), MAX_ENTRIES);
    }
}
