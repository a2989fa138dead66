//! The network of the guest's root namespace: what the host asks for, checked, and set by netlink;
//! and the names that containers in it read.
//!
//! A container of a machine that has a network has no network namespace of its own: the machine is
//! the boundary, it serves this container (and those that share its network), and the agent talks
//! by vsock, which knows no namespaces. Moving the interface into the container instead would cost
//! a namespace at each start and would hide the interface from further containers, for no boundary
//! more: who may administer the network (`--privileged`) can harm its own machine only.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::str::FromStr;

use nelly_protocol::messages as m;
use thiserror::Error;

use crate::sys;

mod message;
mod names;

pub use names::{Names, host_line};

use message::{Answer, Batch, Link};

/// Most of each in a request.
const MOST_INTERFACES: usize = 8;
const MOST_ADDRESSES: usize = 16;
const MOST_ROUTES: usize = 64;

/// The kernel's answers fit: it fills buffers of this size at most.
const ANSWER: usize = 32 << 10;

/// Why a network cannot be set.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// A field has an invalid value.
    #[error("network.{field} is {value:?}: {rule}")]
    Value {
        /// The name of the field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        rule: &'static str,
    },
    /// No interface has the address.
    #[error("no network interface has the hardware address {mac}; there are: {others}")]
    NoInterface {
        /// The address that was looked for.
        mac: String,
        /// The names and addresses of what there is.
        others: String,
    },
    /// A system call failed.
    #[error("cannot {0}")]
    Kernel(String, #[source] io::Error),
}

/// An address and the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl FromStr for Prefix {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, length) = text.split_once('/').ok_or(())?;
        let prefix =
            Self { address: address.parse().map_err(|_| ())?, length: length.parse().map_err(|_| ())? };
        let most = if prefix.address.is_ipv4() { 32 } else { 128 };
        if prefix.length <= most && length.bytes().all(|byte| byte.is_ascii_digit()) {
            Ok(prefix)
        } else {
            Err(())
        }
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// A route by an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Route {
    destination: Prefix,
    gateway: Option<IpAddr>,
}

/// An interface that is wanted.
#[derive(Debug, PartialEq, Eq)]
struct Interface {
    mac: [u8; 6],
    mtu: u32,
    addresses: Vec<Prefix>,
    routes: Vec<Route>,
}

fn value(field: &'static str, value: &str, rule: &'static str) -> NetworkError {
    NetworkError::Value { field, value: value.to_owned(), rule }
}

/// Sets up the network of this network namespace. Answers what containers in it read; what was set
/// before is replaced.
///
/// # Errors
/// [`NetworkError`]; an interface may then be set up in part.
pub fn set(network: &m::Network) -> Result<Names, NetworkError> {
    let interfaces = network.interfaces.iter().map(interface).collect::<Result<Vec<_>, _>>()?;
    if interfaces.len() > MOST_INTERFACES {
        return Err(value("interfaces", &interfaces.len().to_string(), "at most 8 are allowed"));
    }
    let own = interfaces.first().and_then(|first| first.addresses.first()).map(|prefix| prefix.address);
    let names = names::check(network, own)?;
    if !interfaces.is_empty() {
        apply(&interfaces)?;
    }
    Ok(names)
}

fn interface(wanted: &m::Interface) -> Result<Interface, NetworkError> {
    let mac = <[u8; 6]>::try_from(wanted.mac.as_slice())
        .map_err(|_| value("interfaces.mac", &colons(&wanted.mac), "6 bytes are needed"))?;
    if wanted.mtu != 0 && !(68..=65_535).contains(&wanted.mtu) {
        return Err(value("interfaces.mtu", &wanted.mtu.to_string(), "68 to 65535 are allowed, and 0"));
    }
    if wanted.addresses.len() > MOST_ADDRESSES || wanted.routes.len() > MOST_ROUTES {
        let counts = format!("{} and {}", wanted.addresses.len(), wanted.routes.len());
        return Err(value("interfaces.addresses and .routes", &counts, "at most 16 and 64 are allowed"));
    }
    let addresses = wanted.addresses.iter().map(|text| prefix("interfaces.addresses", text));
    let routes = wanted.routes.iter().map(|route| {
        let gateway = match route.gateway.as_str() {
            "" => None,
            text => Some(text.parse::<IpAddr>().map_err(|_| {
                value("interfaces.routes.gateway", text, "an IPv4 or IPv6 address is needed")
            })?),
        };
        let destination = match (route.destination.as_str(), gateway) {
            ("", Some(IpAddr::V4(_))) => prefix("interfaces.routes.destination", "0.0.0.0/0")?,
            ("", Some(IpAddr::V6(_))) => prefix("interfaces.routes.destination", "::/0")?,
            (text, _) => prefix("interfaces.routes.destination", text)?,
        };
        if gateway.is_some_and(|gateway| gateway.is_ipv4() != destination.address.is_ipv4()) {
            let rule = "gateway and destination must be of one family";
            return Err(value("interfaces.routes.gateway", &route.gateway, rule));
        }
        Ok(Route { destination, gateway })
    });
    Ok(Interface {
        mac,
        mtu: wanted.mtu,
        addresses: addresses.collect::<Result<_, _>>()?,
        routes: routes.collect::<Result<_, _>>()?,
    })
}

