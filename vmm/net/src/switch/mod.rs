//! The switch of a network of machines: a pure core, and a thin shell around it.
//!
//! Nothing is learned from frames. Whoever starts a machine says, when it joins, which address of
//! the link and which IP addresses the machine has, and a frame with any other source is dropped.
//! A frame for one machine goes to that machine and to nobody else, and one for an address that
//! nobody has goes nowhere. Questions who has an address go to whoever has it alone. What is for
//! everybody is bounded in time.

mod admit;
mod offload;
mod serve;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use crate::link::{HEADER_LEN, Hello, NetHeader};
use crate::peers::{Counters, Join, MAX_ENTRIES, MAX_NAMES_MESSAGE, MAX_PORTS, Names, Shown};
use crate::wire::Mac;

use admit::{Refusal, To};

pub use serve::{Error, Place, READY, serve};

/// The MTU of every network of machines, in bytes.
pub const MTU: usize = 1500;
/// Frames for everybody that a port may send at once.
const BURST: u32 = 200;
/// The time after which it may send one more.
const EVERY: Duration = Duration::from_millis(10);

/// A port; no two of a switch are ever the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u64);

/// What the switch says: to which port, the header of the link, and a frame.
pub type Out<'a> = dyn FnMut(PortId, &[u8; HEADER_LEN], &[u8]) + 'a;

/// A port.
#[derive(Debug)]
struct Port {
    join: Join,
    /// What its guest can receive; `None` until its driver has begun.
    hello: Option<Hello>,
    counters: Counters,
    /// Frames for everybody that it may still send, and when that was last right.
    allowance: (u32, Duration),
}

/// The switch.
#[derive(Debug)]
pub struct Switch {
    network: String,
    next: u64,
    ports: BTreeMap<PortId, Port>,
    by_mac: HashMap<Mac, PortId>,
    by_address: HashMap<IpAddr, PortId>,
}

/// A port that came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The port.
    pub port: PortId,
    /// The port of the same machine whose place it takes.
    pub instead_of: Option<PortId>,
}

impl Switch {
    /// The switch of the network with this name, without a port.
    #[must_use]
    pub fn new(network: String) -> Self {
        Self { network, next: 0, ports: BTreeMap::new(), by_mac: HashMap::new(), by_address: HashMap::new() }
    }

