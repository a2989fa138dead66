//! What `nelly-switch` and those on it say to each other: messages of a message socket.
//!
//! Whoever connects says one [`Request`], as JSON. A [`Request::Join`] is answered by an
//! [`Answer`]; from then on the socket is a port. The port says [`crate::link::Hello`] each time
//! that its guest's driver begins, and frames as on the link ([`crate::link`]); the switch says
//! frames, and the names of the network ([`Names`]) each time that they change. A [`Request::Show`]
//! is answered by one [`Shown`] a port, and the end.

mod names;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::wire::Mac;

pub use names::{MAX_ENTRIES, MAX_NAMES_MESSAGE, Names};

/// The longest request, in bytes.
pub const MAX_REQUEST: usize = 64 << 10;
/// The longest name, in bytes.
pub const MAX_NAME: usize = 63;
/// Names of one machine, its own among them.
pub const MAX_NAMES: usize = 64;
/// Machines on one network.
pub const MAX_PORTS: usize = 512;

/// The first message of whoever connects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// This socket is to be the port of a machine.
    Join(Join),
    /// Who is there?
    Show,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// Its id. Whoever joins with the id of a port takes that port's place.
    pub id: String,
    /// What it is called, at most [`MAX_NAMES`].
    pub names: Vec<String>,
    /// The only address of the link that it sends from.
    pub mac: Mac,
    /// Its only IPv4 address.
    pub address4: Ipv4Addr,
    /// Its only IPv6 address, beside the link-local one that belongs to `mac`.
    pub address6: Ipv6Addr,
}

/// How a join went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The socket is a port.
    Joined,
    /// Why it is none.
    Refused(String),
}

/// A port, and what was counted of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The machine.
    pub machine: Join,
    /// What was counted.
    pub counters: Counters,
}

/// What was counted of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Frames of the machine.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames for the machine.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames of the machine that lie about themselves, or are of a kind that is not passed on.
    pub malformed: u64,
    /// Frames of the machine with an address that is not its own.
    pub forged: u64,
    /// Frames of the machine for nobody who is here.
    pub nobody: u64,
    /// Frames of the machine to everybody that were more than may come.
    pub limited: u64,
    /// Frames for the machine that it did not take in time.
    pub lost: u64,
}

/// Whether a text may be a name: `[a-z0-9][a-z0-9_.-]*`, at most [`MAX_NAME`] bytes.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=MAX_NAME).contains(&text.len())
        && text.bytes().next().is_some_and(plain)
        && text.bytes().all(|c| plain(c) || matches!(c, b'_' | b'.' | b'-'))
}

impl Join {
    /// Whether everything in it is possible, without regard to others.
    ///
    /// # Errors
    /// What is not.
    pub fn check(&self) -> Result<(), String> {
        if !(1..=64).contains(&self.id.len()) || !self.id.bytes().all(|c| c.is_ascii_alphanumeric()) {
            return Err("the id is not 1 to 64 letters and digits".to_owned());
        }
        if self.names.len() > MAX_NAMES {
            return Err(format!("{} names are more than {MAX_NAMES}", self.names.len()));
        }
        if let Some(bad) = self.names.iter().find(|name| !is_name(name)) {
            return Err(format!(
                "{bad:?} is not a name: [a-z0-9][a-z0-9_.-]*, at most {MAX_NAME} characters"
            ));
        }
        if !self.mac.is_unicast() {
            return Err(format!("{} is not the address of one device", self.mac));
        }
        let four = self.address4;
        if four.is_unspecified() || four.is_multicast() || four.is_loopback() || four.is_broadcast() {
            return Err(format!("{four} is not the address of one machine"));
        }
        let six = self.address6;
        if six.is_unspecified() || six.is_multicast() || six.is_loopback() || six.is_unicast_link_local() {
            return Err(format!("{six} is not the address of one machine"));
        }
        Ok(())
    }

    /// The addresses that it may send from: its own, and the link-local one of its `mac`.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 3] {
        [self.address4.into(), self.address6.into(), link_local(self.mac).into()]
    }
}

/// The link-local address that belongs to an address of the link (RFC 4291, appendix A).
#[must_use]
pub fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from_octets([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join() -> Join {
        Join {
            id: "ab12".into(),
            names: vec!["web".into()],
            mac: Mac([0x52, 0x54, 0, 1, 2, 3]),
            address4: Ipv4Addr::new(10, 89, 0, 3),
            address6: "fd00::3".parse().unwrap(),
        }
    }

    #[test]
    fn what_is_said_is_read() {
        for request in [Request::Join(join()), Request::Show] {
            let text = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
        }
        assert!(serde_json::from_str::<Request>(r#"{"leave":{}}"#).is_err());
        assert_eq!(join().check(), Ok(()));
        assert_eq!(link_local(join().mac).to_string(), "fe80::5054:ff:fe01:203");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        type Change = fn(&mut Join);
        let changes: [Change; 11] = [
            |join| join.id.clear(),
            |join| join.id = "x".repeat(65),
            |join| join.id = "a/b".into(),
            |join| join.names = vec!["a".into(); MAX_NAMES + 1],
            |join| join.names.push(String::new()),
            |join| join.names.push("Web".into()),
            |join| join.names.push("a".repeat(MAX_NAME + 1)),
            |join| join.mac = Mac::BROADCAST,
            |join| join.address4 = Ipv4Addr::BROADCAST,
            |join| join.address6 = Ipv6Addr::LOCALHOST,
            |join| join.address6 = link_local(join.mac),
        ];
        for (at, change) in changes.into_iter().enumerate() {
            let mut changed = join();
            change(&mut changed);
            assert!(changed.check().is_err(), "{at}");
        }
    }
}