fn prefix(field: &'static str, text: &str) -> Result<Prefix, NetworkError> {
    text.parse().map_err(|()| value(field, text, "an address, / and the length of its prefix are needed"))
}

fn apply(interfaces: &[Interface]) -> Result<(), NetworkError> {
    let kernel = |what: &str| {
        let what = what.to_owned();
        move |error| NetworkError::Kernel(what, error)
    };
    let socket = sys::netlink_route().map_err(kernel("open a netlink socket"))?;
    let (question, _) = Batch::interfaces().finish();
    sys::write(socket.as_fd(), &question).map_err(kernel("list the network interfaces"))?;
    let mut links = Vec::new();
    let mut buffer = vec![0; ANSWER];
    'list: loop {
        let length = sys::read(socket.as_fd(), &mut buffer).map_err(kernel("list the network interfaces"))?;
        for answer in message::answers(&buffer[..length]) {
            match answer {
                Answer::Link(link) => links.push(link),
                Answer::Result(_, error) if error != 0 => {
                    let error = io::Error::from_raw_os_error(error);
                    return Err(NetworkError::Kernel("list the network interfaces".to_owned(), error));
                }
                Answer::Done | Answer::Result(..) => break 'list,
            }
        }
    }
    let mut batch = Batch::default();
    for wanted in interfaces {
        let link = find(&links, wanted.mac)?;
        if !wanted.addresses.is_empty() {
            keep_static(&link.name)?;
        }
        batch.up(link.index, wanted.mtu);
        wanted.addresses.iter().for_each(|address| batch.address(link.index, *address));
        wanted.routes.iter().for_each(|route| batch.route(link.index, *route));
    }
    let (requests, steps) = batch.finish();
    sys::write(socket.as_fd(), &requests).map_err(kernel("set the network interfaces up"))?;
    loop {
        let length =
            sys::read(socket.as_fd(), &mut buffer).map_err(kernel("set the network interfaces up"))?;
        for answer in message::answers(&buffer[..length]) {
            let Answer::Result(sequence, error) = answer else { continue };
            let index = usize::try_from(sequence).expect("32 bits fit");
            if error != 0 {
                let step = index.checked_sub(1).and_then(|index| steps.get(index)).cloned();
                let step = step.unwrap_or_else(|| "set the network interfaces up".to_owned());
                return Err(NetworkError::Kernel(step, io::Error::from_raw_os_error(error)));
            }
            if index == steps.len() {
                return Ok(());
            }
        }
    }
}

fn find(links: &[Link], mac: [u8; 6]) -> Result<&Link, NetworkError> {
    links.iter().find(|link| link.mac == mac).ok_or_else(|| {
        let others: Vec<_> =
            links.iter().map(|link| format!("{} ({})", link.name, colons(&link.mac))).collect();
        NetworkError::NoInterface { mac: colons(&mac), others: others.join(", ") }
    })
}

/// What was asked for is what the interface has: no further addresses and routes by router
/// advertisements, and its link-local address serves at once, too.
fn keep_static(interface: &str) -> Result<(), NetworkError> {
    for name in ["accept_ra", "accept_dad"] {
        let path = format!("/proc/sys/net/ipv6/conf/{interface}/{name}");
        match fs::write(&path, "0") {
            // A kernel without IPv6: the addresses will fail, with their own words.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(NetworkError::Kernel(format!("write {path}"), error)),
            Ok(()) => {}
        }
    }
    Ok(())
}

fn colons(mac: &[u8]) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        for (text, good) in [
            ("10.0.2.15/24", true),
            ("0.0.0.0/0", true),
            ("fd00::1/128", true),
            ("10.0.2.15", false),
            ("10.0.2.15/33", false),
            ("fd00::1/129", false),
            ("10.0.2.15/+4", false),
            ("10.0.2/24", false),
            ("/", false),
            ("", false),
        ] {
            let parsed = text.parse::<Prefix>();
            assert_eq!(parsed.is_ok(), good, "{text}");
            assert!(parsed.is_err() || parsed.expect("good").to_string() == text);
        }
    }

    #[test]
    fn what_is_asked_for_is_checked() {
        let good = m::Interface {
            mac: vec![2, 0, 0, 0, 0, 1],
            mtu: 1500,
            addresses: vec!["10.0.2.15/24".into(), "fd00::15/64".into()],
            routes: vec![m::Route { gateway: "10.0.2.2".into(), ..Default::default() }],
            ..Default::default()
        };
        let checked = interface(&good).expect("good");
        assert_eq!(checked.routes[0].destination.to_string(), "0.0.0.0/0");
        type Spoil = fn(&mut m::Interface);
        let spoils: [(Spoil, &str); 8] = [
            (|one| one.mac.truncate(5), "6 bytes"),
            (|one| one.mtu = 67, "68 to 65535"),
            (|one| one.mtu = 65_536, "68 to 65535"),
            (|one| one.addresses[0] = "10.0.2.15".into(), "length of its prefix"),
            (|one| one.addresses = vec!["10.0.2.15/24".into(); 17], "at most 16"),
            (|one| one.routes[0].gateway = "x".into(), "IPv4 or IPv6"),
            (|one| one.routes[0].gateway.clear(), "length of its prefix"),
            (|one| one.routes[0].destination = "::/0".into(), "one family"),
        ];
        for (spoil, words) in spoils {
            let mut bad = good.clone();
            spoil(&mut bad);
            let error = interface(&bad).expect_err("bad").to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