    /// How many ports there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ports.len()
    }

    /// Whether there is no port.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// A machine joins.
    ///
    /// # Errors
    /// Why it cannot; everything is as it was before.
    pub fn join(&mut self, now: Duration, join: Join) -> Result<Joined, String> {
        join.check()?;
        if join.mac == crate::core::OWN_MAC {
            return Err(format!("{} is the gateway's address", join.mac));
        }
        let instead_of = self.ports.iter().find(|(_, port)| port.join.id == join.id).map(|(id, _)| *id);
        let taken = |other: Option<&PortId>| other.copied().filter(|id| Some(*id) != instead_of);
        let describe = |id: PortId| {
            let join = &self.ports[&id].join;
            join.names.first().cloned().unwrap_or_else(|| join.id.get(..12).unwrap_or(&join.id).to_owned())
        };
        if let Some(other) = taken(self.by_mac.get(&join.mac)) {
            return Err(format!("the hardware address {} is that of machine {}", join.mac, describe(other)));
        }
        for address in join.addresses() {
            if let Some(other) = taken(self.by_address.get(&address)) {
                return Err(format!("the address {address} is that of machine {}", describe(other)));
            }
        }
        let others = || self.ports.iter().filter(|(id, _)| Some(**id) != instead_of).map(|(_, p)| &p.join);
        if others().count() >= MAX_PORTS {
            return Err(format!("the network has {MAX_PORTS} machines already"));
        }
        let (mut names, mut bytes) = (0, 0);
        for name in others().chain([&join]).flat_map(|join| &join.names) {
            (names, bytes) = (names + 1, bytes + name.len() + 21);
        }
        if names > MAX_ENTRIES || bytes + 512 > MAX_NAMES_MESSAGE {
            return Err(format!("the network would have more than {MAX_ENTRIES} names, or too long ones"));
        }
        if let Some(old) = instead_of {
            self.leave(old);
        }
        let port = PortId(self.next);
        self.next += 1;
        self.by_mac.insert(join.mac, port);
        self.by_address.extend(join.addresses().map(|address| (address, port)));
        let counters = Counters::default();
        self.ports.insert(port, Port { join, hello: None, counters, allowance: (BURST, now) });
        Ok(Joined { port, instead_of })
    }

    /// A machine has left.
    pub fn leave(&mut self, id: PortId) {
        let Some(port) = self.ports.remove(&id) else { return };
        self.by_mac.remove(&port.join.mac);
        for address in port.join.addresses() {
            self.by_address.remove(&address);
        }
    }

    /// The names of those who are here.
    #[must_use]
    pub fn names(&self) -> Names {
        let entries = self.ports.values().flat_map(|port| {
            let Join { names, address4, address6, .. } = &port.join;
            names.iter().map(|name| (name.clone(), *address4, *address6))
        });
        Names::new(self.network.clone(), entries)
    }

    /// Who is here.
    pub fn shown(&self) -> impl Iterator<Item = Shown> + '_ {
        self.ports.values().map(|port| Shown { machine: port.join.clone(), counters: port.counters })
    }

    /// A port did not take a frame in time.
    pub fn lost(&mut self, id: PortId) {
        if let Some(port) = self.ports.get_mut(&id) {
            port.counters.lost += 1;
        }
    }

    /// A message of a port. What comes of it is given to `out`. Gives how much work it was, in
    /// frames: one that is cut into many is many.
    pub fn message(&mut self, now: Duration, from: PortId, message: &[u8], out: &mut Out<'_>) -> usize {
        let mut work = 0;
        let mut counted = |port: PortId, head: &[u8; HEADER_LEN], frame: &[u8]| {
            work += 1;
            out(port, head, frame);
        };
        self.pass_on(now, from, message, &mut counted);
        work.max(1)
    }

    fn pass_on(&mut self, now: Duration, from: PortId, message: &[u8], out: &mut Out<'_>) {
        let Some(port) = self.ports.get_mut(&from) else { return };
        if let Some(hello) = Hello::parse(message) {
            port.hello = Some(hello);
            return;
        }
        port.counters.sent += 1;
        port.counters.sent_bytes += count(message);
        let admitted = match admit::admit(&port.join, message) {
            Ok(admitted) => admitted,
            Err(Refusal::Malformed) => return port.counters.malformed += 1,
            Err(Refusal::Forged) => return port.counters.forged += 1,
            Err(Refusal::Quiet) => return,
        };
        let one = match admitted.to {
            To::Mac(mac) => self.by_mac.get(&mac),
            To::Address(address) => self.by_address.get(&address),
            To::All => {
                // One that has to be cut for each machine would be many.
                let long = admitted.header.gso_type != NetHeader::GSO_NONE;
                if long || !port.may_tell_all(now) {
                    return port.counters.limited += 1;
                }
                for (id, other) in self.ports.iter_mut().filter(|(id, _)| **id != from) {
                    other.deliver(*id, &admitted, out);
                }
                return;
            }
        };
        let one = one.copied().filter(|id| *id != from);
        match one.and_then(|id| Some((id, self.ports.get_mut(&id)?))) {
            Some((id, other)) => other.deliver(id, &admitted, out),
            None => {
                if let Some(port) = self.ports.get_mut(&from) {
                    port.counters.nobody += 1;
                }
            }
        }
    }
}

impl Port {
    /// Whether one more frame for everybody may come.
    fn may_tell_all(&mut self, now: Duration) -> bool {
        let (left, at) = &mut self.allowance;
        let passed = now.saturating_sub(*at).min(EVERY * BURST);
        let more: u32 = crate::number::fits(passed.as_millis() / EVERY.as_millis(), "it is cut");
        if more > 0 {
            // What is not a whole step counts for the next one.
            *at = if *left + more >= BURST { now } else { *at + EVERY * more };
            *left = (*left + more).min(BURST);
        }
        let may = *left > 0;
        *left -= u32::from(may);
        may
    }

    /// Gives it a frame as its guest can receive it.
    fn deliver(&mut self, id: PortId, admitted: &admit::Admitted<'_>, out: &mut Out<'_>) {
        let Some(hello) = self.hello else {
            self.counters.lost += 1;
            return;
        };
        let counters = &mut self.counters;
        offload::fit(admitted, hello.offloads, &mut |header: NetHeader, frame: &[u8]| {
            counters.received += 1;
            counters.received_bytes += count(frame);
            out(id, &header.to_bytes(), frame);
        });
    }
}

fn count(bytes: &[u8]) -> u64 {
    crate::number::len32(bytes.len()).into()
}
